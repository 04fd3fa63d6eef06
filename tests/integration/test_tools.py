"""The command lines of tools/, in processes of their own."""
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from config import load_config
from models.build import METHODS
from tools import demo

from .processes import ROOT, in_process

DEMO = "configs/demo/simmim_{}__swin_nano__img64.yaml"


def test_benchmark_times_several_recipes_in_turn(forks, tmp_path):
    out = tmp_path / "figures.json"
    forks.run("tools/benchmark.py", "step", "--cfg", DEMO.format("pretrain"), DEMO.format("finetune"), "--rounds", 2,
                      "--warmup", 1, "--batch-size", 2, "--json", out).checked()
    rows = json.loads(out.read_text())["rows"]
    assert [row["recipe"] for row in rows] == [Path(DEMO.format(stage)).stem for stage in ("pretrain", "finetune")]
    assert rows[0]["ratio"] == 1.0 and all(row["images_per_second"] > 0 and row["peak_mb"] > 0 for row in rows)
    assert all(row["share_of_peak"] > 0 and row["gflops"] > 0 for row in rows)


def test_benchmark_times_the_attention_of_each_stage_with_one_image_and_with_two(forks, tmp_path):
    out = tmp_path / "figures.json"
    recipe = "configs/demo/mixmim_pretrain__mixmim_nano__img64.yaml"
    forks.run("tools/benchmark.py", "mixing", "--cfg", recipe, "--rounds", 1, "--batch-size", 2, "--json", out).checked()
    figures = json.loads(out.read_text())
    assert [(row["stage"], row["map"], row["window"], row["width"]) for row in figures["rows"]] == [
        (0, "16x16", "8x8", 48), (1, "8x8", "8x8", 96)]
    assert all(row["one_ms"] > 0 and row["two_ms"] > 0 and row["ratio"] > 0 for row in figures["rows"])
    assert {"device", "threads", "torch", "python", "date", "rounds"} <= figures.keys()


@pytest.mark.parametrize("command, more, rows", [
    ("data", ["--workers", 0], ["official", "ours", "ours, DECODER pillow"]),
    ("epoch", ["--workers", 1, "--steps", 3], ["official", "ours", "ours"])])
def test_benchmark_reads_files_beside_the_official_pipeline(command, more, rows, forks, tmp_path):
    for i in range(3):
        Image.effect_noise((90 + i, 70), 40).convert("RGB").save(tmp_path / f"{i}.jpg")
    out = tmp_path / "figures.json"
    forks.run("tools/benchmark.py", command, "--cfg", DEMO.format("pretrain"), "--data-path", tmp_path, "--rounds", 1,
              "--batch-size", 2, "--json", out, *more).checked()
    found = json.loads(out.read_text())["rows"]
    assert [row["pipeline"] for row in found] == rows
    if command == "data":
        assert found[0]["ratio"] == 1.0 and all(row["decode"] > 0 and row["crop"] > 0 and row["per_core"] > 0 for row in found)
    else:
        assert all(0 <= row["waiting"] <= 1 and row["images_per_second"] > 0 for row in found)
        assert [row["device"].split(",")[0] for row in found] == ["stand-in", "stand-in", "training"]


def test_demo_runs_every_step_and_evaluates_to_the_same_figure(forks, tmp_path, monkeypatch):
    def started(command, cwd):
        assert (command[0], cwd) == (sys.executable, ROOT)
        return SimpleNamespace(returncode=forks.run(*command[1:], XDG_CACHE_HOME=str(tmp_path / "cache")).checked().code)

    monkeypatch.setattr(demo.subprocess, "run", started)
    result = in_process(demo, "--output", tmp_path / "runs", "--opts", "DATA.DEMO_TRAIN_PER_CLASS", 2,
                        "DATA.DEMO_VAL_PER_CLASS", 1, "DATA.BATCH_SIZE", 8, "DATA.NUM_WORKERS", 0, "TRAIN.EPOCHS", 1,
                        "VIS_IMAGES", 2).checked()
    assert result.out.count("\n=== ") == 5 and "the same" in result.out
    assert (tmp_path / "runs/simmim_pretrain/swin_nano/reconstructions/epoch_0000.png").is_file()


@pytest.mark.slow  # trains a model of every method three times
def test_comparison_has_a_row_for_each_method_that_there_is(forks, tmp_path):
    """With every demo recipe; a method without one would be missing from the table."""
    out = tmp_path / "table.json"
    opts = ["DATA.DEMO_TRAIN_PER_CLASS", 4, "DATA.DEMO_VAL_PER_CLASS", 1, "DATA.BATCH_SIZE", 8, "DATA.NUM_WORKERS", 0,
            "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "VIS_FREQ", 0]
    result = forks.run("tools/compare.py", "--output", tmp_path / "runs", "--json", out, "--opts", *opts,
                       XDG_CACHE_HOME=str(tmp_path / "cache")).checked()
    rows = json.loads(out.read_text())
    recipes = sorted((ROOT / "configs" / "demo").glob("*_pretrain__*.yaml"))
    assert [row["name"] for row in rows] == [path.stem for path in recipes]
    assert {load_config(path).MODEL.METHOD for path in recipes} == set(METHODS)
    assert all(0 <= row[column] <= 100 for row in rows for column in ("linear", "knn", "finetune"))
    assert all(row["loss"] > 0 and row["minutes"] > 0 and row["name"] in result.out for row in rows)
