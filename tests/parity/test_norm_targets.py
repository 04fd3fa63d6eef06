"""Locally normalised targets."""

import pytest
import torch

from models.methods.targets import normalize_locally

from .recorded import load_npz

ARRAYS = load_npz("norm_targets/norm_targets.npz")


@pytest.mark.parametrize("case", sorted({name.split("/")[0] for name in ARRAYS}))
def test_locally_normalized_images_match_the_record(case):
    images, expected = (torch.from_numpy(ARRAYS[f"{case}/{part}"]) for part in ("in", "out"))
    window = int(case.split("patch")[1])
    torch.testing.assert_close(normalize_locally(images, window), expected, atol=1e-4, rtol=0)
