"""Position tables and embeddings brought to another window or token grid, and the offsets that SwinV2 has instead."""

import re

import pytest
import torch

from models.encoders.swinv2 import log_spaced_offsets
from models.position import relative_position_index, resize_bias_table, resize_position_embedding

from .recorded import load_json, load_npz

CASES = list(load_json("rpb_interp/geo_cubic.json")["cases"])
ARRAYS = load_npz("rpb_interp/geo_cubic.npz")
NUM_EXTRA = {"swin": 0, "vit": 3}  # ViT tables end with the three rows of the class token

BICUBIC = load_npz("rpb_interp/bicubic.npz")
EMBEDDINGS = [name.removesuffix("/in") for name in BICUBIC if re.fullmatch(r"bicubic_ape_\d+to\d+/in", name)]

OFFSETS = load_npz("rpb_interp/swinv2_coords.npz")


def resized_and_expected(case):
    kind, source, target = re.fullmatch(r"(swin|vit)_(\d+)to(\d+)", case).groups()
    table = torch.from_numpy(ARRAYS[f"{case}/in"])
    resized = resize_bias_table(table, (int(source),) * 2, (int(target),) * 2, num_extra=NUM_EXTRA[kind])
    return resized, torch.from_numpy(ARRAYS[f"{case}/out"])


@pytest.mark.parametrize("case", CASES)
def test_resized_bias_table_matches_the_record(case):
    resized, expected = resized_and_expected(case)
    torch.testing.assert_close(resized, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("vit")])
def test_class_token_rows_are_copied_unchanged(case):
    resized, expected = resized_and_expected(case)
    assert torch.equal(resized[-3:], expected[-3:])


@pytest.mark.parametrize("case", EMBEDDINGS)
def test_resized_position_embedding_matches_the_record(case):
    source, target = (int(side) for side in re.fullmatch(r"bicubic_ape_(\d+)to(\d+)", case).groups())
    embedding, expected = (torch.from_numpy(BICUBIC[f"{case}/{part}"]) for part in ("in", "out"))
    resized = resize_position_embedding(embedding, (source, source), (target, target))
    torch.testing.assert_close(resized, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in OFFSETS if name.endswith("relative_coords_table")])
def test_log_spaced_offsets_match_the_record(name):
    window, pretrained = (int(side) for side in re.match(r"w(\d+)_pre(\d+)/", name).groups())
    torch.testing.assert_close(log_spaced_offsets((window, window), pretrained), torch.from_numpy(OFFSETS[name]),
                               atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in OFFSETS if name.endswith("relative_position_index")])
def test_row_of_each_pair_of_tokens_matches_the_record(name):
    window = int(re.match(r"w(\d+)_pre", name)[1])
    assert torch.equal(relative_position_index((window, window)), torch.from_numpy(OFFSETS[name]))
