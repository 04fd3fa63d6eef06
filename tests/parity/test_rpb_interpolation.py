"""Relative-position bias tables resized to another window or token grid."""

import re

import pytest
import torch

from models.position import resize_bias_table

from .recorded import load_json, load_npz

CASES = list(load_json("rpb_interp/geo_cubic.json")["cases"])
ARRAYS = load_npz("rpb_interp/geo_cubic.npz")
NUM_EXTRA = {"swin": 0, "vit": 3}  # ViT tables end with the three rows of the class token


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
