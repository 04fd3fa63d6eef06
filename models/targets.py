"""What a pixel-regression method predicts. A target is a pair of functions on (B, C, H, W) images.

`target(images)` gives what the prediction is compared with; `target.denormalize(prediction, images)` brings a
prediction back to the images' scale, for viewing only.
"""
import torch
from torch.nn import functional as F


class PixelTarget:
    """The normalised pixels themselves."""

    def __call__(self, images):
        return images

    def denormalize(self, prediction, images):
        return prediction


class LocallyNormalizedTarget:
    """Every pixel normalised by mean and deviation of the window around it.

    Args:
        window: side of the window in pixels, odd.
    Source: SwinV2 (arXiv 2111.09883), section 3.5 of its released code.
    """

    def __init__(self, window):
        self.window = window

    def __call__(self, images):
        return normalize_locally(images, self.window)

    def denormalize(self, prediction, images):
        mean, var = local_statistics(images, self.window)
        return prediction * (var + 1e-6).sqrt() + mean


def normalize_locally(images, window):
    """(x - mean) / sqrt(var + 1e-6) with the statistics of the window centred on each pixel.

    Args:
        images: (B, C, H, W) float.
        window: odd side in pixels.
    Returns: (B, C, H, W), no gradient.
    """
    mean, var = local_statistics(images, window)
    return (images - mean) / (var + 1e-6).sqrt()


@torch.no_grad()
def local_statistics(images, window):
    """Mean and unbiased variance (clamped at 0) over the part of the window that lies inside the image."""
    if window % 2 == 0:
        raise ValueError(f"the window of a locally normalised target must be odd, not {window}.")

    def mean_of(x):  # divides by the pixels inside the image only
        return F.avg_pool2d(x, window, stride=1, padding=window // 2, count_include_pad=False)

    images = images.float()
    count = F.avg_pool2d(torch.ones_like(images), window, stride=1, padding=window // 2, divisor_override=1)
    mean = mean_of(images)
    var = (mean_of(images.square()) - mean.square()) * (count / (count - 1))
    return mean, var.clamp_(min=0.0)
