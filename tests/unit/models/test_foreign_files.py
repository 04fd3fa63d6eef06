"""Checkpoints as other people's programs write them: wrapped, prefixed, with numbers of numpy, of encoders near to ours."""
import datetime
import gzip
import json
import logging
import pickle
import sys
import uuid
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from config import load_config
from models import build_model, load_pretrained
from tools.consolidate import main as consolidate
from tools.convert import convert
from utils.checkpoint import load_checkpoint
from utils.stand_ins import Nothing

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
        "nested in names of one's own": {"run": {"my_net": {"best": weights}}, "epoch": 3},
        "beside a decoder": {"encoder": weights, "decoder": {"up.weight": torch.ones(2, 2)}},
        "as pairs": list(weights.items()), "as pairs under a key": {"model": tuple(weights.items())},
        "DINO": {"student": under("module.backbone.", others),
                 "teacher": under("backbone.", weights) | {"head.mlp.0.weight": torch.ones(2, 2)}},
        "weights and their average": {"model": weights, "model_ema": others},
        "with an optimizer": {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "model_state_dict": weights},
        "arrays of numpy": {"model": {name: value.numpy() for name, value in weights.items()}},
        "a number of numpy": {"model": weights, "best": np.float64(83.1), "count": np.int32(3), "name": np.str_("x"),
                              "rates": np.arange(3.0), "flag": np.bool_(True), "half": np.float16(1)}}[kind]


MORE = ("alone with a prefix", "Lightning", "nested", "doubly nested", "DINO", "weights and their average", "with an optimizer",
        "arrays of numpy", "a number of numpy", "nested in names of one's own", "beside a decoder", "as pairs",
        "as pairs under a key")


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


# ---- objects of other programs ------------------------------------------------------------------------------------

@pytest.fixture
def classes_of_others(monkeypatch):
    """{name: class} of classes that a program has under names of other projects while it saves, as theirs would."""
    found = {}
    for place in ("mmengine.logging.history_buffer.HistoryBuffer", "omegaconf.dictconfig.DictConfig", "easydict.EasyDict",
                  "lightning.pytorch.callbacks.Timer", "someones.Config"):
        module, _, name = place.rpartition(".")
        parts = module.split(".")
        for i in range(len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i + 1]), ModuleType(parts[i]))
        kind = type(name, (dict,) if name == "EasyDict" else (), {"__module__": module, "mean": lambda self: 1})
        setattr(sys.modules[module], name, kind)
        found[name] = kind
    return found


def test_objects_of_known_programs_beside_the_weights_are_read_as_nothing(classes_of_others, tmp_path, monkeypatch):
    source, model = (perturb(tiny_model("swin", is_pretrain=False), seed) for seed in (1, 2))
    history, settings = classes_of_others["HistoryBuffer"](), classes_of_others["EasyDict"](lr=1, names=["a"])
    history.values, history.methods = np.ones(3), {"mean": history.mean}
    beside = [Path("/x"), datetime.datetime(2026, 1, 2), defaultdict(list, {"a": [1]}), SimpleNamespace(a=1), uuid.uuid4(),
              classes_of_others["DictConfig"](), {"loss": history}, settings, classes_of_others["Timer"]()]
    torch.save({"meta": settings, "message_hub": beside, "state_dict": source.state_dict()}, tmp_path / "x.pth")
    for name in ("mmengine", "omegaconf", "easydict", "lightning"):  # whoever reads the file has none of these programs
        for module in [module for module in sys.modules if module.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
    load_pretrained(model, tmp_path / "x.pth")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    content = load_checkpoint(tmp_path / "x.pth")
    assert content["meta"] == {"lr": 1, "names": ["a"]} and content["message_hub"][2] == {"a": [1]}
    assert {type(item) for item in content["message_hub"]} <= {Nothing, OrderedDict, dict}


def test_objects_of_other_programs_are_refused_by_name(classes_of_others, tmp_path):
    torch.save({"model": {}, "config": classes_of_others["Config"]()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth holds someones\.Config, which is code, not data: refused"):
        load_checkpoint(tmp_path / "x.pth")


def test_function_that_is_read_as_nothing_is_not_called(tmp_path):
    class Asks:
        def __reduce__(self):
            return getattr, ("text", "upper")

    torch.save({"model": {}, "result": Asks(), "function": getattr}, tmp_path / "x.pth")
    content = load_checkpoint(tmp_path / "x.pth")
    assert type(content["result"]) is Nothing is content["function"]


# ---- a model in several files -------------------------------------------------------------------------------------

def write_parts(folder, weights, ending="safetensors"):
    """Two files and their table, as transformers writes them; the path of the table."""
    names, files = list(weights), [f"model-0000{i}-of-00002.{ending}" for i in (1, 2)]
    places = {name: files[i >= len(names) // 2] for i, name in enumerate(names)}
    for file in files:
        part = {name: weights[name].contiguous() for name in names if places[name] == file}
        (save_file if ending == "safetensors" else torch.save)(part, folder / file)
    table = folder / f"model.{ending}.index.json"
    table.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return table


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("given", ["table", "folder"])
def test_model_in_parts_is_read_whole(given, ending, tmp_path):
    source, model = (perturb(tiny_model("vit", is_pretrain=False), seed) for seed in (1, 2))
    table = write_parts(tmp_path, source.state_dict(), ending)
    load_pretrained(model, tmp_path if given == "folder" else table)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_folder_with_one_file_of_weights_is_read(name, tmp_path):
    source = perturb(tiny_model("vit", is_pretrain=False))
    (save_file if name.endswith("safetensors") else torch.save)(source.state_dict(), tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    load_pretrained(tiny_model("vit", is_pretrain=False, seed=9), tmp_path)


def without_a_part(table):
    table.with_name("model-00002-of-00002.safetensors").unlink()
    return table


def of_another_folder(table):
    table.write_text(table.read_text().replace("model-00002", "../model-00002"))
    return table


def of_another_model(table):
    table.write_text(table.read_text().replace('"weight_map": {', '"weight_map": {"w": "model-00001-of-00002.safetensors", '))
    return table


def without_a_map(table):
    table.write_text("[1]")
    return table


@pytest.mark.parametrize("spoil, said", [
    (without_a_part, "names 2 parts, of which 1 are not there: model-00002-of-00002.safetensors. Fetch them"),
    (of_another_folder, "names a part that is not beside it"),
    (of_another_model, "says that w is in .*-00001-.*different models"),
    (without_a_map, "is no table of parts of a model"),
    (lambda table: table.with_name("model-00001-of-00002.safetensors"), r"one of 2 parts of a model: give .*\.index\.json"),
    (lambda table: table.unlink() or table.with_name("model-00001-of-00002.safetensors"), r"fetch model\.safetensors\.index")])
def test_parts_that_are_no_whole_are_refused(spoil, said, tmp_path):
    table = spoil(write_parts(tmp_path, tiny_model("swin", is_pretrain=False).state_dict()))
    with pytest.raises(ValueError, match=said):
        load_checkpoint(table)


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
    "a block more": (lambda w: {**w, **{name.replace("blocks.1.", "blocks.2."): w[name] for name in w if "blocks.1." in name}},
                     r"for example layers\.0\.blocks\.2\..* is not in the model.*MODEL\.SWIN\.DEPTHS is \[3, 3\]"),
    "a weight less": (lambda w: {name: w[name] for name in w if name != "layers.0.blocks.0.mlp.fc1.weight"},
                      r"example layers\.0\.blocks\.0\.mlp\.fc1\.weight is not in the file"),
    "a ResNet": (lambda w: {"conv1.weight": torch.ones(4, 3, 3, 3), "fc.weight": torch.ones(2, 2)},
                 r"of a kind that is not known: they are named conv1\.weight, fc\.weight"),
    "parts beside the encoder": (
        lambda w: {**w, "bn.weight": torch.ones(3)},
        r"all 63 tensors of this encoder and 1 that it has not, e\.g\. bn\.weight: .*startswith\('bn\.'\)"),
    "two models": (lambda w: {"one": w, "two": w}, "weights stand under one, two, none .*: choose .*PRETRAINED_KEY one"),
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
    assert ("x.pth" in str(refusal.value) or kind == "two models") and "\n" not in str(refusal.value)
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
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x")), r"compressed by gzip: unpack it first \(gunzip\)"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1}, 4)), f"a pickle that torch.save has not written.*{SAVE}"),
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
    (tmp_path / "last.safetensors").touch()
    with pytest.raises(ValueError, match=r"Give one of its files: last\.safetensors"):
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
