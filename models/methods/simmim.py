"""SimMIM: hide large random patches, regress their raw pixels with one linear layer.

Source: Xie et al., SimMIM (arXiv 2111.09886).
"""
import torch
from torch import nn

from models.layers import lift_mask
from models.methods.method import Method
from models.methods.targets import TARGETS, with_low_pass
from utils.registry import Component, pick
from utils.settings import Setting


class SimMIM(Method):
    """Encoder over visible and hidden tokens alike, linear head to pixels, L1 on hidden pixels.

    The head is a 1x1 convolution to stride * stride * channels values per cell and a pixel shuffle; stride and channels
    are the encoder's.

    Args:
        encoder: an Encoder with a mask token.
        target: what is predicted, see models/methods/targets.py.
    """

    def __init__(self, encoder, target=None):
        decoder = nn.Sequential(
            nn.Conv2d(encoder.num_features, encoder.stride ** 2 * encoder.in_chans, kernel_size=1),
            nn.PixelShuffle(encoder.stride))
        super().__init__(encoder, decoder, target)

    def reconstruct(self, images, mask, denormalize=False):
        prediction = self.decoder(self.encoder(images, mask))
        return self.target.denormalize(prediction, images) if denormalize else prediction

    def loss(self, prediction, target, mask):
        return masked_l1(prediction, target, mask)

    def init_module(self, name, module):
        """As Encoder.init_module; the head starts at PyTorch's default."""
        super().init_module(name, module)
        if name.startswith("decoder") and isinstance(module, nn.Conv2d):
            module.reset_parameters()


def masked_l1(prediction, target, mask):
    """Mean absolute error over hidden pixels of the whole batch and all channels; 0 if nothing is hidden.

    Args:
        prediction, target: (B, C, H, W).
        mask: (B, h, w), True = hidden, on a grid that the pixels align with.
    Source: official SimMIM; the 1e-5 avoids 0 / 0.
    """
    with torch.autocast(prediction.device.type, enabled=False):  # sums over millions of pixels need fp32
        hidden = lift_mask(mask, target.shape[-2:]).unsqueeze(1).to(torch.float32)
        error = (target.float() - prediction.float()).abs()
        return (error * hidden).sum() / (hidden.sum() + 1e-5) / target.shape[1]


def build_simmim(config, make_encoder):
    """SimMIM from MODEL.SIMMIM and MODEL.PIXMIM."""
    simmim = config.MODEL.SIMMIM
    if simmim.NORM_TARGET.ENABLE and simmim.TARGET not in ("pixels", "local_norm"):
        raise ValueError(f"MODEL.SIMMIM.NORM_TARGET.ENABLE True is TARGET local_norm, but MODEL.SIMMIM.TARGET is "
                         f"{simmim.TARGET!r}: set one of them.")
    name = "local_norm" if simmim.NORM_TARGET.ENABLE else simmim.TARGET
    target = pick(TARGETS, name, "MODEL.SIMMIM.TARGET")(simmim)
    encoder = make_encoder(use_mask_token=True)
    return SimMIM(encoder, with_low_pass(config, target, encoder.in_chans))


def _even(window):
    return f"is even: the window is centred on a pixel. Use {window + 1}" if window % 2 == 0 else None


SIMMIM = Component(build_simmim, settings={
    "TARGET": Setting("pixels", "+ what is predicted, see models/methods/targets.py"),
    "NORM_TARGET.ENABLE": Setting(False, "TARGET local_norm, as the official code says it"),
    "NORM_TARGET.PATCH_SIZE": Setting(47, "odd side of the neighbourhood that a pixel is normalised by", "pixels", low=3,
                                      rule=_even),
})
