"""TRAIN.EMA_DECAY in a run: when the average moves, how it is judged and kept, and that it goes on to the bit."""
import math

import pytest
import torch

from config import load_config
from engine import fit
from utils.checkpoint import load_checkpoint, weights_of

from .tiny_job import fitted, make_job, names_in

EMA = {"TRAIN__EMA_DECAY": 0.875}


def averages(job):
    return {name: value.clone() for name, value in job.updater.average.tensors().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_average_equals_a_reference_after_each_step_once_per_group(accumulation, tmp_path):
    job = make_job(tmp_path, TRAIN__ACCUMULATION_STEPS=accumulation, **EMA)
    reference = {name: value.double() for name, value in job.model.state_dict().items()}
    step, steps = job.scheduler.step_update, []

    def noticed(iteration):
        step(iteration)
        steps.append(iteration)
        for name, value in job.model.state_dict().items():
            reference[name] = 0.875 * reference[name] + 0.125 * value.double()

    job.scheduler.step_update = noticed
    fit(job)
    assert len(steps) == 3 * math.ceil(6 / accumulation)
    for name, value in averages(job).items():
        torch.testing.assert_close(value.double(), reference[name], rtol=1e-5, atol=1e-6)


def test_training_with_an_average_has_the_weights_of_one_without(tmp_path):
    with_average, without = fitted(tmp_path / "with", **EMA), fitted(tmp_path / "without")
    assert same(with_average.model.state_dict(), without.model.state_dict())


def test_skipped_step_does_not_move_the_average(tmp_path):
    seen = []

    def loss(model, batch):
        seen.append(averages(job))
        return model(batch[0]).square().mean() * (torch.nan if len(seen) == 3 else 1)

    job = make_job(tmp_path, compute_loss=loss, **EMA)
    fit(job)
    assert same(seen[2], seen[3]) and not same(seen[1], seen[2]) and not same(seen[3], seen[4])


@pytest.mark.parametrize("save_steps", [0, 2])
def test_average_of_a_resumed_run_is_that_of_an_uninterrupted_one_to_the_bit(save_steps, tmp_path):
    calls = []

    def killed(model, batch):
        calls.append(batch)
        if len(calls) == 11:  # within the second epoch
            raise KeyboardInterrupt
        return model(batch[0]).square().mean()

    whole = fitted(tmp_path / "whole", SAVE_STEPS=save_steps, **EMA)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "part", compute_loss=killed, SAVE_STEPS=save_steps, **EMA)
    part = fitted(tmp_path / "part", SAVE_STEPS=save_steps, **EMA)
    assert same(averages(part), averages(whole)) and same(part.model.state_dict(), whole.model.state_dict())
    files = [load_checkpoint(tmp_path / name / "ckpt_epoch_2.pth") for name in ("whole", "part")]
    assert same(*(file["model_ema"] for file in files)) and same(files[0]["model_ema"], averages(whole))


def test_weights_and_average_are_both_validated_written_and_kept_best(tmp_path):
    """The weights are best in epoch 0, their average in epoch 1."""
    scores, seen = iter([30.0, 10.0, 20.0, 40.0, 10.0, 5.0]), []

    def validate(epoch):
        seen.append(job.model[0].weight.detach().clone())
        return {"top1": next(scores), "images": 7}

    job = make_job(tmp_path, validate=validate, score="top1", **EMA)
    fit(job)
    assert [(values["top1"], values["ema_top1"]) for kind, _, values in job.metrics if kind == "val"] == [
        (30.0, 10.0), (20.0, 40.0), (10.0, 5.0)]
    assert all("ema_images" not in values for _, _, values in job.metrics)
    assert (job.best, job.best_epoch, job.best_average, job.best_average_epoch) == (30.0, 0, 40.0, 1)
    best, of_average = (load_checkpoint(tmp_path / name) for name in ("ckpt_best.pth", "ckpt_best_ema.pth"))
    assert (best["epoch"], best["max_accuracy"], of_average["epoch"], of_average["max_accuracy"]) == (0, 30.0, 1, 40.0)
    for i, content in ((0, best), (2, of_average)):  # each holds both
        assert torch.equal(content["model"]["0.weight"], seen[i]) and torch.equal(content["model_ema"]["0.weight"], seen[i + 1])


def test_best_average_is_remembered_by_a_run_that_goes_on(tmp_path):
    def validate(epoch):
        return {"top1": next(scores)}

    scores = iter([1.0, 50.0, 2.0, 40.0])
    fitted(tmp_path, validate=validate, score="top1", TRAIN__EPOCHS=2, **EMA)
    scores = iter([3.0, 45.0])
    job = fitted(tmp_path, validate=validate, score="top1", TRAIN__EPOCHS=3, **EMA)
    assert (job.best, job.best_average, job.best_average_epoch) == (3.0, 50.0, 0)
    assert load_checkpoint(tmp_path / "ckpt_best_ema.pth")["epoch"] == 0


def test_run_without_an_average_writes_none(tmp_path):
    fitted(tmp_path, validate=lambda epoch: {"top1": 1.0}, score="top1")
    assert "ckpt_best_ema.pth" not in names_in(tmp_path)
    assert not {"model_ema", "max_accuracy_ema", "best_epoch_ema"} & load_checkpoint(tmp_path / "ckpt_epoch_2.pth").keys()


def test_average_that_is_asked_for_later_begins_with_the_weights_and_says_so(tmp_path, caplog):
    fitted(tmp_path, TRAIN__EPOCHS=1)
    caplog.set_level("INFO", "simmim")
    job = make_job(tmp_path, **EMA)
    assert same(averages(job), job.model.state_dict())
    assert "holds no average of the weights: it begins with them" in caplog.text


def test_average_that_is_given_up_is_said(tmp_path, caplog):
    fitted(tmp_path, TRAIN__EPOCHS=1, **EMA)
    make_job(tmp_path)
    assert "is not gone on with: TRAIN.EMA_DECAY is 0" in caplog.text


def test_average_of_another_model_is_refused(tmp_path):
    fitted(tmp_path, TRAIN__EPOCHS=1, **EMA)
    path = tmp_path / "ckpt_epoch_0.pth"
    content = load_checkpoint(path)
    content["model_ema"].pop("2.bias")
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"the average of the weights in .* is of another model: 1 tensors .*2\.bias"):
        make_job(tmp_path, **EMA)


def test_average_that_is_not_finite_is_not_gone_on_with(tmp_path):
    fitted(tmp_path, TRAIN__EPOCHS=1, **EMA)
    path = tmp_path / "ckpt_epoch_0.pth"
    content = load_checkpoint(path)
    content["model_ema"]["2.bias"][0] = torch.nan
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"hold NaN or infinity \(the average of 2\.bias\)"):
        make_job(tmp_path, **EMA)


@pytest.mark.parametrize(("value", "match"), [
    (1.0, "expected 0, or 0.5 and more but below 1, e.g. 0.9999"), (0.0001, "e.g. 0.9999"), (-0.1, "out of range")])
def test_decay_that_can_not_be_meant_is_refused(value, match):
    with pytest.raises(ValueError, match=rf"TRAIN\.EMA_DECAY=.*{match}"):
        load_config(opts=["TRAIN.EMA_DECAY", value])


@pytest.mark.parametrize("key", ["model_ema", "ema", "state_dict_ema", "ema.state_dict"])
def test_ema_finds_the_average_wherever_it_stands(key):
    content, inside = {"model": {"w": torch.zeros(2)}}, {"w": torch.ones(2)}
    for part in reversed(key.split(".")):
        inside = {part: inside}
    assert weights_of({**content, **inside}, "ema")["w"].tolist() == [1, 1]
    assert weights_of({**content, **inside})["w"].tolist() == [0, 0]


def test_ema_of_a_file_without_an_average_says_where_weights_stand():
    with pytest.raises(ValueError, match=r"no average of the weights \(--ema, PRETRAINED_KEY=ema\).*stand under: model"):
        weights_of({"model": {"w": torch.zeros(2)}}, "ema")
