"""Pre-training checkpoints loaded into fine-tuning models: what the reference does, and what it fails to do."""

from types import SimpleNamespace

import pytest
import torch

from config import load_config
from models import build_model, load_pretrained

from .recorded import SIMMIM, case_names, load_json, load_npz, opts_of, tensors

MAPPED = [name for name in case_names("key_mapping") if "fails" not in name]
REBUILT = ("relative_position_index", "relative_coords_table", "attn_mask")  # the new model computes these buffers itself
TABLE = "relative_position_bias_table"
SHARED_TABLE = f"rel_pos_bias.{TABLE}"  # of ViT; fills the tables of all blocks


def perturb(model, seed):
    """Move every parameter away from its initial value, so that a weight that was not loaded shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def checkpoint_of(record, tables=(), **overrides):
    """The state dict of the recorded pre-training model, random except for `tables` {name without prefix: value}."""
    config = load_config(opts=opts_of(record["pretrain_overrides"] | overrides))
    state = perturb(build_model(config, is_pretrain=True), seed=1).state_dict()
    for name, table in dict(tables).items():
        assert state[f"encoder.{name}"].shape == table.shape
        state[f"encoder.{name}"] = table
    if not record["checkpoint_has_encoder_prefix"]:
        state = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    return state


def load(record, state, tmp_path, **overrides):
    """Save `state` as a checkpoint, load it into the recorded fine-tuning model, and keep what that was before."""
    config = load_config(opts=opts_of(record["finetune_overrides"] | overrides))
    model = perturb(build_model(config, is_pretrain=False), seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = tmp_path / "pretrained.pth"
    torch.save({"model": state}, path)
    report = load_pretrained(model, path)
    source = {name.removeprefix("encoder."): value for name, value in state.items() if not name.startswith("decoder.")}
    return SimpleNamespace(record=record, source=source, before=before, after=model.state_dict(), report=report,
                           parameters={name for name, _ in model.named_parameters()})


def assert_equal_weights(loaded, names):
    """The named weights are those of the checkpoint, bit for bit."""
    assert names
    assert [name for name in names if not torch.equal(loaded.after[name], loaded.source[name])] == []


@pytest.fixture(params=MAPPED)
def mapped(request, tmp_path):
    record = load_json(f"key_mapping/{request.param}.json")
    has_tables = (SIMMIM / f"key_mapping/{request.param}_tables.npz").exists()
    arrays = load_npz(f"key_mapping/{request.param}_tables.npz") if has_tables else {}
    tables = tensors(arrays, "before")
    loaded = load(record, checkpoint_of(record, tables), tmp_path)
    loaded.tables = tensors(arrays, "after")
    loaded.resized = [name for name, table in loaded.tables.items()
                      if table.shape != tables.get(name, tables.get(SHARED_TABLE)).shape]
    return loaded


@pytest.mark.parametrize("name", MAPPED)
def test_pretraining_checkpoint_has_the_recorded_keys(name):
    record = load_json(f"key_mapping/{name}.json")
    assert {key: list(value.shape) for key, value in checkpoint_of(record).items()} == record["checkpoint_keys"]


def test_mapped_weights_equal_those_of_the_checkpoint(mapped):
    recorded = set(mapped.record["keys_after_remap"]) - set(mapped.record["unexpected_keys"]) - set(mapped.tables)
    assert_equal_weights(mapped, recorded)


@pytest.mark.parametrize("mapped", [name for name in MAPPED if "swinv2" not in name], indirect=True)  # which has no tables
def test_mapped_tables_match_the_record(mapped):
    """Cases of equal size record no change: the tables that the model has are then those of the checkpoint."""
    tables = {name for name in mapped.parameters if name.endswith(TABLE)}
    expected = mapped.tables or {name: mapped.source[name] for name in tables}
    assert tables and set(expected) == tables
    assert {name: (mapped.after[name] - expected[name]).abs().max().item() for name in tables
            if not torch.allclose(mapped.after[name], expected[name], atol=1e-5, rtol=0)} == {}


def test_mapping_leaves_the_recorded_missing_keys_as_they_were(mapped):
    missing = mapped.record["missing_keys"]
    assert "head.weight" in missing
    assert [name for name in missing if not torch.equal(mapped.after[name], mapped.before[name])] == []


def test_mapping_reports_the_recorded_missing_keys(mapped):
    expected = [name for name in mapped.record["missing_keys"] if not name.endswith(REBUILT)]
    assert sorted(mapped.report.missing) == sorted(expected)


def test_mapping_reports_the_recorded_unexpected_keys(mapped):
    assert sorted(mapped.report.unexpected) == sorted(mapped.record["unexpected_keys"])


def test_mapping_reports_the_tables_that_changed_size(mapped):
    assert sorted(mapped.report.resized) == sorted(mapped.resized)


def test_mapping_reports_each_parameter_of_the_model(mapped):
    report = mapped.report
    assert {*report.matched, *report.resized, *report.missing} == mapped.parameters


# Combinations on which the reference raises; the expected values are derived here.

def test_position_embedding_is_resized_to_another_grid(tmp_path):
    """A ramp along the rows stays one: increasing down the rows, constant along each row."""
    record = load_json("key_mapping/swin_fails_ape_size_mismatch.json")
    ramp = torch.arange(24.0).view(24, 1, 1).expand(24, 24, 4).reshape(1, 24 * 24, 4)
    loaded = load(record, checkpoint_of(record, {"absolute_pos_embed": ramp}), tmp_path)
    grid = loaded.after["absolute_pos_embed"].view(32, 32, 4)
    torch.testing.assert_close(grid, grid[:, :1].expand_as(grid), atol=1e-4, rtol=0)
    assert (grid.diff(dim=0) > 0).all()
    assert grid.mean().item() == pytest.approx(23 / 2, abs=1e-3)


def test_position_embedding_of_another_grid_is_reported_as_resized(tmp_path):
    record = load_json("key_mapping/swin_fails_ape_size_mismatch.json")
    loaded = load(record, checkpoint_of(record), tmp_path)
    tables = {name for name in loaded.parameters if name.endswith(TABLE)}
    assert set(loaded.report.resized) == tables | {"absolute_pos_embed"}


def test_table_of_a_two_token_window_is_resized(tmp_path):
    """3x3 -> 5x5: offsets -1, 0, 1 are kept by any interpolating spline, and those beyond are clamped to the border."""
    record = load_json("key_mapping/swin_fails_window2_table.json")
    name = f"layers.3.blocks.0.attn.{TABLE}"
    loaded = load(record, checkpoint_of(record), tmp_path)
    border = torch.tensor([0, 0, 1, 2, 2])
    expected = loaded.source[name].view(3, 3, -1)[border][:, border].reshape(25, -1)
    torch.testing.assert_close(loaded.after[name], expected, atol=1e-5, rtol=0)
    assert name in loaded.report.resized


def assert_everything_but_the_head_is_loaded(loaded):
    assert_equal_weights(loaded, loaded.parameters - {"head.weight", "head.bias"})
    assert sorted(loaded.report.missing) == ["head.bias", "head.weight"]
    assert loaded.report.unexpected == ["mask_token"]


def test_shared_table_loads_into_a_shared_table(tmp_path):
    record = load_json("key_mapping/vit_fails_finetune_shared_rpb.json")
    loaded = load(record, checkpoint_of(record), tmp_path)
    assert SHARED_TABLE in loaded.parameters
    assert_everything_but_the_head_is_loaded(loaded)


def test_vit_without_any_table_loads(tmp_path):
    record = load_json("key_mapping/vit_fails_without_shared_table.json")
    loaded = load(record, checkpoint_of(record), tmp_path)
    assert not any(name.endswith(TABLE) for name in loaded.parameters)
    assert_everything_but_the_head_is_loaded(loaded)


def test_tables_per_block_load_into_tables_per_block(tmp_path):
    record = load_json("key_mapping/vit_fails_without_shared_table.json")
    per_block = {"MODEL.VIT.USE_RPB": True}
    loaded = load(record, checkpoint_of(record, **per_block), tmp_path, **per_block)
    assert f"blocks.2.attn.{TABLE}" in loaded.parameters
    assert_everything_but_the_head_is_loaded(loaded)


@pytest.mark.parametrize("is_shared", [True, False])
def test_vit_table_is_resized_in_place_as_the_recorded_copy_is(is_shared, tmp_path):
    """Shared to shared and per block to per block resize as the recorded shared to per block does."""
    record = load_json("key_mapping/vit_64_to_96_shared_to_perblock.json")
    arrays = load_npz("key_mapping/vit_64_to_96_shared_to_perblock_tables.npz")
    layout = {"MODEL.VIT.USE_SHARED_RPB": is_shared, "MODEL.VIT.USE_RPB": not is_shared}
    names = [SHARED_TABLE] if is_shared else [f"blocks.{index}.attn.{TABLE}" for index in range(3)]
    source, = tensors(arrays, "before").values()
    expected = tensors(arrays, "after")[f"blocks.0.attn.{TABLE}"]
    loaded = load(record, checkpoint_of(record, dict.fromkeys(names, source), **layout), tmp_path, **layout)
    for name in names:
        torch.testing.assert_close(loaded.after[name], expected, atol=1e-5, rtol=0)
    assert sorted(loaded.report.resized) == names


# From pre-training at 192 px in windows of 12 to the sizes that are fine-tuned: half the pixels in patches of half the
# size, so that maps and windows are the real ones (48, 24, 12 and 6 tokens, of which the last is one window of 6).

PRETRAINED_WINDOWS = [12, 12, 12, 6]
NEW_WINDOWS = {"224_window14": (112, 14), "256_window16": (128, 16), "512_window16": (256, 16)}
each_new_window = pytest.mark.parametrize(("size", "window"), NEW_WINDOWS.values(), ids=NEW_WINDOWS.keys())
LOGGER = "simmim.swinv2"


def four_stages(encoder, size, window, **overrides):
    values = {"PATCH_SIZE": 2, "EMBED_DIM": 4, "DEPTHS": [1, 2, 1, 1], "NUM_HEADS": [1, 1, 2, 2], "WINDOW_SIZE": window}
    return {"MODEL.TYPE": encoder, "MODEL.NUM_CLASSES": 5, "DATA.IMG_SIZE": size, "DATA.MASK_PATCH_SIZE": 16} | {
        f"MODEL.{encoder.upper()}.{key}": value for key, value in (values | overrides).items()}


def pretrained_at_192(encoder, tmp_path):
    """(model, file) of a pre-training model."""
    model = perturb(build_model(load_config(opts=opts_of(four_stages(encoder, 96, 12)))), seed=1)
    path = tmp_path / "pretrained.pth"
    torch.save({"model": model.state_dict()}, path)
    return model, path


def classifier_of(encoder, size, window, **overrides):
    config = load_config(opts=opts_of(four_stages(encoder, size, window, **overrides)))
    return perturb(build_model(config, is_pretrain=False), seed=2)


def bias_tables(encoder):
    """(2w-1, 2w-1, heads) of each block."""
    return {name: module.bias_table().detach().view(2 * module.window[0] - 1, 2 * module.window[1] - 1, -1)
            for name, module in encoder.named_modules() if name.endswith(".attn")}


@each_new_window
@pytest.mark.parametrize(("encoder", "overrides"), [("swin", {}), ("swinv2", {"PRETRAINED_WINDOW_SIZES": PRETRAINED_WINDOWS})])
def test_model_pretrained_at_192_can_be_trained_on_in_a_larger_window(encoder, overrides, size, window, tmp_path):
    source, path = pretrained_at_192(encoder, tmp_path)
    model = classifier_of(encoder, size, window, **overrides)
    report = load_pretrained(model, path)
    parameters = dict(model.named_parameters())
    tables = {name for name in parameters if name.endswith(TABLE)}
    assert len(tables) == (5 if encoder == "swin" else 0) and set(report.resized) == tables
    assert sorted(report.missing) == ["head.bias", "head.weight"] and report.unexpected == ["mask_token"]
    weights = dict(source.encoder.named_parameters())
    assert [name for name in parameters.keys() - tables - set(report.missing)
            if not torch.equal(parameters[name], weights[name])] == []

    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    loss = torch.nn.functional.cross_entropy(model(images), torch.tensor([1, 4]))
    loss.backward()
    assert loss.isfinite()
    assert [name for name, parameter in parameters.items() if not parameter.grad.isfinite().all()] == []


@each_new_window
def test_bias_of_an_offset_is_that_of_pretraining_when_the_pretrained_windows_are_told(size, window, tmp_path):
    """The offsets of the smaller window lie in the middle of the larger one's."""
    source, path = pretrained_at_192("swinv2", tmp_path)
    told = classifier_of("swinv2", size, window, PRETRAINED_WINDOW_SIZES=PRETRAINED_WINDOWS)
    untold = classifier_of("swinv2", size, window)
    for model in (told, untold):
        load_pretrained(model, path)
    for name, expected in bias_tables(source.encoder).items():
        border = (len(bias_tables(told)[name]) - len(expected)) // 2
        assert border > 0
        middle, other = (bias_tables(model)[name][border:-border, border:-border] for model in (told, untold))
        torch.testing.assert_close(middle, expected, atol=1e-5, rtol=0)
        assert (other - expected).abs().max() > 1e-2


@each_new_window
def test_windows_that_differ_are_warned_of_when_the_pretrained_ones_are_not_told(size, window, tmp_path, caplog):
    _, path = pretrained_at_192("swinv2", tmp_path)
    model = classifier_of("swinv2", size, window)
    with caplog.at_level("WARNING", logger=LOGGER):
        load_pretrained(model, path)
    record, = [record for record in caplog.records if record.name == LOGGER]
    assert record.levelname == "WARNING"
    assert f"set MODEL.SWINV2.PRETRAINED_WINDOW_SIZES {PRETRAINED_WINDOWS}" in record.getMessage()


@pytest.mark.parametrize("told", [[12, 12, 0, 6], [12, 12, 12, 12]], ids=["one_untold", "one_wrong"])
def test_windows_told_wrongly_are_warned_of(told, tmp_path, caplog):
    _, path = pretrained_at_192("swinv2", tmp_path)
    with caplog.at_level("WARNING", logger=LOGGER):
        load_pretrained(classifier_of("swinv2", 112, 14, PRETRAINED_WINDOW_SIZES=told), path)
    assert f"set MODEL.SWINV2.PRETRAINED_WINDOW_SIZES {PRETRAINED_WINDOWS}" in caplog.text


def test_windows_of_the_pretraining_of_a_finetuned_checkpoint_are_warned_of_though_shapes_agree(tmp_path, caplog):
    tuned = classifier_of("swinv2", 112, 14, PRETRAINED_WINDOW_SIZES=PRETRAINED_WINDOWS)
    torch.save({"model": tuned.state_dict()}, tmp_path / "tuned.pth")
    with caplog.at_level("WARNING", logger=LOGGER):
        load_pretrained(classifier_of("swinv2", 112, 14), tmp_path / "tuned.pth")
    assert f"set MODEL.SWINV2.PRETRAINED_WINDOW_SIZES {PRETRAINED_WINDOWS}" in caplog.text


@pytest.mark.parametrize(("size", "window", "pretrained_windows"),
                         [(112, 14, PRETRAINED_WINDOWS), (256, 16, PRETRAINED_WINDOWS), (96, 12, [0, 0, 0, 0])])
def test_nothing_is_warned_of_when_the_pretrained_windows_are_told_or_kept(size, window, pretrained_windows, tmp_path, caplog):
    _, path = pretrained_at_192("swinv2", tmp_path)
    model = classifier_of("swinv2", size, window, PRETRAINED_WINDOW_SIZES=pretrained_windows)
    with caplog.at_level("WARNING", logger=LOGGER):
        load_pretrained(model, path)
    assert [record for record in caplog.records if record.name == LOGGER] == []
