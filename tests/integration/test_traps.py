"""What a first user trips over: data folders stay as they are, and no run goes on as another."""
import shutil

import pytest
from PIL import Image

from data.demo import make_demo_data

from .processes import ROOT, opts
from .runs import changed, checkpoint, snapshot, unequal

DEMO = {"pretrain": ROOT / "configs/demo/simmim_pretrain__swin_nano__img64.yaml",
        "finetune": ROOT / "configs/demo/simmim_finetune__swin_nano__img64.yaml"}
SHORT = {"DATA.BATCH_SIZE": 8, "DATA.NUM_WORKERS": 0, "TRAIN.EPOCHS": 1, "TRAIN.WARMUP_EPOCHS": 0, "VIS_FREQ": 0,
         "DATA.IMAGES_PER_CLASS": 0}
SCRIPTS = {"pretrain": "main_simmim.py", "finetune": "main_finetune.py"}


@pytest.fixture
def demo(forks, tmp_path):
    """demo(stage, data, settings) -> Result of a demo recipe; its cache is tmp_path/cache."""
    def run(stage, data, settings=None):
        return forks.run(SCRIPTS[stage], "--cfg", DEMO[stage], *(["--data-path", data] if data else []), "--output",
                         tmp_path / "runs", *opts({**SHORT, **(settings or {})}), XDG_CACHE_HOME=str(tmp_path / "cache"))
    return run


@pytest.mark.parametrize("stage", SCRIPTS)
def test_demo_recipe_reads_the_images_of_a_folder_that_is_named_and_writes_nothing_there(stage, demo, images, tmp_path):
    data = shutil.copytree(images, tmp_path / "mine")
    before = snapshot(data)
    result = demo(stage, data).checked()
    assert "24 training images" in result.out and "nothing is drawn" in result.out
    assert changed(before, snapshot(data)) == [] and not (tmp_path / "cache" / "simmim-pytorch" / "demo").exists()


@pytest.mark.parametrize("stage", SCRIPTS)
def test_demo_recipe_makes_no_folder_of_a_name_that_was_mistyped(stage, demo, tmp_path):
    result = demo(stage, tmp_path / "imagse")
    assert result.code == 2 and len(result.error_lines) == 1 and "imagse does not exist" in result.err
    assert not (tmp_path / "imagse").exists() and not (tmp_path / "cache" / "simmim-pytorch" / "demo").exists()


def test_demo_recipe_draws_into_the_cache_where_no_folder_is_named(demo, tmp_path):
    demo("pretrain", None, {"DATA.DEMO_TRAIN_PER_CLASS": 1, "DATA.DEMO_VAL_PER_CLASS": 1}).checked()
    assert len(list((tmp_path / "cache" / "simmim-pytorch" / "demo").glob("*/train/*/*.jpg"))) == 10


def test_demo_recipe_validates_on_what_was_drawn_in_a_folder_that_is_named(demo, tmp_path):
    data = make_demo_data(tmp_path / "drawn", 1, 1, num_workers=1)
    before = snapshot(data)
    result = demo("pretrain", data).checked()
    assert "10 training images" in result.out and "held-out loss" in result.out and "on 10 images" in result.out
    assert changed(before, snapshot(data)) == []


# ---- no run goes on as another ------------------------------------------------------------------------------------

@pytest.fixture
def begun(pretrained_run, finetuned_run, forks, cfg, images, tmp_path):
    """begun(stage, data, settings, *flags) -> Result of going on for a second epoch where a copy of a run stopped."""
    for stage, folder in (("pretrain", pretrained_run), ("finetune", finetuned_run)):
        shutil.copytree(folder, tmp_path / stage / "default")

    def again(stage, settings=None, *flags, data=None):
        data = data or (images / "train" if stage == "pretrain" else images)
        return forks.run(SCRIPTS[stage], "--cfg", getattr(cfg, stage), "--data-path", data, "--output", tmp_path, *flags,
                         *opts({"TRAIN.EPOCHS": 2, **(settings or {})}))
    return again


@pytest.mark.parametrize("stage, key, value, then", [
    ("pretrain", "DATA.MASK_RATIO", 0.75, "0.6"), ("pretrain", "SEED", 3, "0"),
    ("finetune", "AUG.MIXUP", 0.1, "0.8"), ("finetune", "DATA.IMAGES_PER_CLASS", 2, "0")])
def test_run_of_another_setting_is_refused_in_the_folder_of_a_run(stage, key, value, then, begun, tmp_path):
    before = snapshot(tmp_path)
    result = begun(stage, {key: value})
    assert result.code == 2 and len(result.error_lines) == 1
    assert f"ckpt_epoch_0.pth was made with {key}={then}, not {value}" in result.err
    assert "--tag <other>" in result.err and "TRAIN.ALLOW_CHANGES True" in result.err
    assert changed(before, snapshot(tmp_path)) == []


def test_run_of_another_method_is_refused_before_its_weights_are_compared(begun):
    result = begun("pretrain", {"MODEL.METHOD": "mae", "MODEL.MAE.DECODER_NUM_HEADS": 2})
    assert result.code == 2 and "MODEL.METHOD='simmim', not 'mae'" in result.err


def test_run_on_other_images_of_the_same_names_is_refused(begun, images, tmp_path):
    data = shutil.copytree(images / "train", tmp_path / "others")
    for path in data.rglob("*.jpg"):
        Image.effect_noise((40, 40), 50).convert("RGB").save(path)
    result = begun("pretrain", data=data)
    assert result.code == 2 and "was made with DATA.DATA_PATH=" in result.err


def test_run_goes_on_with_the_same_images_in_another_place(begun, images, tmp_path):
    moved = shutil.copytree(images, tmp_path / "moved")
    result = begun("pretrain", data=moved / "train").checked()
    assert "epoch 0 is done, going on with epoch 1" in result.out and "DATA_PATH" not in result.out


def test_run_with_other_first_weights_is_refused_and_without_any_it_goes_on(begun, pretrained_run):
    other = begun("finetune", None, "--pretrained", pretrained_run / "encoder.pth")
    assert other.code == 2 and "was made with PRETRAINED=" in other.err and "encoder.pth" in other.err
    assert "going on with epoch 1" in begun("finetune").checked().out


def test_the_key_that_allows_changes_is_said_to_be_on(begun, tmp_path):
    result = begun("pretrain", {"DATA.MASK_RATIO": 0.75, "TRAIN.ALLOW_CHANGES": True}).checked()
    assert "WARNING" in result.out and "TRAIN.ALLOW_CHANGES is on" in result.out
    assert "DATA.MASK_RATIO was 0.6 in the checkpoint and is 0.75 now" in result.out
    assert unequal(checkpoint(tmp_path / "pretrain/default", 0)["model"], checkpoint(tmp_path / "pretrain/default", 1)["model"])


def test_finished_run_warns_of_settings_that_have_no_effect_any_more(begun):
    result = begun("pretrain", {"TRAIN.EPOCHS": 1, "DATA.MASK_RATIO": 0.75, "TRAIN.BASE_LR": 0.5}).checked()
    warning, = [line for line in result.out.splitlines() if "WARNING" in line]
    assert "nothing to train: 1 of 1 epochs are done" in warning and "DATA.MASK_RATIO=0.6, not 0.75; TRAIN.BASE_LR=" in warning
    assert "--tag <other>" in warning
