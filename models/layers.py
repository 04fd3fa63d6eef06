"""Small layers that the encoders share."""
import math

import torch
from torch import nn
from torch.nn import functional as F

from models.products import gelu_linear


class DropPath(nn.Module):
    """Drop the residual branch of a whole sample with probability `rate`, scaling the others by 1 / (1 - rate).

    Source: stochastic depth (arXiv 1603.09382).
    """

    def __init__(self, rate):
        super().__init__()
        self.rate = float(rate)

    def forward(self, x):
        keep = self.draw(x)
        return x if keep is None else x * keep

    def draw(self, x, dtype=None):
        """Factors (B, 1, ...) of the samples of x (B, ...), 0 or 1 / (1 - rate), in its format or `dtype`; None = all kept."""
        if not self.training or self.rate == 0.0:
            return None
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1), dtype=dtype).bernoulli_(1.0 - self.rate)
        return keep / (1.0 - self.rate)

    def extra_repr(self):
        return f"rate={self.rate:.3f}"


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm whose parameters may be less precise than its input, as they are when they are sharded in bfloat16."""

    def forward(self, x):
        weight, bias = (parameter.to(torch.promote_types(parameter.dtype, x.dtype)) for parameter in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class Mlp(nn.Module):
    """Linear, GELU, linear: (..., dim) -> (..., dim).

    Args:
        layer: makes the linear ones, (in_dim, out_dim) -> nn.Linear or PointwiseConv.
    """

    def __init__(self, dim, hidden_dim, drop=0.0, layer=nn.Linear):
        super().__init__()
        self.fc1 = layer(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = layer(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x):
        x = self.fc1(x)
        if self.drop.p and self.training:
            return self.drop(self.fc2(self.drop(self.act(x))))
        return gelu_linear(x, self.fc2.weight.flatten(1), self.fc2.bias)


class PatchEmbed(nn.Module):
    """Non-overlapping patches as tokens: (B, in_chans, H, W) -> (B, H/patch, W/patch, dim).

    Raises: ValueError if the image is not a whole number of patches or has another number of channels.
    """

    def __init__(self, patch_size, in_chans, dim, norm=False):
        super().__init__()
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = LayerNorm(dim) if norm else nn.Identity()

    def forward(self, images):
        check_images(images, self.in_chans, self.patch_size)
        return self.norm(self.proj(images).permute(0, 2, 3, 1))  # (B, h, w, dim)


def check_images(images, in_chans, patch_size):
    """Refuse images (B, C, H, W) of other channels, or that are not whole patches. Raises ValueError."""
    channels, height, width = images.shape[1:]
    if channels != in_chans:
        raise ValueError(f"images have {channels} channels, the encoder was built for {in_chans}: "
                         f"set IN_CHANS of its section in the config.")
    if height % patch_size or width % patch_size:
        raise ValueError(f"images of {height}x{width} pixels are not a whole number of patches of {patch_size}.")


def stream_dtype(parameter):
    """Number format of the residual stream: that of the parameters, and at least fp32 under autocast.

    Sums over many blocks need the precision. Parameters themselves may be bfloat16 there, when they are sharded.
    """
    mixed = not parameter.is_meta and torch.is_autocast_enabled(parameter.device.type)
    return torch.promote_types(parameter.dtype, torch.float32) if mixed else parameter.dtype


def hide_tokens(tokens, mask, mask_token):
    """Put the mask token where the mask is True.

    Args:
        tokens: (B, h, w, C) float.
        mask: (B, h, w) bool or 0/1 integers, True = hidden.
        mask_token: (1, 1, C) parameter.
    Raises: ValueError if the mask is not on the grid of the tokens.
    Source: SimMIM (arXiv 2111.09886), section 3.1.
    """
    if mask.shape != tokens.shape[:3]:
        raise ValueError(f"mask of shape {tuple(mask.shape)} does not fit the patch grid {tuple(tokens.shape[:3])} (B, h, w).")
    return torch.where(mask.bool().unsqueeze(-1), mask_token.to(tokens.dtype), tokens)


def lift_mask(mask, size):
    """Repeat a mask of units to a finer grid, for example to pixels.

    Args:
        mask: (B, h, w) bool or 0/1 integers, True = hidden.
        size: (H, W), whole multiples of h and w.
    Returns: (B, H, W) bool.
    Raises: ValueError if the units do not align with the grid.
    """
    height, width = mask.shape[-2:]
    if size[0] % height or size[1] % width:
        raise ValueError(f"a mask of {height}x{width} units does not align with {size[0]}x{size[1]} cells.")
    mask = mask.bool()
    return mask.repeat_interleave(size[0] // height, dim=-2).repeat_interleave(size[1] // width, dim=-1)


def init_layer(module, std=0.02, cut=math.inf):
    """Initialise the parameters of one layer as the official code does.

    Linear weights are normal and their biases 0, LayerNorms start at 1 and 0, convolutions at PyTorch's default.

    Args:
        module: any module; layers of other kinds are left alone.
        std, cut: see truncated_normal.
    """
    if isinstance(module, nn.Linear):
        truncated_normal(module.weight, std, cut)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm | nn.Conv2d):
        module.reset_parameters()


def init_xavier(module):
    """Initialise the parameters of one layer as the official MAE does: linear weights uniform by Xavier's rule, biases 0.

    LayerNorms start at 1 and 0, convolutions at PyTorch's default.
    """
    init_layer(module)
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)


def truncated_normal(tensor, std=0.02, cut=math.inf):
    """Fill in place from a normal of mean 0, without values beyond +-cut.

    The official default cuts at +-2, a hundred standard deviations: no cut at all, except that torch.nn.init.trunc_normal_
    of older torch then now and then draws exactly -2. So no cut is a plain normal here.
    """
    if cut == math.inf:
        return nn.init.normal_(tensor, std=std)
    return nn.init.trunc_normal_(tensor, std=std, a=-cut, b=cut)


def drop_path_rates(rate, depth):
    """Stochastic depth rates of the blocks: 0 for the first, rising linearly to `rate` for the last."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def refuse_script(module):
    """What models have as `__prepare_scriptable__`, which torch.jit.script calls first. Raises: NotImplementedError."""
    raise NotImplementedError(f"torch.jit.script can't compile a {type(module).__name__}: it is written in more Python than "
                              f"TorchScript knows. Use torch.jit.trace(model.eval(), images), which works for images of that "
                              f"size in any number, or tools/export.py (torch.export, ONNX).")
