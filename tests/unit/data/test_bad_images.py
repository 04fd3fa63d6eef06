"""What stands in for images that can't be read, how many may be bad, and the lists of them."""
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from config import load_config
from data import build_loader
from data.bad_images import BadImages, Reader, read_list, replacement_index, write_list
from data.loader import build_probe_loaders
from evaluation import evaluate, heldout_loss
from utils.precision import build_precision

from ..helpers import TINY, opts_of
from .test_reading import KINDS, broken_files

CPU = torch.device("cpu")
FP32 = build_precision("O0", "native", CPU)
COUNT = 20


def noise(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """train/<class>/ and val/<class>/ with 20 different images each, in two classes."""
    for split in ("train", "val"):
        for i in range(COUNT):
            noise(tmp_path / split / "ab"[i % 2] / f"{i:02}.png", i)
    return tmp_path


def spoil(folder, *numbers, split="train"):
    for i in numbers:
        (folder / split / "ab"[i % 2] / f"{i:02}.png").write_bytes(b"no image")


def config_for(folder, **data):
    base = {"DATA.DATA_PATH": str(folder), "DATA.NUM_WORKERS": 0, "DATA.BATCH_SIZE": 4, "AUG.AUTO_AUGMENT": "none",
            "AUG.REPROB": 0, "AUG.COLOR_JITTER": 0}
    return load_config(opts=opts_of(TINY["vit"] | base | {f"DATA.{key}": value for key, value in data.items()}))


def pretraining(folder, **data):
    return build_loader(config_for(folder / "train", **data), is_pretrain=True)


def epoch_of(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def equal(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for batches in zip(one, other, strict=True)
                                          for a, b in zip(*batches, strict=True))


# ---- training -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"folder", "gone"}))
@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_file_of_every_kind_is_replaced_and_reported(folder, kind, num_workers):
    path = folder / "train" / "a" / "00.png"
    (folder / "broken").mkdir()
    os.replace(broken_files(folder / "broken")[kind], path)
    loader = pretraining(folder, NUM_WORKERS=num_workers).train
    batches = epoch_of(loader, 0)
    assert len(batches) == 5 and all(images.shape == (4, 3, 32, 64) for images, _ in batches)
    news = loader.bad.news()
    assert list(news) == [str(path)] and news[str(path)] and loader.bad.news() == {}


def test_file_that_vanishes_after_listing_is_replaced_and_reported(folder):
    loader = pretraining(folder).train
    (folder / "train" / "a" / "00.png").unlink()
    assert len(epoch_of(loader, 0)) == 5
    assert loader.bad.news() == {str(folder / "train" / "a" / "00.png"): "No such file or directory"}


def test_pictures_that_are_too_large_are_replaced(folder):
    Image.new("RGB", (60, 50)).save(folder / "train" / "a" / "00.png")
    loader = pretraining(folder, MAX_PIXELS=2000).train
    epoch_of(loader, 0)
    assert list(loader.bad.news().values()) == ["60 x 50 pixels, more than DATA.MAX_PIXELS=2000: raise it, or store it smaller"]


@pytest.mark.parametrize("is_pretrain", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2, 4])
def test_batches_with_bad_files_depend_on_nothing_but_the_key(folder, is_pretrain, num_workers):
    """The same with any number of workers, and in any order; good images keep place, mask and augmentation."""
    root = folder / "train" if is_pretrain else folder
    settings = {"MAX_BAD_FRACTION": 0.5, "VAL_PATH": str(folder / "val")}
    whole = epoch_of(build_loader(config_for(root, **settings), is_pretrain).train, 1)
    spoil(folder, 3, 8, 9)
    one = epoch_of(build_loader(config_for(root, **settings), is_pretrain).train, 1)
    loader = build_loader(config_for(root, NUM_WORKERS=num_workers, **settings), is_pretrain).train
    epoch_of(loader, 0)
    assert equal(epoch_of(loader, 1), one)
    same = torch.cat([(a[0] == b[0]).flatten(1).all(dim=1) for a, b in zip(whole, one, strict=True)])
    assert same.sum() == COUNT - 3
    if is_pretrain:
        assert all(torch.equal(a[1], b[1]) for a, b in zip(whole, one, strict=True))


def test_label_is_that_of_the_image_that_stands_in(folder):
    for i in range(COUNT):
        Image.new("RGB", (40, 40), (255 * (i % 2),) * 3).save(folder / "train" / "ab"[i % 2] / f"{i:02}.png")
    spoil(folder, *range(0, 16, 2), 1)
    labels_seen = []
    for images, labels in epoch_of(build_loader(config_for(folder, MAX_BAD_FRACTION=0.5), is_pretrain=False).train, 0):
        assert torch.equal(images.mean(dim=(1, 2, 3)) > 0, labels == 1)
        labels_seen += labels.tolist()
    assert labels_seen.count(1) > COUNT // 2


def test_run_with_bad_files_equals_the_run_with_a_list_of_them(folder):
    spoil(folder, 0, 5, 6)
    loader = pretraining(folder, MAX_BAD_FRACTION=0.5).train
    expected = [epoch_of(loader, epoch) for epoch in (0, 1)]
    loader.bad.add(loader.bad.news())
    loader.bad.write(folder)
    for i in (0, 5, 6):
        noise(folder / "train" / "ab"[i % 2] / f"{i:02}.png", 100 + i)  # good ones would be seen, were they opened
    skipping = pretraining(folder, MAX_BAD_FRACTION=0, SKIP_LIST=str(folder / "bad_images.txt")).train
    assert all(equal(epoch_of(skipping, epoch), batches) for epoch, batches in enumerate(expected))
    assert skipping.bad.news() == {}


def test_rule_by_trying_and_rule_by_knowing_find_the_same_image(folder):
    spoil(folder, 0, 5, 6, 7, 8)
    dataset = pretraining(folder).train.dataset
    bad = {i for i, (path, _) in enumerate(dataset.samples) if open(path, "rb").read() == b"no image"}
    reader = Reader(dataset, replaces=True)
    for epoch in (0, 3):
        for index in range(COUNT):
            expected = dataset.item((epoch, index), replacement_index(dataset.seed, epoch, index, bad, COUNT))
            assert all(torch.equal(a, b) for a, b in zip(reader[epoch, index][0], expected, strict=True))


def test_shared_mask_is_that_of_a_bad_first_image(folder):
    masks = [mask for _, mask in epoch_of(pretraining(folder, MASK_SHARED=True).train, 0)]
    spoil(folder, 3, 8, 9, 12)
    assert all(torch.equal(a, b) for a, (_, b) in zip(
        masks, epoch_of(pretraining(folder, MASK_SHARED=True, MAX_BAD_FRACTION=0.5).train, 0), strict=True))


# ---- limits -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("count", "fraction", "allowed"), [(20, 0.01, 1), (1000, 0.01, 10), (20, 0, 0), (20, 1, 20),
                                                            (7, 0.5, 3)])
def test_share_of_bad_images_is_allowed_but_at_least_one(count, fraction, allowed):
    bad = BadImages(count, fraction)
    bad.add({f"/{i}": "x" for i in range(allowed)})
    if allowed < count:
        with pytest.raises(ValueError, match=rf"{allowed + 1} of {count} .*MAX_BAD_FRACTION={fraction:g} allows \({allowed}\)"):
            bad.add({"/new": "why"})
        assert bad.found["/new"] == "why"


def test_error_lists_ten_names_and_counts_the_rest_and_says_what_to_type():
    with pytest.raises(ValueError) as error:
        BadImages(100, 0.05).add({f"/i{i}.png": f"reason {i}" for i in range(13)})
    text = str(error.value)
    assert "/i0.png (reason 0); " in text and "/i9.png (reason 9); and 3 more. Repair" in text and "/i10.png" not in text
    assert "DATA.SKIP_LIST" in text and "tools/check_data.py" in text and "\n" not in text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_first_bad_image_ends_a_run_that_allows_none(folder, num_workers):
    spoil(folder, 4)
    with pytest.raises(ValueError, match=r"1 of 20 training images.*a/04\.png \(cannot identify image file\)"):
        epoch_of(pretraining(folder, NUM_WORKERS=num_workers, MAX_BAD_FRACTION=0).train, 0)


@pytest.mark.parametrize("fraction", [0.1, 1])
def test_search_for_a_good_image_ends_where_there_is_none(folder, fraction):
    spoil(folder, *range(COUNT))
    with pytest.raises(ValueError, match="training images can"):
        epoch_of(pretraining(folder, MAX_BAD_FRACTION=fraction).train, 0)


def test_news_are_handed_out_once_and_not_what_others_have_told():
    bad = BadImages(10, 1)
    bad.meet({"/a": "x"})
    assert bad.news() == {"/a": "x"} and bad.news() == {}
    assert bad.add({"/b": "y"}) == {"/b": "y"} and bad.add({"/b": "z"}) == {}
    bad.meet({"/b": "y", "/c": "z"})
    assert bad.news() == {"/c": "z"} and bad.found == {"/b": "y"}


def test_counting_goes_on_after_a_restart_but_not_of_files_that_have_changed_or_gone(tmp_path):
    for name in "abc":
        noise(tmp_path / f"{name}.png", 0)
    first = BadImages(300, 0.01)
    first.add({str(tmp_path / f"{name}.png"): "broken" for name in "abc"})
    first.write(tmp_path)
    os.utime(tmp_path / "bad_images.txt", (2e9, 2e9))  # after all of them
    second = BadImages(300, 0.01)
    second.read(tmp_path)
    assert second.found == first.found
    with pytest.raises(ValueError, match="4 of 300"):
        second.add({"/new.png": "broken"})
    os.remove(tmp_path / "c.png")
    third = BadImages(300, 0.01)
    third.read(tmp_path)
    assert list(third.found) == [str(tmp_path / f"{name}.png") for name in "ab"]
    os.utime(tmp_path / "bad_images.txt", (1, 1))  # before
    fourth = BadImages(300, 0.01)
    fourth.read(tmp_path)
    assert not fourth.found


@pytest.mark.parametrize("noise, said", [(b"\xff\xfe\x00noise\n\x80", False), (b'"half a na', True)])
def test_run_goes_on_from_a_list_of_noise(tmp_path, caplog, noise, said):
    (tmp_path / "bad_images.txt").write_bytes(noise)
    bad = BadImages(300, 0.01)
    bad.read(tmp_path)
    assert not bad.found and ("counting anew" in caplog.text) == said


def test_nothing_is_written_or_read_where_nothing_is_bad(tmp_path):
    bad = BadImages(10, 1)
    bad.write(tmp_path)
    bad.read(tmp_path)
    assert list(tmp_path.iterdir()) == [] and bad.found == {}


# ---- lists --------------------------------------------------------------------------------------------------------

NAMES = {"/a/plain name.png": "why", "/a/größe.png": "why", "/a/new\nline.png": "a\nb", "/a/tab\t.png": "",
         "/a/\udce9.png": "x", '"quoted".png': "y", " space.png ": "z", "/a/\u2028.png": "w", "#.png": "v",
         "/a/back\\slash.png": "u"}


def test_list_of_any_names_is_read_as_it_was_written(tmp_path):
    write_list(tmp_path / "list.txt", NAMES)
    assert {name: reason.replace("\\n", "\n") for name, reason in read_list(tmp_path / "list.txt").items()} == NAMES
    lines = (tmp_path / "list.txt").read_text(encoding="utf-8").split("\n")
    assert len(lines) == len(NAMES) + 1 and "/a/plain name.png\twhy" in lines
    assert f"{json.dumps('/a/tab' + chr(9) + '.png')}\t" in lines
    assert list(tmp_path.iterdir()) == [tmp_path / "list.txt"]


def test_list_without_reasons_or_as_editors_leave_it_is_read(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.png\r\nb.png \n\nc\xe9.png\tcut")
    assert read_list(tmp_path / "list.txt") == {"a.png": "", "b.png": "", "c\udce9.png": "cut"}


def test_line_that_is_no_json_is_named(tmp_path):
    (tmp_path / "list.txt").write_text('a.png\n"b.png\tx')
    with pytest.raises(ValueError, match=r"list\.txt, line 2"):
        read_list(tmp_path / "list.txt")


def test_list_that_can_not_be_written_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"list\.txt could not be written to .*file"):
        write_list(tmp_path / "file" / "list.txt", NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_names_of_a_list_are_absolute_or_relative_to_the_data(folder, tmp_path):
    (tmp_path / "list.txt").write_text(f"a/00.png\tx\n{folder}/train/b/01.png\n./a/../a/02.png\nb/absent.png\n")
    loader = pretraining(folder, SKIP_LIST=str(tmp_path / "list.txt")).train
    assert sorted(os.path.basename(loader.dataset.samples[i][0]) for i in loader.skipped) == ["00.png", "01.png", "02.png"]


def test_list_that_does_not_exist_is_an_error(folder):
    with pytest.raises(FileNotFoundError, match=r"DATA\.SKIP_LIST=absent\.txt does not exist"):
        pretraining(folder, SKIP_LIST="absent.txt")


def test_list_that_names_no_image_is_a_warning_and_one_that_names_all_an_error(folder, tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("absent.png\n")
    warned = []
    monkeypatch.setattr("data.image_loader.log.warning", lambda *words: warned.append(words[0]))
    pretraining(folder, SKIP_LIST=str(tmp_path / "list.txt"))
    assert any("names none of the training images" in words for words in warned)
    (tmp_path / "list.txt").write_text("".join(f"{'ab'[i % 2]}/{i:02}.png\n" for i in range(COUNT)))
    with pytest.raises(ValueError, match="names all 20 training images"):
        pretraining(folder, SKIP_LIST=str(tmp_path / "list.txt"))


# ---- validation ---------------------------------------------------------------------------------------------------

class Mean(torch.nn.Module):
    """Logits or a loss that depend on each image; counts its calls."""

    calls = 0

    def forward(self, images, masks=None):
        self.calls += 1
        if masks is None:
            return images.flatten(1)[:, :5]
        return images.mean()


def validation(folder, is_pretrain, **data):
    root = folder / "train" if is_pretrain else folder
    return build_loader(config_for(root, VAL_PATH=str(folder / "val"), **data), is_pretrain).val


@pytest.mark.parametrize("is_pretrain", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_validation_images_are_left_out_and_counted(folder, is_pretrain, num_workers):
    """With 0 to 3, a whole batch; the numbers are those of the other images."""
    measure = heldout_loss if is_pretrain else evaluate
    spoil(folder, 0, 2, 4, 6, 5, split="val")  # sorted by class, so the first four are a batch
    model, loader = Mean(), validation(folder, is_pretrain, NUM_WORKERS=num_workers)
    numbers = measure(model, loader, CPU, FP32)
    assert (numbers["images"], numbers["unreadable"], model.calls) == (15, 5, 5)
    for i in (0, 2, 4, 6, 5):
        (folder / "val" / "ab"[i % 2] / f"{i:02}.png").unlink()
    expected = measure(Mean(), validation(folder, is_pretrain), CPU, FP32)
    assert "unreadable" not in expected
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_bad_validation_images_are_said_once(folder, monkeypatch):
    said = []
    monkeypatch.setattr("evaluation.log.warning", lambda text, *words: said.append(text % words))
    spoil(folder, 7, split="val")
    loader = validation(folder, False)
    for _ in range(3):
        evaluate(Mean(), loader, CPU, FP32)
    assert len(said) == 1 and said[0].startswith("1 of 20 validation images can't be read and are left out: ")
    assert "b/07.png (cannot identify image file)" in said[0]
    spoil(folder, 9, split="val")
    evaluate(Mean(), loader, CPU, FP32)
    assert len(said) == 2 and "2 of 20" in said[1]


def test_validation_without_a_single_readable_image_is_an_error(folder):
    spoil(folder, *range(COUNT), split="val")
    with pytest.raises(ValueError, match=r"none of 20 validation images can be read: .*and 10 more.*DATA\.VAL_PATH"):
        evaluate(Mean(), validation(folder, False), CPU, FP32)


def test_filler_needs_no_image(folder):
    spoil(folder, *range(COUNT), split="val")
    images, masks = validation(folder, True).filler()
    assert images.shape == (1, 3, 32, 64) and masks.shape == (1, 4, 8) and torch.isfinite(images).all()


def test_picture_of_a_bad_image_is_blank(folder):
    spoil(folder, 0, split="val")
    pictures = build_loader(config_for(folder / "train", VAL_PATH=str(folder / "val")), True).pictures
    images, masks = pictures.collate([pictures[0], pictures[1]])
    assert len(pictures) == COUNT and images[0].std(dim=(1, 2)).max() == 0 and images[1].std() > 0.1
    assert masks.sum(dim=(1, 2)).unique().numel() == 1


def test_probe_reads_bad_training_images_as_blank_and_passes_over_listed_ones(folder, tmp_path):
    spoil(folder, 2)
    (tmp_path / "list.txt").write_text("train/b/03.png\n")
    loader = build_probe_loaders(config_for(folder, SKIP_LIST=str(tmp_path / "list.txt"))).plain
    blank = []
    for number, _ in enumerate(loader):
        blank += [loader.sampler.indices[4 * number + i] for i in loader.blank]
    assert sorted(os.path.basename(loader.dataset.samples[i][0]) for i in blank) == ["02.png", "03.png"]
    assert list(loader.bad.news()) == [str(folder / "train" / "a" / "02.png")]
