"""The drawn demo data: reproducible, complete or absent, and free of colour clues."""

import json
import os
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.demo import CLASSES, DRAWING_VERSION, MANIFEST, default_root, demo_data, draw_image, make_demo_data

REPOSITORY = Path(__file__).resolve().parents[2]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("demo") / "set", 3, 2, seed=5, num_workers=1)


def test_layout_is_imagenet_with_every_image(made):
    assert {path.name for path in made.iterdir()} == {"train", "val", MANIFEST}
    for split, count in (("train", 3), ("val", 2)):
        assert sorted(path.name for path in (made / split).iterdir()) == list(CLASSES)
        for name in CLASSES:
            files = sorted(path.name for path in (made / split / name).iterdir())
            assert files == [f"{name}_{index:06d}.jpg" for index in range(count)]


def test_sizes_vary_within_the_range(made):
    sizes = np.array([Image.open(path).size for path in made.rglob("*.jpg")])
    assert sizes.min() >= 72 and sizes.max() <= 120
    assert len(np.unique(sizes[:, 0])) > 10 and len(np.unique(sizes[:, 1])) > 10
    assert np.corrcoef(sizes.T)[0, 1] < 0.5  # aspect ratios vary, not only scale


def test_size_range_is_obeyed():
    assert draw_image(0, "train", "mug", 0, size_range=(40, 40)).size == (40, 40)
    assert min(draw_image(0, "train", "mug", 1, size_range=(200, 230)).size) >= 200


def test_bytes_do_not_depend_on_the_number_of_workers(made, tmp_path):
    parallel = make_demo_data(tmp_path / "parallel", 3, 2, seed=5, num_workers=2)
    assert contents(parallel) == contents(made)


def test_image_depends_on_seed_split_class_and_index_only():
    reference = draw_image(1, "train", "star", 4).tobytes()
    assert draw_image(1, "train", "star", 4).tobytes() == reference
    others = [(2, "train", "star", 4), (1, "val", "star", 4), (1, "train", "gear", 4), (1, "train", "star", 5)]
    assert all(draw_image(*other).tobytes() != reference for other in others)


def test_second_call_reuses_the_folder(made):
    before = {path: path.stat().st_mtime_ns for path in (made, *made.rglob("*"))}
    assert make_demo_data(made, 3, 2, seed=5) == made
    assert {path: path.stat().st_mtime_ns for path in (made, *made.rglob("*"))} == before


@pytest.mark.parametrize("name", ["notes.txt", "train/mug/photo.jpg"])
def test_foreign_folder_is_refused_and_untouched(tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(ValueError, match="is no demo data.*Delete it, or choose another folder"):
        make_demo_data(tmp_path / "mine", 1, 1)
    assert contents(tmp_path) == {f"mine/{name}": b"precious"}


def test_folder_with_other_parameters_is_refused_and_untouched(made):
    before = contents(made.parent)
    with pytest.raises(ValueError, match="num_train_per_class=3 instead of 4.*Delete it"):
        make_demo_data(made, 4, 2, seed=5)
    assert contents(made.parent) == before


def test_damaged_manifest_is_refused(tmp_path):
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="not readable as JSON.*Delete it"):
        make_demo_data(tmp_path, 1, 1)


def test_empty_folder_is_filled(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    make_demo_data(folder, 1, 1)
    assert json.loads((folder / MANIFEST).read_text())["drawing_version"] == DRAWING_VERSION
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_failure_while_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("data.demo.draw_image", fail)
    with pytest.raises(KeyboardInterrupt):
        make_demo_data(tmp_path / "set", 1, 1, num_workers=1)
    assert not any(tmp_path.iterdir())


def test_two_runs_at_once_both_return_the_same_folder(tmp_path):
    def run(_):
        return make_demo_data(tmp_path / "set", 2, 1)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [tmp_path / "set"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(list(tmp_path.rglob("*.jpg"))) == 3 * len(CLASSES)


def test_failing_worker_is_reported_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("data.demo.WORKER", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match=r"exit codes \[3, 3\]"):
        make_demo_data(tmp_path / "set", 1, 1, num_workers=2)
    assert not any(tmp_path.iterdir())


def test_losing_the_race_returns_the_winners_folder(tmp_path, monkeypatch):
    from data import demo

    def overtaken(folder, *_):
        monkeypatch.undo()
        make_demo_data(tmp_path / "set", 1, 1)

    monkeypatch.setattr(demo, "_write_images", overtaken)
    assert make_demo_data(tmp_path / "set", 1, 1) == tmp_path / "set"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(list(tmp_path.rglob("*.jpg"))) == 2 * len(CLASSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train_per_class": 0}, "num_train_per_class=0"),
        ({"num_val_per_class": 1.5}, "num_val_per_class=1.5"),
        ({"seed": -1}, "seed=-1"),
        ({"size_range": (120, 72)}, "size_range="),
        ({"size_range": (8, 72)}, "size_range="),
    ],
)
def test_impossible_argument_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_demo_data(tmp_path / "set", **({"num_train_per_class": 1, "num_val_per_class": 1} | change))
    assert not any(tmp_path.iterdir())


def test_classes_share_colour_statistics():
    num_images = 30
    means = np.array(
        [
            [np.asarray(draw_image(0, "train", name, index, (64, 64))).mean((0, 1)) for index in range(num_images)]
            for name in CLASSES
        ]
    )  # (classes, images, 3)
    spread = means.std(axis=(0, 1)) / num_images**0.5  # standard error of one class's mean colour
    deviations = np.abs(means.mean(axis=1) - means.mean(axis=(0, 1))) / spread
    assert deviations.max() < 4  # 30 comparisons: chance alone passes 4 standard errors once in 500 data sets


def test_parameter_sets_live_side_by_side_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "simmim-pytorch" / "demo"
    first, second = demo_data(1, 1), demo_data(1, 2)
    assert first != second and first.parent == second.parent == default_root()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root().parts[-3:] == (".cache", "simmim-pytorch", "demo")


def test_command_line_reports_what_it_made(tmp_path, capsys):
    tool = runpy.run_path(str(REPOSITORY / "tools" / "make_demo_data.py"))
    folder = tmp_path / "set"
    assert tool["main"](["--root", str(folder), "--train-per-class", "2", "--val-per-class", "1"]) == 0
    assert f"{folder}: 20 train and 10 val images in 10 classes" in capsys.readouterr().out


def test_command_line_fails_in_one_line_from_a_clone(tmp_path):
    (tmp_path / "precious").touch()
    command = [sys.executable, "tools/make_demo_data.py", "--root", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "is no demo data" in done.stderr
