"""A run that was interrupted and continued ends with the weights of one that was not, to the last bit."""
import os
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from models.build import METHODS

from .processes import opts
from .recipes import method_settings
from .runs import changed, checkpoint, checkpoint_names, cut_back, log_of, losses, records, snapshot, truncate, unequal

SETTINGS = {  # everything that draws random numbers is on
    "pretrain": {"TRAIN.EPOCHS": 4, "MODEL.DROP_PATH_RATE": 0.1, "VIS_FREQ": 0},
    "finetune": {"TRAIN.EPOCHS": 4, "MODEL.DROP_PATH_RATE": 0.1, "DATA.IMG_SIZE": 64, "AUG.MIXUP": 0.8, "AUG.CUTMIX": 1.0,
                 "AUG.REPROB": 0.25},  # and the recipe's random augmentation
}
STEPS_PER_EPOCH = 3  # 24 images, batch 8


@pytest.fixture(scope="module", params=["pretrain", "finetune"])
def whole(request, train, pretrained_run, tmp_path_factory):
    """Four epochs in one go; `again(output, ...)` runs the same command for another output folder, and may change things."""
    stage = request.param
    flags = [] if stage == "pretrain" else ["--pretrained", pretrained_run / "encoder.pth"]

    def again(output, **changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return train(stage, output, *flags, settings={**SETTINGS[stage], **changes})

    folder, _ = again(tmp_path_factory.mktemp(f"whole_{stage}"))
    return SimpleNamespace(stage=stage, folder=folder, again=again,
                           script="main_simmim.py" if stage == "pretrain" else "main_finetune.py")


def assert_same_end(folder, other):
    """The last checkpoints agree bitwise: weights, optimizer, schedule, best accuracy."""
    ours, theirs = checkpoint(folder, 3), checkpoint(other, 3)
    for entry in ("model", "optimizer", "lr_scheduler", "scaler", "epoch", "max_accuracy", "best_epoch"):
        assert unequal(ours[entry], theirs[entry]) == []


def test_training_gives_the_same_weights_when_repeated_with_two_workers(whole, tmp_path):
    folder, _ = whole.again(tmp_path, DATA__NUM_WORKERS=2)
    assert_same_end(folder, whole.folder)


def test_training_gives_other_weights_when_the_seed_changes(whole, tmp_path):
    folder, _ = whole.again(tmp_path, SEED=1)
    assert len(unequal(checkpoint(folder, 3)["model"], checkpoint(whole.folder, 3)["model"])) > 10


def test_weights_are_finite_after_training(whole):
    assert all(torch.isfinite(value).all() for value in checkpoint(whole.folder, 3)["model"].values())


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(whole, workers, tmp_path):
    folder = cut_back(whole.folder, tmp_path / whole.stage / "default", last_epoch=1)
    _, out = whole.again(tmp_path, DATA__NUM_WORKERS=workers)
    assert "epoch 1 is done, going on with epoch 2" in out
    assert_same_end(folder, whole.folder)


def test_resumed_run_logs_the_losses_and_rates_of_an_uninterrupted_one(whole, tmp_path):
    folder = cut_back(whole.folder, tmp_path / whole.stage / "default", last_epoch=1)
    (folder / "metrics.jsonl").unlink()
    whole.again(tmp_path)
    assert losses(folder) == losses(whole.folder)[2 * STEPS_PER_EPOCH:]
    rates = [[record["lr"] for record in records(run, "train")] for run in (folder, whole.folder)]
    assert rates[0] == rates[1][2 * STEPS_PER_EPOCH:]


def test_resumed_run_says_so_in_its_log_file(whole, tmp_path):
    folder = cut_back(whole.folder, tmp_path / whole.stage / "default", last_epoch=1)
    whole.again(tmp_path)
    assert "epoch 1 is done, going on with epoch 2" in log_of(folder)


def test_truncated_newest_checkpoint_is_reported_and_the_one_before_used(whole, tmp_path):
    folder = cut_back(whole.folder, tmp_path / whole.stage / "default", last_epoch=2)
    truncate(folder / "ckpt_epoch_2.pth")
    _, out = whole.again(tmp_path)
    assert "WARNING" in out and "ckpt_epoch_2.pth is not a readable checkpoint" in out
    assert "epoch 1 is done, going on with epoch 2" in out
    assert_same_end(folder, whole.folder)


def test_truncated_checkpoint_is_reported_in_the_log_file(whole, tmp_path):
    folder = cut_back(whole.folder, tmp_path / whole.stage / "default", last_epoch=2)
    truncate(folder / "ckpt_epoch_2.pth")
    whole.again(tmp_path)
    assert "ckpt_epoch_2.pth is not a readable checkpoint" in log_of(folder)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_to_the_weights_of_an_uninterrupted_run(method, train, images, tmp_path):
    """Masks, mixtures and held-out losses included."""
    settings = {**method_settings(method), "TRAIN.EPOCHS": 2, "DATA.VAL_PATH": images / "val"}
    whole, _ = train("pretrain", tmp_path / "whole", settings=settings)
    folder = cut_back(whole, tmp_path / "cut" / "pretrain" / "default", last_epoch=0)
    _, out = train("pretrain", tmp_path / "cut", settings={**settings, "DATA.NUM_WORKERS": 2})
    assert "epoch 0 is done, going on with epoch 1" in out
    assert unequal(checkpoint(folder, 1)["model"], checkpoint(whole, 1)["model"]) == []
    assert records(folder, "val")[-1]["loss"] == records(whole, "val")[-1]["loss"]


def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(train, forks, cfg, images, tmp_path):
    settings = {"TRAIN.EPOCHS": 20, "MODEL.DROP_PATH_RATE": 0.1, "VIS_FREQ": 0}
    whole, _ = train("pretrain", tmp_path / "whole", settings=settings)
    killed = tmp_path / "killed" / "pretrain" / "default"
    command = ["--cfg", cfg.pretrain, "--data-path", images / "train", "--output", tmp_path / "killed", *opts(settings)]
    [(pid, *_)] = forks.start([("main_simmim.py", command, {})])
    while forks.codes([pid]) == [None] and not (killed / "ckpt_epoch_3.pth").exists():
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    forks.codes([pid], wait=True)
    assert not (killed / "encoder.pth").exists()  # it had not come to its end
    train("pretrain", tmp_path / "killed", settings=settings)
    assert unequal(checkpoint(killed, 19)["model"], checkpoint(whole, 19)["model"]) == []


# ---- an explicit --resume -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def source(train, tmp_path_factory):
    """A run of two epochs whose first checkpoint others continue from."""
    return train("pretrain", tmp_path_factory.mktemp("source"), settings={"TRAIN.EPOCHS": 2, "VIS_FREQ": 0})[0]


@pytest.fixture(scope="module")
def continued(train, source, tmp_path_factory):
    """Epochs 1 to 3 in a new run folder, from the first checkpoint of `source`; `again(output)` repeats the command."""
    def again(output):
        return train("pretrain", output, "--resume", source / "ckpt_epoch_0.pth", settings={"TRAIN.EPOCHS": 4, "VIS_FREQ": 0})

    return SimpleNamespace(folder=again(tmp_path_factory.mktemp("continued"))[0], again=again)


def test_resume_goes_on_after_the_epoch_of_the_named_file(continued):
    assert checkpoint_names(continued.folder) == ["ckpt_epoch_1.pth", "ckpt_epoch_2.pth", "ckpt_epoch_3.pth", "encoder.pth"]


def test_resume_leaves_the_run_it_starts_from_alone(source, continued, tmp_path):
    before = snapshot(source)
    continued.again(tmp_path)
    assert changed(before, snapshot(source)) == []


def test_resume_takes_the_newer_checkpoint_when_the_command_is_repeated_after_a_kill(continued, tmp_path):
    folder = cut_back(continued.folder, tmp_path / "pretrain" / "default", last_epoch=2)
    _, out = continued.again(tmp_path)
    assert "ckpt_epoch_2.pth was started from" in out
    assert "epoch 2 is done, going on with epoch 3" in out
    assert unequal(checkpoint(folder, 3)["model"], checkpoint(continued.folder, 3)["model"]) == []


def test_resume_refuses_a_folder_that_holds_later_checkpoints_of_another_run(forks, cfg, images, source, tmp_path):
    folder = tmp_path / "pretrain" / "default"
    shutil.copytree(source, folder)
    before = snapshot(folder)
    result = forks.run("main_simmim.py", "--cfg", cfg.pretrain, "--data-path", images / "train", "--output", tmp_path,
                       "--resume", source / "ckpt_epoch_0.pth", *opts({"TRAIN.EPOCHS": 2}))
    assert result.code != 0
    assert len(result.error_lines) == 1 and "already holds ckpt_epoch_1.pth" in result.err
    assert changed(before, snapshot(folder)) == []


# ---- config.yaml of a run as a recipe -----------------------------------------------------------------------------

def test_config_of_a_run_gives_its_weights_again_when_used_as_recipe(whole, forks):
    forks.run(whole.script, "--cfg", whole.folder / "config.yaml", "--tag", "again").checked()
    again = whole.folder.parent / "again"
    assert unequal(checkpoint(again, 3)["model"], checkpoint(whole.folder, 3)["model"]) == []


def test_config_of_a_run_comes_out_unchanged_when_used_as_recipe(whole, forks, tmp_path):
    config = whole.folder / "config.yaml"
    forks.run(whole.script, "--cfg", config, "--output", tmp_path).checked()
    written = (tmp_path / whole.stage / "default" / "config.yaml").read_text(encoding="utf-8").splitlines()
    assert [line for line in written if line not in config.read_text(encoding="utf-8").splitlines()] == [f"OUTPUT: {tmp_path}"]
