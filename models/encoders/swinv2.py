"""Swin Transformer V2: cosine attention, a position bias from continuous offsets, norms after the branches.

Source: Liu et al., Swin Transformer V2 (arXiv 2111.09883). Parameter and buffer names are the official ones.
"""
import logging
import math

import torch
from torch import nn
from torch.nn import functional as F

from models.encoders.swin import (
    SWIN,
    PatchMerging,
    SwinBlock,
    SwinTransformer,
    WindowAttention,
    check_windows,
    window_packer,
)
from models.layers import LayerNorm
from models.position import num_table_rows
from models.products import PreciseLinear, casts_together
from utils.registry import Component
from utils.settings import Setting

log = logging.getLogger("simmim.swinv2")

LARGEST_SCALE = math.log(100.0)  # of the logit scale: sharper attention is unstable
BIAS_RANGE = 8.0                 # the position bias of a pair lies in (-8, 8)
BIAS_HIDDEN = 512                # hidden width of the network that gives it


def log_spaced_offsets(window, pretrained_window=0):
    """Relative positions of a window on a log scale, where windows of other sizes nearly coincide.

    Args:
        window: (h, w) tokens.
        pretrained_window: side of the windows that the bias network was trained in, 0 = this window.
    Returns: (1, 2h-1, 2w-1, 2) float: sign(c) * log2(|c| + 1) / 3 with c = 8 * offset / (side - 1), in order (y, x). A
        window of one token has the offset 0 alone (the official code divides 0 by 0 there).
    Source: section 3.3.
    """
    axes = []
    for side in window:
        largest = max((pretrained_window or side) - 1, 1)
        axes.append(torch.arange(-(side - 1), side, dtype=torch.float32, device="cpu") * 8 / largest)
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).unsqueeze(0)
    return offsets.sign() * (offsets.abs() + 1.0).log2() / math.log2(8)


def trained_window(table):
    """(h, w) of the windows that a table of `log_spaced_offsets` counts its offsets in; 1 where it has no offsets but 0."""
    window = []
    for axis, length in enumerate(table.shape[1:3]):
        # the smallest offset is log2(8 / (side - 1) + 1) / 3
        smallest = table[0].select(1 - axis, 0)[length // 2 + 1, axis].item() if length > 1 else 0.0
        window.append(1 + round(8 / (8 ** smallest - 1)) if smallest > 0 else 1)
    return tuple(window)


class CosineWindowAttention(WindowAttention):
    """Attention by cosine similarity with a learned temperature per head; a small network gives the position bias.

    Args:
        pretrained_window: see log_spaced_offsets.
    """

    def __init__(self, dim, window, num_heads, qkv_bias=True, drop=0.0, pretrained_window=0):
        self.pretrained_window = pretrained_window
        super().__init__(dim, window, num_heads, qkv_bias, qk_scale=1.0, drop=drop)  # the temperature is in the query

    def add_position_bias(self):
        self.logit_scale = nn.Parameter(torch.zeros(self.num_heads, 1, 1))
        self.cpb_mlp = nn.Sequential(PreciseLinear(2, BIAS_HIDDEN), nn.ReLU(),
                                     PreciseLinear(BIAS_HIDDEN, self.num_heads, bias=False))
        self.register_buffer("relative_coords_table", log_spaced_offsets(self.window, self.pretrained_window))

    def add_projection(self, dim, qkv_bias):
        if qkv_bias:  # a bias of the key is left out
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        else:
            self.q_bias = self.v_bias = None
        self.qkv = nn.Linear(dim, dim * 3, bias=False)

    def project(self, x):
        bias = None
        if self.q_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = self.split(F.linear(x, self.qkv.weight, bias)).unbind(0)
        scale = self.logit_scale.clamp(max=LARGEST_SCALE).exp()
        return torch.stack(((F.normalize(q, dim=-1) * scale).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype), v))

    def bias_table(self):
        """(offsets, heads) in (-8, 8).

        The official bias is 16 sigmoid(t), in (0, 16). Here 8 is taken off, which softmax ignores: near its middle, where
        training starts, bfloat16 would resolve steps of 0.06 only.
        """
        with torch.autocast(self.logit_scale.device.type, enabled=False):
            offsets = self.relative_coords_table.to(self.cpb_mlp[0].weight.dtype)
            table = self.cpb_mlp(offsets).view(num_table_rows(self.window), self.num_heads)
            return BIAS_RANGE * torch.tanh(table / 2)


class SwinV2Block(SwinBlock):
    """Window attention and MLP, each branch normalised before it is added; shapes as SwinBlock.

    Args:
        extra_norm: normalise the main branch at the end.
    """

    def __init__(self, dim, *args, extra_norm=False, **kwargs):
        super().__init__(dim, *args, **kwargs)
        self.norm3 = LayerNorm(dim) if extra_norm else nn.Identity()

    @casts_together
    def forward(self, x, mask=None, packing=None):
        x = x + self.drop_path(self.norm1(self.attend(x, mask, packing)))
        return self.norm3(x + self.drop_path(self.norm2(self.mlp(x))))


class PatchMergingV2(PatchMerging):
    """Four neighbours become one token of twice the width, normalised afterwards."""

    def __init__(self, dim):
        super().__init__(dim)
        self.norm = LayerNorm(2 * dim)

    def forward(self, x):
        return self.norm(self.reduction(self.gather(x))).to(x.dtype)


class SwinTransformerV2(SwinTransformer):
    """Swin V2 encoder; arguments as SwinTransformer, without `qk_scale`, and:

    Args:
        pretrained_window_sizes: per stage, side of the windows the position bias was trained in; 0 = the present window.
            Fine-tuning in other windows needs it.
        extra_norm_every: normalise the main branch after every so many blocks of a stage; 0 = never, as in the released
            code. The paper has 6 for its models H and G.
    """

    def __init__(self, *args, pretrained_window_sizes=(0, 0, 0, 0), extra_norm_every=0, **kwargs):
        self.pretrained_window_sizes = tuple(pretrained_window_sizes)
        self.extra_norm_every = extra_norm_every
        super().__init__(*args, **kwargs)

    def make_block(self, stage, index, attention, **block):
        attention = CosineWindowAttention(pretrained_window=self.pretrained_window_sizes[stage], **attention)
        extra_norm = self.extra_norm_every > 0 and (index + 1) % self.extra_norm_every == 0
        return SwinV2Block(attn=attention, extra_norm=extra_norm, **block)

    def make_merging(self, dim):
        return PatchMergingV2(dim)

    def init_module(self, name, module):
        """As the first version; branches start at zero, so that every block is the identity."""
        super().init_module(name, module)
        if name.startswith("layers.") and name.endswith((".norm1", ".norm2")):
            nn.init.zeros_(module.weight)
        for own, parameter in module.named_parameters(recurse=False):
            if own == "logit_scale":
                nn.init.constant_(parameter, math.log(10.0))
            elif own in ("q_bias", "v_bias"):
                nn.init.zeros_(parameter)

    def no_weight_decay_keywords(self):
        return {"cpb_mlp", "logit_scale"}

    def resize_state_dict(self, state_dict):
        """As the first version. The position bias needs no resizing, but must know the windows it was trained in."""
        trained, mistaken = [0] * len(self.layers), False
        for stage, layer in enumerate(self.layers):
            table = state_dict.get(f"layers.{stage}.blocks.0.attn.relative_coords_table")
            if table is not None and table.ndim == 4:
                ours, theirs = trained_window(layer.blocks[0].attn.relative_coords_table), trained_window(table)
                trained[stage] = max(theirs)  # one number is told, though windows that are not square have two
                differ = any(a > 1 and b > 1 and a != b for a, b in zip(ours, theirs, strict=True))
                mistaken |= differ and self.pretrained_window_sizes[stage] != trained[stage]
        if mistaken:
            log.warning("the position bias of the checkpoint was trained in other windows and sees offsets of another scale "
                        "here: set MODEL.SWINV2.PRETRAINED_WINDOW_SIZES %s", trained)
        return super().resize_state_dict(state_dict)


def build_swinv2(config, img_size, num_classes, use_mask_token):
    """SwinTransformerV2 from MODEL.SWINV2."""
    swin = config.MODEL.SWINV2
    windows = swin.PRETRAINED_WINDOW_SIZES if any(swin.PRETRAINED_WINDOW_SIZES) else [0] * len(swin.DEPTHS)
    return SwinTransformerV2(
        img_size=img_size, patch_size=swin.PATCH_SIZE, in_chans=swin.IN_CHANS, num_classes=num_classes,
        embed_dim=swin.EMBED_DIM, depths=swin.DEPTHS, num_heads=swin.NUM_HEADS, window_size=swin.WINDOW_SIZE,
        mlp_ratio=swin.MLP_RATIO, qkv_bias=swin.QKV_BIAS, drop_rate=config.MODEL.DROP_RATE,
        drop_path_rate=config.MODEL.DROP_PATH_RATE, ape=swin.APE, patch_norm=swin.PATCH_NORM,
        pretrained_window_sizes=windows, extra_norm_every=swin.EXTRA_NORM_EVERY,
        use_mask_token=use_mask_token, use_checkpoint=config.TRAIN.USE_CHECKPOINT)


def check_swinv2(config, size):
    """Refuse settings of MODEL.SWINV2 that do not fit together. Raises: ValueError."""
    swin = config.MODEL.SWINV2
    check_windows(config, size, "MODEL.SWINV2", swin)
    sizes = swin.PRETRAINED_WINDOW_SIZES
    if any(sizes) and (len(sizes) != len(swin.DEPTHS) or min(sizes) < 0):
        raise ValueError(f"MODEL.SWINV2.PRETRAINED_WINDOW_SIZES={sizes} must have one value, 0 or more, for each of the "
                         f"{len(swin.DEPTHS)} stages of MODEL.SWINV2.DEPTHS={swin.DEPTHS}.")


def swinv2_groups(config, size):
    """As Component.groups."""
    return window_packer(config.MODEL.SWINV2, size)


SWINV2 = Component(build_swinv2, check=check_swinv2, groups=swinv2_groups, settings={
    **{name: setting for name, setting in SWIN.settings.items() if name != "QK_SCALE"},
    "QKV_BIAS": Setting(True, "for query and value; the key has no bias"),
    "PRETRAINED_WINDOW_SIZES": Setting([0, 0, 0, 0], "per stage: window the position bias was trained in, 0 = this one",
                                       "tokens"),
    "EXTRA_NORM_EVERY": Setting(0, "+ LayerNorm on the main branch after every so many blocks of a stage, 0 = none", "blocks",
                                low=0),
})
