"""Locally normalised targets against a loop; recorded ones are in tests/parity."""
import pytest
import torch

from models.methods.targets import LocallyNormalizedTarget, PixelTarget, local_statistics, normalize_locally


def naive_normalized(images, window):
    """Each pixel by the mean and unbiased variance of the window around it, cropped at the border; double precision."""
    out, reach = torch.zeros_like(images, dtype=torch.float64), window // 2
    for y in range(images.shape[2]):
        for x in range(images.shape[3]):
            around = images.double()[:, :, max(y - reach, 0):y + reach + 1, max(x - reach, 0):x + reach + 1].flatten(2)
            out[:, :, y, x] = (images[:, :, y, x].double() - around.mean(-1)) / (around.var(-1) + 1e-6).sqrt()
    return out


@pytest.mark.parametrize("window", [3, 5, 11])
def test_normalised_images_equal_a_loop_over_pixels(window):
    """11 is wider than the image is high."""
    images = torch.randn(2, 3, 6, 9)
    expected = naive_normalized(images, window)
    torch.testing.assert_close(normalize_locally(images, window).double(), expected, atol=1e-4, rtol=1e-4)


def test_epsilon_is_inside_the_root():
    """A chequerboard of +-a: 5 of the 9 pixels around an inner one have its sign, so mean a/9 and variance 10/9 a^2."""
    a = 1e-3
    images = a * (1 - 2 * ((torch.arange(6)[:, None] + torch.arange(8)[None, :]) % 2)).float().view(1, 1, 6, 8)
    expected = (a - a / 9) / (10 / 9 * a ** 2 + 1e-6) ** 0.5  # 0.61; with the epsilon outside it would be 0.84
    inner = normalize_locally(images, 3)[0, 0, 1:-1, 1:-1].abs()
    torch.testing.assert_close(inner, torch.full((4, 6), expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("level", [0.0, 2.5, -100.0])
def test_constant_image_stays_small_and_finite(level):
    """E[x^2] - E[x]^2 cancels: the variance may come out slightly negative and must be clamped."""
    out = normalize_locally(torch.full((1, 3, 8, 10), level) + 1e-4 * torch.randn(1, 3, 8, 10), 5)
    assert out.isfinite().all() and out.abs().max() < 1.0


def test_variance_is_never_negative():
    _, var = local_statistics(torch.full((1, 1, 16, 24), 57.3), 7)
    assert (var >= 0).all()


def test_denormalising_undoes_the_normalisation():
    target, images = LocallyNormalizedTarget(5), torch.randn(2, 3, 8, 10) * 2 + 1
    torch.testing.assert_close(target.denormalize(target(images), images), images, atol=1e-4, rtol=1e-4)


def test_normalised_target_carries_no_gradient_of_its_statistics():
    mean, var = local_statistics(torch.randn(1, 1, 6, 8, requires_grad=True), 3)
    assert not mean.requires_grad and not var.requires_grad


def test_even_window_is_refused():
    with pytest.raises(ValueError, match="must be odd, not 4"):
        normalize_locally(torch.zeros(1, 1, 6, 8), 4)


def test_half_precision_images_are_normalised_in_fp32():
    images = (torch.randn(1, 3, 8, 10) + 3).to(torch.bfloat16)
    torch.testing.assert_close(normalize_locally(images, 5).double(), naive_normalized(images, 5), atol=1e-3, rtol=1e-3)


def test_pixel_target_is_the_image_both_ways():
    images, prediction = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6)
    assert PixelTarget()(images) is images and PixelTarget().denormalize(prediction, images) is prediction
