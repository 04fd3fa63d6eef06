"""Names and tensors under the recorded mappings of the published models, each in both directions."""
import pytest
import torch

from models.position import relative_position_index
from models.weights.layouts import KINDS, kind_of, read_layout, write_layout

from .mae_records import load_mim_json

RECORDED = load_mim_json("mappings")
NUMBERS = {  # of entries in the records
    "mae pre-training to mmpretrain": 254, "mixmim pre-training to mmpretrain": 456,
    "mixmim classification to mmpretrain": 354, "swin pre-training to mmpretrain": 365,
    "swin classification to mmpretrain": 364, "swin pre-training to timm": 365, "swin classification to timm": 364,
    "swin pre-training to transformers": 461, "swin classification to transformers": 460, "vit pre-training to timm": 190,
    "vit classification to timm": 211, "vit pre-training to transformers": 214, "vit classification to transformers": 235,
    "vit pre-training to mmpretrain": 190}
each_map = pytest.mark.parametrize("name", RECORDED["mappings"])


def entries(name):
    """[(official name, name there or None, operation)] of a recorded mapping."""
    return [(theirs.format(*at), there and there.format(*at), operation)
            for theirs, there, operation, *indices in RECORDED["mappings"][name]
            for at in (RECORDED["indices"][indices[0]] if indices else [[]])]


def in_unfold_order(tensor):
    """target[4 c + j] = source[b_j C + c] with b = (0, 2, 1, 3), as the record has it."""
    channels = tensor.shape[-1] // 4
    return torch.stack([tensor[..., (0, 2, 1, 3)[k % 4] * channels + k // 4] for k in range(4 * channels)], dim=-1)


def converted(tensor, operation):
    if operation.startswith("rows_third_"):
        return tensor[int(operation[-1]) * (third := len(tensor) // 3):(int(operation[-1]) + 1) * third]
    return {"copy": lambda: tensor, "unfold_permute_last_dim": lambda: in_unfold_order(tensor)}[operation]()


def official_weights(name):
    """Random weights of official names, with tables of 2x2 windows; a fixed table tells a MixMIM."""
    generator = torch.Generator().manual_seed(1)
    weights = {official: torch.randn(12, 8, generator=generator) for official, _, _ in entries(name)}
    for official in weights:
        if official.endswith("relative_position_bias_table"):
            weights[official] = torch.randn(9, 8, generator=generator)
        elif official.endswith("relative_position_index"):
            weights[official] = relative_position_index((2, 2))
        elif official == "absolute_pos_embed":
            weights[official] = torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1]).expand(1, 6, 8)
    return weights


def recorded_weights(name):
    """What the record makes of `official_weights`."""
    weights = official_weights(name)
    return {there: converted(weights[official], operation) for official, there, operation in entries(name) if there}


def ours_of(name):
    return read_layout(official_weights(name), name, "official")[0]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_every_recorded_mapping_is_complete():
    assert {name: len(entries(name)) for name in RECORDED["mappings"]} == NUMBERS


@each_map
def test_official_weights_become_those_of_the_record(name):
    weights, dropped, _ = write_layout(ours_of(name), name.split()[-1])
    assert_equal(weights, recorded_weights(name))
    assert len(dropped) == len({official for official, there, _ in entries(name) if there is None})


@each_map
def test_weights_of_the_record_become_official_ones(name):
    layout, ours = name.split()[-1], ours_of(name)
    dropped = write_layout(ours, layout)[1]
    back, _, unknown = read_layout(recorded_weights(name), name, layout)
    assert unknown == []
    assert_equal(back, {key: tensor for key, tensor in ours.items() if key not in dropped})


@each_map
def test_official_weights_come_out_as_they_went_in(name):
    assert_equal(write_layout(ours_of(name), "official")[0], official_weights(name))


@each_map
def test_kind_of_encoder_is_told_by_its_names(name):
    kind = {"vit": "relative_vit", "mae": "mae_vit"}.get(name.split()[0], name.split()[0])
    assert kind_of(ours_of(name)) == kind and kind in KINDS
