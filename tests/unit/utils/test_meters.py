import pytest
import torch

from utils.meters import CollapseWatch, Meter, peak_memory_mb


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


@pytest.mark.parametrize("cut", range(1, 8))
def test_meter_goes_on_from_a_checkpoint_bit_for_bit(cut):
    values = [torch.tensor(value) for value in torch.rand(8, generator=torch.Generator().manual_seed(0)).tolist()]
    whole, before, after = Meter(), Meter(), Meter()
    for value in values:
        whole.add(value)
    for value in values[:cut]:
        before.add(value)
    after.load(before.state())
    assert after.mean() == before.mean()
    for value in values[cut:]:
        after.add(value)
    assert after.mean() == whole.mean() and after.state() == whole.state()


def test_meter_without_values_is_empty_after_a_checkpoint_as_well():
    meter = Meter()
    meter.load(Meter().state())
    assert meter.mean().isnan()


# ---- collapse -----------------------------------------------------------------------------------------------------

def watched(lines):
    watch = CollapseWatch()
    return [text for text in (watch.add(loss, norm) for loss, norm in lines) if text]


def test_loss_that_jumps_while_gradients_fade_is_said_once():
    """The numbers of SimMIM issue 15."""
    texts = watched([(0.25, 1.4)] * 30 + [(0.50, 0.0025)] * 5)
    assert len(texts) == 1 and "from 0.2500 to 0.5000" in texts[0] and "from 1.4 to 0.0025" in texts[0]


@pytest.mark.parametrize("lines", [
    [(0.25, 1.4)] * 60, [(0.25, 1.4)] * 30 + [(0.5, 1.4)] * 9, [(0.25, 1.4)] * 30 + [(0.25, 0.001)] * 9,
    [(1.0 / (i + 1), 2.0 / (i + 1)) for i in range(60)], [(0.25, 1.4)] * 30 + [(float("nan"), float("nan"))] * 9,
    [(0.25, 1.4)] * 3 + [(0.5, 0.0025)]])
def test_other_courses_of_a_training_are_no_collapse(lines):
    assert watched(lines) == []
