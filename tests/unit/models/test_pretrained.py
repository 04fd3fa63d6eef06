"""Loading the weights of another model: what is taken, what is left, what is refused. Resizing is in tests/parity."""
import logging

import pytest
import torch
from torch import nn

from models.encoders.encoder import Encoder
from models.weights.pretrained import SOURCES, Source, adapt_channels, load_pretrained
from utils.checkpoint import save_checkpoint

from ..helpers import TINY, perturb, state_of, tiny_model

HEAD = {"head.weight", "head.bias"}


def saved(state, tmp_path, wrap="model", name="source.pth"):
    path = tmp_path / name
    save_checkpoint(path, {wrap: state} if wrap else state)
    return path


def checkpoint(tmp_path, encoder, overrides=None, is_pretrain=True):
    return saved(perturb(tiny_model(encoder, overrides, is_pretrain)).state_dict(), tmp_path)


def without(state, *prefixes):
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


def assert_equal(one, other, names):
    assert names
    assert [name for name in names if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("form", ["full", "distributed", "compiled", "encoder_only", "state_dict", "bare"])
def test_classifier_takes_the_encoder_of_a_pretraining_file_in_any_form(encoder, form, ending, tmp_path):
    source = perturb(tiny_model(encoder))
    state, wrap = source.state_dict(), "model"
    if form == "distributed":
        state = {f"module.{name}": value for name, value in state.items()}
    elif form == "compiled":
        state = {f"module._orig_mod.{name}": value for name, value in state.items()}
    elif form == "encoder_only":
        state = source.encoder.state_dict()
    elif form in ("state_dict", "bare"):
        wrap = "state_dict" if form == "state_dict" else None
    model = tiny_model(encoder, is_pretrain=False, seed=9)
    before = state_of(model)
    report = load_pretrained(model, saved(state, tmp_path, wrap, f"source.{ending}"))
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
    assert "the head of the file is for 7 classes, not 5: left as initialised" in str(report)


# ---- what a file is -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("is_pretrain", [True, False])
def test_report_names_the_kind_of_file(encoder, is_pretrain, tmp_path, caplog):
    kinds = {"swin": "Swin encoder", "swinv2": "SwinV2 encoder", "vit": "SimMIM's ViT, encoder"}
    with caplog.at_level(logging.INFO, "simmim.pretrained"):
        report = load_pretrained(tiny_model(encoder), checkpoint(tmp_path, encoder, is_pretrain=is_pretrain))
    assert report.source == ("pre-training model" if is_pretrain else f"{kinds[encoder]} or classifier")
    assert f"source.pth ({report.source}): " in caplog.text


@pytest.mark.parametrize("prefix", ["", "encoder.", "module.encoder."])
def test_early_names_of_swinv2_are_known_wherever_they_stand(prefix, tmp_path):
    source = perturb(tiny_model("swinv2")).encoder.state_dict()
    early = {prefix + name.replace("cpb_mlp", "rpe_mlp"): value for name, value in source.items()}
    assert any("attn.rpe_mlp.0.weight" in name for name in early)
    model = tiny_model("swinv2", is_pretrain=False, seed=9)
    report = load_pretrained(model, saved(early, tmp_path))
    assert_equal(model.state_dict(), source, {name for name, _ in model.named_parameters()} - HEAD)
    assert set(report.missing) == HEAD and report.unexpected == ["mask_token"]


UNKNOWN = {
    "a ConvNeXt": ["downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"],
    "a ResNet": ["conv1.weight", "layer1.0.conv1.weight"],
}


@pytest.mark.parametrize("names", UNKNOWN.values(), ids=UNKNOWN)
@pytest.mark.parametrize("encoder", TINY)
def test_unknown_kind_of_file_is_refused_with_its_names_and_what_is_known(encoder, names, tmp_path):
    with pytest.raises(ValueError, match=rf"a kind that is not known: .*{names[0]}, {names[1]}.*Known: ") as refusal:
        load_pretrained(tiny_model(encoder), saved({name: torch.ones(1) for name in names}, tmp_path))
    assert all(source.name in str(refusal.value) for source in SOURCES)


def test_another_kind_of_file_is_one_entry_of_the_table(tmp_path, monkeypatch):
    def convert(weights):
        return {name.replace("backbone.", "encoder.").replace("neck.", "decoder."): value for name, value in weights.items()}

    other = Source("another library", lambda weights: any(name.startswith("backbone.") for name in weights), convert)
    source, model = perturb(tiny_model("swin")), tiny_model("swin", seed=9)
    state = {name.replace("encoder.", "backbone.").replace("decoder.", "neck."): value
             for name, value in source.state_dict().items()}
    monkeypatch.setattr("models.weights.sources.SOURCES", [other, *SOURCES])
    report = load_pretrained(model, saved(state, tmp_path))
    assert report.source == "another library" and report.missing == []
    assert_equal(model.state_dict(), source.state_dict(), source.state_dict().keys())


class OtherEncoder(Encoder):
    """An encoder that no entry of the table tells."""

    def __init__(self, depth=2):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.mixers = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))
        self.head = nn.Identity()

    def resize_state_dict(self, state_dict):
        return dict(state_dict), []


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_own_files_of_an_encoder_without_an_entry_load(prefix, tmp_path):
    source, model = OtherEncoder(), OtherEncoder()
    state = {prefix + name: value for name, value in source.state_dict().items()}
    assert load_pretrained(model, saved(state, tmp_path)).source == "the names of this model"
    assert_equal(model.state_dict(), source.state_dict(), source.state_dict().keys())


@pytest.mark.parametrize("depth", [1, 3])
def test_own_file_of_another_depth_is_refused_for_an_encoder_without_an_entry(depth, tmp_path):
    with pytest.raises(ValueError, match=r"another encoder.*mixers\.\d\.weight.*Compare MODEL\.TYPE"):
        load_pretrained(OtherEncoder(), saved(OtherEncoder(depth).state_dict(), tmp_path))


# ---- another encoder ----------------------------------------------------------------------------------------------

REFUSED = {  # source, its settings, target, what the message says
    "swin_into_vit": ("swin", {}, "vit", "The file holds a swin, the model is a vit: use MODEL.TYPE swin "),
    "vit_into_swin": ("vit", {}, "swin", "The file holds a vit, the model is a swin: use MODEL.TYPE vit "),
    "vit_into_swinv2": ("vit", {}, "swinv2", "The file holds a vit, the model is a swinv2: use MODEL.TYPE vit "),
    "swin_into_swinv2": ("swin", {}, "swinv2", "The file holds a swin, the model is a swinv2: use MODEL.TYPE swin "),
    "swinv2_into_swin": ("swinv2", {}, "swin", "The file holds a swinv2, the model is a swin: use MODEL.TYPE swinv2 "),
    "swin_of_another_width": ("swin", {"EMBED_DIM": 16}, "swin", "MODEL.SWIN.EMBED_DIM is 16 in the file and 8 here"),
    "swin_of_more_blocks": ("swin", {"DEPTHS": [2, 4]}, "swin", "MODEL.SWIN.DEPTHS is [2, 4] in the file and [2, 2] here"),
    "swin_of_fewer_blocks": ("swin", {"DEPTHS": [2, 1]}, "swin", "MODEL.SWIN.DEPTHS is [2, 1] in the file and [2, 2] here"),
    "swin_of_more_stages": ("swin", {"DEPTHS": [2, 2, 1], "NUM_HEADS": [1, 2, 4]}, "swin",
                            "MODEL.SWIN.DEPTHS is [2, 2, 1] in the file and [2, 2] here"),
    "swin_of_other_heads": ("swin", {"NUM_HEADS": [2, 4]}, "swin",
                            "MODEL.SWIN.NUM_HEADS is [2, 4] in the file and [1, 2] here"),
    "swin_of_another_patch": ("swin", {"PATCH_SIZE": 2}, "swin", "MODEL.SWIN.PATCH_SIZE is 2 in the file and 4 here"),
    "swin_of_another_mlp": ("swin", {"MLP_RATIO": 2.0}, "swin", "Compare MODEL.TYPE and the settings of MODEL.SWIN"),
    "swinv2_of_other_heads": ("swinv2", {"NUM_HEADS": [2, 4]}, "swinv2", "MODEL.SWINV2.NUM_HEADS is [2, 4] in the file"),
    "vit_of_more_blocks": ("vit", {"DEPTH": 4}, "vit", "MODEL.VIT.DEPTH is 4 in the file and 3 here"),
    "vit_of_fewer_blocks": ("vit", {"DEPTH": 2}, "vit", "MODEL.VIT.DEPTH is 2 in the file and 3 here"),
    "vit_of_another_width": ("vit", {"EMBED_DIM": 32}, "vit", "MODEL.VIT.EMBED_DIM is 32 in the file and 16 here"),
    "vit_of_another_width_and_channels": ("vit", {"EMBED_DIM": 32, "IN_CHANS": 1}, "vit", "MODEL.VIT.EMBED_DIM is 32"),
    "vit_of_other_heads": ("vit", {"NUM_HEADS": 4}, "vit", "MODEL.VIT.NUM_HEADS is 4 in the file and 2 here"),
    "vit_of_another_patch": ("vit", {"PATCH_SIZE": 4}, "vit", "MODEL.VIT.PATCH_SIZE is 4 in the file and 8 here"),
    "vit_without_layer_scale": ("vit", {"INIT_VALUES": None}, "vit", "Compare MODEL.TYPE and the settings of MODEL.VIT"),
}


@pytest.mark.parametrize("is_pretrain", [True, False])
@pytest.mark.parametrize(("source", "settings", "target", "advice"), REFUSED.values(), ids=REFUSED.keys())
def test_another_encoder_is_refused_and_leaves_the_model_alone(source, settings, target, advice, is_pretrain, tmp_path):
    path = checkpoint(tmp_path, source, {f"MODEL.{source.upper()}.{name}": value for name, value in settings.items()})
    model = tiny_model(target, None, is_pretrain, seed=9)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"source\.pth holds another encoder.*\d+ of \d+ tensors match.*--cfg") as refusal:
        load_pretrained(model, path)
    assert advice in str(refusal.value)
    assert_equal(model.state_dict(), before, before.keys())


def test_refusal_names_the_shapes_of_the_first_misfit(tmp_path):
    path = checkpoint(tmp_path, "swin", {"MODEL.SWIN.PATCH_SIZE": 2})
    with pytest.raises(ValueError, match=r"patch_embed\.proj\.weight is \(8, 3, 2, 2\), the model has \(8, 3, 4, 4\)"):
        load_pretrained(tiny_model("swin"), path)


# ---- other channels -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("source", "target"), [(3, 1), (1, 3), (3, 2), (3, 4), (3, 5), (3, 12), (4, 3), (12, 3)])
def test_adapted_kernel_gives_an_image_of_equal_channels_what_it_gave(source, target):
    kernel = torch.randn(8, source, 4, 4)
    adapted = adapt_channels(kernel, target)
    assert adapted.shape == (8, target, 4, 4)
    torch.testing.assert_close(adapted.sum(dim=1), kernel.sum(dim=1))


def test_adapted_kernel_repeats_channels_in_a_cycle_or_adds_them_up():
    kernel = torch.randn(8, 3, 4, 4)
    r, g, b = kernel.unbind(dim=1)
    torch.testing.assert_close(adapt_channels(kernel, 4), torch.stack([r / 2, g, b, r / 2], dim=1))
    torch.testing.assert_close(adapt_channels(kernel, 2), torch.stack([r + b, g], dim=1))
    torch.testing.assert_close(adapt_channels(kernel[:, :1], 3), torch.stack([r, r, r], dim=1) / 3)


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("is_pretrain", [True, False])
def test_first_convolution_is_adapted_to_other_channels_and_the_decoder_left(encoder, is_pretrain, tmp_path):
    source = perturb(tiny_model(encoder))
    model = tiny_model(encoder, {f"MODEL.{encoder.upper()}.IN_CHANS": 1}, is_pretrain, seed=9)
    before = state_of(model)
    report = load_pretrained(model, saved(source.state_dict(), tmp_path))
    target, name = model.encoder if is_pretrain else model, "patch_embed.proj.weight"
    torch.testing.assert_close(target.state_dict()[name], source.encoder.state_dict()[name].sum(dim=1, keepdim=True))
    assert report.resized == [name] and name in report.matched
    assert "first convolution adapted from 3 to 1 channels" in str(report)
    left = {"decoder.0.weight", "decoder.0.bias"} if is_pretrain else HEAD
    assert set(report.missing) == left
    assert_equal(model.state_dict(), before, left)
    if is_pretrain:
        assert left <= set(report.unexpected)


# ---- other grids --------------------------------------------------------------------------------------------------

SQUARE, WIDE, TALL = ({"DATA.IMG_SIZE": size} for size in ([32, 32], [32, 64], [64, 32]))
GRIDS = {  # encoder: settings so that windows and embeddings follow the image
    "swin": {"MODEL.SWIN.APE": True, "MODEL.SWIN.WINDOW_SIZE": 16, "MODEL.SWIN.DEPTHS": [1], "MODEL.SWIN.NUM_HEADS": [2]},
    "vit": {"MODEL.VIT.USE_APE": True, "MODEL.VIT.USE_RPB": True},
}


def depends_on_rows_alone(parameter, grid, num_extra, where):
    """Give a table ("end") or an embedding ("begin"), with extra rows there, values that change down the rows only."""
    rows, cols = grid
    ramp = torch.linspace(-1, 1, rows).view(rows, 1, 1).expand(rows, cols, parameter.shape[-1])
    ramp = ramp.reshape(rows * cols, -1).view(*parameter.shape[:-2], rows * cols, -1)
    view = parameter.data[..., num_extra:, :] if where == "begin" else parameter.data[..., :rows * cols, :]
    view.copy_(ramp)


def position_parameters(encoder, model):
    """(name, grid of its rows, extra rows, where they are) of every table and embedding."""
    extra_rows, extra_tokens = (3, 1) if encoder == "vit" else (0, 0)
    for name, _ in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            module = model.get_submodule(name.rpartition(".")[0])
            window = module.window if encoder == "swin" else module.grid
            yield name, tuple(2 * side - 1 for side in window), extra_rows, "end"
        elif name in ("absolute_pos_embed", "pos_embed"):
            yield name, model.grid, extra_tokens, "begin"


@pytest.mark.parametrize(("encoder", "one", "other"), [
    ("swin", SQUARE, WIDE), ("swin", SQUARE, TALL), ("swin", WIDE, SQUARE),
    ("vit", SQUARE, WIDE), ("vit", SQUARE, TALL), ("vit", WIDE, SQUARE), ("vit", TALL, SQUARE)],
    ids=["swin-square_to_wide", "swin-square_to_tall", "swin-wide_to_square",
         "vit-square_to_wide", "vit-square_to_tall", "vit-wide_to_square", "vit-tall_to_square"])
def test_tables_and_embeddings_move_between_square_and_other_grids(encoder, one, other, tmp_path):
    """What depends on the row alone must do so on the new grid: rows and columns are not mixed up."""
    source = tiny_model(encoder, GRIDS[encoder] | one, is_pretrain=False)
    for name, *layout in position_parameters(encoder, source):
        depends_on_rows_alone(source.get_parameter(name), *layout)
    model = tiny_model(encoder, GRIDS[encoder] | other, is_pretrain=False, seed=9)
    report = load_pretrained(model, saved(source.state_dict(), tmp_path))
    found = list(position_parameters(encoder, model))
    assert sorted(report.resized) == sorted(name for name, *_ in found) and len(found) == (2 if encoder == "swin" else 5)
    for name, (rows, cols), num_extra, where in found:
        value = model.get_parameter(name).data.squeeze(0)
        value = value[num_extra:] if where == "begin" else value[:rows * cols]
        grid = value.view(rows, cols, -1)
        torch.testing.assert_close(grid, grid[:, :1].expand_as(grid), atol=1e-4, rtol=0)
        assert (grid[-1] - grid[0] > 0.5).all()


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


# ---- weights of a diverged run ------------------------------------------------------------------------------------

@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("is_pretrain", [True, False])
def test_weights_that_are_not_finite_are_refused_and_leave_the_model_alone(value, is_pretrain, tmp_path):
    state = perturb(tiny_model("swin")).state_dict()
    name = next(name for name in state if name.endswith("attn.qkv.weight"))
    state[name][1, 2] = value
    model = tiny_model("swin", is_pretrain=is_pretrain, seed=9)
    before = state_of(model)
    with pytest.raises(ValueError, match=rf"source\.pth holds NaN or infinite values in 1 of \d+ tensors "
                                         rf"\({name.removeprefix('encoder.')}\).*Use an older checkpoint"):
        load_pretrained(model, saved(state, tmp_path))
    assert_equal(model.state_dict(), before, before)


def test_what_the_model_does_not_take_may_be_infinite(tmp_path):
    """Masks of attention follow from the sizes, and some projects have -inf in them."""
    state = perturb(tiny_model("swin")).state_dict()
    state |= {name.replace("relative_position_index", "attn_mask"): torch.full((2, 4, 4), float("-inf"))
              for name in list(state) if name.endswith("relative_position_index")}
    state["decoder.0.weight"] = state["decoder.0.weight"] * float("nan")
    report = load_pretrained(tiny_model("swin", is_pretrain=False), saved(state, tmp_path))
    assert report.matched


def test_decoder_that_is_not_finite_is_refused_where_it_is_taken(tmp_path):
    state = perturb(tiny_model("swin")).state_dict()
    state["decoder.0.bias"] = state["decoder.0.bias"] * float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinite values in 1 of \d+ tensors \(decoder\.0\.bias\)"):
        load_pretrained(tiny_model("swin"), saved(state, tmp_path))
