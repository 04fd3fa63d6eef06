"""What a first user trips over: data folders stay as they are, and no run goes on as another."""
import shutil

import pytest

from data.demo import make_demo_data

from .processes import ROOT, opts
from .runs import changed, snapshot

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
