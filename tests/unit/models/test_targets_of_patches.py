"""Targets normalised by patch, and low frequencies, against their definitions; recorded ones are in tests/parity."""
import math

import pytest
import torch

from config import pixel_statistics
from models.methods.targets import LowPassTarget, PatchNormalizedTarget, PixelTarget, frequency_disc, with_low_pass
from tests.unit.helpers import tiny_config

HEIGHT, WIDTH, PATCH = 16, 24, 8


def wave(rows, cols, height=HEIGHT, width=WIDTH):
    """(1, 1, H, W): so many cycles down and across, between -1 and 1."""
    y, x = torch.arange(height)[:, None] / height, torch.arange(width)[None, :] / width
    return (2 * math.pi * (rows * y + cols * x)).cos().view(1, 1, height, width)


def low_pass(radius, filter="centered", mean=0.0, std=1.0):
    return LowPassTarget(PixelTarget(), radius, [mean], [std], filter)


# ---- patches ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("channels", [1, 3, 5])
def test_patches_are_normalised_over_all_their_channels(channels):
    images = 2 * torch.randn(2, channels, HEIGHT, WIDTH) + torch.arange(channels).view(1, -1, 1, 1)
    actual = PatchNormalizedTarget(PATCH)(images)
    for y in range(0, HEIGHT, PATCH):
        for x in range(0, WIDTH, PATCH):
            for image, out in zip(images[..., y:y + PATCH, x:x + PATCH], actual[..., y:y + PATCH, x:x + PATCH], strict=True):
                expected = (image - image.mean()) / (image.var() + 1e-6).sqrt()
                torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_epsilon_of_a_patch_is_inside_the_root():
    """Halves of +a and -a: variance a^2 n / (n - 1)."""
    a, n = 1e-3, PATCH * PATCH
    images = torch.full((1, 1, PATCH, PATCH), a)
    images[..., PATCH // 2:] = -a
    expected = a / math.sqrt(a * a * n / (n - 1) + 1e-6)  # 0.70; with the epsilon outside it would be 0.99
    torch.testing.assert_close(PatchNormalizedTarget(PATCH)(images).abs(), torch.full_like(images, expected), atol=1e-4, rtol=0)


def test_constant_patch_becomes_zero():
    out = PatchNormalizedTarget(PATCH)(torch.full((1, 3, HEIGHT, WIDTH), 2.5))
    assert out.isfinite().all() and out.abs().max() < 1e-3


def test_denormalising_undoes_the_normalisation_of_patches():
    target, images = PatchNormalizedTarget(PATCH), 2 * torch.randn(2, 3, HEIGHT, WIDTH) + 1
    torch.testing.assert_close(target.denormalize(target(images), images), images, atol=1e-5, rtol=1e-5)


# ---- low frequencies ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rows, cols, stays", [(3, 0, True), (0, 3, True), (2, 2, True), (2, -2, True), (4, 0, False),
                                               (0, 4, False), (3, 1, False), (3, -1, False)])
def test_centered_filter_keeps_waves_within_the_radius(rows, cols, stays):
    """In cycles per image, whatever its shape; an offset keeps everything positive, where the absolute value does nothing."""
    images = 2 + wave(rows, cols)
    expected = images if stays else torch.full_like(images, 2.0)
    torch.testing.assert_close(low_pass(3).prepare(images), expected, atol=1e-5, rtol=0)


def test_exact_filter_on_even_sizes_is_half_a_step_off_and_keeps_one_of_two_sides():
    """Of a wave of 3 cycles with radius 3, centre at +-0.5: only the half at -3 passes, at half the amplitude."""
    disc = frequency_disc((HEIGHT, WIDTH), 3)
    kept = {(y - HEIGHT // 2, x - WIDTH // 2) for y, x in disc.nonzero().tolist()}
    assert kept == {(y, x) for y in range(-4, 5) for x in range(-4, 5) if (y + 0.5) ** 2 + (x + 0.5) ** 2 <= 9}
    assert (-3, 0) in kept and (3, 0) not in kept
    images, y = 2 + wave(3, 0), torch.arange(HEIGHT).view(1, 1, -1, 1) / HEIGHT
    half = torch.polar(torch.full_like(y, 0.5), -2 * math.pi * 3 * y)  # what is left of the cosine is complex
    torch.testing.assert_close(low_pass(3, "exact").prepare(images), (2 + half).abs().expand_as(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("filter", ["exact", "centered"])
def test_negative_pixels_come_out_positive(filter):
    """Radius 0.8 keeps frequency 0 (in `exact` it lies 0.71 off the centre); the official code takes the absolute value."""
    images = torch.full((1, 1, HEIGHT, WIDTH), -2.0)
    torch.testing.assert_close(low_pass(0.8, filter).prepare(images), -images, atol=1e-5, rtol=0)


def test_statistics_are_undone_before_the_filter():
    """x = (pixel - mean) / std: a constant stays what it is only if the absolute value is taken of pixels."""
    images = torch.full((1, 1, HEIGHT, WIDTH), -1.5)
    torch.testing.assert_close(low_pass(3, mean=0.5, std=0.2).prepare(images), images, atol=1e-5, rtol=0)


def test_large_radius_keeps_the_image():
    pixels = torch.rand(2, 1, HEIGHT, WIDTH) + 0.1
    torch.testing.assert_close(low_pass(100).prepare(pixels), pixels, atol=1e-5, rtol=0)


def test_filter_does_not_mix_images_or_channels():
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    target = LowPassTarget(PixelTarget(), 4, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    whole = target.prepare(images)
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.6), (0.3, 0.7))):
        alone = low_pass(4, "exact", mean, std).prepare(images[1:, channel:channel + 1])
        torch.testing.assert_close(whole[1:, channel:channel + 1], alone, atol=1e-5, rtol=0)


def test_low_pass_target_carries_no_gradient_and_is_in_single_precision():
    images = torch.rand(1, 1, HEIGHT, WIDTH).to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = low_pass(3)(images)
    assert out.dtype == torch.float32 and not out.requires_grad


def test_target_of_low_frequencies_is_what_the_other_target_makes_of_them():
    images = torch.rand(2, 1, HEIGHT, WIDTH)
    inner = PatchNormalizedTarget(PATCH)
    target = LowPassTarget(inner, 3, [0.0], [1.0])
    filtered = target.prepare(images)
    assert torch.equal(target(images), inner(filtered))
    torch.testing.assert_close(target.denormalize(target(images), images), filtered, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_config_gives_the_filter_the_statistics_of_the_data(channels):
    config = tiny_config("vit", {"MODEL.VIT.IN_CHANS": channels, "MODEL.PIXMIM.ENABLE": True, "MODEL.PIXMIM.CUTOFF_RADIUS": 7,
                                 "MODEL.PIXMIM.FILTER": "centered"})
    target = with_low_pass(config, PixelTarget(), channels)
    assert (target.mean, target.std) == pixel_statistics(config)
    assert (target.radius, target.filter) == (7, "centered")


def test_filter_takes_the_statistics_that_a_user_sets():
    config = tiny_config("vit", {"MODEL.PIXMIM.ENABLE": True, "DATA.MEAN": [0.1, 0.2, 0.3], "DATA.STD": [0.4, 0.5, 0.6]})
    target = with_low_pass(config, PixelTarget(), 3)
    assert (target.mean, target.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_without_pixmim_the_target_is_untouched():
    target = PixelTarget()
    assert with_low_pass(tiny_config("vit"), target, 3) is target
