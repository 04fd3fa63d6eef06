"""Five commands without a YAML, on folders that nobody prepared: pre-train, fine-tune, evaluate, predict, probe."""
import shlex

import numpy as np
import pytest

from config import load_config
from tests import drawn

from .processes import opts
from .runs import accuracies, changed, log_of, records, snapshot

QUICK = {"TRAIN.EPOCHS": 1, "TRAIN.WARMUP_EPOCHS": 0, "DATA.NUM_WORKERS": 0, "PRINT_FREQ": 1, "VIS_IMAGES": 2}
HOURS = 0.001  # so that hardly anything is timed; what is then chosen depends on the machine, and QUICK does not


def make(folder, kind):
    """A folder of a kind: 24 icons, 24 scans of which two are broken, or 8 photographs."""
    if kind == "icons":
        drawn.icons(folder, 4, side=24)
    elif kind == "photographs":
        drawn.photographs(folder, 4, size=(80, 60), turned=0.5)
    else:
        drawn.scans(folder, 4, side=30, broken=0.0)
        for name in ("disc", "ring"):
            path = folder / name / "0002.png"
            path.write_bytes(path.read_bytes()[:90])


@pytest.mark.parametrize("kind, key, value", [("icons", "BACKGROUND", "white"), ("photographs", "EXIF", True)])
def test_folder_is_trained_on_as_its_images_are(kind, key, value, forks, tmp_path):
    make(tmp_path / kind, kind)
    before = snapshot(tmp_path / kind)
    forks.run("main_simmim.py", "--data-path", tmp_path / kind, "--output", tmp_path / "out", "--hours", HOURS,
              *opts(QUICK)).checked()
    assert load_config(tmp_path / "out" / "simmim_pretrain" / kind / "recipe.yaml").DATA[key] == value
    assert changed(before, snapshot(tmp_path / kind)) == []


def test_folder_is_trained_on_and_used_by_five_commands(forks, tmp_path):
    data, output = tmp_path / "my scans", tmp_path / "out"
    make(data, "scans")
    before = snapshot(data)
    first = forks.run("main_simmim.py", "--data-path", data, "--output", output, "--hours", HOURS, *opts(QUICK)).checked()
    chosen = load_config(output / "simmim_pretrain" / "my_scans" / "recipe.yaml")
    assert (chosen.DATA.MAX_BAD_FRACTION, chosen.MODEL.SWIN.IN_CHANS) == (0.25, 1)
    *commands, features = [shlex.split(line)[1:] for line in first.out.splitlines() if line.startswith("python ")]
    assert commands[-1][-3:] == ["--opts", "DATA.MAX_BAD_FRACTION", "0.25"]
    commands[0] += ["--output", output, "--hours", HOURS, *opts(QUICK)]
    commands[-1] += ["TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0", "DATA.NUM_WORKERS", "0", "--output", output]
    tuned, evaluated, predicted, probed = (forks.run(*command) for command in commands)
    assert [result.code for result in (tuned, evaluated, probed)] == [0, 0, 0]
    folder = output / "simmim_finetune" / "my_scans"
    assert records(folder, "eval")[0]["top1"] == records(folder, "val")[-1]["top1"]
    assert load_config(folder / "recipe.yaml").MODEL.SWIN.IN_CHANS == 1
    assert "tensors matched" in tuned.out and len(accuracies(evaluated.out)) == len(accuracies(probed.out)) == 1
    assert features[-4:] == ["--features", "features.npz", "--output", "pooled"]
    forks.run(*features[:-3], tmp_path / "features.npz", *features[-2:])
    vectors = np.load(tmp_path / "features.npz")["features"]
    assert vectors.ndim == 2 and len(vectors) == 22  # of 24 images two are broken
    assert "0001.png" in predicted.out and len(predicted.error_lines) == 2  # it names the files that can't be read
    assert changed(before, snapshot(data)) == []


def test_second_start_goes_on_by_the_recipe_of_the_first(forks, tmp_path):
    data, output = tmp_path / "icons", tmp_path / "out"
    make(data, "icons")
    command = ("main_simmim.py", "--data-path", data, "--output", output, "--hours", HOURS)
    forks.run(*command, *opts(QUICK)).checked()
    run = output / "simmim_pretrain" / "icons"
    text = (run / "recipe.yaml").read_text()
    again = forks.run(*command, *opts(QUICK | {"TRAIN.EPOCHS": 2})).checked()
    assert "the recipe that was chosen before" in again.out and "resumed from" in log_of(run)
    assert (run / "recipe.yaml").read_text() == text and (run / "ckpt_epoch_1.pth").is_file()


def test_processes_train_by_the_choice_of_the_first(forks, tmp_path):
    make(tmp_path / "icons", "icons")
    results = forks.run_ranks(2, "main_simmim.py", "--data-path", tmp_path / "icons", "--output", tmp_path / "out", "--hours",
                              HOURS, *opts(QUICK))
    assert [result.checked().code for result in results] == [0, 0]
    assert "images x 2 processes" in results[0].out
    run = tmp_path / "out" / "simmim_pretrain" / "icons"
    config = load_config(run / "recipe.yaml")
    assert config.TRAIN.LR_SCALE_BATCH == 2 * config.DATA.BATCH_SIZE and (run / "encoder.pth").is_file()


def test_classifier_of_a_folder_is_trained_from_scratch_where_nothing_is_pretrained(forks, tmp_path):
    make(tmp_path / "icons", "icons")
    result = forks.run("main_finetune.py", "--data-path", tmp_path / "icons", "--output", tmp_path / "out", "--hours", HOURS,
                       *opts(QUICK)).checked()
    assert "trained from scratch" in result.out
    assert (tmp_path / "out" / "simmim_finetune" / "icons_scratch" / "ckpt_best.pth").is_file()


def test_folder_of_the_images_is_no_place_for_a_run(forks, tmp_path):
    make(tmp_path / "icons", "icons")
    result = forks.run("main_simmim.py", "--data-path", tmp_path / "icons", "--output", tmp_path / "icons" / "out")
    assert result.code == 2 and len(result.error_lines) == 1 and "into which nothing is written" in result.err


def test_processes_end_where_the_first_can_not_choose(forks, tmp_path):
    results = forks.run_ranks(2, "main_simmim.py", "--data-path", tmp_path / "absent", "--output", tmp_path / "out")
    assert results[0].code == 2 and "absent does not exist" in results[0].err and len(results[0].err.splitlines()) == 1
    assert results[1].code != 0 and not (tmp_path / "out").exists()
