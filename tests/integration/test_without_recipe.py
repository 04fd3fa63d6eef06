"""The programs without --cfg: a checkpoint says what it is of, and where its run is."""
import shutil

import pytest

from .recipes import VAL_IMAGES
from .runs import accuracies, log_of, records


@pytest.fixture
def copied(finetuned_run, pretrained_run, tmp_path):
    """Run folders that may be written to: {name: folder}, below tmp_path as output."""
    for run in (finetuned_run, pretrained_run):
        shutil.copytree(run, tmp_path / "output" / run.parent.name / run.name)
    return {run.parent.name: tmp_path / "output" / run.parent.name / run.name for run in (finetuned_run, pretrained_run)}


def test_classifier_is_evaluated_by_what_it_keeps(copied, forks, cfg, images):
    folder = copied["finetune"]
    before = records(folder, "val")[-1]
    result = forks.run("main_finetune.py", "--eval", "--resume", folder / "ckpt_epoch_0.pth").checked()
    assert [int(count) for count, *_ in accuracies(result.out)] == [VAL_IMAGES]
    (after,) = records(folder, "eval")  # in its own folder, on the data of the run
    assert {name: after[name] for name in ("top1", "loss")} == {name: before[name] for name in ("top1", "loss")}


def test_pretrained_model_is_evaluated_by_what_it_keeps(copied, forks, images):
    folder = copied["pretrain"]
    forks.run("main_simmim.py", "--eval", "--resume", folder / "ckpt_epoch_0.pth", "--opts", "DATA.VAL_PATH",
              images / "val").checked()
    assert records(folder, "eval")[0]["images"] == VAL_IMAGES


def test_run_goes_on_by_what_its_checkpoint_keeps(copied, forks):
    folder = copied["pretrain"]
    forks.run("main_simmim.py", "--resume", folder / "ckpt_epoch_0.pth", "--opts", "TRAIN.EPOCHS", 2).checked()
    assert (folder / "ckpt_epoch_1.pth").is_file() and "resumed from" in log_of(folder)


def test_encoder_is_probed_without_a_recipe(copied, forks, images, tmp_path):
    encoder = copied["pretrain"] / "encoder.pth"
    common = ("--data-path", images, "--output", tmp_path / "probes")
    forks.run("main_linprobe.py", "--pretrained", encoder, *common, "--opts", "TRAIN.EPOCHS", 2, "TRAIN.WARMUP_EPOCHS", 0,
              "DATA.NUM_WORKERS", 0, "DATA.BATCH_SIZE", 8).checked()
    folder = tmp_path / "probes" / "linprobe" / "pretrain" / "default" / "encoder"  # a run for each encoder
    forks.run("main_linprobe.py", "--eval", "--resume", folder / "ckpt_epoch_1.pth", "--data-path", images).checked()
    assert records(folder, "eval")[0]["top1"] == records(folder, "val")[-1]["top1"]
    result = forks.run("main_finetune.py", "--eval", "--resume", folder / "ckpt_epoch_1.pth", "--data-path", images)
    assert result.code == 2 and "is of main_linprobe.py, not of main_finetune.py: use that" in result.error_lines[0]


def test_program_without_recipe_checkpoint_and_images_says_what_is_missing(forks):
    result = forks.run("main_finetune.py")
    assert result.code == 2 and "--cfg is missing: name a recipe" in result.error_lines[0]
