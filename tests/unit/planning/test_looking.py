"""What is seen of folders that nobody prepared."""
import numpy as np
import pytest
from PIL import Image

from planning.looking import glance, look
from tests import drawn

from ..helpers import write_image


def test_icons_are_seen_on_nothing(tmp_path):
    drawn.icons(tmp_path, 3)
    found = look(tmp_path, 2)
    assert (found.number, found.looked_at, found.classes, found.labelled) == (18, 18, 6, 12)  # one of each class is held out
    assert found.transparent == 1.0 and found.light < 0.5 and 38 <= found.short_side <= 68 and found.channels == 3
    assert found.bad == found.turned == found.peak == 0 and found.read_seconds > 0


def test_scans_are_grey_and_some_can_not_be_read(tmp_path):
    drawn.scans(tmp_path, 3, side=48, broken=0.0)
    for name in ("disc", "ring"):
        path = tmp_path / name / "0001.png"
        path.write_bytes(path.read_bytes()[:100])
    found = look(tmp_path, 2)
    assert found.channels == 1 and found.bad == 2 / 18 and found.transparent == 0


def test_photographs_are_turned_as_their_exif_says(tmp_path):
    drawn.photographs(tmp_path, 2, size=(64, 48), turned=1.0)
    found = look(tmp_path, 2)
    assert found.turned == 1.0 and found.channels == 3 and found.short_side == 48
    assert glance(str(next(tmp_path.rglob("*.jpg"))))["turned"] is True


def test_one_coloured_image_among_grey_ones_asks_for_three_channels(tmp_path):
    for i in range(3):
        write_image(tmp_path / f"{i}.png", i, mode="L")
    assert look(tmp_path, 1).channels == 1
    Image.new("RGB", (30, 20), (200, 0, 0)).save(tmp_path / "red.png")
    assert look(tmp_path, 1).channels == 3


def test_grey_images_that_are_stored_with_three_channels_are_grey(tmp_path):
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30)).convert("RGB").save(tmp_path / "a.png")
    assert look(tmp_path, 1).channels == 1


def test_largest_value_of_sixteen_bits_is_found(tmp_path):
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 6).save(tmp_path / "a.png")
    found = look(tmp_path, 1)
    assert found.peak == 599 * 6 and found.channels == 1


def test_arrays_have_the_channels_and_moments_of_their_values(tmp_path):
    values = np.zeros((20, 30, 6), np.uint8)
    values[:10, :, 2] = 255
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", values)
    found = look(tmp_path, 1)
    means, spread = found.moments
    assert found.channels == 6 and found.short_side == 20
    assert means == pytest.approx([0, 0, 0.5, 0, 0, 0]) and spread == pytest.approx([0.01, 0.01, 0.5, 0.01, 0.01, 0.01])


def test_only_training_images_of_a_folder_with_splits_count(tmp_path):
    for split, number in (("train", 3), ("val", 2)):
        for name in "ab":
            for i in range(number):
                write_image(tmp_path / split / name / f"{i}.png", i)
    found = look(tmp_path, 1)
    assert (found.number, found.classes, found.labelled, found.has_validation) == (6, 2, 6, True)
    assert look(tmp_path / "train" / "a", 1).classes == 0


def test_many_images_are_looked_at_evenly_spread(tmp_path, monkeypatch):
    monkeypatch.setattr("planning.looking.MOST", 4)
    for i in range(11):
        write_image(tmp_path / f"{i:02}.png", size=(40 + i, 30))
    found = look(tmp_path, 1)
    assert (found.number, found.looked_at) == (11, 4)


def test_folder_of_unreadable_images_is_refused(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="3 of 3 images of .* can't be read: .* Check --data-path"):
        look(tmp_path, 1)
