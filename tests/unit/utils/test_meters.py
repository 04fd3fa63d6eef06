import pytest
import torch

from utils.meters import Meter, peak_memory_mb


def test_meter_averages_tensors_and_numbers_since_the_last_reset():
    meter = Meter()
    assert meter.mean().isnan()
    meter.add(100.0)
    meter.reset()
    for value in (torch.tensor(1.0, requires_grad=True), 2.0, torch.tensor(6.0)):
        meter.add(value)
    assert float(meter.mean()) == 3.0 and not meter.mean().requires_grad


def test_peak_memory_of_this_process_is_plausible():
    """Python with torch needs more than 50 MB and less than 100 GB: a wrong unit is off by a thousand."""
    assert 50 < peak_memory_mb(torch.device("cpu")) < 100_000
    assert peak_memory_mb(torch.device("cpu")) == pytest.approx(peak_memory_mb(torch.device("cpu")), rel=0.5)


def test_meter_leaves_values_out_that_are_not_finite():
    meter = Meter()
    for value in (1.0, float("nan"), 3.0, float("inf")):
        meter.add(torch.tensor(value))
    assert meter.mean() == 2
