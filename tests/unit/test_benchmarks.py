"""Benchmark commands that need several processes or a GPU, on tiny recipes of this process."""
import json
from functools import partial

import pytest
import torch
from PIL import Image

from models.compiling import compile_units
from tools import benchmark
from tools.benchmarks import gpu, report, scale, step

RECIPE = "configs/demo/simmim_pretrain__vit_nano__img64.yaml"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Small matrices, and blocks that are captured but not made into machine code."""
    monkeypatch.setattr(report, "SIDE", 64)
    monkeypatch.setattr(step, "compile_units", partial(compile_units, backend="eager"))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(*words):
    benchmark.main(benchmark.parse_arguments([str(word) for word in words]))


def test_scale_compares_processes_with_the_first_number(tmp_path, monkeypatch, capsys):
    """Each number is launched REPEATS times, in turn; a process of several writes what it measured."""
    launched = []

    def launch(args, number, threads):
        launched.append(number)
        found = tmp_path / f"{len(launched)}.json"
        run("scale", "--cfg", args.cfg, "--rounds", 2, "--warmup", 0, "--batch-size", 2, "--worker", found)
        return json.loads(found.read_text()) | {"seconds": [0.5 * number, 0.5 * number]}

    monkeypatch.setattr(scale, "launch", launch)
    out = tmp_path / "scale.json"
    run("scale", "--cfg", RECIPE, "--processes", 1, 4, "--json", out)
    rows = json.loads(out.read_text())["rows"]
    assert launched == [1, 4] * scale.REPEATS and [row["batch"] for row in rows] == [2, 2]
    assert [row["images_per_second"] for row in rows] == [4.0, 4.0] and [row["efficiency"] for row in rows] == [1.0, 0.25]
    assert "of ideal" in capsys.readouterr().out


def test_gpu_leaves_all_that_is_to_be_known_in_a_folder(tmp_path, capsys):
    out = tmp_path / "gpu"
    run("gpu", "--cfg", RECIPE, "--batch-size", 2, "--rounds", 1, "--steps", 3, "--output", out)
    rows = json.loads((out / "step.json").read_text())["rows"]
    assert len(rows) == 2 and {row["format"] for row in rows} == {"mixed bfloat16"}
    losses = json.loads((out / "losses.json").read_text())
    assert losses["compiled, O1"] == pytest.approx(losses["eager, O0"], rel=0.05) and len(losses["eager, O0"]) == 3
    assert all(len(rows) == 10 for rows in json.loads((out / "kernels.json").read_text()).values())
    with Image.open(out / "losses.png") as picture:
        assert picture.size == gpu.SIZE
    assert "the longest kernels" in capsys.readouterr().out
