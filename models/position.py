"""Relative position tables and absolute position embeddings: indices, and resizing to another grid."""
import numpy as np
import torch
from torch.nn import functional as F


def relative_position_index(window):
    """Row of the bias table for every (query, key) pair of a window.

    Args:
        window: (h, w) tokens.
    Returns: (h*w, h*w) int64, on the CPU (also while a model is built on the meta device: buffers are always real);
        row (dy + h-1) * (2w-1) + (dx + w-1) with d = query position - key position.
    Source: Swin (arXiv 2103.14030), section 3.2.
    """
    height, width = window
    rows, cols = torch.arange(height, device="cpu"), torch.arange(width, device="cpu")
    dy = (rows[:, None] - rows[None, :] + height - 1)[:, None, :, None]  # (h, 1, h, 1)
    dx = (cols[:, None] - cols[None, :] + width - 1)[None, :, None, :]   # (1, w, 1, w)
    return (dy * (2 * width - 1) + dx).reshape(height * width, height * width)


def relative_position_index_with_class_token(window):
    """As `relative_position_index`, with a class token at position 0.

    Three rows follow those of the patches: [-3] class query to any key, [-2] any query to the class key, [-1] class to
    class. Returns: (1 + h*w, 1 + h*w) int64.
    Source: BEiT (arXiv 2106.08254); layout of the official SimMIM ViT.
    """
    rows = num_table_rows(window)
    num_tokens = window[0] * window[1]
    index = torch.zeros(num_tokens + 1, num_tokens + 1, dtype=torch.int64, device="cpu")
    index[1:, 1:] = relative_position_index(window)
    index[0, :] = rows
    index[:, 0] = rows + 1
    index[0, 0] = rows + 2
    return index


def num_table_rows(window):
    """Number of relative offsets within a window of (h, w) tokens."""
    return (2 * window[0] - 1) * (2 * window[1] - 1)


def source_window(num_rows, index=None, like=(1, 1)):
    """The window a bias table was made for.

    The position index stored beside it tells height and width. Without one, a table that can be square is; else the aspect
    ratio of `like`, the window it will be used for, decides.

    Args:
        num_rows: rows of the table without extra rows.
        index: (n, n) relative position index stored beside the table, without class token, or None.
        like: (h, w).
    Returns: (h, w), or None where no window gives this many rows.
    """
    odd = num_rows % 2 == 1  # (2h-1)(2w-1) always is
    fits = [((a + 1) // 2, (num_rows // a + 1) // 2) for a in range(1, num_rows + 1, 2) if odd and num_rows % a == 0]
    if index is not None:
        fits = [(h, w) for h, w in fits
                if h * w == index.shape[0] and torch.equal(relative_position_index((h, w)), index.cpu())]
    return _likeliest(fits, like)


def _likeliest(grids, like):
    """The square one, as released models have it, or the one whose aspect ratio is nearest to `like`; None without any."""
    return min(grids, key=lambda hw: (hw[0] != hw[1], abs(np.log(hw[0] / hw[1]) - np.log(like[0] / like[1]))), default=None)


def resize_bias_table(table, source, target, num_extra=0):
    """Resize a relative position bias table to another window by the official geometric interpolation.

    Offsets of the source are placed at 0, +-1, +-(1+q), +-(1+q+q^2), ... with q chosen so that they span the offsets of
    the target; a cubic spline is read at the whole numbers, clamped to the source's range. Small tables use the highest
    degree they allow (the official code fails on windows of 2).

    Args:
        table: ((2h-1)(2w-1) + num_extra, heads) float.
        source, target: (h, w) windows, in tokens.
        num_extra: rows at the end that are kept (3 for a ViT with class token).
    Returns: ((2H-1)(2W-1) + num_extra, heads), same dtype and device; no gradient flows through the resizing.
    Source: official SimMIM utils (remap_pretrained_keys_*).
    """
    if tuple(source) == tuple(target):
        return table.clone()
    rows = num_table_rows(source)
    if table.shape[0] != rows + num_extra:
        raise ValueError(f"a table of {table.shape[0]} rows is not one for a window of {source[0]}x{source[1]} "
                         f"({rows} + {num_extra} rows).")
    body, extra = table[:rows], table[rows:]
    grids = body.detach().cpu().double().numpy().reshape(2 * source[0] - 1, 2 * source[1] - 1, -1)
    heads = [_resize_grid(grids[..., head], source, target) for head in range(grids.shape[-1])]
    body = torch.from_numpy(np.stack([head.reshape(-1) for head in heads], axis=-1))
    return torch.cat([body.to(table), extra.detach()])


def _resize_grid(grid, source, target):
    positions = [_source_positions(s, t) for s, t in zip(source, target, strict=True)]
    wanted = [np.clip(np.arange(-(t - 1.0), t), p[0], p[-1]) for p, t in zip(positions, target, strict=True)]
    for axis, position in enumerate(positions):
        if len(position) == 1:  # one token along this axis has one offset: the same value everywhere
            grid = np.repeat(grid, 2, axis=axis)
            positions[axis] = np.array([0.0, 1.0])
    from scipy.interpolate import RectBivariateSpline  # slow to import, and only another window or grid needs it

    degrees = [min(3, len(position) - 1) for position in positions]
    spline = RectBivariateSpline(*positions, grid, kx=degrees[0], ky=degrees[1], s=0)
    return spline(*wanted)


def _source_positions(source, target):
    """Where the offsets of a window of `source` tokens lie on the axis of one of `target` tokens."""
    if source == target:  # only the other axis changes
        return np.arange(-(source - 1.0), source)
    low, high, ratio = 1.01, 1.5, 1.01  # limits of the official bisection
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (source - 1)) / (1 - ratio) > target - 1:
            high = ratio
        else:
            low = ratio
    half = np.cumsum([ratio ** i for i in range(source - 1)])
    return np.concatenate([-half[::-1], [0.0], half])


def interpolate_bias_table(table, source, target):
    """Resize a relative position bias table to another window by plain bicubic interpolation, corners not aligned.

    Args:
        table: ((2h-1)(2w-1), heads) float.
        source, target: (h, w) windows, in tokens.
    Returns: ((2H-1)(2W-1), heads), same dtype.
    Source: official MixMIM.
    """
    source, target = (tuple(2 * side - 1 for side in window) for window in (source, target))
    return resize_position_embedding(table.unsqueeze(0), source, target).squeeze(0)


def sincos_table(grid, dim, num_extra=0):
    """Fixed absolute position embedding.

    A quarter of the channels each: sine and cosine of the column, then of the row, at frequencies 10000^(-i / (dim / 4)).

    Args:
        grid: (h, w) patches.
        dim: channels, a multiple of 4.
        num_extra: leading rows of zeros (class token).
    Returns: (1, num_extra + h*w, dim) float32, on the CPU, computed in float64.
    Source: MAE (arXiv 2111.06377), official code; the axes are in the order of its tables.
    """
    rows, cols = (torch.arange(side, dtype=torch.float64, device="cpu") for side in grid)
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim // 4))
    col_angles = (cols[:, None] * frequencies).expand(grid[0], -1, -1)           # (h, w, dim / 4)
    row_angles = (rows[:, None] * frequencies)[:, None].expand(-1, grid[1], -1)
    table = torch.cat([col_angles.sin(), col_angles.cos(), row_angles.sin(), row_angles.cos()], dim=-1).flatten(0, 1)
    return F.pad(table, (0, 0, num_extra, 0)).float().unsqueeze(0)


def resize_position_embedding(embedding, source, target, num_extra=0):
    """Resize an absolute position embedding to another patch grid (bicubic, corners not aligned).

    Args:
        embedding: (1, num_extra + h*w, C).
        source, target: (h, w) grids.
        num_extra: leading rows that are kept (class token).
    Returns: (1, num_extra + H*W, C).
    """
    if tuple(source) == tuple(target):
        return embedding
    extra, grid = embedding[:, :num_extra], embedding[:, num_extra:]
    grid = grid.reshape(1, *source, -1).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=tuple(target), mode="bicubic", align_corners=False)
    return torch.cat([extra, grid.flatten(2).transpose(1, 2).to(embedding.dtype)], dim=1)


def source_grid(num_tokens, like=(1, 1), index=None):
    """The patch grid of an embedding of `num_tokens` rows; arguments and choice as in `source_window`."""
    fits = [(h, num_tokens // h) for h in range(1, num_tokens + 1) if num_tokens % h == 0]
    if index is not None and index.shape[0] == num_tokens:
        fits = [grid for grid in fits if torch.equal(relative_position_index(grid), index.cpu())] or fits
    return _likeliest(fits, like)
