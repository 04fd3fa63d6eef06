"""Masks drawn from a seeded generator, bit for bit."""

import numpy as np
import pytest

from data import MaskGenerator

from .recorded import load_json, load_npz

CASES = load_json("masks/masks.json")
ARRAYS = load_npz("masks/masks.npz")
each_case = pytest.mark.parametrize("case", CASES, ids=[case["key"] for case in CASES])


@pytest.fixture(autouse=True)
def global_generator():
    """numpy's global state as it was before the test, so that no other test depends on these seeds."""
    state = np.random.get_state()
    yield
    np.random.set_state(state)


def generator_of(case):
    return MaskGenerator(input_size=case["input_size"], mask_patch_size=case["mask_patch_size"],
                         model_patch_size=case["model_patch_size"], mask_ratio=case["mask_ratio"])


@each_case
def test_masks_from_the_global_generator_are_the_recorded_ones(case):
    generator = generator_of(case)
    np.random.seed(case["seed"])
    masks = np.stack([generator() for _ in range(case["n_masks_drawn_in_sequence"])])
    assert np.issubdtype(masks.dtype, np.integer)
    np.testing.assert_array_equal(masks, ARRAYS[case["key"]])


@each_case
def test_masks_from_a_private_generator_are_the_recorded_ones(case):
    generator, rng = generator_of(case), np.random.RandomState(case["seed"])
    np.random.seed(case["seed"] + 1)  # a fall-back to the global generator would give other masks
    masks = np.stack([generator(rng) for _ in range(case["n_masks_drawn_in_sequence"])])
    np.testing.assert_array_equal(masks, ARRAYS[case["key"]])
