"""Epochs, checkpoints and resuming of a tiny job."""
import logging
from types import SimpleNamespace

import pytest
import torch

from config import dump
from engine import end, fit, train_epoch
from utils.checkpoint import load_checkpoint, save_checkpoint

from .helpers import largest_difference, state_of
from .tiny_job import fitted, make_job, names_in

# ---- one epoch ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("num_batches", "accumulation", "groups"), [
    (5, 0, [1, 1, 1, 1, 1]), (5, 1, [1, 1, 1, 1, 1]), (5, 2, [2, 2, 1]), (6, 3, [3, 3]), (2, 4, [2])])
def test_epoch_makes_a_step_of_every_group_and_of_what_is_left(tmp_path, num_batches, accumulation, groups):
    """The official code throws the rest away (quirk 7); the schedule counts micro-batches."""
    job = make_job(tmp_path, num_batches, TRAIN__ACCUMULATION_STEPS=accumulation)
    update, step_update, sizes, counted = job.updater.update, job.scheduler.step_update, [], []
    job.updater.update = lambda losses: sizes.append(len(losses)) or update(losses)
    job.scheduler.step_update = lambda t: counted.append(t) or step_update(t)
    train_epoch(job, 2)
    assert sizes == groups
    assert counted == [2 * num_batches + sum(groups[:i + 1]) - 1 for i in range(len(groups))]
    assert job.loader.epochs == [2]


def test_each_micro_batch_is_used_once_and_in_order(tmp_path):
    seen = []

    def compute_loss(model, batch):
        seen.append(batch[0])
        return model(batch[0]).mean()

    job = make_job(tmp_path, 5, compute_loss, TRAIN__ACCUMULATION_STEPS=2)
    train_epoch(job, 0)
    assert len(seen) == 5 and all(torch.equal(a, b[0]) for a, b in zip(seen, job.loader, strict=True))


@pytest.mark.parametrize(("print_freq", "accumulation", "steps"), [
    (2, 0, [0, 2, 4, 5]), (10, 0, [0, 5]), (1, 0, [0, 1, 2, 3, 4, 5]), (2, 2, [1, 3, 5]), (4, 3, [2, 5])])
def test_numbers_are_written_every_print_freq_and_at_the_end(tmp_path, print_freq, accumulation, steps):
    job = make_job(tmp_path, 6, PRINT_FREQ=print_freq, TRAIN__ACCUMULATION_STEPS=accumulation)
    train_epoch(job, 1)
    assert [(kind, step) for kind, step, _ in job.metrics] == [("train", 6 + step) for step in steps]


def test_written_numbers_are_means_since_the_last_line(tmp_path):
    values = iter([1.0, 3.0, 5.0, 7.0, 100.0, 200.0])

    def compute_loss(model, batch):
        return model(batch[0]).mean() * 0 + next(values)

    job = make_job(tmp_path, 6, compute_loss, PRINT_FREQ=2)
    train_epoch(job, 0)
    assert [numbers["loss"] for _, _, numbers in job.metrics] == pytest.approx([1.0, 4.0, 53.5, 200.0])
    assert [numbers["loss_epoch"] for _, _, numbers in job.metrics] == pytest.approx([1.0, 3.0, 23.2, 316 / 6])


def test_written_rate_is_that_of_the_step_just_made(tmp_path):
    """Warm-up from 5e-7 over 6 iterations: steps 0 and 1 share the first value (quirk 1)."""
    job = make_job(tmp_path, 6, PRINT_FREQ=1, TRAIN__BASE_LR=0.06, TRAIN__WARMUP_LR=0.0)
    train_epoch(job, 0)
    assert [numbers["lr"] for _, _, numbers in job.metrics] == pytest.approx([0.0, 0.0, 0.01, 0.02, 0.03, 0.04])


def test_steps_without_end_that_are_not_finite_stop_the_run_with_advice(tmp_path):
    job = make_job(tmp_path, 6, lambda model, batch: model(batch[0]).mean() * float("nan"), TRAIN__NONFINITE_LIMIT=4,
                   PRINT_FREQ=1)
    before = state_of(job.model)
    with pytest.raises(ValueError, match=r"NaN or infinite in the last 4 steps, up to iteration 3.*TRAIN\.BASE_LR"):
        fit(job)
    assert largest_difference(state_of(job.model), before) == 0 and names_in(tmp_path) == []


# ---- checkpoints --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("save_freq", "epochs"), [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (3, [0, 3]), (9, [0, 3])])
def test_checkpoints_are_written_every_save_freq_and_at_the_end(tmp_path, save_freq, epochs):
    fitted(tmp_path, TRAIN__EPOCHS=4, SAVE_FREQ=save_freq)
    assert names_in(tmp_path) == [f"ckpt_epoch_{epoch}.pth" for epoch in epochs]


def test_checkpoint_holds_what_the_contract_names(tmp_path):
    job = fitted(tmp_path, TRAIN__EPOCHS=1)
    content = load_checkpoint(tmp_path / "ckpt_epoch_0.pth")
    assert {"model", "optimizer", "lr_scheduler", "epoch", "config"} <= content.keys()
    assert content["epoch"] == 0 and content["config"] == dump(job.config, "pretrain")
    assert largest_difference(content["model"], state_of(job.model)) == 0


def test_best_checkpoint_is_that_of_the_highest_score(tmp_path):
    scores, weights = [10.0, 30.0, 20.0], {}

    def validate(epoch):
        weights[epoch] = state_of(jobs[0].model)
        return {"top1": scores[epoch]}

    jobs = [make_job(tmp_path, validate=validate, score="top1")]
    fit(jobs[0])
    content = load_checkpoint(tmp_path / "ckpt_best.pth")
    assert (content["epoch"], content["max_accuracy"], jobs[0].best_epoch) == (1, 30.0, 1)
    assert largest_difference(content["model"], weights[1]) == 0
    assert [numbers["top1"] for kind, _, numbers in jobs[0].metrics if kind == "val"] == scores


# ---- resuming -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("accumulation", [0, 4])
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, accumulation):
    straight = fitted(tmp_path / "straight", TRAIN__ACCUMULATION_STEPS=accumulation)

    def killed(epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "killed", validate=killed, TRAIN__ACCUMULATION_STEPS=accumulation)
    resumed = fitted(tmp_path / "killed", seed=99, TRAIN__ACCUMULATION_STEPS=accumulation)
    assert resumed.loader.epochs == [2]  # the epoch had been saved before it was validated
    assert largest_difference(state_of(resumed.model), state_of(straight.model)) == 0
    rates = {step: numbers["lr"] for _, step, numbers in straight.metrics}
    assert {step: numbers["lr"] for _, step, numbers in resumed.metrics} == {s: r for s, r in rates.items() if s >= 12}


def test_run_starts_at_its_first_epoch_when_there_is_nothing_to_resume(tmp_path):
    assert make_job(tmp_path).place.epoch == 0
    assert make_job(tmp_path, TRAIN__START_EPOCH=2).place.epoch == 2


def test_newest_checkpoint_of_the_folder_is_resumed(tmp_path):
    done = fitted(tmp_path, TRAIN__EPOCHS=2)
    job = make_job(tmp_path, seed=99)
    assert job.place.epoch == 2 and largest_difference(state_of(job.model), state_of(done.model)) == 0


def test_broken_newest_checkpoint_is_announced_and_the_one_before_resumed(tmp_path, caplog):
    fitted(tmp_path, TRAIN__EPOCHS=3)
    (tmp_path / "ckpt_epoch_2.pth").write_bytes(b"half")
    with caplog.at_level(logging.WARNING, logger="simmim"):
        job = make_job(tmp_path)
    assert job.place.epoch == 2 and "ckpt_epoch_2.pth is not a readable checkpoint" in caplog.text
    fit(job)
    assert load_checkpoint(tmp_path / "ckpt_epoch_2.pth")["epoch"] == 2


def test_finished_run_trains_no_further(tmp_path):
    done = fitted(tmp_path)
    again = fitted(tmp_path)
    assert again.loader.epochs == [] and largest_difference(state_of(again.model), state_of(done.model)) == 0


def test_settings_of_the_present_config_hold_after_resuming(tmp_path, caplog):
    """Quirk 35: the official code takes them from the checkpoint, silently."""
    fitted(tmp_path, TRAIN__EPOCHS=2)
    with caplog.at_level(logging.INFO, logger="simmim"):
        job = make_job(tmp_path, TRAIN__WEIGHT_DECAY=0.3, TRAIN__BASE_LR=0.2, TRAIN__EPOCHS=8)
    fresh = make_job(tmp_path / "fresh", TRAIN__WEIGHT_DECAY=0.3, TRAIN__BASE_LR=0.2, TRAIN__EPOCHS=8)
    fresh.scheduler.step_update(11)
    group, = job.updater.optimizer.param_groups
    assert group["weight_decay"] == 0.3 and group["lr"] == fresh.updater.optimizer.param_groups[0]["lr"] > 0.1
    for key, then, now in (("TRAIN.WEIGHT_DECAY", 0.05, 0.3), ("TRAIN.BASE_LR", 0.05, 0.2), ("TRAIN.EPOCHS", 2, 8)):
        assert f"{key} was {then} in the checkpoint and is {now} now" in caplog.text


def test_explicit_checkpoint_is_resumed_in_an_empty_folder(tmp_path):
    done = fitted(tmp_path / "first", TRAIN__EPOCHS=2)
    source = tmp_path / "first" / "ckpt_epoch_1.pth"
    job = make_job(tmp_path / "second", MODEL__RESUME=str(source), seed=99)
    assert job.place.epoch == 2 and job.started_from == str(source)
    assert largest_difference(state_of(job.model), state_of(done.model)) == 0


def test_newer_checkpoint_that_descends_from_the_explicit_one_wins_and_is_announced(tmp_path, caplog):
    """The same command after a kill goes on."""
    fitted(tmp_path / "first", TRAIN__EPOCHS=1)
    explicit = {"MODEL__RESUME": str(tmp_path / "first" / "ckpt_epoch_0.pth")}
    done = fitted(tmp_path / "second", TRAIN__EPOCHS=3, **explicit)
    with caplog.at_level(logging.INFO, logger="simmim"):
        job = make_job(tmp_path / "second", TRAIN__EPOCHS=5, seed=99, **explicit)
    assert job.place.epoch == 3 and largest_difference(state_of(job.model), state_of(done.model)) == 0
    assert "is newer: continuing with it" in caplog.text
    fit(job)
    assert load_checkpoint(tmp_path / "second" / "ckpt_epoch_4.pth")["started_from"] == explicit["MODEL__RESUME"]


def test_descent_is_kept_when_a_run_goes_on_without_naming_its_origin(tmp_path):
    fitted(tmp_path / "first", TRAIN__EPOCHS=1)
    explicit = {"MODEL__RESUME": str(tmp_path / "first" / "ckpt_epoch_0.pth")}
    fitted(tmp_path / "second", TRAIN__EPOCHS=2, **explicit)
    fitted(tmp_path / "second", TRAIN__EPOCHS=3)
    assert make_job(tmp_path / "second", TRAIN__EPOCHS=4, **explicit).place.epoch == 3


def test_relative_and_absolute_path_name_the_same_origin(tmp_path, monkeypatch):
    fitted(tmp_path / "first", TRAIN__EPOCHS=1)
    monkeypatch.chdir(tmp_path)
    fitted(tmp_path / "second", TRAIN__EPOCHS=2, MODEL__RESUME="first/ckpt_epoch_0.pth")
    job = make_job(tmp_path / "second", MODEL__RESUME=str(tmp_path / "first" / "ckpt_epoch_0.pth"))
    assert job.place.epoch == 2


def test_checkpoint_of_another_run_in_the_folder_is_not_overwritten(tmp_path):
    fitted(tmp_path / "first", TRAIN__EPOCHS=1)
    fitted(tmp_path / "second", TRAIN__EPOCHS=3)
    before = {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
    with pytest.raises(ValueError, match=r"already holds ckpt_epoch_2\.pth, and continuing from .*ckpt_epoch_0\.pth.*--tag"):
        make_job(tmp_path / "second", MODEL__RESUME=str(tmp_path / "first" / "ckpt_epoch_0.pth"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()} == before


def test_starting_anew_over_an_old_run_is_refused(tmp_path):
    fitted(tmp_path)
    with pytest.raises(ValueError, match=r"already holds ckpt_epoch_2\.pth, and starting anew at epoch 0.*AUTO_RESUME True"):
        make_job(tmp_path, TRAIN__AUTO_RESUME=False)


def test_explicit_checkpoint_of_the_folder_itself_may_be_its_newest(tmp_path):
    fitted(tmp_path, TRAIN__EPOCHS=2)
    job = make_job(tmp_path, MODEL__RESUME=str(tmp_path / "ckpt_epoch_1.pth"))
    assert job.place.epoch == 2


def test_file_with_weights_only_can_not_be_resumed_and_says_what_to_do(tmp_path):
    save_checkpoint(tmp_path / "encoder.pth", {"model": make_job(tmp_path).model.state_dict()})
    with pytest.raises(ValueError, match=r"can't be resumed: it has no optimizer, epoch.*--pretrained"):
        make_job(tmp_path, MODEL__RESUME=str(tmp_path / "encoder.pth"))


def test_optimizer_of_another_kind_of_run_is_refused(tmp_path):
    fitted(tmp_path, TRAIN__EPOCHS=1)
    content = load_checkpoint(tmp_path / "ckpt_epoch_0.pth")
    content["optimizer"]["param_groups"].append(content["optimizer"]["param_groups"][0])
    save_checkpoint(tmp_path / "ckpt_epoch_0.pth", content)
    with pytest.raises(ValueError, match=r"the optimizer of .*ckpt_epoch_0\.pth does not fit this run"):
        make_job(tmp_path)


def test_best_score_survives_resuming(tmp_path):
    fitted(tmp_path, validate=lambda epoch: {"top1": 40.0 - epoch}, score="top1", TRAIN__EPOCHS=2)
    job = make_job(tmp_path, validate=lambda epoch: {"top1": 30.0}, score="top1")
    assert (job.best, job.best_epoch) == (40.0, 0)
    fit(job)
    assert load_checkpoint(tmp_path / "ckpt_best.pth")["epoch"] == 0


def test_missing_explicit_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth does not exist"):
        make_job(tmp_path, MODEL__RESUME=str(tmp_path / "absent.pth"))


def test_folder_is_given_back_when_its_files_can_not_be_closed(tmp_path):
    """What could not be written on a full disk is tried again then."""
    def full():
        raise OSError(28, "No space left on device")

    released = []
    job = SimpleNamespace(metrics=SimpleNamespace(close=full), heart=SimpleNamespace(end=lambda: released.append("heart")),
                          lock=SimpleNamespace(release=lambda: released.append("lock")))
    with pytest.raises(OSError, match="No space left"):
        end(job)
    assert released == ["heart", "lock"]
