"""Checkpoints as other people's programs write them: wrapped, prefixed, with numbers of numpy, of encoders near to ours."""
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from config import load_config
from models import build_model, load_pretrained
from tools.consolidate import main as consolidate
from tools.convert import convert
from utils.checkpoint import load_checkpoint

from ..helpers import perturb, state_of, tiny_model

KEYS = ("model", "state_dict", "model_state_dict", "module", "network", "teacher", "student", "model_ema", "ema",
        "state_dict_ema", "params")
PREFIXES = ("model.", "net.", "backbone.", "module.backbone.", "_orig_mod.", "student.encoder_q.", "a.b.c.")


def under(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


def content_of(kind, weights, others):
    """What a file of a kind holds, with other weights where it holds two."""
    how, _, word = kind.partition(" ")
    if how == "key":
        return {word: weights, "epoch": 3}
    if how == "prefix":
        return {"state_dict": under(word, weights)}
    return {
        "alone with a prefix": under("net.", weights), "Lightning": {"state_dict": under("model.", weights), "callbacks": {}},
        "nested": {"checkpoint": {"model": weights}}, "doubly nested": {"checkpoint": {"state_dict": {"model": weights}}},
        "DINO": {"student": under("module.backbone.", others),
                 "teacher": under("backbone.", weights) | {"head.mlp.0.weight": torch.ones(2, 2)}},
        "weights and their average": {"model": weights, "model_ema": others},
        "with an optimizer": {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "model_state_dict": weights},
        "arrays of numpy": {"model": {name: value.numpy() for name, value in weights.items()}},
        "a number of numpy": {"model": weights, "best": np.float64(83.1), "count": np.int32(3), "name": np.str_("x"),
                              "rates": np.arange(3.0), "flag": np.bool_(True), "half": np.float16(1)}}[kind]


MORE = ("alone with a prefix", "Lightning", "nested", "doubly nested", "DINO", "weights and their average", "with an optimizer",
        "arrays of numpy", "a number of numpy")


@pytest.mark.parametrize("kind", [*(f"key {key}" for key in KEYS), *(f"prefix {prefix}" for prefix in PREFIXES), *MORE])
@pytest.mark.parametrize("encoder", ["swin", "vit"])
def test_weights_are_found_wherever_they_stand(encoder, kind, tmp_path):
    source, other = (perturb(tiny_model(encoder, is_pretrain=False), seed) for seed in (1, 2))
    torch.save(content_of(kind, source.state_dict(), other.state_dict()), tmp_path / "x.pth")
    model = tiny_model(encoder, is_pretrain=False, seed=9)
    load_pretrained(model, tmp_path / "x.pth")
    expected = source.state_dict()
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, expected[name])] == []


@pytest.mark.parametrize("key", ["model_ema", "model", ""])
def test_one_of_several_is_chosen_and_said(key, tmp_path, caplog):
    weights = {name: perturb(tiny_model("swin", is_pretrain=False), seed).state_dict()
               for seed, name in enumerate(("model_ema", "model"))}
    torch.save(weights, tmp_path / "x.pth")
    model = tiny_model("swin", is_pretrain=False, seed=9)
    with caplog.at_level(logging.INFO):
        load_pretrained(model, tmp_path / "x.pth", key)
    taken, left = ("model_ema", "model") if key == "model_ema" else ("model", "model_ema")
    assert all(torch.equal(value, weights[taken][name]) for name, value in model.state_dict().items())
    assert f"taken from {taken}; weights are also under {left} (PRETRAINED_KEY" in caplog.text


def test_key_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    torch.save({"model": tiny_model("swin").state_dict(), "ema": {"a": torch.ones(1)}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="PRETRAINED_KEY=teacher is not in the file.*: model, ema"):
        load_pretrained(tiny_model("swin"), tmp_path / "x.pth", "teacher")


@pytest.mark.parametrize("part", ["register_tokens", "reg_token", "blocks.0.mlp.w12.weight", "blocks.0.attn.q_norm.weight"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_encoder_with_a_part_that_ours_lack_is_refused_by_its_name(part, prefix, tmp_path):
    model = tiny_model("vit", is_pretrain=False)
    torch.save({"model": under(prefix, model.state_dict() | {part: torch.ones(1, 4, 16)})}, tmp_path / "x.pth")
    before = state_of(model)
    with pytest.raises(ValueError, match=rf"x.pth holds an encoder with .* \({prefix}{part}\), which none"):
        load_pretrained(model, tmp_path / "x.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("value", [np.array([1, "a"], dtype=object), np.zeros(2, dtype="f4,i4"), np.datetime64("2020-01-01"),
                                   np.array([print], dtype=object)])
def test_objects_and_structures_of_numpy_are_refused(value, tmp_path):
    torch.save({"model": {}, "x": value}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="x.pth"):
        load_checkpoint(tmp_path / "x.pth")


# ---- wrapped by programs, and in other formats --------------------------------------------------------------------

def inside(part, weights):
    """Weights of block 0 of stage 0 with a wrapper in the middle of their names."""
    return {name.replace("layers.0.blocks.0.", f"layers.0.blocks.0.{part}"): value for name, value in weights.items()}


WRAPPED = {
    "FSDP": lambda w: under("_fsdp_wrapped_module.", inside("_fsdp_wrapped_module.", w)),
    "activation checkpointing": lambda w: inside("_checkpoint_wrapped_module.", w),
    "compiled blocks": lambda w: inside("_orig_mod.", w),
    "compiled and distributed": lambda w: {"model": under("_orig_mod.module.", w)},
    "DeepSpeed": lambda w: {"module": under("module.", w), "ds_config": {}, "optimizer": None},
    "average of torch": lambda w: {"state_dict": under("module.", w) | {"n_averaged": torch.tensor(3)}},
    "average of timm": lambda w: {"model_ema": {"module": w}},
    "student without a teacher": lambda w: {"teacher": None, "student": w},
    "parameters": lambda w: {"model": {name: torch.nn.Parameter(v) if v.is_floating_point() else v for name, v in w.items()}},
    "text beside the weights": lambda w: {**w, "note": "x", "epoch": 3},
    "double precision": lambda w: {"model": {name: v.double() if v.is_floating_point() else v for name, v in w.items()}},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_of_programs_that_wrap_models_are_found(kind, tmp_path):
    source, model = (perturb(tiny_model("swin", is_pretrain=False), seed) for seed in (1, 2))
    torch.save(WRAPPED[kind](source.state_dict()), tmp_path / "x.pth")
    report = load_pretrained(model, tmp_path / "x.pth")
    assert report.missing == report.unexpected == []
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_that_of_the_model(dtype, tmp_path):
    source, model = (perturb(tiny_model("vit", is_pretrain=False), seed) for seed in (1, 2))
    halves = {name: value.to(dtype) if value.is_floating_point() else value for name, value in source.state_dict().items()}
    torch.save(halves, tmp_path / "x.pth")
    load_pretrained(model, tmp_path / "x.pth")
    assert all(torch.equal(value, halves[name].to(value.dtype)) for name, value in model.state_dict().items())


@pytest.mark.parametrize("ending", ["pth", "bin", "ckpt", "safetensors"])
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_format_is_told_by_the_content(ending, save, tmp_path):
    source, model = (perturb(tiny_model("vit", is_pretrain=False), seed) for seed in (1, 2))
    save(source.state_dict(), tmp_path / f"x.{ending}")
    load_pretrained(model, tmp_path / f"x.{ending}")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


# ---- what is no checkpoint, or holds no weights -------------------------------------------------------------------

SAVE = r"save the weights alone: torch\.save\({'model': model\.state_dict\(\)}, path\)"
CODES = r"x\.pth holds weights as {} in \d+ of \d+ tensors \(.*weight.*without their scales .*float32"


def as_type(dtype):
    return lambda w: {"model": {name: value.to(dtype) for name, value in w.items()}}


def quantised(weights):
    return {name: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8) if value.is_floating_point() else value
            for name, value in weights.items()}


REFUSED = {  # what a file holds, what is said
    "nothing": (lambda w: {}, rf"x\.pth holds no weights: .*Its entries are none\. .*{SAVE}"),
    "a list": (lambda w: list(w.values()), rf"x\.pth holds list, expected a dictionary of weights\. .*{SAVE}"),
    "one tensor": (lambda w: torch.ones(3), rf"x\.pth holds Tensor, expected .*{SAVE}"),
    "None": (lambda w: None, rf"x\.pth holds NoneType, expected .*{SAVE}"),
    "an optimizer": (lambda w: {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
                     rf"holds no weights: .*Its entries are optimizer\. .*{SAVE}"),
    "the state of an optimizer": (lambda w: torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
                                  rf"holds no weights: .*Its entries are state, param_groups\. .*{SAVE}"),
    "a list of averages": (lambda w: {"ema": {"shadow_params": list(w.values())}}, rf"holds no weights: .*are ema\. .*{SAVE}"),
    "a model": (lambda w: tiny_model("swin", is_pretrain=False), rf"SwinTransformer, which is code, not data: .*{SAVE}"),
    "int8": (as_type(torch.int8), CODES.format("int8")),
    "booleans": (as_type(torch.bool), CODES.format("bool")),
    "complex numbers": (as_type(torch.complex64), CODES.format("complex64")),
    "float8": (as_type(torch.float8_e4m3fn), CODES.format("float8_e4m3fn")),
    "quantised": (quantised, CODES.format("qint8")),
    "numbers instead of tensors": (lambda w: dict.fromkeys(w, torch.tensor(1.0)),
                                   r"is \(\) there, \(8, 3, 4, 4\) in the model"),
    "a width of twice the size": (lambda w: {name: torch.cat([v, v]) for name, v in w.items() if v.ndim},
                                  "MODEL.SWIN.EMBED_DIM is 16 in the file and 8 here: use the settings"),
    "a weight less": (lambda w: {name: w[name] for name in w if name != "layers.0.blocks.0.mlp.fc1.weight"},
                      r"example layers\.0\.blocks\.0\.mlp\.fc1\.weight is not in the file"),
    "a ResNet": (lambda w: {"conv1.weight": torch.ones(4, 3, 3, 3), "fc.weight": torch.ones(2, 2)},
                 r"of a kind that is not known: they are named conv1\.weight, fc\.weight"),
    "LoRA": (lambda w: {f"{name}.lora_A": value for name, value in w.items()}, r"not known: they are named .*lora_A"),
    "NaN": (lambda w: {name: value * float("nan") for name, value in w.items()}, "NaN or infinite values"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_holds_no_weights_of_this_model_is_refused_in_one_line(kind, tmp_path):
    model = tiny_model("swin", is_pretrain=False, seed=9)
    make, said = REFUSED[kind]
    torch.save(make(perturb(tiny_model("swin", is_pretrain=False)).state_dict()), tmp_path / "x.pth")
    before = state_of(model)
    with pytest.raises(ValueError, match=said) as refusal:
        load_pretrained(model, tmp_path / "x.pth")
    assert "x.pth" in str(refusal.value) and "\n" not in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def traced(path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)


OTHERS = {  # what writes a file, what it is said to be
    "Git LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), ".*git lfs pull"),
    "a web page": (lambda path: path.write_text("\n<!DOCTYPE html><html></html>"), "a web page, .*download that anew"),
    "an index": (lambda path: path.write_text('{"weight_map": {}}'), "JSON: .*one by one"),
    "numpy.savez": (lambda path: np.savez(path.open("wb"), a=np.ones(3)), f"arrays of numpy.savez.*{SAVE}"),
    "TorchScript": (traced, f"a program of TorchScript.*{SAVE}"),
    "torch.export": (lambda path: torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)),
                                                    path.open("wb")), f"a program of torch.export.*{SAVE}"),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "HDF5"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", OTHERS)
def test_file_that_is_no_checkpoint_is_said_to_be_what_it_is(kind, tmp_path):
    write, said = OTHERS[kind]
    write(tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt is no checkpoint: it is {said}"):
        load_checkpoint(tmp_path / "x.pt")


def test_folder_of_another_project_is_refused_with_its_files(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"Give one of its files: model\.safetensors"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("program", [lambda source, target: convert(source, target, "timm"),
                                     lambda source, target: consolidate(SimpleNamespace(
                                         source=source, target=target, encoder=False, PRETRAINED_KEY=None))],
                         ids=["convert", "consolidate"])
def test_tools_refuse_a_file_without_weights_and_write_nothing(program, tmp_path):
    torch.save({"optimizer": {}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"x.pth holds no weights: .*{SAVE}"):
        program(tmp_path / "x.pth", tmp_path / "y.pth")
    assert not (tmp_path / "y.pth").exists()


# ---- layer scales of timm -----------------------------------------------------------------------------------------

def timm_vit(no_class_position):
    timm = pytest.importorskip("timm.models.vision_transformer")
    return timm.VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5, init_values=0.1,
                                  no_embed_class=no_class_position)


@pytest.mark.parametrize("no_class_position", [False, True], ids=["DINOv2", "DeiT III"])
def test_vit_of_timm_with_layer_scale_computes_the_same(no_class_position, tmp_path):
    theirs = perturb(timm_vit(no_class_position)).eval()
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    vit = {"EMBED_DIM": 24, "DEPTH": 2, "NUM_HEADS": 2, "PATCH_SIZE": 8, "K_BIAS": True, "USE_APE": True,
           "USE_SHARED_RPB": False, "INIT_VALUES": 0.1, "USE_MEAN_POOLING": False}
    settings = {"MODEL.TYPE": "vit", "DATA.IMG_SIZE": 32, "MODEL.NUM_CLASSES": 5,
                **{f"MODEL.VIT.{key}": vit[key] for key in vit}}
    ours = build_model(load_config(None, [word for pair in settings.items() for word in pair]), is_pretrain=False).eval()
    load_pretrained(ours, tmp_path / "x.pth")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-5)
