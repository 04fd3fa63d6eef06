"""Sizes and values of the transforms."""
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from config import load_config, pixel_statistics
from data.transforms import (
    crop_size,
    eval_transform,
    finetune_transform,
    heldout_transform,
    mode_of,
    pretrain_transform,
)
from utils.seeding import seeded_globals

from ..helpers import tiny_config

GREY = Image.new("RGB", (90, 60), (128, 128, 128))


def config_of(size, **overrides):
    return tiny_config("vit", {"DATA.IMG_SIZE": size, "DATA.MASK_PATCH_SIZE": 32} | overrides)


def resized_to(transform, picture):
    """(height, width) after the first step."""
    first, *_ = transform.transforms
    assert isinstance(first, transforms.Resize)
    return first(picture).size[::-1]


@pytest.mark.parametrize(("size", "short_side"), [(192, 219), (224, 256)])
def test_evaluation_resizes_the_short_side_to_256_of_224_and_crops(size, short_side):
    transform, picture = eval_transform(config_of(size)), Image.new("RGB", (600, 400))
    assert resized_to(transform, picture) == (short_side, int(short_side * 600 / 400))
    assert transform(picture).shape == (3, size, size)


@pytest.mark.parametrize(("size", "ratio", "short_side"), [(448, 1.0, 448), (448, 0.875, 512), (384, 0.9, 426)])
def test_evaluation_keeps_the_shape_of_an_image_with_any_margin(size, ratio, short_side):
    transform, picture = eval_transform(config_of(size, **{"TEST.CROP_RATIO": ratio})), Image.new("RGB", (600, 400))
    assert resized_to(transform, picture) == (short_side, int(short_side * 600 / 400))
    assert transform(picture).shape == (3, size, size)


def test_evaluation_has_the_margin_of_the_official_formula_at_every_size():
    """Its whole number is that of 256 / 224 times the size."""
    sizes = range(33, 700)
    assert [int(size / load_config().TEST.CROP_RATIO) for size in sizes] == [int(256 / 224 * size) for size in sizes]


def test_evaluation_crop_is_centred():
    """A white frame outside the crop does not show."""
    pixels = np.full((256, 256, 3), 255, dtype=np.uint8)
    pixels[14:242, 14:242] = 0  # the crop of 224 takes rows and columns 16 to 239; two more for the resampling
    out = eval_transform(config_of(224, **{"DATA.MEAN": [0, 0, 0], "DATA.STD": [1, 1, 1]}))(Image.fromarray(pixels))
    assert out.max() == 0.0


def test_evaluation_without_crop_resizes_to_the_size():
    transform = eval_transform(config_of([96, 160], **{"TEST.CROP": False}))
    assert resized_to(transform, Image.new("RGB", (600, 400))) == (96, 160)
    assert not any(isinstance(step, transforms.CenterCrop) for step in transform.transforms)


@pytest.mark.parametrize("make", [eval_transform, heldout_transform, pretrain_transform, finetune_transform])
@pytest.mark.parametrize("picture", [(90, 60), (60, 90), (20, 300)])
@pytest.mark.parametrize("size", [[32, 64], [96, 64], [32, 32]])
def test_image_of_any_shape_comes_out_in_the_configured_one(make, picture, size):
    out = make(config_of(size))(Image.new("RGB", picture))
    assert out.shape == (3, *size) and out.dtype == torch.float32


def test_images_of_32_pixels_are_not_cropped_in_evaluation():
    assert resized_to(eval_transform(config_of(32)), GREY) == (32, 32)


def test_images_of_32_pixels_are_padded_and_cropped_in_fine_tuning():
    first = finetune_transform(config_of(32)).transforms[0]
    assert first.transforms[1].padding == 4 and first(GREY).size == (32, 32)


@pytest.mark.parametrize("make", [eval_transform, heldout_transform, pretrain_transform])
def test_pixels_are_normalised_by_mean_and_deviation(make):
    out = make(config_of([32, 64], **{"DATA.MEAN": [0.1, 0.2, 0.3], "DATA.STD": [1, 0.5, 0.25]}))(GREY)
    expected = [(128 / 255 - mean) / std for mean, std in ((0.1, 1), (0.2, 0.5), (0.3, 0.25))]
    assert out.amin(dim=(1, 2)).tolist() == pytest.approx(expected, abs=1e-5)
    assert out.amax(dim=(1, 2)).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("channels", "mode", "mean"), [(1, "L", [0.5]), (3, "RGB", [0.485, 0.456, 0.406]),
                                                        (4, "RGBA", [0.5] * 4)])
def test_channels_choose_mode_and_statistics(channels, mode, mean):
    config = tiny_config("vit", {"MODEL.VIT.IN_CHANS": channels})
    assert mode_of(config) == mode and pixel_statistics(config)[0] == mean and len(pixel_statistics(config)[1]) == channels
    picture = Image.new(mode, (90, 60))
    assert pretrain_transform(config)(picture).shape == eval_transform(config)(picture).shape == (channels, 32, 64)


@pytest.mark.parametrize("policy", ["none", None])
def test_policy_none_switches_auto_augment_off(policy):
    with_policy = {type(t).__name__ for t in finetune_transform(config_of(64)).transforms}
    without = {type(t).__name__ for t in finetune_transform(config_of(64, **{"AUG.AUTO_AUGMENT": policy})).transforms}
    assert "RandAugment" in with_policy and "RandAugment" not in without
    assert "ColorJitter" in without and "ColorJitter" not in with_policy


def test_random_erasing_is_on_by_its_probability():
    names = [{type(t).__name__ for t in finetune_transform(config_of(64, **{"AUG.REPROB": p})).transforms} for p in (0.25, 0)]
    assert "Erasing" in names[0] and "Erasing" not in names[1]


@pytest.mark.parametrize("change", [{}, {"AUG.REPROB": 1.0, "AUG.RECOUNT": 3}, {"AUG.REPROB": 1.0, "AUG.REMODE": "const"},
                                    {"AUG.AUTO_AUGMENT": "none", "AUG.COLOR_JITTER": 0.4}])
def test_fine_tuning_is_timm_s_pipeline_draw_by_draw(change):
    """Though it is normalised, and erased, in batches on the device."""
    config = config_of([32, 64], **{"AUG.REMODE": "pixel"} | change)
    pixels = np.random.RandomState(0).randint(0, 256, (60, 90, 3), dtype=np.uint8)
    aug, (mean, std) = config.AUG, pixel_statistics(config)
    timm = create_transform((32, 64), is_training=True, scale=tuple(aug.CROP_SCALE), color_jitter=aug.COLOR_JITTER,
                            auto_augment=None if aug.AUTO_AUGMENT == "none" else aug.AUTO_AUGMENT, mean=mean, std=std,
                            re_prob=aug.REPROB, re_mode=aug.REMODE, re_count=aug.RECOUNT,
                            interpolation=config.DATA.INTERPOLATION)
    for key in range(6):
        images = []
        for transform in (finetune_transform(config), timm):
            with seeded_globals(key):
                images.append(transform(Image.fromarray(pixels)))
        torch.testing.assert_close(*images, atol=2e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_auto_augment_never_fails_at_its_full_strength(channels):
    """The noise of the default m9-mstd0.5 reaches the upper end of 10 in one of fifty draws of an operation.

    timm then posterizes to 0 bits, which Pillow 13 refuses.
    """
    config = tiny_config("vit", {"MODEL.VIT.IN_CHANS": channels, "AUG.AUTO_AUGMENT": "rand-m10-mstd0-inc1"})
    transform, picture = finetune_transform(config), Image.new(mode_of(config), (40, 30))
    for index in range(100):
        with seeded_globals(index):
            assert transform(picture).shape == (channels, 32, 64)


def test_auto_augment_of_four_channels_works_or_is_refused_by_its_key():
    """Half of timm's operations do not know RGBA; a run must not find out after some images."""
    config = tiny_config("vit", {"MODEL.VIT.IN_CHANS": 4})
    try:
        transform = finetune_transform(config)
    except ValueError as error:
        assert "AUG.AUTO_AUGMENT" in str(error)
        return
    for index in range(50):
        with seeded_globals(index):
            assert transform(Image.new("RGBA", (40, 30))).shape == (4, 32, 64)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_fine_tuning_without_auto_augment_takes_any_channels(channels):
    config = tiny_config("vit", {"MODEL.VIT.IN_CHANS": channels, "AUG.AUTO_AUGMENT": None, "AUG.COLOR_JITTER": 0.0,
                                 "AUG.REPROB": 1.0})
    assert finetune_transform(config)(Image.new(mode_of(config), (40, 30))).shape == (channels, 32, 64)


@pytest.mark.parametrize("size", [(2, 20000), (20000, 2)])
@pytest.mark.parametrize("build", [eval_transform, heldout_transform, pretrain_transform])
def test_thin_picture_is_not_resized_to_gigabytes(build, size, monkeypatch):
    largest = []
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *more, resize=Image.Image.resize, **named:
                        largest.append(size[0] * size[1]) or resize(self, size, *more, **named))
    for crop in ("rrc", "src"):
        config = tiny_config("swin", {"DATA.CROP": crop, "DATA.IMG_SIZE": [32, 64]})
        assert build(config)(Image.new("RGB", size)).shape == (3, 32, 64)
    assert max(largest) < 10 ** 6


def test_crop_of_a_probe_has_at_least_a_pixel():
    assert crop_size(20, 30, 1e-4, 0.0) == (1, 1)
    assert crop_size(20, 30, 1.0, 0.0) == (20, 24)  # the side of 600 pixels is 24.5, and what does not fit is cut


def test_reflecting_crop_of_images_as_small_as_its_border_is_refused():
    with pytest.raises(ValueError, match=r"DATA\.IMG_SIZE=4 is too small for DATA\.CROP=src.*--opts DATA\.CROP rrc"):
        pretrain_transform(load_config(opts=["MODEL.TYPE", "vit", "MODEL.VIT.PATCH_SIZE", 2, "DATA.IMG_SIZE", 4,
                                             "DATA.CROP", "src"]))


def test_policy_that_this_timm_does_not_know_is_one_line(monkeypatch):
    def refuse(*args, auto_augment, **options):
        raise AssertionError("Unknown AA policy")

    monkeypatch.setattr("timm.data.create_transform", refuse)
    with pytest.raises(ValueError, match=r"AUG\.AUTO_AUGMENT='rand-m9' is no policy that timm knows"):
        finetune_transform(load_config(opts=["AUG.AUTO_AUGMENT", "rand-m9"]))


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-n3-p0.5-mmax30-tweights", "rand-t3a", "original-mstd0.5",
                                    "augmix-m5-w4-d2-a1.5-b1", "originalr", "v0", "v0r", "3a"])
def test_every_policy_of_timm_is_taken(policy):
    image = finetune_transform(load_config(opts=["AUG.AUTO_AUGMENT", policy]))(Image.new("RGB", (40, 30), (90, 80, 70)))
    assert image.shape == (3, 224, 224)
