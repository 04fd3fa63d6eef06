"""Images between a loader process and the device: bytes there, the same floats here."""
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

from data import build_loader
from data.batches import Erased, Images, Normalisation, joined
from utils.devices import packed, to_device

from ..helpers import tiny_config

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
CPU = torch.device("cpu")


def test_normalisation_is_that_of_torchvision():
    pixels = np.random.RandomState(0).randint(0, 256, (6, 9, 3), dtype=np.uint8)
    expected, normalise = normalize(to_tensor(pixels), MEAN, STD), Normalisation(MEAN, STD)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    for given in (image, image.float() / 255, image.double() / 255):
        torch.testing.assert_close(normalise(given).float(), expected, atol=1e-6, rtol=0)
    assert normalise(image).dtype == torch.float32 and torch.equal(normalise(image[None])[0], normalise(image))
    assert not pickle.loads(pickle.dumps(normalise)).factors


def erased(value, *boxes):
    """A (3, 6, 9) image of a value; boxes (top, left, height, width, whether of one colour)."""
    image = torch.full((3, 6, 9), value, dtype=torch.uint8)
    numbers = [3 if plain else 3 * height * width for _, _, height, width, plain in boxes]
    return Erased(image, torch.tensor([[0, *box[:4], number] for box, number in zip(boxes, numbers, strict=True)]),
                  torch.arange(sum(numbers)) + 100.0 * value)


def test_boxes_are_put_into_their_images_after_normalisation():
    items = [erased(1, (1, 2, 2, 3, False), (5, 8, 1, 1, True)), torch.full((3, 6, 9), 2, dtype=torch.uint8),
             erased(3, (0, 0, 4, 5, True)), erased(4, (2, 0, 3, 9, False))]
    normalise = Normalisation(MEAN, STD)
    alone = torch.stack([normalise(item) for item in items])
    assert alone[0, :, 1:3, 2:5].flatten().tolist() == [100.0 + i for i in range(18)] and alone[0, 2, 5, 8] == 120
    assert alone[2, :, 3, 4].tolist() == [300, 301, 302] and (alone[2, 1, :4, :5] == 301).all()
    untouched = torch.stack([normalise(torch.full((3, 6, 9), value, dtype=torch.uint8)) for value in (1, 2, 3, 4)])
    assert (alone != untouched)[:, 0].sum(dim=(1, 2)).tolist() == [7, 0, 20, 27]
    batch = Images(joined(items), normalise)
    assert len(batch) == 4 and batch.shape == (4, 3, 6, 9) and torch.equal(batch.to(CPU), alone)
    assert torch.equal(batch[[3, 0, 1]].to(CPU), alone[[3, 0, 1]])
    assert torch.equal(Images(joined(items[1:2] * 2), normalise)[[1]].to(CPU), alone[1:2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    for split in ("train", "val"):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(rng.randint(0, 256, (40, 60, 3), dtype=np.uint8)).save(root / split / label / f"{i}.jpg")
    return root


@pytest.mark.parametrize("is_pretrain", [True, False])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_travel_as_bytes_and_are_read_as_floats(folder, is_pretrain, num_workers):
    config = tiny_config("vit", {"DATA.DATA_PATH": folder, "DATA.VAL_PATH": folder / "val", "DATA.BATCH_SIZE": 2,
                                 "DATA.NUM_WORKERS": num_workers, "AUG.REPROB": 1.0})
    loaders = build_loader(config, is_pretrain)
    for loader in (loaders.train, loaders.val):
        loader.sampler.epoch = 1
        samples = [loader.dataset[key] for key in loader.sampler]
        found = list(packed(loader))
        assert all(images.pixels.dtype == torch.uint8 for images, _ in found)
        for batches in ([to_device(batch, CPU) for batch in found], list(loader)):
            for i, part in enumerate(zip(*samples, strict=True)):
                got = torch.cat([batch[i] for batch in batches])
                assert torch.equal(got, torch.stack([torch.as_tensor(one) for one in part])), (loader, i)
        assert to_device(loader.filler(), CPU)[0].shape == (1, 3, 32, 64)
