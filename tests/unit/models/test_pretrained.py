"""Loading the weights of another model: what is taken, what is left, what is refused. Resizing is in tests/parity."""
import pytest
import torch

from models.pretrained import load_pretrained

from ..helpers import TINY, perturb, state_of, tiny_model

HEAD = {"head.weight", "head.bias"}


def saved(state, tmp_path, wrap="model"):
    path = tmp_path / "source.pth"
    torch.save({wrap: state} if wrap else state, path)
    return path


def checkpoint(tmp_path, encoder, overrides=None, is_pretrain=True):
    return saved(perturb(tiny_model(encoder, overrides, is_pretrain)).state_dict(), tmp_path)


def without(state, *prefixes):
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


def assert_equal(one, other, names):
    assert names
    assert [name for name in names if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("form", ["full", "distributed", "encoder_only", "state_dict", "bare"])
def test_classifier_takes_the_encoder_of_a_pretraining_file_in_any_form(encoder, form, tmp_path):
    source = perturb(tiny_model(encoder))
    state, wrap = source.state_dict(), "model"
    if form == "distributed":
        state = {f"module.{name}": value for name, value in state.items()}
    elif form == "encoder_only":
        state = source.encoder.state_dict()
    elif form in ("state_dict", "bare"):
        wrap = "state_dict" if form == "state_dict" else None
    model = tiny_model(encoder, is_pretrain=False, seed=9)
    before = state_of(model)
    report = load_pretrained(model, saved(state, tmp_path, wrap))
    parameters = {name for name, _ in model.named_parameters()}
    assert_equal(model.state_dict(), source.encoder.state_dict(), parameters - HEAD)
    assert_equal(model.state_dict(), before, HEAD)
    assert set(report.matched) == parameters - HEAD and set(report.missing) == HEAD and report.resized == []


@pytest.mark.parametrize("encoder", TINY)
def test_pretraining_model_continues_encoder_and_decoder(encoder, tmp_path):
    source = perturb(tiny_model(encoder))
    model = tiny_model(encoder, seed=9)
    report = load_pretrained(model, saved(source.state_dict(), tmp_path))
    assert_equal(model.state_dict(), source.state_dict(), source.state_dict().keys())
    assert report.missing == []


@pytest.mark.parametrize("encoder", TINY)
def test_decoder_is_left_and_reported_when_the_file_holds_an_encoder_only(encoder, tmp_path):
    model = tiny_model(encoder, seed=9)
    before = state_of(model)
    report = load_pretrained(model, saved(perturb(tiny_model(encoder)).encoder.state_dict(), tmp_path))
    assert_equal(model.state_dict(), before, {"decoder.0.weight", "decoder.0.bias"})
    assert {"decoder.0.weight", "decoder.0.bias"} <= set(report.missing)


@pytest.mark.parametrize("encoder", TINY)
def test_classifier_takes_the_head_too_when_the_classes_agree(encoder, tmp_path):
    source = perturb(tiny_model(encoder, is_pretrain=False))
    model = tiny_model(encoder, is_pretrain=False, seed=9)
    report = load_pretrained(model, saved(source.state_dict(), tmp_path))
    assert_equal(model.state_dict(), source.state_dict(), HEAD)
    assert report.missing == [] and report.unexpected == []


@pytest.mark.parametrize("encoder", TINY)
def test_head_of_another_number_of_classes_is_left_as_initialised(encoder, tmp_path):
    path = checkpoint(tmp_path, encoder, {"MODEL.NUM_CLASSES": 7}, is_pretrain=False)
    model = tiny_model(encoder, is_pretrain=False, seed=9)
    before = state_of(model)
    report = load_pretrained(model, path)
    assert_equal(model.state_dict(), before, HEAD)
    assert set(report.missing) == HEAD and set(report.unexpected) == HEAD


REFUSED = {
    "swin_into_vit": ("swin", {}, "vit", {}),
    "vit_into_swin": ("vit", {}, "swin", {}),
    "swin_of_another_width": ("swin", {"MODEL.SWIN.EMBED_DIM": 16}, "swin", {}),
    "swin_of_more_blocks": ("swin", {"MODEL.SWIN.DEPTHS": [2, 4]}, "swin", {}),
    "swin_of_fewer_blocks": ("swin", {"MODEL.SWIN.DEPTHS": [2, 1]}, "swin", {}),
    "swin_of_other_heads": ("swin", {"MODEL.SWIN.NUM_HEADS": [2, 4]}, "swin", {}),
    "swin_of_other_channels": ("swin", {"MODEL.SWIN.IN_CHANS": 1}, "swin", {}),
    "swin_of_another_patch": ("swin", {"MODEL.SWIN.PATCH_SIZE": 2}, "swin", {}),
    "vit_of_more_blocks": ("vit", {"MODEL.VIT.DEPTH": 4}, "vit", {}),
    "vit_of_fewer_blocks": ("vit", {"MODEL.VIT.DEPTH": 2}, "vit", {}),
    "vit_of_another_width": ("vit", {"MODEL.VIT.EMBED_DIM": 32}, "vit", {}),
    "vit_of_other_heads": ("vit", {"MODEL.VIT.NUM_HEADS": 4}, "vit", {}),
    "vit_of_other_channels": ("vit", {"MODEL.VIT.IN_CHANS": 4}, "vit", {}),
    "vit_without_layer_scale": ("vit", {"MODEL.VIT.INIT_VALUES": None}, "vit", {}),
}


@pytest.mark.parametrize("is_pretrain", [True, False])
@pytest.mark.parametrize(("source", "source_overrides", "target", "overrides"), REFUSED.values(), ids=REFUSED.keys())
def test_another_encoder_is_refused_and_leaves_the_model_alone(source, source_overrides, target, overrides, is_pretrain,
                                                               tmp_path):
    path = checkpoint(tmp_path, source, source_overrides)
    model = tiny_model(target, overrides, is_pretrain, seed=9)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"source\.pth holds another encoder.*of \d+ tensors match.*MODEL\.TYPE"):
        load_pretrained(model, path)
    assert_equal(model.state_dict(), before, before.keys())


def test_refusal_names_the_shapes_of_the_first_misfit(tmp_path):
    path = checkpoint(tmp_path, "swin", {"MODEL.SWIN.IN_CHANS": 1})
    with pytest.raises(ValueError, match=r"patch_embed\.proj\.weight is \(8, 1, 4, 4\), the model has \(8, 3, 4, 4\)"):
        load_pretrained(tiny_model("swin"), path)


def test_table_of_a_non_square_window_is_read_by_its_index_when_loaded_into_a_square_one(tmp_path):
    """Windows of 8x4 tokens and of 4x8 have tables of as many rows; only the stored index tells them apart.

    A table that depends on the vertical offset alone must still do so in the new window.
    """
    one_stage = {"MODEL.SWIN.DEPTHS": [1], "MODEL.SWIN.NUM_HEADS": [1], "MODEL.SWIN.WINDOW_SIZE": 8}
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    source = tiny_model("swin", one_stage | {"DATA.IMG_SIZE": [64, 16]})
    assert source.encoder.layers[0].blocks[0].window == (8, 4)
    state = source.state_dict()
    state[f"encoder.{name}"] = torch.randn(15, 1, 1).expand(15, 7, 1).reshape(105, 1)
    model = tiny_model("swin", one_stage | {"DATA.IMG_SIZE": [64, 64]}, is_pretrain=False)
    load_pretrained(model, saved(state, tmp_path))
    grid = model.state_dict()[name].view(15, 15)
    torch.testing.assert_close(grid, grid[:, :1].expand_as(grid), atol=1e-5, rtol=0)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"model": {}}])
def test_file_without_weights_is_refused(content, tmp_path):
    path = tmp_path / "empty.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"empty\.pth holds no weights"):
        load_pretrained(tiny_model("vit"), path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth does not exist"):
        load_pretrained(tiny_model("vit"), tmp_path / "absent.pth")


def test_report_counts_and_names(tmp_path):
    report = load_pretrained(tiny_model("vit", is_pretrain=False), checkpoint(tmp_path, "vit"))
    assert f"{len(report.matched)} tensors matched" in str(report)
    assert "2 missing (head.weight, head.bias)" in str(report) and "1 unexpected (mask_token)" in str(report)
