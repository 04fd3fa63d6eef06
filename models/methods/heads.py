"""Prediction heads of SimMIM (MODEL.SIMMIM.HEAD): from the encoder's map to a value for each position of the target."""
from torch import nn

from models.encoders.swin import SwinBlock, WindowAttention, stage_windows
from models.layers import LayerNorm, init_layer, truncated_normal

FINEST = 4       # pixels per side of a token in the last stage of an inverse Swin, as in the first one of Swin
WINDOWS = (7, 6, 8, 5, 4)  # tokens per side; the first one is taken that divides the map


def linear_head(encoder, factor, width):
    """One linear layer for each cell of the map, and its values spread over the cell: SimMIM's own."""
    return nn.Sequential(nn.Conv2d(encoder.num_features, factor ** 2 * width, kernel_size=1), nn.PixelShuffle(factor))


def mlp_head(encoder, factor, width):
    """Two linear layers, the first as wide as the map."""
    dim = encoder.num_features
    return nn.Sequential(nn.Conv2d(dim, dim, kernel_size=1), nn.GELU(), *linear_head(encoder, factor, width))


class Expansion(nn.Module):
    """A token becomes a square of them: (B, H, W, C) -> (B, factor * H, factor * W, out_dim).

    The inverse of Swin's merging, where the factor is 2 and `out_dim` half of the width: a norm and a linear layer as well.
    """

    def __init__(self, dim, out_dim, factor):
        super().__init__()
        self.factor = factor
        self.norm = LayerNorm(dim)
        self.expand = nn.Linear(dim, out_dim * factor ** 2, bias=False)

    def forward(self, x):
        batch, height, width, _ = x.shape
        squares = self.expand(self.norm(x)).to(x.dtype).view(batch, height, width, self.factor, self.factor, -1)
        return squares.transpose(2, 3).reshape(batch, height * self.factor, width * self.factor, -1)


class InverseSwin(nn.Module):
    """The stages of a Swin in reverse order, from the encoder's map up to tokens of 4 pixels, then a linear layer.

    It begins with the stage whose tokens are as wide as the cells of the encoder's map, which with a stride of 32 is the last.

    Args:
        in_dim: width of the encoder's map.
        stride: of the encoder, 4, 8, 16 or 32 pixels.
        grid: (h, w) of the encoder's map, that windows and masks are made for; other maps work.
        cell: side in pixels of what is predicted, 1, 2 or 4.
        width: values of it.
        embed_dim: of the finest stage; it doubles with each coarser one.
        depths, num_heads: of the stages, the finest first.
    Source: SimMIM (arXiv 2111.09886), section 4.1.2, which compares such heads with the linear one.
    """

    def __init__(self, in_dim, stride, grid, cell, width, embed_dim, depths, num_heads):
        super().__init__()
        first = (stride // FINEST).bit_length() - 1
        window = next((side for side in WINDOWS if grid[0] % side == grid[1] % side == 0), 7)
        maps = [tuple(side * 2 ** step for side in grid) for step in range(first + 1)]
        self.embed = nn.Linear(in_dim, embed_dim * 2 ** first)
        self.layers = nn.ModuleList()
        for size, stage in zip(maps, reversed(range(first + 1)), strict=True):
            dim = embed_dim * 2 ** stage
            own_window = stage_windows(size, [window])[0]
            blocks = nn.ModuleList(
                SwinBlock(dim, size, WindowAttention(dim, own_window, num_heads[stage]), shifted=i % 2 == 1, mlp_ratio=4.0,
                          drop=0.0, drop_path=0.0) for i in range(depths[stage]))
            expansion = Expansion(dim, dim // 2, 2) if stage else Expansion(dim, dim, FINEST // cell)
            self.layers.append(nn.ModuleDict({"blocks": blocks, "expansion": expansion}))
        self.pred = nn.Linear(embed_dim, width)

    @property
    def blocks(self):
        """In order, as Encoder.units."""
        return [block for stage in self.layers for block in stage["blocks"]]

    def forward(self, features):
        """(B, in_dim, h, w) -> (B, width, H/cell, W/cell)."""
        x = self.embed(features.movedim(1, -1)).to(features.dtype)
        for stage in self.layers:
            for block in stage["blocks"]:
                x = block(x)
            x = stage["expansion"](x)
        return self.pred(x).movedim(-1, 1)

    def init_module(self, name, module):
        """As Encoder.init_module."""
        init_layer(module)
        if isinstance(module, WindowAttention):
            truncated_normal(module.relative_position_bias_table)


SWINS = {"inverse_swin_t": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
         "inverse_swin_b": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}}
HEADS = ("linear", "mlp", *SWINS)


def build_head(name, encoder, target):
    """The head of a name in HEADS, for what a target wants.

    Raises: ValueError where the target's cells and the encoder's do not fit together.
    """
    stride, cell, width = encoder.stride, target.cell, target.width(encoder.in_chans)
    if stride % cell:
        raise ValueError(f"the target has cells of {cell} pixels, the encoder of {stride}: {cell} must divide {stride}. Use an "
                         f"encoder of a larger stride, or another MODEL.SIMMIM.TARGET or TARGET_SIZE.")
    if name not in SWINS:
        return {"linear": linear_head, "mlp": mlp_head}[name](encoder, stride // cell, width)
    if stride not in [FINEST * 2 ** step for step in range(4)] or FINEST % cell:
        raise ValueError(f"MODEL.SIMMIM.HEAD={name} goes from cells of 32, 16, 8 or {FINEST} pixels to ones of {FINEST}, 2 or "
                         f"1, and here the encoder has {stride} and the target {cell}. Use MODEL.SIMMIM.HEAD linear or mlp.")
    grid = tuple(side * encoder.patch_size // stride for side in encoder.grid)
    return InverseSwin(encoder.num_features, stride, grid, cell, width, **SWINS[name])
