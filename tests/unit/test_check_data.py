"""tools/check_data.py: every bad file is found, whatever it does to who reads it."""
import os
import signal

import numpy as np
import pytest
from PIL import Image

from data.bad_images import read_list
from data.loader import build_loader
from data.pixels import Rules
from tests.integration.processes import in_process
from tools import check_data

from .data.test_loader import config_for
from .data.test_reading import broken_files
from .helpers import write_image


def check(folder, *flags):
    return in_process(check_data, folder, "--workers", 2, *flags)


def test_good_images_are_counted_by_mode_and_size(tmp_path):
    for i in range(3):
        write_image(tmp_path / f"{i}.png", size=(40, 30))
    write_image(tmp_path / "sub" / "grey.png", 9, (50, 20), "L")
    result = check(tmp_path).checked()
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[:8] == ["mode images", "RGB 3", "L 1", "size images", "40 x 30 3", "50 x 20 1", "width 40 to 50",
                         "height 20 to 30"]
    assert "4 images, 0 can't be read\n" in result.out


def test_bad_files_of_every_kind_are_listed_as_training_takes_them(tmp_path):
    folder = tmp_path / "images"
    for i in range(4):
        write_image(folder / f"good{i}.png")
    kinds = broken_files(folder)
    (tmp_path / "list.txt").write_text("an old list")
    result = check(folder, "--output", tmp_path / "list.txt")
    expected = {str(path) for kind, path in kinds.items() if kind not in ("gone", "folder")}
    listed = read_list(tmp_path / "list.txt")
    assert result.code == 1 and set(listed) == expected and all(listed.values())
    loader = build_loader(config_for(folder, SKIP_LIST=str(tmp_path / "list.txt"), MAX_BAD_FRACTION=0), True).train
    assert {loader.dataset.samples[i][0] for i in loader.skipped} == expected
    assert len(list(loader)) == 7 and loader.bad.news() == {}


def test_splits_that_are_read_as_one_are_said(tmp_path):
    for name in ("train/a", "val/a"):
        write_image(tmp_path / name / "0.png")
    assert f"{tmp_path} holds train/, val/: the images of all of them are read. For one alone" in check(tmp_path).checked().out
    assert "are read" not in check(tmp_path / "train").checked().out


def test_images_of_more_channels_are_counted_by_their_shape(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((30, 40, 5), np.uint8))
    np.save(tmp_path / "b.npy", np.zeros((30, 40, 6), np.uint8))
    result = check(tmp_path, "--channels", 5)
    assert result.code == 1 and "uint8 x 5" in result.out and "6 channels, and IN_CHANS is 5" in result.out


def test_picture_whose_white_is_not_known_is_bad_and_costs_no_process(tmp_path):
    Image.fromarray(np.int32([[0, 300]])).save(tmp_path / "a.tif")
    result = check(tmp_path)
    assert result.code == 1 and "set DATA.WHITE" in result.out
    assert check(tmp_path, "--white", 300).code == 0


def test_larger_pictures_than_allowed_are_bad(tmp_path):
    write_image(tmp_path / "a.png", size=(40, 30))
    assert check(tmp_path, "--max-pixels", 1200).code == 0
    result = check(tmp_path, "--max-pixels", 1199)
    assert result.code == 1 and "40 x 30 pixels, more than" in result.out


def test_decoder_that_crashes_or_hangs_costs_one_file_each(tmp_path, monkeypatch):
    for name in ("crash", "hang", "a", "b", "c"):
        write_image(tmp_path / f"{name}.png")

    def decode(path, **_):
        if path.endswith("crash.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        if path.endswith("hang.png"):
            signal.pause()
        return "RGB", 40, 32

    monkeypatch.setattr(check_data, "decode", decode)
    kinds, bad = check_data.check([str(path) for path in sorted(tmp_path.glob("*.png"))], 2, Rules(), timeout=8)
    assert sum(kinds.values()) == 3
    assert bad == {str(tmp_path / "crash.png"): "the process that read it ended with code -9",
                   str(tmp_path / "hang.png"): "not read after 8 seconds"}


@pytest.mark.parametrize(("arguments", "words"), [
    (["absent"], "data folder absent does not exist"), ([".", "--output", "absent/list.txt"], "absent does not exist"),
    ([".", "--output", "."], "is a folder")])
def test_wrong_arguments_are_one_line_and_code_2(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 3)).save("a.png")
    result = check(*arguments)
    assert result.code == 2 and len(result.err.splitlines()) == 1 and words in result.err
