"""Between two steps of a tiny job: checkpoints within an epoch, requests to stop, numbers gone wrong."""
import logging

import pytest
import torch

from engine import fit, train_epoch
from saving import save
from utils import stopping
from utils.checkpoint import load_checkpoint, save_checkpoint
from watch import Watch

from .helpers import largest_difference, state_of
from .tiny_job import fitted, make_job, names_in

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@pytest.fixture
def ask(monkeypatch):
    """ask(code): as a signal would."""
    yield stopping.request
    stopping._State.code = 0


def interrupted(folder, after, **settings):
    """A run that is killed in the loss of a micro-batch, counted over the run."""
    count = 0

    def compute_loss(model, batch):
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt
        return model(batch[0]).square().mean()

    with pytest.raises(KeyboardInterrupt):
        fitted(folder, compute_loss=compute_loss, **settings)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """straight(**settings): (folder, job) of a run that nothing interrupts, made once."""
    made = {}

    def run(**settings):
        key = tuple(sorted(settings.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("straight")
            made[key] = folder, fitted(folder, **settings)
        return made[key]
    return run


def same_end(folder, other):
    ours, theirs = (load_checkpoint(each / "ckpt_epoch_2.pth") for each in (folder, other))
    for entry in ("model", "lr_scheduler", "epoch", "max_accuracy", "best_epoch", "skipped", "validated"):
        assert ours[entry] == theirs[entry] if entry != "model" else largest_difference(ours["model"], theirs["model"]) == 0
    for i, moments in ours["optimizer"]["state"].items():
        assert all(torch.equal(moments[name], theirs["optimizer"]["state"][i][name]) for name in MOMENTS)


# ---- within an epoch ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("steps", "names"), [
    (4, ["ckpt_epoch_0.pth", "ckpt_epoch_0_step_4.pth"]), (5, ["ckpt_epoch_0.pth", "ckpt_epoch_0_step_5.pth"]),
    (6, ["ckpt_epoch_0.pth"]), (2, ["ckpt_epoch_0.pth", "ckpt_epoch_0_step_4.pth"]), (0, ["ckpt_epoch_0.pth"])])
def test_checkpoints_within_an_epoch_are_written_every_save_steps(tmp_path, steps, names):
    """Of the two last places; one at the end of an epoch is that of the epoch. A finished run keeps none of them."""
    job = make_job(tmp_path, SAVE_STEPS=steps)
    watch = Watch(job)
    train_epoch(job, 0, watch)
    watch.save()
    assert names_in(tmp_path) == names
    fitted(tmp_path, SAVE_STEPS=steps)
    assert names_in(tmp_path) == [f"ckpt_epoch_{epoch}.pth" for epoch in range(3)]


def test_steps_are_counted_over_the_run(tmp_path):
    job = make_job(tmp_path, SAVE_STEPS=4)
    watch, saved = Watch(job), []
    watch.save = lambda scheduled: saved.append((job.place.epoch, job.place.steps))
    for epoch in range(3):
        train_epoch(job, epoch, watch)
    assert saved == [(0, 4), (1, 2), (2, 4)]  # steps 4, 8 and 16; 12 is the end of an epoch, which is saved by itself


@pytest.mark.parametrize("after", [1, 3, 4, 7, 9, 13, 17])
@pytest.mark.parametrize(("accumulation", "print_freq"), [(0, 1), (0, 4), (2, 3), (4, 2)])
def test_run_that_is_killed_anywhere_ends_as_if_it_had_not_been(tmp_path, straight, after, accumulation, print_freq):
    settings = {"SAVE_STEPS": 1, "TRAIN__ACCUMULATION_STEPS": accumulation, "PRINT_FREQ": print_freq}
    reference, uninterrupted = straight(**settings)
    interrupted(tmp_path / "killed", after, **settings)
    resumed = fitted(tmp_path / "killed", seed=99 if (tmp_path / "killed").exists() else 1, **settings)
    same_end(tmp_path / "killed", reference)
    written = {(kind, step): numbers for kind, step, numbers in uninterrupted.metrics}
    for kind, step, numbers in resumed.metrics:  # averages over steps before and after the kill included
        for name in ("loss", "loss_epoch", "lr", "grad_norm", "skipped"):
            assert numbers[name] == written[kind, step][name]


def test_nothing_is_read_again_to_come_to_the_place(tmp_path):
    interrupted(tmp_path, 4, SAVE_STEPS=1)
    seen = []

    def compute_loss(model, batch):
        seen.append(batch[0])
        return model(batch[0]).square().mean()

    job = make_job(tmp_path, compute_loss=compute_loss, SAVE_STEPS=1)
    assert (job.place.epoch, job.place.batches, job.place.steps) == (0, 4, 4)
    train_epoch(job, 0)
    assert len(seen) == 2 and torch.equal(seen[0], job.loader[4][0])


def test_checkpoint_that_says_another_place_than_its_name_is_passed_over(tmp_path, caplog):
    interrupted(tmp_path, 4, SAVE_STEPS=1)
    (tmp_path / "ckpt_epoch_0_step_4.pth").rename(tmp_path / "ckpt_epoch_0_step_5.pth")
    with caplog.at_level(logging.WARNING, logger="simmim"):
        job = make_job(tmp_path)
    assert job.place.steps == 3
    assert "ckpt_epoch_0_step_5.pth can't be used: what is in it is of epoch 0, step 4" in caplog.text


@pytest.mark.parametrize("content", [{"epoch": "1"}, {"epoch": 10 ** 9}, {}, {"epoch": 2, "position": "x"}])
def test_odd_contents_are_passed_over(tmp_path, content, caplog):
    fitted(tmp_path, TRAIN__EPOCHS=1)
    save_checkpoint(tmp_path / "ckpt_epoch_1.pth", {"model": {}, "optimizer": {}, **content})
    assert make_job(tmp_path).place.epoch == 1


def test_larger_steps_are_a_warning_with_both_numbers_and_the_rate(tmp_path, caplog):
    fitted(tmp_path, TRAIN__EPOCHS=1, DATA__BATCH_SIZE=8)
    with caplog.at_level(logging.WARNING, logger="simmim"):
        make_job(tmp_path, DATA__BATCH_SIZE=16, TRAIN__ACCUMULATION_STEPS=2)
    assert "a step has 32 images now (16 a batch x 1 processes x 2 accumulation steps), not 8 (8 x 1 x 1)" in caplog.text
    assert "the base rate is 3.125e-03 now, not 7.813e-04" in caplog.text  # 0.05 for 512 images


def test_same_step_of_other_parts_is_a_warning_that_says_that_the_rate_stays(tmp_path, caplog):
    fitted(tmp_path, TRAIN__EPOCHS=1, DATA__BATCH_SIZE=16)
    with caplog.at_level(logging.WARNING, logger="simmim"):
        make_job(tmp_path, DATA__BATCH_SIZE=8, TRAIN__ACCUMULATION_STEPS=2)
    assert "a step has 16 images now" in caplog.text and "the learning rate stays" in caplog.text


def test_place_within_an_epoch_is_counted_in_images_when_batches_change(tmp_path, caplog):
    interrupted(tmp_path, 4, SAVE_STEPS=1, DATA__BATCH_SIZE=8)
    assert make_job(tmp_path, DATA__BATCH_SIZE=16).place.batches == 2
    with caplog.at_level(logging.WARNING, logger="simmim"):
        assert make_job(tmp_path, DATA__BATCH_SIZE=20).place.batches == 1
    assert "lies 32 images into epoch 0" in caplog.text and "going on after 20 images" in caplog.text


# ---- what is kept -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("keep", "every", "epochs"), [(0, 0, range(7)), (1, 0, [6]), (2, 0, [5, 6]), (2, 3, [0, 3, 5, 6])])
def test_old_checkpoints_are_removed_as_told(tmp_path, keep, every, epochs):
    fitted(tmp_path, TRAIN__EPOCHS=7, SAVE_KEEP=keep, SAVE_KEEP_EVERY=every)
    assert names_in(tmp_path) == [f"ckpt_epoch_{epoch}.pth" for epoch in epochs]


def test_later_checkpoints_that_could_not_be_read_are_not_removed_and_do_not_count(tmp_path):
    fitted(tmp_path, TRAIN__EPOCHS=2)
    (tmp_path / "ckpt_epoch_99999999999999999999.pth").write_bytes(b"odd")
    fitted(tmp_path, TRAIN__EPOCHS=4, SAVE_KEEP=1)
    assert names_in(tmp_path) == ["ckpt_epoch_3.pth", "ckpt_epoch_99999999999999999999.pth"]


def test_checkpoints_written_behind_the_training_are_the_same(tmp_path):
    for name, behind in (("before", False), ("behind", True)):
        fitted(tmp_path / name, SAVE_STEPS=2, SAVE_ASYNC=behind)
    assert names_in(tmp_path / "before") == names_in(tmp_path / "behind")
    same_end(tmp_path / "before", tmp_path / "behind")


def test_copy_that_is_written_behind_is_of_the_step_it_is_of(tmp_path):
    """Training goes on while the file is written: here it ends before the writing begins."""
    job = make_job(tmp_path, SAVE_ASYNC=True)
    started = []
    job.writer.start = started.append
    train_epoch(job, 0)
    before = state_of(job.model)
    save(job)
    train_epoch(job, 1)
    started[0]()
    assert largest_difference(load_checkpoint(tmp_path / "ckpt_epoch_0.pth")["model"], before) == 0
    assert largest_difference(state_of(job.model), before) > 0


def test_error_of_writing_behind_ends_the_run(tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError("disk full")
    monkeypatch.setattr("saving.save_checkpoint", fail)
    with pytest.raises(OSError, match="disk full"):
        fitted(tmp_path, SAVE_ASYNC=True)


# ---- stopping -----------------------------------------------------------------------------------------------------

def stopped(folder, ask, at, **settings):
    """A run that is asked to stop within a step (its micro-batch, counted over the run); the text it ends with."""
    count = 0

    def compute_loss(model, batch):
        nonlocal count
        count += 1
        if count == at:
            ask(75)
        return model(batch[0]).square().mean()

    with pytest.raises(stopping.Stopped) as raised:
        fitted(folder, compute_loss=compute_loss, **settings)
    assert raised.value.code == 75
    stopping._State.code = 0
    return str(raised.value)


@pytest.mark.parametrize("at", [1, 5, 6, 7, 12, 18])
@pytest.mark.parametrize("settings", [{}, {"SAVE_FREQ": 2}, {"SAVE_ASYNC": True}, {"TRAIN__ACCUMULATION_STEPS": 4}])
def test_run_that_is_asked_to_stop_finishes_the_step_saves_and_goes_on_from_there(tmp_path, straight, ask, at, settings):
    reference, _ = straight(**settings)
    text = stopped(tmp_path / "stopped", ask, at, **settings)
    size = settings.get("TRAIN__ACCUMULATION_STEPS", 1)
    epoch, batches = divmod(at - 1, 6)
    steps = batches // size + 1
    assert f"ckpt_epoch_{epoch}_step_{steps}.pth is saved" in text and "To go on:" in text
    resumed = fitted(tmp_path / "stopped", seed=99, **settings)
    assert resumed.loader.epochs[:1] == [epoch]
    same_end(tmp_path / "stopped", reference)


@pytest.mark.parametrize(("save_freq", "name"), [(1, "ckpt_epoch_1.pth"), (5, "ckpt_epoch_2_step_0.pth")])
def test_run_that_is_asked_to_stop_while_it_validates_has_lost_no_training(tmp_path, ask, save_freq, name):
    def validate(epoch):
        if epoch == 1 and not stopping._State.code:
            ask(143)
            raise stopping.Asked(143)  # as evaluation.in_step does after the batch
        return {"top1": 10.0 * epoch}

    with pytest.raises(stopping.Stopped, match=rf"{name} is saved"):
        fitted(tmp_path, validate=validate, score="top1", SAVE_FREQ=save_freq)
    stopping._State.code = 0
    resumed = fitted(tmp_path, validate=lambda epoch: {"top1": 10.0 * epoch}, score="top1", SAVE_FREQ=save_freq)
    assert resumed.loader.epochs == [2]  # the third epoch only
    assert [(kind, numbers["epoch"]) for kind, _, numbers in resumed.metrics if kind == "val"] == [("val", 1), ("val", 2)]
    assert (resumed.best, resumed.best_epoch) == (20.0, 2)


# ---- numbers gone wrong -------------------------------------------------------------------------------------------

def spoilt(when, how):
    """A loss that goes wrong in some micro-batches, counted over the run."""
    count = 0

    def compute_loss(model, batch):
        nonlocal count
        count += 1
        loss = model(batch[0]).square().mean()
        return how(model, loss) if count in when else loss
    return compute_loss


def into_weights(value):
    def spoil(model, loss):
        with torch.no_grad():
            model[2].bias[0] = value
        return model(torch.ones(2, 3)).square().mean()
    return spoil


@pytest.mark.parametrize("how", [lambda model, loss: loss + float("nan"), lambda model, loss: loss + float("inf"),
                                 lambda model, loss: loss * float("nan")])
def test_step_without_a_finite_loss_is_skipped_and_counted(tmp_path, how):
    """Also where the gradient is finite."""
    job = make_job(tmp_path, compute_loss=spoilt({2, 5}, how))
    fit(job)
    assert job.metrics[-1][2]["skipped"] == 2
    assert load_checkpoint(tmp_path / "ckpt_epoch_2.pth")["skipped"] == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("print_freq", [1, 100])
def test_spoilt_weights_end_the_run_at_once_and_are_not_saved(tmp_path, value, print_freq):
    settings = {"PRINT_FREQ": print_freq, "SAVE_STEPS": 1}
    with pytest.raises(ValueError, match=r"NaN or infinity is in 2\.bias of rank 0.*newest good .*epoch_1_step_2"):
        fitted(tmp_path, compute_loss=spoilt({9}, into_weights(value)), **settings)
    for path in tmp_path.glob("*.pth"):
        assert all(torch.isfinite(tensor).all() for tensor in load_checkpoint(path)["model"].values())
    resumed = fitted(tmp_path, **settings)
    assert resumed.loader.epochs == [1, 2]


@pytest.mark.parametrize("print_freq", [1, 100])
def test_limit_of_skipped_steps_does_not_depend_on_print_freq(tmp_path, print_freq):
    job = make_job(tmp_path, compute_loss=spoilt(range(8, 99), lambda model, loss: loss * float("nan")), PRINT_FREQ=print_freq,
                   TRAIN__NONFINITE_LIMIT=3)
    with pytest.raises(ValueError, match=r"in the last 3 steps, up to iteration 3 \(epoch 1\).*loss was not finite on rank 0.*"
                                         r"newest good checkpoint is .*ckpt_epoch_0\.pth"):
        fit(job)


def test_run_that_only_skips_is_not_saved_and_ends_with_an_error(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="simmim"), pytest.raises(ValueError, match="There is no checkpoint"):
        fitted(tmp_path, compute_loss=spoilt(range(99), lambda model, loss: loss * float("nan")))
    assert names_in(tmp_path) == [] and "is not saved: the loss was NaN" in caplog.text


def test_run_whose_only_checkpoint_is_amid_skipped_steps_is_advised_to_start_anew(tmp_path):
    """Losses stay finite, gradients don't: the weights may be far off, and going on from them may end as before."""
    with pytest.raises(ValueError, match=r"ckpt_epoch_0\.pth was saved amid skipped steps, is finite, but may have diverged: "
                                         r"start anew, or try it with --resume .*_0\.pth; either way with another --tag"):
        fitted(tmp_path, compute_loss=spoilt(range(4, 99), lambda model, loss: (loss * 0).sqrt() + loss.detach()),
               TRAIN__NONFINITE_LIMIT=4)


def test_names_of_files_are_said_in_one_line_that_can_be_printed(tmp_path, caplog):
    job = make_job(tmp_path)
    job.loader.bad.meet({"/two\nlines \x1b[31m.jpg": "no image"})
    with caplog.at_level(logging.WARNING, logger="simmim"):
        Watch(job)._share_bad_images()
    assert r"/two\nlines \x1b[31m.jpg" in caplog.text


def test_skipped_steps_are_counted_over_a_restart(tmp_path):
    """Otherwise a run whose every step is skipped could be started again for ever."""
    with pytest.raises(ValueError, match="in the last 3 steps"):
        fitted(tmp_path, compute_loss=spoilt(range(5, 99), lambda model, loss: loss * float("nan")), SAVE_STEPS=1,
               TRAIN__NONFINITE_LIMIT=3)
    saved = load_checkpoint(max(tmp_path.glob("*_step_*.pth"), key=lambda path: path.name))
    assert saved["skipped_in_row"] == 1
    job = make_job(tmp_path, TRAIN__NONFINITE_LIMIT=3)
    assert (int(job.updater.skipped), int(job.updater.skipped_in_row)) == (1, 1)


@pytest.mark.parametrize("where", ["model", "moments"])
def test_checkpoint_with_nan_is_refused_and_the_good_one_named(tmp_path, where):
    fitted(tmp_path, TRAIN__EPOCHS=2)
    content = load_checkpoint(tmp_path / "ckpt_epoch_1.pth")
    tensor = content["model"]["0.weight"] if where == "model" else content["optimizer"]["state"][0]["exp_avg"]
    tensor.view(-1)[1] = float("nan")
    save_checkpoint(tmp_path / "ckpt_epoch_1.pth", content)
    with pytest.raises(ValueError, match=r"ckpt_epoch_1\.pth can't be resumed: 1 of its tensors hold NaN.*ckpt_epoch_0\.pth"):
        make_job(tmp_path)


def test_validation_without_a_number_is_never_best(tmp_path, caplog):
    losses = [float("nan"), 1.0, float("nan")]
    with caplog.at_level(logging.WARNING, logger="simmim"):
        job = fitted(tmp_path, validate=lambda epoch: {"top1": 50.0 - epoch, "loss": losses[epoch]}, score="top1")
    assert (job.best, job.best_epoch) == (49.0, 1)
    assert "the validation loss of epoch 0 is nan: it can't be the best" in caplog.text


def test_signal_that_comes_while_the_run_saves_before_it_stops_does_not_end_it(tmp_path, ask, monkeypatch):
    """A storm of them: the handlers ask only, until all is saved."""
    saving = []
    monkeypatch.setattr("watch.save", lambda *args, **kwargs: saving.append(stopping.saves_first()))
    stopped(tmp_path, ask, 2)
    assert saving == [True]
