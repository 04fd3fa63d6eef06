"""Names and tensors under the recorded mappings of the published models, each in both directions."""
import pytest
import torch

from models.key_maps import MAE_MMPRETRAIN, MIXMIM_MMPRETRAIN
from models.pretrained import SOURCES, from_mae

from .mae_records import load_mim_json

RECORDED = load_mim_json("mappings")
MAPS = {
    "mae pre-training to mmpretrain": (MAE_MMPRETRAIN, "MAE", "mmpretrain's MAE", 254),
    "mixmim pre-training to mmpretrain": (MIXMIM_MMPRETRAIN, "MixMIM", "mmpretrain's MixMIM", 456),
    "mixmim classification to mmpretrain": (MIXMIM_MMPRETRAIN, "MixMIM", "mmpretrain's MixMIM", 354),
}
each_map = pytest.mark.parametrize("name", MAPS)


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
    """Random weights of official names; a MixMIM is told by what its fixed table holds at the first token."""
    generator = torch.Generator().manual_seed(1)
    weights = {official: torch.randn(12, 8, generator=generator) for official, _, _ in entries(name)}
    if "absolute_pos_embed" in weights:
        weights["absolute_pos_embed"] = torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1]).expand(1, 6, 8)
    return weights


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@each_map
def test_official_weights_become_those_of_the_record(name):
    key_map, _, _, number = MAPS[name]
    weights = official_weights(name)
    assert len(entries(name)) == number
    expected = {there: converted(weights[official], operation) for official, there, operation in entries(name) if there}
    assert_equal(key_map.to_theirs(from_mae(weights)), expected)


@each_map
def test_weights_of_the_record_become_official_ones(name):
    key_map, _, _, _ = MAPS[name]
    weights = official_weights(name)
    there = {there: converted(weights[official], operation) for official, there, operation in entries(name) if there}
    assert_equal(key_map.to_ours(there), from_mae(weights))


@each_map
def test_both_kinds_of_file_are_told_by_their_names(name):
    key_map, official, theirs, _ = MAPS[name]
    weights = official_weights(name)
    for kind, file in ((official, weights), (theirs, key_map.to_theirs(from_mae(weights)))):
        assert next(source.name for source in SOURCES if source.recognises(file)) == kind
