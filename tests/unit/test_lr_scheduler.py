"""Learning rates at the borders, by hand; whole recorded sequences are in tests/parity."""
import pytest
import torch

from config import load_config
from lr_scheduler import SCHEDULES, build_scheduler

from .helpers import opts_of

PER_EPOCH = 4


def scheduler_of(name="cosine", peaks=(1.0, 0.25), **schedule):
    """10 epochs of 4 iterations, 2 of them warm-up from 0.1; minimum 0.01."""
    overrides = {"TRAIN.EPOCHS": 10, "TRAIN.WARMUP_EPOCHS": schedule.pop("WARMUP_EPOCHS", 2), "TRAIN.WARMUP_LR": 0.1,
                 "TRAIN.MIN_LR": 0.01, "TRAIN.LR_SCHEDULER.NAME": name}
    overrides |= {f"TRAIN.LR_SCHEDULER.{key}": value for key, value in schedule.items()}
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": peak, "lr_scale": peak} for peak in peaks]
    return build_scheduler(load_config(opts=opts_of(overrides)), torch.optim.SGD(groups, lr=1.0), PER_EPOCH)


def rates_at(scheduler, *iterations):
    found = []
    for t in iterations:
        scheduler.step_update(t)
        found.append(tuple(group["lr"] for group in scheduler.optimizer.param_groups))
    return found


def approx(values):
    return [pytest.approx(pair, rel=1e-12) for pair in values]


def test_first_step_uses_the_start_of_the_warmup_for_every_group():
    assert [group["lr"] for group in scheduler_of().optimizer.param_groups] == [0.1, 0.1]


def test_first_step_uses_the_peaks_without_warmup():
    assert [group["lr"] for group in scheduler_of(WARMUP_EPOCHS=0).optimizer.param_groups] == [1.0, 0.25]


def test_warmup_rises_linearly_to_each_group_s_own_peak():
    """Halfway (4 of 8): 0.1 + (1 - 0.1) / 2 = 0.55 and 0.1 + (0.25 - 0.1) / 2 = 0.175."""
    assert rates_at(scheduler_of(WARMUP_PREFIX=True), 0, 4, 8) == approx([(0.1, 0.1), (0.55, 0.175), (1.0, 0.25)])


def test_cosine_counts_from_iteration_0_unless_the_prefix_is_set():
    """At the end of the warm-up (8 of 40) the official curve has fallen: 0.01 + 0.99 / 2 * (1 + cos(36 deg))."""
    cos36 = (1 + 5 ** 0.5) / 4
    assert rates_at(scheduler_of(), 8, 20) == approx([
        (0.01 + 0.99 / 2 * (1 + cos36), 0.01 + 0.24 / 2 * (1 + cos36)), (0.505, 0.13)])
    # with the prefix 32 iterations remain, the middle is at 24
    assert rates_at(scheduler_of(WARMUP_PREFIX=True), 8, 24) == approx([(1.0, 0.25), (0.505, 0.13)])


@pytest.mark.parametrize("prefix", [True, False])
def test_cosine_ends_at_the_minimum_of_every_group_and_stays(prefix):
    assert rates_at(scheduler_of(WARMUP_PREFIX=prefix), 40, 45) == approx([(0.01, 0.01)] * 2)


def test_linear_ends_at_a_hundredth_of_the_peak():
    """MIN_LR plays no part (quirk 15); halfway of the 32 iterations after the warm-up: (1 + 0.01) / 2."""
    assert rates_at(scheduler_of("linear"), 8, 24, 40) == approx([(1.0, 0.25), (0.505, 0.12625), (0.01, 0.0025)])


def test_step_falls_at_multiples_counted_from_epoch_0():
    scheduler = scheduler_of("step", DECAY_EPOCHS=3, DECAY_RATE=0.1)
    assert rates_at(scheduler, 11, 12, 23, 24) == approx([(1.0, 0.25), (0.1, 0.025), (0.1, 0.025), (0.01, 0.0025)])


def test_multistep_falls_at_its_epochs():
    scheduler = scheduler_of("multistep", MULTISTEPS=[3, 5], GAMMA=0.5)
    assert rates_at(scheduler, 11, 12, 19, 20) == approx([(1.0, 0.25), (0.5, 0.125), (0.5, 0.125), (0.25, 0.0625)])


def test_unknown_schedule_lists_the_valid_ones():
    config = load_config().clone()
    config.defrost()
    config.TRAIN.LR_SCHEDULER.NAME = "cosin"
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(ValueError, match=r"TRAIN\.LR_SCHEDULER\.NAME='cosin'.*valid: cosine, linear, multistep, step"):
        build_scheduler(config, optimizer, 4)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stop", [3, 8, 21])
def test_resumed_schedule_goes_on_like_an_uninterrupted_one(name, stop):
    settings = {"MULTISTEPS": [4, 6]} if name == "multistep" else {}
    straight, resumed = scheduler_of(name, **settings), scheduler_of(name, **settings)
    rates_at(straight, *range(stop))
    resumed.load_state_dict(straight.state_dict())
    assert [group["lr"] for group in resumed.optimizer.param_groups] == [g["lr"] for g in straight.optimizer.param_groups]
    assert rates_at(resumed, *range(stop, 40)) == rates_at(straight, *range(stop, 40))


def test_resuming_keeps_the_peaks_of_the_present_config():
    """Quirk 35: a changed learning rate must have an effect."""
    straight, changed = scheduler_of(), scheduler_of(peaks=(2.0, 0.5))
    rates_at(straight, 20)
    changed.load_state_dict(straight.state_dict())
    assert [group["lr"] for group in changed.optimizer.param_groups] == pytest.approx([1.005, 0.255], rel=1e-12)


def test_state_before_the_first_update_changes_nothing():
    scheduler = scheduler_of()
    scheduler.load_state_dict(scheduler_of().state_dict())
    assert [group["lr"] for group in scheduler.optimizer.param_groups] == [0.1, 0.1]
