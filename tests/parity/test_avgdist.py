"""AvgDist, the measure of SimMIM's masks, against values from its definition."""
import math

import numpy as np
import pytest

from data import MaskGenerator
from utils.distances import average_distance

from .recorded import load_json, load_npz

STATISTICS = load_json("avgdist/avgdist_stats.json")
HAND_MASKS, HAND_VALUES = load_npz("avgdist/hand_masks.npz"), load_json("avgdist/hand_values.json")
TOLERANCE = 1e-9


@pytest.mark.parametrize("name", HAND_VALUES)
@pytest.mark.parametrize("cell", [1, 4])
def test_distance_of_a_mask_by_hand(name, cell):
    expected = HAND_VALUES[name][f"pixels_per_cell_{cell}"]
    assert average_distance(HAND_MASKS[name], cell) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("case", STATISTICS, ids=lambda case: "{input_size}-{mask_patch_size}-{mask_ratio}".format(**case))
def test_distances_of_drawn_masks_are_the_recorded_ones(case):
    generator = MaskGenerator(case["input_size"], case["mask_patch_size"], case["model_patch_size"], case["mask_ratio"])
    rng = np.random.RandomState(case["seed"])
    distances = [average_distance(generator(rng), case["model_patch_size"]) for _ in range(case["n_masks"])]
    assert distances[:3] == pytest.approx(case["first3"], abs=TOLERANCE)
    assert np.mean(distances) == pytest.approx(case["mean_of_avgdist"], abs=TOLERANCE)
    assert np.std(distances) == pytest.approx(case["std"], abs=TOLERANCE)


@pytest.mark.parametrize("value", [0, 1])
def test_mask_that_hides_nothing_or_everything_has_no_distance(value):
    assert math.isnan(average_distance(np.full((2, 3), value)))
