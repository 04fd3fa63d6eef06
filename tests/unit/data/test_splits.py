"""Which folders are splits, whatever they are named and whatever is beside them."""
import logging

import pytest

from config import load_config
from data import build_loader
from data.splits import find_splits, kind_of, pretraining_folder

from ..helpers import TINY, opts_of, write_image


def draw(root, *places):
    """An image in each of these folders below root, by place; `a*3` draws three."""
    for place in places:
        place, _, count = place.partition("*")
        for number in range(int(count or 2)):
            write_image(root / place / f"{number}.png", size=(8, 6))
    return root


def config_for(root, **data):
    base = {"DATA.DATA_PATH": str(root), "DATA.NUM_WORKERS": 0, "DATA.BATCH_SIZE": 2, "DATA.DATASET": "folder"}
    return load_config(opts=opts_of(TINY["vit"] | base | {f"DATA.{key}": value for key, value in data.items()}))


def loaders_of(root, is_pretrain=False, train=True, **data):
    return build_loader(config_for(root, **data), is_pretrain, train)


def sizes(root, **data):
    loaders = loaders_of(root, **data)
    return len(loaders.train.dataset), len(loaders.val.dataset), loaders.classes


@pytest.mark.parametrize(("name", "kind"), [
    ("train", "train"), ("Training", "train"), ("train2017", "train"), ("training_set", "train"), ("val", "validation"),
    ("VALID", "validation"), ("validation", "validation"), ("dev", "validation"), ("eval", "validation"), ("test", "test"),
    ("test-images", "test"), ("trainer", None), ("value", None), ("steam train", None), ("a", None), ("2017", None)])
def test_kind_of_a_split_is_told_by_its_name(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize("held_out", ["val", "valid", "Validation", "dev", "eval", "VAL", "val2017"])
@pytest.mark.parametrize("dataset", ["folder", "imagenet"])
def test_validation_split_of_any_name_is_validated_on(held_out, dataset, tmp_path):
    draw(tmp_path, "train/a*4", "train/b*4", f"{held_out}/a", f"{held_out}/b*1")
    assert sizes(tmp_path, DATASET=dataset) == (8, 3, ["a", "b"])


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test", "eval", "Test_Set"])
@pytest.mark.parametrize("inside", ["", "/a"])
def test_pretraining_reads_the_training_split_alone_and_says_so(held_out, inside, tmp_path, caplog):
    draw(tmp_path, f"train{inside}*4", f"{held_out}{inside}*3")
    with caplog.at_level("INFO"):
        assert len(loaders_of(tmp_path, is_pretrain=True).train.dataset) == 4
    assert f"pre-training reads {tmp_path / 'train'} alone" in caplog.text
    assert f"DATA.VAL_PATH {tmp_path / held_out}" in caplog.text


def test_test_split_is_named_and_not_read(tmp_path, caplog):
    draw(tmp_path, "train/a*5", "train/b*5", "valid/a", "valid/b", "test/a*7")
    with caplog.at_level("INFO"):
        assert sizes(tmp_path) == (10, 4, ["a", "b"])
    assert f"DATA.VAL_PATH {tmp_path / 'test'} evaluates on it" in caplog.text


def test_share_is_held_out_where_there_is_a_test_split_alone(tmp_path, caplog):
    """Choosing the best epoch by the test images would use them up."""
    draw(tmp_path, "train/a*10", "train/b*10", "test/a", "test/b")
    with caplog.at_level("INFO"):
        assert sizes(tmp_path) == (18, 2, ["a", "b"])
    assert f"{tmp_path / 'test'} is not read" in caplog.text
    with pytest.raises(FileNotFoundError, match=rf"/val does not exist.*--opts DATA\.VAL_PATH {tmp_path}/test"):
        loaders_of(tmp_path, DATASET="imagenet")
    assert sizes(tmp_path, DATASET="imagenet", VAL_PATH=str(tmp_path / "test"))[1] == 4


@pytest.mark.parametrize("names", [("train", "car", "bus"), ("train", "test", "val", "bus"), ("val", "car"), ("eval", "tram")])
def test_class_named_like_a_split_is_a_class(names, tmp_path):
    draw(tmp_path, *(f"{name}*4" for name in names))
    assert sizes(tmp_path)[2] == sorted(names)


def test_training_split_with_other_folders_beside_it_says_what_is_not_read(tmp_path, caplog):
    draw(tmp_path, "train/a*4", "train/b*4", "unlabelled*5")
    write_image(tmp_path / "sheet.png")
    with caplog.at_level("INFO"):
        assert sizes(tmp_path)[2] == ["a", "b"]
    assert "not read: unlabelled/, the images beside these folders" in caplog.text


def test_folder_that_may_be_a_split_or_a_class_is_refused(tmp_path):
    draw(tmp_path, "train/front*4", "train/side*4", "car/front*4")
    with pytest.raises(ValueError, match=rf"{tmp_path}/train may be the training split, or a class beside car.*--data-path"):
        loaders_of(tmp_path)
    assert pretraining_folder(tmp_path) == tmp_path  # all of it, labels or not


@pytest.mark.parametrize(("places", "words"), [
    (["train2014/a", "train2017/a"], "train split: train2014, train2017.*--data-path"),
    (["train/a", "valid/a", "validation/a"], "validation split: valid, validation.*DATA.VAL_PATH")])
def test_several_folders_for_one_split_are_refused(places, words, tmp_path):
    draw(tmp_path, *places)
    with pytest.raises(ValueError, match=words):
        find_splits(tmp_path)


def test_plain_name_wins_over_its_relatives(tmp_path):
    draw(tmp_path, "train/a", "val/a", "validation/a")
    assert find_splits(tmp_path).val == tmp_path / "val"


@pytest.mark.parametrize("inner", ["data/", "one/two/"])
def test_splits_in_a_folder_of_a_folder_are_found(inner, tmp_path):
    draw(tmp_path, f"{inner}train/a*4", f"{inner}train/b*4", f"{inner}val/a", f"{inner}val/b")
    assert sizes(tmp_path) == (8, 4, ["a", "b"])
    assert pretraining_folder(tmp_path) == tmp_path / inner / "train"


def test_doubled_split_is_the_inner_one(tmp_path):
    draw(tmp_path, "train/train/a*4", "train/train/b*4", "val/val/a", "val/val/b")
    assert sizes(tmp_path) == (8, 4, ["a", "b"])


@pytest.mark.parametrize("is_pretrain", [True, False])
def test_splits_inside_the_classes_are_warned_of(is_pretrain, tmp_path, caplog):
    draw(tmp_path, "bottle/train*4", "bottle/test*4", "cable/train*4", "cable/test*4")
    loaders_of(tmp_path, is_pretrain)
    assert f"2 folders are trained on as well, named as held-out images are: {tmp_path}/bottle/test" in caplog.text


def test_ordinary_classes_are_not_warned_of(tmp_path, caplog):
    draw(tmp_path, "test*4", "car*4")
    loaders_of(tmp_path)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_validation_split_among_images_is_warned_of_in_pretraining(tmp_path, caplog):
    draw(tmp_path, "train*2", "val*2", "more*2")
    assert len(loaders_of(tmp_path, is_pretrain=True).train.dataset) == 6
    assert f"named as held-out images are: {tmp_path}/val" in caplog.text


def test_evaluation_needs_the_validation_split_alone(tmp_path):
    draw(tmp_path, "valid/a", "valid/b*1")
    for dataset in ("folder", "imagenet"):
        loaders = loaders_of(tmp_path, train=False, DATASET=dataset)
        assert (len(loaders.val.dataset), loaders.classes) == (3, ["a", "b"])
    with pytest.raises(ValueError, match="holds valid/ and no train/"):
        loaders_of(tmp_path)


def test_path_of_the_training_split_is_told_from_that_of_the_data(tmp_path):
    draw(tmp_path, "train/a", "train/b", "val/a", "val/b")
    with pytest.raises(FileNotFoundError, match=rf"is itself a split: use --data-path {tmp_path}\."):
        loaders_of(tmp_path / "train", DATASET="imagenet")


def test_skip_list_is_relative_to_the_data_path(tmp_path):
    draw(tmp_path, "train/a*4", "val/a")
    (tmp_path / "list.txt").write_text("train/a/0.png\n")
    assert loaders_of(tmp_path, is_pretrain=True, SKIP_LIST=str(tmp_path / "list.txt")).train.skipped == {0}
