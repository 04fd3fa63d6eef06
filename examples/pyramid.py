"""From one of our encoders to feature maps of several resolutions, as detection and segmentation heads want them."""
import math
from collections import OrderedDict

import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from config import image_size, load_config
from models import load_pretrained
from models.build import build_encoder, materialize
from models.layers import LayerNorm


def load_encoder(cfg, size, pretrained="", opts=()):
    """(encoder for images of `size` pixels, config); position tables of the checkpoint are resized to it."""
    config = load_config(cfg, ["DATA.IMG_SIZE", size, *opts])
    with torch.device("meta"):
        encoder = build_encoder(config)
    materialize(encoder)
    if pretrained:
        print(load_pretrained(encoder, pretrained))
    return encoder, config


class StageMaps(nn.Module):
    """What the last block of each resolution gives, finest first: one map of a ViT, as many as a Swin has stages.

    Args:
        encoder: any Encoder.
        size: (height, width) pixels of an image to look at, which finds those blocks.

    Attributes:
        widths: channels of each map.
    """

    def __init__(self, encoder, size):
        super().__init__()
        self.encoder = encoder
        self.blocks = range(len(encoder.probed_blocks()))
        with torch.no_grad():
            maps = self.collect(torch.zeros(1, encoder.in_chans, *size))
        last = {tuple(features.shape[2:]): block for block, features in enumerate(maps)}  # later blocks replace earlier ones
        self.blocks = list(last.values())
        self.widths = [maps[block].shape[1] for block in self.blocks]
        self.norms = nn.ModuleList(LayerNorm(width) for width in self.widths)

    def collect(self, images):
        """Outputs of self.blocks as (B, C, h, w), through forward hooks: the encoder need not know of them."""
        blocks, outputs = self.encoder.probed_blocks(), {}
        handles = [blocks[block].register_forward_hook(lambda _, args, output, block=block: outputs.update({block: output}))
                   for block in self.blocks]
        try:
            self.encoder(images)
        finally:
            for handle in handles:
                handle.remove()
        return [self.as_map(outputs[block], images) for block in self.blocks]

    def as_map(self, output, images):
        """Tokens (B, n, C) or a map (B, h, w, C) -> (B, C, h, w)."""
        if output.ndim == 3:
            output = output[:, self.encoder.num_prefix_tokens:]
            height, width = images.shape[2:]
            cell = math.isqrt(height * width // output.shape[1])  # pixels per side
            output = output.unflatten(1, (height // cell, width // cell))
        return output.permute(0, 3, 1, 2)

    def forward(self, images):
        return [norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                for norm, features in zip(self.norms, self.collect(images), strict=True)]


class SimplePyramid(nn.Module):
    """A quarter, half, once and twice the stride of a single map. Source: ViTDet (arXiv 2203.16527), section 3."""

    def __init__(self, width, channels):
        super().__init__()

        def finer(wide):
            return nn.ConvTranspose2d(wide, wide // 2, 2, stride=2)

        scales = ([finer(width), nn.GELU(), finer(width // 2)], [finer(width)], [], [nn.MaxPool2d(2)])
        widths = (width // 4, width // 2, width, width)
        self.levels = nn.ModuleList(
            nn.Sequential(*scale, nn.Conv2d(wide, channels, 1), nn.Conv2d(channels, channels, 3, padding=1))
            for scale, wide in zip(scales, widths, strict=True))

    def forward(self, maps):
        return OrderedDict((name, level(features)) for (name, features), level in
                           zip(((str(i), maps["0"]) for i in range(len(self.levels))), self.levels, strict=True))


class Pyramid(nn.Module):
    """Images (B, C, H, W) -> {"0": (B, out_channels, h, w), "1": half as fine, ...}; the names that torchvision gives.

    An encoder with several resolutions gets a feature pyramid network, another one the pyramid of ViTDet.

    Args:
        encoder, config: from load_encoder.
        channels: of all maps.
    """

    def __init__(self, encoder, config, channels):
        super().__init__()
        self.out_channels = channels
        self.stages = StageMaps(encoder, image_size(config))
        widths = self.stages.widths
        self.pyramid = (SimplePyramid(widths[0], channels) if len(widths) == 1
                        else FeaturePyramidNetwork(widths, channels, LastLevelMaxPool()))

    def forward(self, images):
        return self.pyramid(OrderedDict((str(i), features) for i, features in enumerate(self.stages(images))))
