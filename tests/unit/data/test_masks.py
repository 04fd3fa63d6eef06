"""Counts, units and errors of the mask generator; recorded masks are in tests/parity."""
import numpy as np
import pytest

from data import MaskGenerator

RNG = np.random.RandomState


@pytest.mark.parametrize(("size", "unit", "patch", "ratio", "hidden_units"), [
    (192, 32, 4, 0.6, 22),            # 36 * 0.6 = 21.6, rounded up
    ((64, 96), 16, 8, 0.5, 12),       # 24 units
    ((64, 96), 16, 8, 0.51, 13),
    ((32, 48), 16, 16, 0.0, 0),
    ((32, 48), 16, 4, 1.0, 6),
    (80, 8, 8, 0.55, 56),             # 100 * 0.55 is slightly above 55 in floating point (quirk 16)
])
def test_mask_hides_the_share_of_units_rounded_up(size, unit, patch, ratio, hidden_units):
    mask = MaskGenerator(size, unit, patch, ratio)(RNG(0))
    height, width = (size, size) if isinstance(size, int) else size
    assert mask.shape == (height // patch, width // patch)
    assert mask.sum() == hidden_units * (unit // patch) ** 2


def test_mask_hides_units_as_a_whole():
    mask = MaskGenerator((64, 96), 16, 4, 0.5)(RNG(1))
    units = mask.reshape(4, 4, 6, 4).transpose(0, 2, 1, 3).reshape(24, 16)
    assert set(units.sum(axis=1)) == {0, 16} and set(np.unique(mask)) == {0, 1}


def test_each_unit_is_hidden_about_as_often():
    """400 masks with half of 6 units hidden: 200 +- 5 standard errors of 10."""
    generator, rng = MaskGenerator((32, 48), 16, 16, 0.5), RNG(2)
    counts = sum(generator(rng) for _ in range(400))
    assert counts.shape == (2, 3) and counts.min() > 150 and counts.max() < 250


def test_mask_is_repeated_by_its_generator_and_changes_with_it():
    generator = MaskGenerator((64, 96), 8, 8, 0.5)
    assert np.array_equal(generator(RNG(3)), generator(RNG(3)))
    assert not np.array_equal(generator(RNG(3)), generator(RNG(4)))


def test_private_generator_leaves_the_global_one_alone():
    before = np.random.get_state()[1].copy()
    MaskGenerator((64, 96), 8, 8, 0.5)(RNG(0))
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(("size", "unit", "patch"), [(100, 32, 4), ((64, 90), 16, 8), ((90, 64), 16, 8), (96, 12, 8)])
def test_units_that_do_not_divide_are_refused(size, unit, patch):
    with pytest.raises(ValueError, match=f"mask_patch_size={unit}.*model_patch_size={patch}"):
        MaskGenerator(size, unit, patch)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match="mask_ratio="):
        MaskGenerator(64, 16, 16, ratio)


@pytest.mark.parametrize("ratio_range", [0.0, 0.25])
def test_number_of_hidden_units_varies_within_the_range_of_ratios(ratio_range):
    """24 units, 0.5 of them: 12; up to 0.75: 12 to 18, rounded down so 18 itself almost never."""
    generator, rng = MaskGenerator((64, 96), 16, 16, 0.5, "down", ratio_range), RNG(5)
    counts = {int(generator(rng).sum()) for _ in range(300)}
    assert counts == ({12} if ratio_range == 0 else {12, 13, 14, 15, 16, 17})


def test_ratios_beyond_1_are_refused():
    with pytest.raises(ValueError, match="0.8 and, with ratio_range, 1.1"):
        MaskGenerator((64, 96), 16, 16, 0.8, "down", 0.3)
