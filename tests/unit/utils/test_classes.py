"""Whose classes count: those that a checkpoint keeps, those of the data, or the number of either."""
import pytest
import torch

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.classes import check_same, difference, head_of, head_size, kept_classes

CAFE = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
CAFE_APART = "cafe\N{COMBINING ACUTE ACCENT}"


def head(names, size=None):
    weights = {"head.weight": torch.zeros(size or len(names), 4), "norm.weight": torch.zeros(4)}
    return head_of({"classes": names} if names else {}, weights, "best.pth")


@pytest.mark.parametrize(("content", "names"), [
    ({"classes": ["a", "b"]}, ["a", "b"]), ({"classes": ("a", "b")}, ["a", "b"]), ({}, []), ({"classes": 10}, []),
    ({"classes": [0, 1]}, []), ({"classes": {"a": 0}}, []), ({"meta": {"CLASSES": ("x", "y")}}, ["x", "y"]),
    ({"meta": {"dataset_meta": {"classes": ["x"]}}}, ["x"]), ({"meta": "text"}, [])])
def test_names_are_those_of_the_file_and_only_if_they_are_names(content, names):
    assert kept_classes(content) == names


@pytest.mark.parametrize(("name", "size"), [
    ("head.weight", 7), ("encoder.head.weight", 7), ("head.1.weight", 7), ("head.last.1.weight", 7),
    ("head.layers.head.weight", 7), ("headless.weight", None)])
def test_size_of_a_head_is_told_by_its_weights(name, size):
    assert head_size({name: torch.zeros(7, 4), "head.0.running_mean": torch.zeros(4)}) == size


@pytest.mark.parametrize(("found", "words"), [
    (["a", "b"], ""), (["b", "a"], "label 0 is a there and b here"), (["a"], "label 1 is b there and no class here"),
    (["a", "b", "c"], "label 2 is no class there and c here"), (["a", "\udce9"], "label 1 is b there and \\udce9 here")])
def test_first_difference_is_named(found, words):
    assert difference(["a", "b"], found) == words


def test_accents_in_two_forms_of_unicode_are_no_difference():
    assert CAFE != CAFE_APART and not difference([CAFE], [CAFE_APART])
    assert head([CAFE, "b"]).labels_of([CAFE_APART], [CAFE_APART]) == [CAFE, "b"]


def test_training_goes_on_with_the_same_classes_alone():
    check_same(["a", "b"], ["a", "b"], "last.pth")
    check_same([], ["a"], "last.pth")  # a file of others keeps none
    with pytest.raises(ValueError, match=r"last\.pth was trained on other .*label 1 is b there and c here.*--pretrained"):
        check_same(["a", "b"], ["a", "c"], "last.pth")


def test_checkpoint_is_the_authority_for_its_labels():
    assert head(["a", "b", "c"]).labels_of(["c"], ["c", "b"]) == ["a", "b", "c"]


@pytest.mark.parametrize(("found", "words"), [
    (["b", "c", "d"], "does not know 1 of the 3 of the data, d, and knows 3, a, b, c.*--pretrained best.pth without --eval"),
    (["A", "b", "c"], r"A \(capitals and blanks count: A here is a there\)")])
def test_classes_that_the_checkpoint_does_not_know_are_refused(found, words):
    with pytest.raises(ValueError, match=words):
        head(["a", "b", "c"]).labels_of(found, found)


def test_head_without_names_is_told_by_its_number(caplog):
    with caplog.at_level("INFO"):
        assert head([], 3).labels_of(["y"], ["x", "y", "z"]) == ["x", "y", "z"]
    assert "keeps no names of its 3 classes: label 0 is taken for x, label 2 for z" in caplog.text
    with pytest.raises(ValueError, match="a head for 3 classes and keeps no names of them, but the data has 2"):
        head([], 3).labels_of(["x"], ["x", "y"])


def test_names_of_another_number_than_the_head_count_as_none():
    assert head(["a", "b"], size=3).names == []


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_in_any_bytes_come_back_from_a_file(suffix, tmp_path):
    names = ["plain", "caf\udce9", CAFE, "a b\n"]  # the second is no UTF-8 on the disk
    save_checkpoint(tmp_path / f"best{suffix}", {"model": {"head.weight": torch.zeros(4, 2)}, "classes": names})
    assert kept_classes(load_checkpoint(tmp_path / f"best{suffix}")) == names
