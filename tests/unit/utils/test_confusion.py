"""What images were taken for: counts, tables, words and the picture."""
import csv
import io

import numpy as np
import pytest
import torch

from utils import distributed
from utils.confusion import Confusion
from utils.confusion_picture import RIGHT, _has_sign, confusion_picture

NAMES = ["ring", "disc", "star, or so"]
LABELS, PREDICTIONS = [0, 0, 0, 1, 1, 2, 0], [0, 1, 1, 1, 2, 2, 0]


@pytest.fixture
def confusion():
    counts = Confusion()
    for i in range(0, len(LABELS), 3):
        counts.add(torch.tensor(LABELS[i:i + 3]), torch.tensor(PREDICTIONS[i:i + 3]))
    counts.share()
    return counts


def test_matrix_has_a_row_for_each_label(confusion):
    assert confusion.matrix(3).tolist() == [[2, 2, 0], [0, 1, 1], [0, 0, 1]] and confusion.matrix(3).dtype == np.int64
    assert confusion.images(3).tolist() == [4, 2, 1] and confusion.correct(3).tolist() == [2, 1, 1]


def test_processes_are_counted_together_and_one_without_images_too(monkeypatch):
    """Two that have counted alike, and one that had fillers only."""
    monkeypatch.setattr(distributed, "from_all", lambda own: [own, own, own[:0]])
    counts = Confusion()
    counts.add(torch.tensor([1, 30000]), torch.tensor([0, 70000]))
    counts.share()
    assert list(zip(counts.labels, counts.predictions, counts.counts, strict=True)) == [(1, 0, 2), (30000, 70000, 2)]


def test_tables_name_classes_and_what_they_were_taken_for(confusion):
    rows = list(csv.DictReader(io.StringIO(confusion.class_table([*NAMES, "mug"]))))
    assert rows[0] == {"label": "0", "class": "ring", "images": "4", "correct": "2", "accuracy": "50.00", "predicted": "2",
                       "precision": "100.00", "taken_for": "disc", "times": "2"}
    assert rows[1]["precision"] == "33.33" and rows[2]["taken_for"] == "" and rows[3]["accuracy"] == ""
    rows = list(csv.reader(io.StringIO(confusion.matrix_table(NAMES))))
    assert rows[0][1:] == NAMES and rows[3] == ["star, or so", "0", "0", "1"]


def test_words_name_the_worst_classes_and_the_most_frequent_mistakes(confusion):
    assert confusion.in_words(NAMES) == ["least accurate: ring 50.0% of 4, disc 50.0% of 2",
                                         "most often mistaken: ring for disc 2x, disc for star, or so 1x"]
    right = Confusion()
    right.add(torch.tensor([1, 0]), torch.tensor([1, 0]))
    right.share()
    assert right.in_words(NAMES) == [] and right.balanced_accuracy() == 100.0


def test_picture_is_blue_where_right_red_where_wrong_and_white_where_nothing():
    sheet = confusion_picture(np.array([[4, 0], [2, 2]]), ["a", "b"])
    top = sheet.height - 15 - 2 * 44
    left = next(x for x in range(sheet.width) if sheet.getpixel((x, top + 40)) == RIGHT)  # all of the row are right
    colours = [[sheet.getpixel((left + column * 44 + 5, top + row * 44 + 5)) for column in range(2)] for row in range(2)]
    assert colours[0] == [RIGHT, (255, 255, 255)]
    assert colours[1][0][0] > colours[1][0][2] and colours[1][1][2] > colours[1][1][0]


def test_classes_without_images_have_no_row_and_one_column_together():
    matrix = np.zeros((1000, 1000), dtype=np.int64)
    matrix[7, 7], matrix[7, 900], matrix[30, 901] = 3, 1, 1
    with_others = confusion_picture(matrix, [str(i) for i in range(1000)])
    matrix[7, 900] = matrix[30, 901] = 0
    matrix[30, 7] = 1
    without = confusion_picture(matrix, [str(i) for i in range(1000)])
    assert with_others.height == without.height < 250


@pytest.mark.parametrize(("num_classes", "largest"), [(1, 400), (2, 400), (10, 900), (100, 2000), (397, 2200), (1000, 2300)])
def test_picture_stays_of_a_size_that_can_be_looked_at(num_classes, largest):
    sheet = confusion_picture(np.eye(num_classes, dtype=np.int64), [f"n{i:08d}" for i in range(num_classes)])
    assert max(sheet.size) <= largest


def test_names_that_no_font_can_write_do_not_stop_the_picture():
    names = ["long " * 60, "caf\xe9", "\u732b", "\U0010fffe", "a\nb", "\udce9", ""]
    assert confusion_picture(np.eye(7, dtype=np.int64) + 1, names).height < 900


def test_signs_that_a_font_lacks_are_known():
    from PIL import ImageFont
    font = ImageFont.load_default(12)
    assert _has_sign(font, "g") and _has_sign(font, " ") and not _has_sign(font, "\u732b")
