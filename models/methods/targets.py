"""What is predicted: pixels and what is made of them here; classes and features in files of their own. See target.py."""
from functools import partial

import torch
from torch.nn import functional as F

from models.methods.class_targets import BinTarget, ClusterTarget, TokenTarget, read_palette, tokenizer_of
from models.methods.feature_targets import FeatureTarget, HogTarget
from models.methods.target import Target, enlarged
from utils.settings import Setting
from utils.statistics import channel_statistics


class PixelTarget(Target):
    """The normalised pixels themselves."""

    def __call__(self, images):
        return images


class LocallyNormalizedTarget(Target):
    """Every pixel normalised by mean and deviation of the window around it.

    Args:
        window: side of the window in pixels, odd.
    Source: SwinV2 (arXiv 2111.09883), section 3.5 of its released code.
    """

    def __init__(self, window):
        self.window = window

    def __call__(self, images):
        return normalize_locally(images, self.window)

    def view(self, values, images):
        mean, var = local_statistics(images, self.window)
        return values * (var + 1e-6).sqrt() + mean


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


class PatchNormalizedTarget(Target):
    """Every patch normalised by the mean and deviation of all its values.

    Args:
        patch_size: side in pixels.
    Source: MAE (arXiv 2111.06377), section 4.1; unbiased variance, 1e-6 inside the root.
    """

    def __init__(self, patch_size):
        self.patch_size = patch_size

    def __call__(self, images):
        mean, deviation = self._statistics(images)
        return (images.float() - mean) / deviation

    def view(self, values, images):
        mean, deviation = self._statistics(images)
        return values * deviation + mean

    @torch.no_grad()
    def _statistics(self, images):
        """(B, 1, H, W) each."""
        p = self.patch_size
        batch, channels, height, width = images.shape
        patches = images.float().view(batch, channels, height // p, p, width // p, p)
        var, mean = torch.var_mean(patches, dim=(1, 3, 5))
        return (lift(mean, p), lift((var + 1e-6).sqrt(), p))


def lift(values, factor):
    """(B, h, w) -> (B, 1, h*factor, w*factor) by repetition."""
    return values.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2).unsqueeze(1)


class OfPrepared(Target):
    """What another target makes of an image that is prepared first.

    Args:
        target: of the prepared image.
    """

    def __init__(self, target):
        self.target = target
        self.cell, self.classes, self.of_pixels = target.cell, target.classes, target.of_pixels

    def prepare(self, images):
        """(B, C, H, W) -> (B, C, h, w)."""
        raise NotImplementedError(f"{type(self).__name__} must define prepare")

    def width(self, in_chans):
        return self.target.width(in_chans)

    def __call__(self, images):
        return self.target(self.prepare(images))

    def view(self, values, images):
        return enlarged(self.target.view(values, self.prepare(images)), images.shape[2:])


class ResizedTarget(OfPrepared):
    """What another target makes of a small image: the mean of each square of `cell` x `cell` pixels.

    Source: SimMIM (arXiv 2111.09886), section 4.1.2, resolutions of what is predicted.
    """

    def __init__(self, target, cell):
        super().__init__(target)
        self.cell = cell * target.cell
        self._side = cell

    @torch.no_grad()
    def prepare(self, images):
        return F.avg_pool2d(images.float(), self._side)


class LowPassTarget(OfPrepared):
    """What another target makes of the low frequencies of an image.

    Args:
        target: applied to the filtered image.
        radius: largest frequency that stays, in cycles per image.
        mean, std: per channel, that the images were normalised with.
        filter: `exact`: the disc of the official code, whose centre lies half a step beside frequency 0 on even sizes;
            `centered`: a disc around it.
    Source: PixMIM (arXiv 2303.02416), section 3.2.
    """

    def __init__(self, target, radius, mean, std, filter="exact"):
        super().__init__(target)
        self.radius = radius
        self.mean = mean
        self.std = std
        self.filter = filter
        self._constants = {}

    @torch.no_grad()
    def prepare(self, images):
        """(B, C, H, W) normalised -> the same without high frequencies."""
        with torch.autocast(images.device.type, enabled=False):
            keep, mean, std = self._on(images.device, images.shape[-2:])
            spectrum = torch.fft.fft2(images.float() * std + mean) * keep
            # the filter is not symmetric, so the result is complex; the official code takes its absolute value
            return (torch.fft.ifft2(spectrum).abs() - mean) / std

    def _on(self, device, size):
        """Filter and statistics on a device, made once: copying them in every step would wait for it."""
        key = (device, tuple(size))
        if key not in self._constants:
            keep = torch.fft.ifftshift(frequency_disc(size, self.radius, self.filter == "exact"))
            mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (self.mean, self.std))
            self._constants[key] = (keep.to(device), mean, std)
        return self._constants[key]


def frequency_disc(size, radius, exact=True):
    """(H, W) float, 1 = kept, of a spectrum with frequency 0 at (H // 2, W // 2).

    Args:
        radius: in steps of the spectrum.
        exact: centre at ((H-1)/2, (W-1)/2) as in the official code, else at frequency 0.
    """
    centre = [(side - 1) / 2 if exact else side // 2 for side in size]
    rows, cols = (torch.arange(side, device="cpu") - middle for side, middle in zip(size, centre, strict=True))
    return (rows[:, None] ** 2 + cols[None, :] ** 2 <= radius ** 2).float()


# MODEL.SIMMIM.TARGET: from a config and its encoder to a target
TARGETS = {
    "bins": lambda config, encoder: BinTarget(config.MODEL.SIMMIM.BINS, *_statistics(config, encoder)),
    "clusters": lambda config, encoder: ClusterTarget(read_palette(config.MODEL.SIMMIM.PALETTE, encoder.in_chans),
                                                      *_statistics(config, encoder)),
    "features": lambda config, encoder: FeatureTarget(config.MODEL.SIMMIM.TEACHER, encoder.in_chans,
                                                      *_statistics(config, encoder)),
    "hog": lambda config, encoder: HogTarget(),
    "local_norm": lambda config, encoder: LocallyNormalizedTarget(config.MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE),
    "patch_norm": lambda config, encoder: PatchNormalizedTarget(encoder.stride),
    "pixels": lambda config, encoder: PixelTarget(),
    "tokens": lambda config, encoder: TokenTarget(partial(tokenizer_of, config.MODEL.SIMMIM.TOKENIZER, encoder.in_chans)),
}


def _statistics(config, encoder):
    return channel_statistics(encoder.in_chans, config.DATA.MEAN, config.DATA.STD)


def with_low_pass(config, target, channels):
    """The target, of low frequencies only with MODEL.PIXMIM.ENABLE.

    Args:
        config: from load_config.
        target: of this file.
        channels: of the images.
    """
    pixmim = config.MODEL.PIXMIM
    if not pixmim.ENABLE:
        return target
    size = config.DATA.IMG_SIZE
    if not frequency_disc([size] * 2 if isinstance(size, int) else size, pixmim.CUTOFF_RADIUS, pixmim.FILTER == "exact").any():
        raise ValueError(f"MODEL.PIXMIM.CUTOFF_RADIUS={pixmim.CUTOFF_RADIUS:g} keeps no frequency at all: there is nothing to "
                         f"predict. Use e.g. 40.")
    statistics = channel_statistics(channels, config.DATA.MEAN, config.DATA.STD)
    return LowPassTarget(target, pixmim.CUTOFF_RADIUS, *statistics, pixmim.FILTER)


PIXMIM = {  # settings of any method that regresses pixels
    "ENABLE": Setting(False, "+ predict the low frequencies only"),
    "CUTOFF_RADIUS": Setting(40.0, "+ largest frequency that stays", "cycles per image", low=0),
    "FILTER": Setting("exact", "+ exact (official, half a step off centre on even sizes) | centered",
                      choices=("exact", "centered")),
}
