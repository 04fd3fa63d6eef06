"""Folders as people have them: each is read right, or refused in one line that names it and says what to type."""
import os
import re
import unicodedata

import pytest

from data.class_folders import class_names, labelled_samples, say_order
from data.folders import image_files

from ..helpers import write_image
from .test_splits import draw, loaders_of, sizes

CAFE = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"


def labels(root, names=None):
    """{class: number of images} below a folder."""
    names = names or class_names(root)
    counts = [names[label] for _, label in labelled_samples(root, names)]
    return {name: counts.count(name) for name in names}


# ---- read right ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("extra", [
    ".ipynb_checkpoints/0.png", "__MACOSX/0.png", "@eaDir/0.png", "$RECYCLE.BIN/0.png", "lost+found/0.png", "a/._0.png",
    "a/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "b/.ipynb_checkpoints/0-checkpoint.png", "System Volume Information/x.jpg"])
def test_what_systems_leave_behind_is_neither_class_nor_image(extra, tmp_path):
    draw(tmp_path, "a", "b*3")
    write_image(tmp_path / extra)
    assert labels(tmp_path) == {"a": 2, "b": 3} and len(image_files(tmp_path)) == 5


@pytest.mark.parametrize("name", ["Thumbs.db", ".DS_Store", "desktop.ini", "labels.csv"])
def test_files_of_systems_and_tables_are_no_images(name, tmp_path):
    draw(tmp_path, "a", "b")
    for folder in (tmp_path, tmp_path / "a"):
        (folder / name).write_text("x")
    assert labels(tmp_path) == {"a": 2, "b": 2}


@pytest.mark.parametrize("name", ["a b", " a", "a.b", "A", "#1", "a'b", CAFE, "\u732b", "caf\udce9", "a\nb", "-x", "[a]"])
def test_class_may_have_any_name(name, tmp_path):
    draw(tmp_path, name, "other")
    assert labels(tmp_path) == dict.fromkeys(sorted((name, "other")), 2)


def test_nested_classes_belong_to_the_outer_one(tmp_path):
    draw(tmp_path, "dog/small", "dog/large/old", "cat")
    assert labels(tmp_path) == {"cat": 2, "dog": 4}


@pytest.mark.parametrize("suffix", ["JPG", "Jpeg", "PNG", "WEBP", "TIF"])
def test_suffixes_may_be_capitals(suffix, tmp_path):
    write_image(tmp_path / "a" / f"x.{suffix}")
    assert labels(tmp_path) == {"a": 1}


def test_linked_classes_are_read_and_loops_are_not_followed_for_ever(tmp_path):
    draw(tmp_path, "store/cat", "data/dog")
    (tmp_path / "data/cat").symlink_to(tmp_path / "store/cat")
    (tmp_path / "data/dog/again").symlink_to(tmp_path / "data")
    assert labels(tmp_path / "data", ["cat", "dog"])["cat"] == 2


def test_trailing_slash_and_home_are_places(tmp_path, monkeypatch):
    draw(tmp_path, "set/a*4", "set/b*4")
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (f"{tmp_path}/set/", "~/set", f"{tmp_path}/./set//"):
        assert sizes(place)[2] == ["a", "b"]


def test_accents_in_two_forms_of_unicode_are_one_class(tmp_path):
    """A folder copied by way of a Mac."""
    draw(tmp_path, f"train/{unicodedata.normalize('NFC', CAFE)}*4", "train/b*4", f"val/{unicodedata.normalize('NFD', CAFE)}")
    assert sizes(tmp_path)[1:] == (2, ["b", CAFE])


# ---- said ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("file", "message"), [
    ("c/notes.txt", "has folders without images, which are no classes: c"),
    ("0.png", "1 images lie beside the class folders of"),
    ("", "has links to what does not exist, which are no classes: c -> "),
    ("c.tar.gz", "has archives beside its class folders, which are not read: c.tar.gz. Unpack what is missing"),
    (".c/0.png", "has hidden folders with images, which are no classes: .c"),
])
def test_what_belongs_to_no_class_is_said(file, message, tmp_path, caplog):
    draw(tmp_path, "a", "b")
    if not file:
        (tmp_path / "c").symlink_to(tmp_path / "gone")
    elif file.endswith(".png"):
        write_image(tmp_path / file)
    else:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("x")
    with caplog.at_level("INFO"):
        assert labels(tmp_path) == {"a": 2, "b": 2}
    assert message in caplog.text


@pytest.mark.parametrize(("places", "message"), [
    (["cat*4", "Cat*4", "dog*4"], "whose names differ in capitals or blanks alone: 'Cat' and 'cat'. They are different"),
    (["cat*4", "cat *4", "dog*4"], "capitals or blanks alone: 'cat' and 'cat '."),
    (["fold1/a*4", "fold1/b*4", "fold2/a*4", "fold2/b*4"], "folders of the same names, a, b. .* pass --data-path .*/fold1"),
    (["dog/small*4", "dog/large*4", "cat/small*4", "cat/old*4"], None), (["dog/a*4", "cat/a*4"], None), (["a*4", "b*4"], None)])
def test_classes_that_may_not_be_meant_are_warned_of(places, message, tmp_path, caplog):
    draw(tmp_path, *places)
    loaders_of(tmp_path)
    assert re.search(message, caplog.text) if message else not caplog.records


@pytest.mark.parametrize("links, said", [
    ({"val": "train"}, "/val lie"), ({"val/a": "train/a"}, "/val/a lie"), ({"val/a": "store/a"}, None)])
def test_validation_that_is_a_link_to_training_is_said(links, said, tmp_path, caplog):
    draw(tmp_path, "set/train/a*4", "set/train/b*4", "set/store/a")
    if "val" not in links:
        draw(tmp_path, "set/val/b")
    (tmp_path / "set/store").rename(tmp_path / "store")
    for link, target in links.items():
        (tmp_path / "set" / link).symlink_to(tmp_path / (target if target.startswith("store") else f"set/{target}"))
    loaders_of(tmp_path / "set")
    assert f"{said} inside the training folder" in caplog.text if said else "inside" not in caplog.text


def test_validation_with_fewer_classes_says_which_it_lacks(tmp_path, caplog):
    draw(tmp_path, "train/a*4", "train/b*4", "train/c*4", "val/a", "val/c")
    with caplog.at_level("INFO"):
        assert sizes(tmp_path)[1:] == (4, ["a", "b", "c"])
    assert "has images of 2 of 3 classes; none of: b" in caplog.text


@pytest.mark.parametrize("name", ["0001", "photo.jpg_large", "x.img", "b.jpeg~"])
def test_images_without_the_name_of_one_are_said(name, tmp_path, caplog):
    """Names alone tell what is read, as data sets have millions of files; of other files the first are looked into."""
    draw(tmp_path, "a", "b")
    write_image(tmp_path / "x.png").rename(tmp_path / "a" / name)
    for other in ("README", "Makefile"):
        (tmp_path / "a" / other).write_text("x")
    assert len(image_files(tmp_path)) == 4
    assert f"files below {tmp_path} are not read, but the first of them are images:" in caplog.text
    assert "let them end in .jpg or .png" in caplog.text


def test_pictures_of_kinds_that_are_not_read_are_said_and_other_files_are_not(tmp_path, caplog):
    draw(tmp_path, "a", "b")
    for name in ("phone.HEIC", "phone2.heic", "raw.NEF"):
        (tmp_path / "a" / name).write_bytes(b"x")
    for name in ("labels.json", "README"):
        (tmp_path / name).write_text("{}")
    labels(tmp_path)
    assert "are of kinds that are not read: 2 .heic, 1 .nef. Convert them" in caplog.text and "json" not in caplog.text


def test_folder_of_pictures_that_are_not_read_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"x")
    (tmp_path / "train-0.parquet").write_bytes(b"x")
    write_image(tmp_path / "x.png").rename(tmp_path / "0001")
    with pytest.raises(ValueError, match=r"holds no images: .* 1 \.parquet may hold some: unpack them\. 1 \.heic are not read: "
                                         r".*1 without suffix are images: let them"):
        image_files(tmp_path)


def test_order_of_numbers_is_said(caplog):
    with caplog.at_level("INFO"):
        say_order(["0", "1", "10", "2"])
    assert "are ordered as text (0, 1, 10, 2): label 2 is 10" in caplog.text
    caplog.clear()
    for names in (["00", "01", "10"], ["1", "2"], ["a", "b"]):
        say_order(names)
    assert not caplog.text


# ---- refused ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("places", "message"), [
    (["train/a*4", "train/b*4", "val/a", "val/z"], "class folders that the training data has not: z. .*2 here and 2 there"),
    (["train/a*4", "train/b*4", "val/A", "val/b"], r"has not: A \(capitals and blanks count, so rename .*A here is a there"),
    (["train/a*4", "train/b*4", "val"], "/val holds 2 images but no class folders.*so sort them"),
    (["train*4", "val"], "/train holds 4 images but no class folders.*one folder for each class"),
    (["a*4"], "the training data has one class, a"),
    (["a/a1*4"], "the training data has one class, a"),
    (["a*1", "b*1"], "one image in each class"),
    (["val/a", "test/a"], "holds val/, test/ and no train/"),
])
def test_folder_that_can_not_be_trained_on_is_refused(places, message, tmp_path):
    draw(tmp_path, *places)
    with pytest.raises(ValueError, match=message):
        loaders_of(tmp_path)


@pytest.mark.parametrize("is_pretrain", [True, False])
@pytest.mark.parametrize("places, said", [(["Images*8", "masks*8"], True), (["images*8", "photographs*8"], False)])
def test_masks_that_are_read_as_images_are_said(places, said, is_pretrain, tmp_path, caplog):
    draw(tmp_path, *places)
    loaders_of(tmp_path, is_pretrain)
    assert ("holds masks beside Images: if these are masks" in caplog.text) == said


@pytest.mark.parametrize("target", ["data/a", "data", "."])
def test_class_that_is_a_link_to_another_is_refused(target, tmp_path):
    draw(tmp_path, "data/a*4", "data/b*4")
    (tmp_path / "data/c").symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match=r"a class folder c that is a link to .*, where the images of a are.*two labels"):
        class_names(tmp_path / "data")


def test_two_class_folders_of_one_name_are_refused(tmp_path):
    draw(tmp_path, CAFE, unicodedata.normalize("NFD", CAFE))
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system brings names to one form")
    with pytest.raises(ValueError, match=r"two class folders of one name, .*'caf\\xe9'.*form of Unicode alone"):
        class_names(tmp_path)


@pytest.mark.parametrize(("name", "message"), [
    ("data.zip", r"is a file, not a folder: unpack the archive \(unzip data\.zip\)"),
    ("data.tar.gz", r"unpack the archive \(tar -xf data\.tar\.gz\)"),
    ("bird.jpg", "pass the folder that holds the image"),
    ("list.txt", "is a file, not a folder: pass the folder"),
    ("dead", "is a link to .*gone, which does not exist"),
    ("absent/deeper/still", r"does not exist \(.* does, and holds cats, dogs\)"),
])
@pytest.mark.parametrize("is_pretrain", [True, False])
def test_what_is_no_folder_is_refused_by_name(name, message, is_pretrain, tmp_path):
    draw(tmp_path, "cats", "dogs")
    if name == "dead":
        (tmp_path / name).symlink_to(tmp_path / "gone")
    elif "/" not in name:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=f"data folder {tmp_path}/{name} .*{message}.*: check --data-path"):
        loaders_of(tmp_path / name, is_pretrain)


def test_address_is_no_data_folder():
    with pytest.raises(FileNotFoundError, match=r"s3://b/x is an address, and data are not downloaded: .*: check --data-path"):
        loaders_of("s3://b/x")


def test_folder_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch):
    """As for a user without the right; root, as whom tests may run, has it everywhere."""
    draw(tmp_path, "a", "b")
    scandir = os.scandir

    def guarded(path="."):
        if os.fspath(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    for look in (image_files, class_names):
        with pytest.raises(PermissionError, match=f"folder {tmp_path}/b may not be looked into.*chmod"):
            look(tmp_path)
