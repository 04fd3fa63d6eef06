"""PixMIM: low frequencies as the target, and the crop that keeps objects whole."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms.functional import hflip

from config import load_config
from data.transforms import pretrain_transform, simple_resized_crop
from models.methods.targets import LowPassTarget, PixelTarget, frequency_disc
from utils.statistics import IMAGENET_STATISTICS

from .mae_records import load_mim, mim_names, noise_to_mask, part, patches_of, pretrain_model
from .recorded import opts_of

FILTERS, FILTERED = load_mim("pixmim_lowpass")
CROPS, PICTURES = load_mim("pixmim_simple_resized_crop")
FORWARD = {"atol": 1e-5, "rtol": 0}


# ---- low frequencies ----------------------------------------------------------------------------------------------

def low_pass(case, filter):
    """(recorded images, what our target makes of them); of the biggest case only the first channel is recorded."""
    images = FILTERED[f"{case}/image"]
    mean, std = (values[:images.shape[1]] for values in IMAGENET_STATISTICS)
    return images, LowPassTarget(PixelTarget(), FILTERS[case]["radius"], mean, std, filter).prepare(images)


@pytest.mark.parametrize("case", FILTERS)
def test_filter_is_the_recorded_disc(case):
    disc = frequency_disc(FILTERS[case]["img_size"], FILTERS[case]["radius"])
    assert torch.equal(disc, FILTERED[f"{case}/filter"].float())
    assert disc.sum() == FILTERS[case]["n_pass"]


@pytest.mark.parametrize("case", FILTERS)
def test_filtered_images_match(case):
    torch.testing.assert_close(low_pass(case, "exact")[1], FILTERED[f"{case}/filtered"], **FORWARD)


@pytest.mark.parametrize("case", FILTERS)
def test_centered_filter_keeps_frequencies_up_to_the_radius(case):
    """By definition: sum of the waves of at most that many cycles per image, which is real; its sign is lost as in `exact`."""
    images, actual = low_pass(case, "centered")
    mean, std = (np.array(values[:images.shape[1]]).reshape(-1, 1, 1) for values in IMAGENET_STATISTICS)
    rows, cols = (np.fft.fftfreq(side) * side for side in images.shape[2:])
    keep = np.hypot(rows[:, None], cols[None, :]) <= FILTERS[case]["radius"] + 1e-9
    waves = np.fft.ifft2(np.fft.fft2(images.double().numpy() * std + mean) * keep)
    assert np.abs(waves.imag).max() < 1e-12
    torch.testing.assert_close(actual.double(), torch.from_numpy((np.abs(waves.real) - mean) / std), **FORWARD)


@pytest.mark.parametrize("case", FILTERS)
def test_filters_agree_on_odd_sizes_only(case):
    same = torch.equal(low_pass(case, "exact")[1], low_pass(case, "centered")[1])
    assert same == all(side % 2 for side in FILTERS[case]["img_size"])


@pytest.mark.parametrize("name", mim_names("pixmim_pretrain_?"))
def test_target_of_the_recorded_model_is_the_recorded_image(name):
    """Loss, prediction and gradients of these models are in test_mae.py."""
    record, tensors = load_mim(name)
    target = pretrain_model(record, part(tensors, "state")).target
    torch.testing.assert_close(target.prepare(tensors["in/image"]), tensors["out/low_freq_target_image"], **FORWARD)


@pytest.mark.parametrize("name", mim_names("pixmim_pretrain_?"))
def test_recorded_loss_follows_from_prediction_and_target(name):
    """Written out on patches: what norm_pix normalises is the filtered image."""
    record, tensors = load_mim(name)
    patches = patches_of(tensors["out/low_freq_target_image"], record["patch_size"])
    if record["norm_pix_loss"]:
        patches = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    mask = noise_to_mask(tensors["in/noise"], record["mask_ratio"], (-1,))
    loss = (tensors["out/pred"] - patches).square().mean(-1)[mask].mean()
    assert loss.item() == pytest.approx(tensors["out/loss"].item(), abs=1e-5)


# ---- simple resized crop ------------------------------------------------------------------------------------------

def picture_of(case):
    return Image.fromarray(PICTURES[f"{case}/image_hwc_uint8"].numpy())


def drawn(case):
    """[(number, top, left, whether flipped)] of the recorded crops."""
    return [(i, *row) for i, row in enumerate(PICTURES[f"{case}/crop_top_left_flip"].tolist())]


@pytest.fixture
def draw(monkeypatch):
    """Let RandomCrop take a given place; collects the sizes (width, height) of what it was asked to crop."""
    seen = []

    def at(top, left):
        def get_params(picture, output_size):
            seen.append(picture.size)
            return top, left, *output_size
        monkeypatch.setattr(transforms.RandomCrop, "get_params", staticmethod(get_params))
        return seen
    return at


@pytest.mark.parametrize("case", CROPS)
def test_picture_is_resized_and_padded_as_recorded(case):
    cover, pad, _ = simple_resized_crop((CROPS[case]["size"],) * 2).transforms
    resized = cover(picture_of(case))
    # one grey level, as resizing may round otherwise in another version of Pillow
    for picture, name in ((resized, "resized"), (pad(resized), "padded")):
        expected = PICTURES[f"{case}/{name}_hwc"].numpy()
        assert np.asarray(picture).shape == expected.shape
        assert np.abs(np.asarray(picture).astype(int) - expected).max() <= 1


def test_long_side_is_rounded_down_in_portraits_too():
    """Of the recorded portrait it is whole, so this is the landscape on its side: 32 x 91 / 60 = 48.5."""
    picture = picture_of("landscape").transpose(Image.Transpose.TRANSPOSE)
    cover, *_ = simple_resized_crop((CROPS["landscape"]["size"],) * 2).transforms
    expected = PICTURES["landscape/resized_hwc"].numpy().swapaxes(0, 1)
    assert np.asarray(cover(picture)).shape == expected.shape
    assert np.abs(np.asarray(cover(picture)).astype(int) - expected).max() <= 2  # sides are resized in the other order


@pytest.mark.parametrize("case, number", [(case, i) for case in CROPS for i, *_ in drawn(case)])
def test_crop_at_the_recorded_place_matches(case, number, draw):
    _, top, left, flip = drawn(case)[number]
    seen = draw(top, left)
    crop = simple_resized_crop((CROPS[case]["size"],) * 2)(picture_of(case))
    crop = hflip(crop) if flip else crop
    assert np.abs(np.asarray(crop).astype(int) - PICTURES[f"{case}/crop{number}_hwc"].numpy()).max() <= 1
    height, width, _ = CROPS[case]["padded"]
    assert seen == [(width, height)]


@pytest.mark.parametrize("case", CROPS)
def test_src_in_a_config_is_that_crop_then_flip_and_normalisation(case, draw, monkeypatch):
    """Of the first recorded crop; the flip is drawn by torch.rand(1) < 0.5."""
    _, top, left, flip = drawn(case)[0]
    draw(top, left)
    monkeypatch.setattr(torch, "rand", lambda *size: torch.full(size, 0.25 if flip else 0.75))
    transform = pretrain_transform(load_config(opts=opts_of(
        {"MODEL.TYPE": "vit", "DATA.CROP": "src", "DATA.IMG_SIZE": CROPS[case]["size"]})))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET_STATISTICS)
    pixels = (transform(picture_of(case)) * std + mean) * 255
    expected = PICTURES[f"{case}/crop0_hwc"].permute(2, 0, 1).float()
    assert (pixels - expected).abs().max() <= 1 + 1e-3
