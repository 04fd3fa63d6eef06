"""Checkpoints converted by tools/convert.py: what is written, what is said, what is refused."""
import pytest
import torch

from models import load_pretrained
from models.weights.layouts import KINDS, LAYOUTS, kind_of, read_layout
from tools import consolidate
from tools import convert as tool
from utils.checkpoint import load_checkpoint, save_checkpoint, weights_of

from .helpers import largest_difference, perturb, tiny_model

KIND = {"swin": "swin", "swinv2": "swinv2", "vit": "relative_vit"}
MAE = {"MODEL.VIT.K_BIAS": True, "MODEL.VIT.USE_SINCOS_APE": True, "MODEL.VIT.USE_SHARED_RPB": False,
       "MODEL.VIT.INIT_VALUES": None}
DECODER = {"MODEL.METHOD": "mae", "MODEL.MAE.DECODER_EMBED_DIM": 32, "MODEL.MAE.DECODER_DEPTH": 2}
FOUR_STAGES = {"DATA.IMG_SIZE": [64, 64], "DATA.MASK_PATCH_SIZE": 32} | {
    f"MODEL.{encoder}.{key}": [1, 1, 1, 1] for encoder in ("SWIN", "SWINV2") for key in ("DEPTHS", "NUM_HEADS")}
HEADLESS = ("mmsegmentation",)  # layouts that have no classifier
PAIRS = [(encoder, layout) for layout in LAYOUTS for encoder in KIND if KIND[encoder] in LAYOUTS[layout]]


def settings_of(encoder):
    """A Swin of four stages, since some know no other, with windows that never shrink."""
    return FOUR_STAGES | {f"MODEL.{encoder.upper()}.WINDOW_SIZE": 2} if encoder.startswith("swin") else {}


def saved(model, path):
    save_checkpoint(path, {"model": model.state_dict(), "epoch": 3})
    return path


@pytest.mark.parametrize(("encoder", "layout"), PAIRS)
@pytest.mark.parametrize(("is_pretrain", "ending"), [(True, "pth"), (False, "safetensors")])
def test_model_comes_back_from_any_layout(encoder, layout, ending, is_pretrain, tmp_path):
    source = perturb(tiny_model(encoder, settings_of(encoder), is_pretrain))
    there, back = tmp_path / f"there.{ending}", tmp_path / "back.pth"
    tool.convert(saved(source, tmp_path / "source.pth"), there, layout)
    tool.convert(there, back, "ours", layout)
    model = tiny_model(encoder, settings_of(encoder), is_pretrain=False, seed=9)
    report = load_pretrained(model, back)
    assert set(report.missing) == ({"head.weight", "head.bias"} if is_pretrain or layout in HEADLESS else set())
    encoders = [(part.encoder if hasattr(part, "encoder") else part).state_dict() for part in (source, model)]
    states = [{name: value for name, value in state.items() if not name.startswith(("head.", "mask_token"))}
              for state in encoders]
    assert largest_difference(*states) == 0
    assert largest_difference(model.state_dict(), load_model(there, encoder).state_dict()) == 0


def load_model(path, encoder):
    """A classifier that took the converted file as it is."""
    model = tiny_model(encoder, settings_of(encoder), is_pretrain=False, seed=9)
    load_pretrained(model, path)
    return model


@pytest.mark.parametrize("layout", ["ours", "official"])
@pytest.mark.parametrize("encoder", KIND)
def test_pretraining_model_keeps_its_decoder(encoder, layout, tmp_path):
    source = perturb(tiny_model(encoder))
    tool.convert(saved(source, tmp_path / "source.pth"), tmp_path / "there.pth", layout)
    assert largest_difference(weights_of(load_checkpoint(tmp_path / "there.pth")), source.state_dict()) == 0


@pytest.mark.parametrize(("layout", "entry"), [
    ("ours", "model"), ("official", "model"), ("timm", None), ("transformers", None), ("mmpretrain", "state_dict"),
    ("detectron2", "model"), ("mmdetection", "state_dict"), ("mmsegmentation", "state_dict")])
def test_weights_stand_where_the_project_looks_for_them(layout, entry, tmp_path):
    tool.convert(saved(tiny_model("vit", MAE, is_pretrain=False), tmp_path / "source.pth"), tmp_path / "there.pth", layout)
    there = load_checkpoint(tmp_path / "there.pth")
    assert list(there) == [entry] if entry else all(isinstance(value, torch.Tensor) for value in there.values())


def test_mask_token_of_an_encoder_alone_stays_that_of_the_encoder():
    state = tiny_model("vit", MAE).encoder.state_dict()  # SimMIM with a ViT of MAE's kind
    ours, _, unknown = read_layout(state, "encoder.pth")
    assert "encoder.mask_token" in ours and "decoder.mask_token" not in ours and unknown == []


def test_mae_goes_to_official_names_and_back(tmp_path):
    source = perturb(tiny_model("vit", MAE | DECODER))
    tool.convert(saved(source, tmp_path / "source.pth"), tmp_path / "there.pth", "official")
    assert {"decoder_embed.weight", "mask_token", "blocks.0.norm1.weight"} <= load_checkpoint(tmp_path / "there.pth")[
        "model"].keys()
    tool.convert(tmp_path / "there.pth", tmp_path / "back.safetensors", "ours")
    assert largest_difference(weights_of(load_checkpoint(tmp_path / "back.safetensors")), source.state_dict()) == 0


@pytest.mark.parametrize("layout", ["detectron2", "mmdetection"])
def test_backbone_of_mae_stands_alone_at_the_root(layout, tmp_path):
    source = perturb(tiny_model("vit", MAE | DECODER))
    lines = tool.convert(saved(source, tmp_path / "source.pth"), tmp_path / "there.pth", layout)
    expected = source.encoder.state_dict()
    assert largest_difference(weights_of(load_checkpoint(tmp_path / "there.pth")), expected) == 0
    assert "left out, because there is nothing like it there: decoder." in lines[-1]


def test_backbone_of_mae_has_the_names_of_mmsegmentation(tmp_path):
    source = perturb(tiny_model("vit", MAE | DECODER))
    tool.convert(saved(source, tmp_path / "source.pth"), tmp_path / "there.pth", "mmsegmentation")
    there = load_checkpoint(tmp_path / "there.pth")["state_dict"]
    first = {"ln1", "attn.qkv", "attn.proj", "ln2", "ffn.layers.0.0", "ffn.layers.1"}
    assert {name.removeprefix("layers.0.").rpartition(".")[0] for name in there if name.startswith("layers.0.")} == first
    assert {name for name in there if not name.startswith("layers.")} == {
        "cls_token", "pos_embed", "patch_embed.projection.weight", "patch_embed.projection.bias", "ln1.weight", "ln1.bias"}
    tool.convert(tmp_path / "there.pth", tmp_path / "back.pth", "ours", "mmsegmentation")
    assert largest_difference(weights_of(load_checkpoint(tmp_path / "back.pth")), source.encoder.state_dict()) == 0


@pytest.mark.parametrize("layout", ["detectron2", "mmdetection"])
def test_swin_for_detection_has_official_names_without_what_follows_from_the_sizes(layout, tmp_path):
    source = perturb(tiny_model("swin"))
    tool.convert(saved(source, tmp_path / "source.pth"), tmp_path / "there.pth", layout)
    there = load_checkpoint(tmp_path / "there.pth")["model" if layout == "detectron2" else "state_dict"]
    expected = {name: value for name, value in source.encoder.named_parameters() if name != "mask_token"}
    assert largest_difference(there, expected) == 0


def test_swin_has_the_names_of_mmsegmentation_and_comes_from_a_segmenter(tmp_path):
    source = perturb(tiny_model("swin", settings_of("swin")))
    tool.convert(saved(source, tmp_path / "source.pth"), tmp_path / "there.pth", "mmsegmentation")
    there = load_checkpoint(tmp_path / "there.pth")["state_dict"]
    block = "stages.1.blocks.0."
    assert {name.removeprefix(block).rpartition(".")[0] for name in there if name.startswith(block)} == {
        "norm1", "attn.w_msa", "attn.w_msa.qkv", "attn.w_msa.proj", "norm2", "ffn.layers.0.0", "ffn.layers.1"}
    assert {"norm3.weight", "stages.0.downsample.reduction.weight", "patch_embed.projection.weight"} <= there.keys()
    segmenter = {f"backbone.{name}": value for name, value in there.items()} | {
        "backbone.norm1.weight": torch.ones(16), "decode_head.conv_seg.weight": torch.ones(2, 2)}
    save_checkpoint(tmp_path / "segmenter.pth", {"state_dict": segmenter})
    lines = tool.convert(tmp_path / "segmenter.pth", tmp_path / "back.pth", "ours", "mmsegmentation")
    assert "backbone.norm1.weight, decode_head.conv_seg.weight" in lines[-1]
    expected = {name: value for name, value in source.encoder.state_dict().items()
                if name != "mask_token" and not name.endswith("attn_mask")}
    assert largest_difference(weights_of(load_checkpoint(tmp_path / "back.pth")), expected) == 0


def test_swinv2_of_mmpretrain_begins_a_stage_with_the_merging(tmp_path):
    source = perturb(tiny_model("swinv2", settings_of("swinv2"), is_pretrain=False))
    tool.convert(saved(source, tmp_path / "source.pth"), tmp_path / "there.pth", "mmpretrain")
    there = load_checkpoint(tmp_path / "there.pth")["state_dict"]
    stage = {name.removeprefix("backbone.stages.1.") for name in there if name.startswith("backbone.stages.1.")}
    assert {"downsample.reduction.weight", "downsample.norm.weight", "blocks.0.attn.w_msa.q_bias",
            "blocks.0.attn.w_msa.logit_scale", "blocks.0.attn.w_msa.cpb_mlp.2.weight"} <= stage
    assert not any(name.startswith("backbone.stages.0.downsample") for name in there)
    norm = "downsample.norm.weight"  # after the merging: in the order of its results, which both share
    assert torch.equal(there[f"backbone.stages.1.{norm}"], source.state_dict()[f"layers.0.{norm}"])
    columns = there["backbone.stages.1.downsample.reduction.weight"].unflatten(1, (-1, 4))  # channel, place row by row
    own = source.state_dict()["layers.0.downsample.reduction.weight"].unflatten(1, (4, -1))  # place column by column, channel
    assert torch.equal(columns, own[:, [0, 2, 1, 3]].transpose(1, 2))


def test_released_vit_of_torchvision_has_older_names_of_the_mlp(tmp_path):
    source, model = (perturb(tiny_model("vit", MAE, is_pretrain=False), seed) for seed in (1, 2))
    tool.convert(saved(source, tmp_path / "source.pth"), tmp_path / "there.pth", "torchvision")
    older = {name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
             for name, value in load_checkpoint(tmp_path / "there.pth").items()}
    assert sum(".linear_" in name for name in older) == 4 * 3
    save_checkpoint(tmp_path / "older.pth", older)
    assert load_pretrained(model, tmp_path / "older.pth").missing == []
    assert largest_difference(model.state_dict(), source.state_dict()) == 0


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_mae_without_a_bias_of_the_key_keeps_its_decoder_under_official_names(qkv_bias, tmp_path):
    source = perturb(tiny_model("vit", MAE | DECODER | {"MODEL.VIT.K_BIAS": False, "MODEL.VIT.QKV_BIAS": qkv_bias}))
    tool.convert(saved(source, tmp_path / "source.pth"), tmp_path / "there.pth", "official")
    tool.convert(tmp_path / "there.pth", tmp_path / "back.pth", "ours", "official")
    assert largest_difference(weights_of(load_checkpoint(tmp_path / "back.pth")), source.state_dict()) == 0


def test_mae_without_biases_is_a_vitmae_of_transformers(tmp_path):
    source = perturb(tiny_model("vit", MAE | DECODER | {"MODEL.VIT.K_BIAS": False, "MODEL.VIT.QKV_BIAS": False}))
    tool.convert(saved(source, tmp_path / "source.pth"), tmp_path / "there.pth", "transformers")
    there = load_checkpoint(tmp_path / "there.pth")
    assert "decoder.decoder_layers.0.attention.attention.query.weight" in there and "decoder.blocks.0.norm1.weight" not in there


def test_weights_of_unknown_names_are_left_out_and_named(tmp_path):
    state = tiny_model("vit", MAE, is_pretrain=False).state_dict()
    there = tmp_path / "there.pth"
    tool.convert(saved(tiny_model("vit", MAE, is_pretrain=False), tmp_path / "source.pth"), there, "transformers")
    save_checkpoint(there, {**load_checkpoint(there), "vit.pooler.dense.weight": torch.ones(2, 2)})
    lines = tool.convert(there, tmp_path / "back.pth", "ours")
    assert lines[-1] == "left out, because it is not known what it is: vit.pooler.dense.weight"
    assert largest_difference(weights_of(load_checkpoint(tmp_path / "back.pth")), state) == 0


# ---- refusals -----------------------------------------------------------------------------------------------------

IMPOSSIBLE = {  # encoder, settings, layout, what the message says
    "relative positions in a backbone of timm's names": ("vit", {}, "detectron2", "can't be written for detectron2"),
    "key bias in BEiT": ("vit", {"MODEL.VIT.K_BIAS": True}, "timm", r"MODEL\.VIT\.K_BIAS"),
    "mean pooling in ViT": ("vit", MAE | {"MODEL.VIT.USE_MEAN_POOLING": True}, "transformers", "fc_norm.*--to timm"),
    "shrunk windows in transformers": ("swin", FOUR_STAGES | {"MODEL.SWIN.WINDOW_SIZE": 4}, "transformers",
                                       r"stages are 4x4, 4x4, 4x4, 2x2"),
    "shrunk windows in mmpretrain": ("swin", FOUR_STAGES | {"MODEL.SWIN.WINDOW_SIZE": 4}, "mmpretrain", "4x4, 2x2"),
    "windows that are not square": ("swin", {"MODEL.SWIN.WINDOW_SIZE": 8, "MODEL.SWIN.DEPTHS": [1],
                                             "MODEL.SWIN.NUM_HEADS": [1], "DATA.IMG_SIZE": [24, 64]}, "transformers", "6x8"),
    "two stages in mmpretrain": ("swin", {}, "mmpretrain", "it has 2 stages"),
    "learned positions in timm's Swin": ("swin", {"MODEL.SWIN.APE": True}, "timm", r"absolute position embedding \(APE\)"),
    "no norm of the patches in timm's Swin": ("swin", {"MODEL.SWIN.PATCH_NORM": False}, "timm", "PATCH_NORM False"),
    "no norm of the patches in transformers' SwinV2": ("swinv2", {"MODEL.SWINV2.PATCH_NORM": False}, "transformers",
                                                       "PATCH_NORM False"),
    "more norms in timm's SwinV2": ("swinv2", {"MODEL.SWINV2.EXTRA_NORM_EVERY": 2}, "timm", r"MODEL\.SWINV2\.EXTRA_NORM_EVERY"),
    "shrunk windows for detection": ("swin", FOUR_STAGES | {"MODEL.SWIN.WINDOW_SIZE": 4}, "mmdetection", "4x4, 2x2"),
    "SwinV2 in mmsegmentation": ("swinv2", {}, "mmsegmentation", "It can be written for ours, official, timm, torchvision"),
    "two stages in mmpretrain's SwinV2": ("swinv2", {}, "mmpretrain", "it has 2 stages"),
    "no biases in torchvision's Swin": ("swin", {"MODEL.SWIN.QKV_BIAS": False}, "torchvision", "QKV_BIAS False"),
    "shrunk windows in torchvision's SwinV2": ("swinv2", FOUR_STAGES | {"MODEL.SWINV2.WINDOW_SIZE": 4}, "torchvision",
                                               "4x4, 2x2"),
    "mean pooling in torchvision's ViT": ("vit", MAE | {"MODEL.VIT.USE_MEAN_POOLING": True}, "torchvision",
                                          "fc_norm.*--to timm"),
    "no positions in torchvision's ViT": ("vit", MAE | {"MODEL.VIT.USE_SINCOS_APE": False}, "torchvision",
                                          "no absolute positions"),
}


@pytest.mark.parametrize(("encoder", "settings", "layout", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_conversion_says_why_and_writes_nothing(encoder, settings, layout, message, tmp_path):
    path = saved(tiny_model(encoder, settings, is_pretrain=False), tmp_path / "source.pth")
    with pytest.raises(ValueError, match=message):
        tool.convert(path, tmp_path / "there.pth", layout)
    assert not (tmp_path / "there.pth").exists()


def test_decoder_of_mae_with_an_encoder_without_key_bias_fits_no_model_of_transformers(tmp_path):
    source = tiny_model("vit", MAE | DECODER | {"MODEL.VIT.K_BIAS": False})
    with pytest.raises(ValueError, match=r"MAE's decoder, and no bias of the key .*encoder\.pth"):
        tool.convert(saved(source, tmp_path / "source.pth"), tmp_path / "there.pth", "transformers")


@pytest.mark.parametrize("encoder", ["swin", "swinv2"])
def test_swin_under_mae_is_a_swin_whose_decoder_fits_no_model_of_others(encoder, tmp_path):
    model = tiny_model(encoder, settings_of(encoder) | DECODER)
    source = saved(model, tmp_path / "source.pth")
    assert kind_of(model.state_dict()) == encoder
    assert kind_of(tiny_model(encoder, DECODER | {f"MODEL.{encoder.upper()}.APE": True}).state_dict()) == encoder
    for layout in ("official", "transformers", "mmpretrain"):
        with pytest.raises(ValueError, match="has MAE's decoder, under which there is no Swin there. Its encoder alone"):
            tool.convert(source, tmp_path / "there.pth", layout)
    tool.convert(source, tmp_path / "timm.pth", "timm")
    assert load_pretrained(tiny_model(encoder, settings_of(encoder), is_pretrain=False), tmp_path / "timm.pth").matched


def test_existing_file_is_kept_without_force(tmp_path):
    source, there = saved(tiny_model("swin"), tmp_path / "source.pth"), tmp_path / "there.pth"
    there.write_text("mine")
    with pytest.raises(ValueError, match=r"there\.pth exists and is not written over: .*--force"):
        tool.convert(source, there, "timm")
    assert there.read_text() == "mine"
    tool.convert(source, there, "timm", force=True)
    assert "layers.1.downsample.reduction.weight" in load_checkpoint(there)


def test_file_is_not_converted_into_itself(tmp_path):
    source = saved(tiny_model("swin"), tmp_path / "source.pth")
    with pytest.raises(ValueError, match=r"source\.pth is the file that is read"):
        tool.convert(source, source, "timm", force=True)


@pytest.mark.parametrize(("name", "message"), [("there.bin", "must end in"), ("folder.pth", "is a folder"),
                                               ("ckpt_epoch_3.pth", "named like a checkpoint of a run")])
def test_name_of_the_target_is_checked(name, message, tmp_path):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(ValueError, match=message):
        tool.convert(saved(tiny_model("swin"), tmp_path / "source.pth"), tmp_path / name, "timm", force=True)


def test_file_of_another_layout_than_said_is_refused(tmp_path):
    with pytest.raises(ValueError, match="names of pre-training model, which is no file of --from timm.*ours, official"):
        tool.convert(saved(tiny_model("swin"), tmp_path / "source.pth"), tmp_path / "there.pth", "ours", "timm")


@pytest.mark.parametrize(("arguments", "flag"), [(("tim",), "--to"), (("timm", "tim"), "--from")])
def test_unknown_layout_is_refused(arguments, flag, tmp_path):
    with pytest.raises(ValueError, match=rf"{flag}='tim' is unknown; valid: .*Did you mean 'timm'"):
        tool.convert(saved(tiny_model("swin"), tmp_path / "source.pth"), tmp_path / "there.pth", *arguments)


def test_file_without_weights_is_refused():
    with pytest.raises(ValueError, match=r"x\.pth holds no weights: expected a state dict"):
        read_layout({}, "x.pth")


def test_unknown_file_is_refused():
    with pytest.raises(ValueError, match=r"x\.pth holds weights of a kind that is not known: .*conv1.*transformers' Swin"):
        read_layout({"conv1.weight": torch.ones(1)}, "x.pth")


def test_weights_without_an_encoder_are_of_no_kind():
    assert kind_of({"decoder.0.weight": torch.ones(1)}) is None


def test_command_line_says_what_was_done(tmp_path, monkeypatch, capsys):
    source, there = saved(tiny_model("swin"), tmp_path / "source.pth"), tmp_path / "there.safetensors"
    monkeypatch.setattr("sys.argv", ["convert.py", str(source), str(there), "--to", "timm"])
    tool.main(tool.parse_arguments())
    read, written, left_out = capsys.readouterr().out.splitlines()
    assert read == f"{source}: pre-training model, {len(tiny_model('swin').state_dict())} tensors"
    assert written.startswith(f"{there}: {len(load_checkpoint(there)['model'])} tensors for timm 0.9 or later: SwinTransformer")
    assert "encoder.mask_token" in left_out


def test_command_line_without_a_layout_says_what_is_needed(monkeypatch):
    monkeypatch.setattr("sys.argv", ["convert.py", "a.pth", "b.pth"])
    with pytest.raises(ValueError, match="--to LAYOUT, or --list"):
        tool.main(tool.parse_arguments())


def test_list_names_every_layout_and_encoder(capsys):
    tool.list_layouts()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(LAYOUTS)
    assert all(any(text in line for line in lines) for text in KINDS.values())


def test_weights_that_are_not_finite_are_not_converted(tmp_path):
    source = perturb(tiny_model("vit"))
    with torch.no_grad():
        source.encoder.blocks[0].mlp.fc1.bias[3] = float("inf")
    with pytest.raises(ValueError, match=r"source\.pth holds NaN or infinite values in 1 of .*fc1\.bias"):
        tool.convert(saved(source, tmp_path / "source.pth"), tmp_path / "there.pth", "ours")
    assert not (tmp_path / "there.pth").exists()


# ---- names of classes ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("target", "to"), [("a.pth", "official"), ("a.safetensors", "timm"), ("a.pth", "ours")])
def test_names_of_the_classes_come_along(target, to, tmp_path):
    names = ["axe", "bow", "caf\udce9", "mug", "yak"]
    content = {"model": tiny_model("swin", is_pretrain=False).state_dict(), "classes": names}
    save_checkpoint(tmp_path / "best.pth", content)
    tool.convert(tmp_path / "best.pth", tmp_path / target, to)
    assert load_checkpoint(tmp_path / target)["classes"] == names


def test_names_of_the_classes_that_can_not_come_along_are_said(tmp_path):
    content = {"model": tiny_model("swin", is_pretrain=False).state_dict(), "classes": list("abcde")}
    save_checkpoint(tmp_path / "best.pth", content)
    assert "names of 5 classes" in "\n".join(tool.convert(tmp_path / "best.pth", tmp_path / "a.pth", "timm"))


def test_consolidated_weights_keep_the_names_of_their_classes(tmp_path):
    content = {"model": tiny_model("swin", is_pretrain=False).state_dict(), "classes": list("abcde"), "optimizer": {}}
    save_checkpoint(tmp_path / "best.pth", content)
    consolidate.main(consolidate.parse_arguments([str(tmp_path / "best.pth"), str(tmp_path / "a.safetensors")]))
    assert load_checkpoint(tmp_path / "a.safetensors")["classes"] == list("abcde")
