"""Learning-rate sequences: every schedule in full for small runs, the official recipes at chosen updates."""

import math

import pytest
import torch

from config import load_config
from lr_scheduler import build_scheduler

from .recorded import case_names, load_json, opts_of

RECORDS = {name: load_json(f"lr/{name}.json") for name in case_names("lr") if name != "small_full_sequences"}
RECORDS |= load_json("lr/small_full_sequences.json")
TOLERANCE = {"rel": 1e-12, "abs": 0}

each_record = pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())


def config_of(record, **overrides):
    overrides = {
        "TRAIN.EPOCHS": record["epochs"],
        "TRAIN.WARMUP_EPOCHS": record["warmup_epochs"],
        "TRAIN.ACCUMULATION_STEPS": record["accumulation_steps"],
        "TRAIN.BASE_LR": record["scaled_base_lr"],
        "TRAIN.WARMUP_LR": record["scaled_warmup_lr"],
        "TRAIN.MIN_LR": record["scaled_min_lr"],
    } | {f"TRAIN.LR_SCHEDULER.{key}": value for key, value in record["scheduler"].items()} | overrides
    return load_config(opts=opts_of(overrides))


def optimizer_of(record, with_lr_scale=True):
    """One group per recorded lr_scale, its lr already layer-scaled: what `build_optimizer` hands over."""
    scales = [float(scale) for scale in record["value_by_lr_scale"]]
    return torch.optim.SGD([
        {"params": [torch.zeros(1, requires_grad=True)], "lr": record["scaled_base_lr"] * scale}
        | ({"lr_scale": scale} if with_lr_scale else {}) for scale in scales], lr=record["scaled_base_lr"])


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def recorded_updates(record):
    t = record["t"]
    return list(range(t["from"], t["to"] + 1)) if isinstance(t, dict) else t


def values_at_updates(record, optimizer):
    scheduler = build_scheduler(config_of(record), optimizer, record["iterations_per_epoch"])
    values = []
    for t in recorded_updates(record):
        scheduler.step_update(t)
        values.append(rates(optimizer))
    return values


@each_record
def test_learning_rate_before_the_first_update_matches(record):
    optimizer = optimizer_of(record)
    build_scheduler(config_of(record), optimizer, record["iterations_per_epoch"])
    assert rates(optimizer) == pytest.approx(list(record["before_first_update"].values()), **TOLERANCE)


@each_record
def test_learning_rate_after_each_update_matches(record):
    values = values_at_updates(record, optimizer_of(record))
    expected = zip(*record["value_by_lr_scale"].values(), strict=True)
    for t, actual, wanted in zip(recorded_updates(record), values, expected, strict=True):
        assert actual == pytest.approx(list(wanted), **TOLERANCE), f"update {t}"


@each_record
def test_learning_rate_in_effect_at_each_optimizer_step_matches(record):
    """With accumulation the schedule counts micro-batches, and leftovers of an epoch take no step."""
    optimizer, recorded = optimizer_of(record), record["in_effect_at_optimizer_step"]
    scheduler = build_scheduler(config_of(record), optimizer, record["iterations_per_epoch"])
    per_epoch, accumulation = record["iterations_per_epoch"], max(record["accumulation_steps"], 1)
    in_effect = {}
    for t in range(recorded["micro_batch_index"][-1] + 1):
        if (t % per_epoch + 1) % accumulation == 0:
            in_effect[t] = rates(optimizer)
            scheduler.step_update(t)
    assert list(in_effect) == recorded["micro_batch_index"]
    expected = zip(*recorded["value_by_lr_scale"].values(), strict=True)
    for actual, wanted in zip(in_effect.values(), expected, strict=True):
        assert actual == pytest.approx(list(wanted), **TOLERANCE)


@pytest.mark.parametrize("name", [name for name, record in RECORDS.items() if record["layer_decay"]])
def test_layer_scale_entry_of_a_group_is_not_applied_a_second_time(name):
    """Newer timm schedulers multiply by `lr_scale` at every update, on top of the lr that carries it already."""
    record = RECORDS[name]
    assert values_at_updates(record, optimizer_of(record)) == values_at_updates(
        record, optimizer_of(record, with_lr_scale=False))


def test_building_the_scheduler_twice_keeps_the_layer_scaled_peak():
    record = RECORDS["cosine_finetune_warm1"]
    config = config_of(record, **{"TRAIN.WARMUP_EPOCHS": 0})
    optimizer = optimizer_of(record)
    build_scheduler(config, optimizer, record["iterations_per_epoch"])
    scheduler = build_scheduler(config, optimizer, record["iterations_per_epoch"])
    peaks = [record["scaled_base_lr"] * float(scale) for scale in record["value_by_lr_scale"]]
    assert rates(optimizer) == pytest.approx(peaks, **TOLERANCE)

    total, t, minimum = record["epochs"] * record["iterations_per_epoch"], 7, record["scaled_min_lr"]
    scheduler.step_update(t)
    assert rates(optimizer) == pytest.approx(
        [minimum + (peak - minimum) / 2 * (1 + math.cos(math.pi * t / total)) for peak in peaks], **TOLERANCE)
