"""Images that can't be read: a few are left out and listed, many stop the run, and none hangs it."""
import os
import random
import shutil

import pytest
from PIL import Image

from . import damage
from .ends import difference, error_lines, log_text, metrics, tracebacks
from .plans import PLANS

pytestmark = pytest.mark.faults
BAD_FILE = "bad_images.txt"


def html(path, rng):
    path.write_text("<html><body>404 Not Found</body></html>")


def header(path, rng):
    path.write_bytes(path.read_bytes()[:12])


def bomb(path, rng):
    """Small on disk, 900 million pixels in memory."""
    Image.new("1", (30000, 30000)).save(path, format="PNG")


def broken_png(path, rng):
    Image.open(path).resize((64, 64)).save(path, format="PNG")
    content = bytearray(path.read_bytes())
    content[len(content) // 2:len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)


def strange_name(path, rng):
    path.unlink()
    with open(os.fsencode(path.parent) + b"/\xff\xfe.jpg", "wb") as file:
        file.write(b"no image")


KINDS = {"cut": damage.cut, "empty": damage.empty, "noise": damage.noise, "dangling_link": damage.dangling_link,
         "fifo": damage.fifo, "html": html, "header": header, "bomb": bomb, "broken_png": broken_png,
         "strange_name": strange_name}


@pytest.fixture
def data(images, tmp_path):
    """Images of this test alone."""
    shutil.copytree(images, tmp_path / "data")
    return tmp_path / "data"


def add_image(data, count):
    """More training images, copies of what is there. Returns: paths."""
    sources, added = sorted((data / "train").glob("*/*.jpg")), []
    for i in range(count):
        source = sources[i % len(sources)]
        added.append(source.with_name(f"more_{i}.jpg"))
        shutil.copy(source, added[-1])
    return added


def listed(folder):
    return (folder / BAD_FILE).read_text(encoding="utf-8", errors="replace") if (folder / BAD_FILE).exists() else ""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["swin", "finetune", "probe"])
def test_one_bad_image_is_left_out_and_listed(name, kind, workers, data, bench, inject, rng, tmp_path):
    plan = PLANS[name]
    path = add_image(data, 1)[0]
    KINDS[kind](path, rng)
    inject(f"bad image: {kind}")
    bench.run(plan, tmp_path, data=data, DATA__NUM_WORKERS=workers)
    folder = bench.folder(plan, tmp_path)
    if kind != "strange_name":
        assert path.name in listed(folder) + log_text(folder)
    assert listed(folder) or "WARNING" in log_text(folder)


@pytest.mark.parametrize("name", ["swin", "vit_accumulation", "two_processes", "fsdp"])
def test_one_percent_is_left_out_and_the_end_does_not_depend_on_workers(name, data, bench, inject, rng, tmp_path):
    plan = PLANS[name]
    bad = rng.sample(add_image(data, 176), 2)  # of 200
    for path in bad:
        KINDS[rng.choice(["cut", "empty", "html"])](path, rng)
        inject("bad images: 1 %")
    folders = []
    for workers in (0, 2):
        bench.run(plan, tmp_path / str(workers), data=data, DATA__NUM_WORKERS=workers, TRAIN__EPOCHS=2)
        folders.append(bench.folder(plan, tmp_path / str(workers)))
    assert all(path.name in listed(folder) for path in bad for folder in folders)
    assert all(len(listed(folder).splitlines()) == 2 for folder in folders)
    found = difference(folders[0], folders[1], 1)
    assert not found, found


@pytest.mark.parametrize("name", ["swin", "finetune", "two_processes"])
def test_many_bad_images_stop_the_run_with_a_list(name, data, bench, inject, rng, tmp_path):
    plan = PLANS[name]
    everything = sorted((data / "train").glob("*/*.jpg"))
    bad = rng.sample(everything, len(everything) * 6 // 10)
    for path in bad:
        KINDS[rng.choice(["cut", "empty", "html", "noise", "header"])](path, rng)
        inject("bad images: 60 %")
    results = bench.start(plan, tmp_path, data=data).wait()
    assert 2 in [result.code for result in results] and all(result.code for result in results), results
    assert not tracebacks(results), results
    lines = [line for line in error_lines(results) if "MAX_BAD_FRACTION" in line]
    named = [path for path in everything if any(str(path) in line for line in lines)]
    assert named and set(named) <= set(bad), lines


@pytest.mark.parametrize("kind", ["cut", "empty", "html", "dangling_link", "fifo"])
@pytest.mark.parametrize("name", ["swin", "finetune", "probe", "two_processes"])
def test_bad_validation_image_is_left_out_with_a_warning(name, kind, data, bench, inject, rng, tmp_path):
    plan = PLANS[name]
    path = rng.choice(sorted((data / "val").glob("*/*.png")))
    KINDS[kind](path, rng)
    inject(f"bad validation image: {kind}")
    bench.run(plan, tmp_path, data=data)
    folder = bench.folder(plan, tmp_path)
    assert "WARNING" in log_text(folder) and path.name in log_text(folder)
    assert {record["images"] for record in metrics(folder) if record["kind"] == "val"} == {10}


def test_images_that_vanish_are_left_out_or_stop_the_run(data, bench, inject, tmp_path):
    """While a run reads them: what matters is that it says so and does not hang."""
    plan, gone = PLANS["swin"], random.Random(3)
    job = bench.start(plan, tmp_path, data=data, TRAIN__EPOCHS=20)
    for path in gone.sample(sorted((data / "train").glob("*/*.jpg")), 12):
        path.unlink()
        inject("image vanishes")
    result = job.wait()[0]
    assert result.code in (0, 2) and not tracebacks([result]), result
    assert result.code == 0 or len(error_lines([result])) == 1, result
