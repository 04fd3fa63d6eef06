"""Extraction of features, the files they are kept in, and the batches that are read from them."""
import json
import logging
import os

import numpy as np
import pytest
import torch

from data.bad_images import BadImages
from data.features import FeatureCache, FeatureLoader, checksum, images_checksum, parts_of, unreadable_rows
from data.pixels import DEFAULT, Rules
from data.samplers import EpochSampler, EvalSampler
from evaluation import evaluate
from utils.precision import build_precision

COUNT = 7


class Dataset:
    mode, rules = "RGB", DEFAULT

    def __init__(self, folder, count, transform):
        self.samples = [(str(folder / f"{i}.png"), i) for i in range(count)]
        self.transform = transform

    def __len__(self):
        return len(self.samples)


class Images:
    """Batches of numbered images, as a DataLoader over an ImageDataset gives them."""

    def __init__(self, folder, count=COUNT, transform="Resize(4)"):
        self.dataset = Dataset(folder, count, transform)
        self.bad, self.skipped, self.blank = BadImages(count), frozenset(), []
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        for start in range(0, len(self.dataset), 3):
            index = torch.arange(start, min(start + 3, len(self.dataset)))
            yield index.float().view(-1, 1, 1, 1), index


def extract(images, layers):
    return [images.flatten(1) * torch.arange(1, 3 + int(layer)) for layer in layers]  # widths 3 for layer 1, 4 for layer 2


def expected(layer, count=COUNT):
    return np.arange(count, dtype=np.float32)[:, None] * np.arange(1, 3 + layer)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return Images(folder)


@pytest.fixture
def get(tmp_path, images):
    def run(layers=(1,), split="train", loader=images, **key):
        return FeatureCache(tmp_path / "cache", {"weights": "a", **key}).get(
            split, loader, list(layers), extract, torch.device("cpu"))
    return run


@pytest.fixture
def messages(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("simmim"), "propagate", True)
    caplog.set_level(logging.INFO, logger="simmim")
    return lambda: caplog.text


def test_features_are_those_of_each_image_in_order(get):
    for array, layer in zip(get([1, 2]), (1, 2), strict=True):
        assert array.dtype == np.float32 and np.array_equal(array, expected(layer))


def test_features_are_extracted_once_when_the_key_is_the_same(get, images, messages):
    get()
    assert np.array_equal(get()[0], expected(1))
    assert images.passes == 1 and "features of 7 train images, layer 1: those of" in messages()


def test_only_missing_layers_are_extracted(get, images, messages):
    get([1])
    get([1, 2])
    assert images.passes == 2 and "images, layer 2: " not in messages().split("extracting")[1]


@pytest.mark.parametrize(("change", "reason"), [
    ({"weights": "b"}, "differs in weights"), ({"feature": "cls"}, "differs in feature"), ({"precision": "bf16"}, "precision")])
def test_features_are_extracted_again_when_the_key_differs_and_the_log_says_why(get, images, messages, change, reason):
    get()
    get(**change)
    assert images.passes == 2 and reason in messages()


@pytest.mark.parametrize(("change", "reason"), [({"count": COUNT + 1}, "images"), ({"transform": "Resize(5)"}, "transform")])
def test_features_are_extracted_again_when_the_images_differ(get, tmp_path, messages, change, reason):
    get()
    get(loader=Images(tmp_path / "images", **change))
    assert f"differs in {reason}\n" in messages()


def test_features_are_extracted_again_when_the_images_are_read_by_other_rules(get, tmp_path, messages):
    get()
    images = Images(tmp_path / "images")
    images.dataset.rules = Rules(background=(0, 0, 0))
    get(loader=images)
    assert images.passes == 1 and "differs in reading\n" in messages()


def test_images_differ_when_their_folder_has_changed(tmp_path):
    samples = [(str(tmp_path / "a.png"), 0), (str(tmp_path / "b.png"), 1)]
    before = images_checksum(samples)
    os.utime(tmp_path, ns=(1, 1))
    assert images_checksum(samples) != before
    assert images_checksum(samples[:1]) != images_checksum(samples)


def test_broken_file_is_replaced(get, images, tmp_path, messages):
    get()
    path = next((tmp_path / "cache").glob("*.npy"))
    path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(get()[0], expected(1))
    assert images.passes == 2 and "is broken" in messages()


def test_flipped_bit_is_noticed_and_the_features_are_extracted_again(get, images, tmp_path, messages):
    get()
    path = next((tmp_path / "cache").glob("*.npy"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)
    assert np.array_equal(get()[0], expected(1))
    assert images.passes == 2 and "has another checksum" in messages()
    get()
    assert images.passes == 2


def test_file_without_a_checksum_is_not_used(get, images, tmp_path, messages):
    get()
    path = next((tmp_path / "cache").glob("*.json"))
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"}))
    get()
    assert images.passes == 2 and "or that has none: extracting again" in messages()


def unreadable(images, *rows):
    """Let these images be ones that can't be read: their batches say so."""
    batches = images.__class__.__iter__

    def marked(self):
        for batch in batches(self):
            self.blank = [i for i, row in enumerate(batch[1].tolist()) if row in rows]
            self.bad.meet({images.dataset.samples[row][0]: "cut" for row in rows})
            yield batch
    images.__class__ = type("Marked", (images.__class__,), {"__iter__": marked})


def test_features_of_an_unreadable_image_are_nan_and_said_each_time(get, images, messages):
    unreadable(images, 2, 5)
    for _ in range(2):
        array, = get()
        assert unreadable_rows(array).tolist() == [2, 5]
        assert np.array_equal(np.delete(array, [2, 5], axis=0), np.delete(expected(1), [2, 5], axis=0))
    assert images.passes == 1 and messages().count("2 of 7 train images could not be read when features") == 2
    assert "2.png (cut); " in messages() and "To try again, remove" in messages()


def test_extraction_ends_where_more_images_are_unreadable_than_allowed(get, images, tmp_path):
    unreadable(images, 2, 5)
    images.bad = BadImages(COUNT, 0.01)
    with pytest.raises(ValueError, match=r"2 of 7 training images can't be read.*DATA\.MAX_BAD_FRACTION"):
        get()
    assert list((tmp_path / "cache").iterdir()) == []


def with_nan(layer, *rows):
    array = expected(layer).copy()
    array[list(rows)] = np.nan
    return array


def test_another_image_stands_in_for_an_unreadable_one_in_training():
    loader = FeatureLoader(torch.arange(COUNT) * 10, 3, EpochSampler(COUNT, 3, 0, 1, seed=5), seed=5)
    loader.open([with_nan(1, 2), with_nan(2, 4)])  # a row that lacks one layer counts as unreadable for all
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        keys = list(loader.sampler)
        seen = torch.cat([torch.stack([one[:, 0], two[:, 0], label]).T for one, two, label in loader])
        assert torch.isfinite(seen).all() and torch.equal(seen[:, 0] * 10, seen[:, 2]) and torch.equal(seen[:, 1], seen[:, 0])
        assert not {2.0, 4.0} & set(seen[:, 0].tolist())
        assert all(row == index for (_, index), row in zip(keys, seen[:, 0].tolist(), strict=True) if index not in (2, 4))


def test_unreadable_images_are_left_out_of_accuracy():
    labels, features = torch.tensor([0, 1, 2, 0, 1, 2, 0]), torch.eye(3)[[0, 1, 2, 1, 1, 2, 0]].numpy().copy()
    features[[0, 1, 4]] = np.nan
    loader = FeatureLoader(labels, 2, EvalSampler(COUNT, 0, 1))
    loader.open([features])
    numbers = evaluate(torch.nn.Identity(), loader, torch.device("cpu"), build_precision("O0", "native", torch.device("cpu")))
    assert (numbers["images"], numbers["unreadable"], numbers["top1"]) == (4, 3, 75.0)


def test_parts_leave_out_unreadable_rows():
    parts = list(parts_of(with_nan(1, 0, 3, 4), rows=3))
    assert [len(part) for part in parts] == [2, 1, 1] and torch.equal(torch.cat(parts)[:, 0], torch.tensor([1., 2, 5, 6]))


def test_training_without_a_single_readable_image_is_an_error():
    loader = FeatureLoader(torch.arange(COUNT), 3, EpochSampler(COUNT, 3, 0, 1, seed=5), seed=5)
    with pytest.raises(ValueError, match="none of the 7 training images could be read"):
        loader.open([with_nan(1, *range(COUNT))])


def test_nothing_is_left_when_extraction_fails(tmp_path, images):
    def fails(images, layers):
        return [images.flatten(1) * torch.nan for _ in layers]

    with pytest.raises(ValueError, match="layer 1 are not finite"):
        FeatureCache(tmp_path / "cache", {}).get("val", images, [1], fails, torch.device("cpu"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_parts_of_a_run_that_was_killed_are_removed_a_day_later(get, tmp_path):
    old, new = (tmp_path / "cache" / name for name in ("train__1__a.b.rank0.tmp", "train__1__c.d.rank0.tmp"))
    old.parent.mkdir()
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    get()
    assert new.exists() and not old.exists()


def test_checksum_tells_values_names_and_shapes_apart():
    weights = {"a": torch.arange(6.0), "b": torch.tensor(1)}
    others = [{**weights, "a": torch.arange(6.0) + 1e-6}, {**weights, "a": torch.arange(6.0).view(2, 3)},
              {"c": weights["a"], "b": weights["b"]}]
    assert checksum(weights) == checksum(dict(reversed(weights.items())))
    assert len({checksum(w) for w in [weights, *others]}) == 4


@pytest.mark.parametrize("ranks", [1, 2])
def test_loader_gives_each_feature_with_its_label_once(ranks):
    labels, features, seen = torch.arange(COUNT) * 10, [expected(1), expected(2)], []
    for rank in range(ranks):
        loader = FeatureLoader(labels, 2, EvalSampler(COUNT, rank, ranks))
        loader.open(features)
        batches = list(loader)
        assert len(batches) == len(loader)
        for one, two, label in batches:
            assert torch.equal(one[:, 0] * 10, label.float()) and torch.equal(two[:, 0], one[:, 0])
            seen += label.tolist()
    assert sorted(seen) == labels.tolist()


def test_loader_shuffles_anew_in_each_epoch():
    loader = FeatureLoader(torch.arange(COUNT), 3, EpochSampler(COUNT, 3, 0, 1, seed=5))
    loader.open([expected(1)])
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat([label for _, label in loader]).tolist())
    assert orders[0] == orders[2] != orders[1] and len(orders[0]) == 6
