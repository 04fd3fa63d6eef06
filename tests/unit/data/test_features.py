"""Extraction of features, the files they are kept in, and the batches that are read from them."""
import logging
import os

import numpy as np
import pytest
import torch

from data.features import FeatureCache, FeatureLoader, checksum, images_checksum
from data.loader import EpochSampler, EvalSampler

COUNT = 7


class Dataset:
    mode = "RGB"

    def __init__(self, folder, count, transform):
        self.samples = [(str(folder / f"{i}.png"), i) for i in range(count)]
        self.transform = transform

    def __len__(self):
        return len(self.samples)


class Images:
    """Batches of numbered images, as a DataLoader over an ImageDataset gives them."""

    def __init__(self, folder, count=COUNT, transform="Resize(4)"):
        self.dataset = Dataset(folder, count, transform)
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
