"""Window attention over visible tokens alone: which of them stand together in a group.

Of a window some tokens are hidden, so windows are of many sizes. Their visible tokens are packed into groups of one size,
several windows in a group, where tokens of different windows do not see each other. All is computed on the CPU from the mask,
once for each stage and shift, in the processes of the loader where there is one; blocks share what comes of it.

Source: the idea of GreenMIM (arXiv 2205.13515), sections 3.2 and 3.3; there too groups come from a dynamic programme.
"""
from typing import NamedTuple

import numpy as np
import torch

BLOCKED = -3e4     # score of a pair that must not count: its exponential is exactly 0, also in float16
SLOT_COST = 16     # of moving a token into its slot and back, in pairs of tokens (one query, one key, all heads)
ORDER, PLACE, SEGMENT = range(3)  # rows of a table, see Packer.table


class Groups(NamedTuple):
    """What an encoder of windows needs beside the visible tokens of a batch; image i has mask i % K.

    Attributes:
        ids: (K, V) int64, visible cells of each of the K masks, rising.
        tables: for each stage one int32 tensor (3, groups, size) for its windows, and another for the shifted ones, where
            they differ; see Packer.table.
    """
    ids: torch.Tensor
    tables: tuple


class Packing(NamedTuple):
    """A table on the device of the model, ready for the blocks that share it.

    Attributes:
        order: (slots,) token in each slot, some token where it is empty.
        inverse: (K * n,) slot of each token.
        pairs: (groups, size, size) int32, row of a block's position bias table for each (query, key); the two rows after its
            last stand for a pair that must not count, and for one of two empty slots.
    """
    order: torch.Tensor
    inverse: torch.Tensor
    pairs: torch.Tensor

    @classmethod
    def of(cls, table, num_tokens, window):
        """From a table (3, groups, size) of `num_tokens` tokens of K masks, for blocks of a window (h, w)."""
        slots = table[ORDER].flatten().long()
        inverse = torch.empty(num_tokens + 1, dtype=torch.int64, device=slots.device)
        inverse = inverse.scatter(0, slots, torch.arange(len(slots), device=slots.device))[:num_tokens]
        place, segment = table[PLACE], table[SEGMENT]
        width = 2 * window[1] - 1
        num_rows = (2 * window[0] - 1) * width
        pairs = place.unsqueeze(2) - place.unsqueeze(1) + (num_rows // 2)  # query - key; an offset of 0 is the middle row
        pairs = torch.where(segment.unsqueeze(2) == segment.unsqueeze(1), pairs, num_rows)
        empty = segment < 0
        pairs = torch.where(empty.unsqueeze(2) & empty.unsqueeze(1), num_rows + 1, pairs)
        return cls(slots.clamp(max=num_tokens - 1), inverse, pairs.to(torch.int32))

    def pack(self, qkv):
        """(3, B/K, heads, K * n, d) -> (3, B/K, heads * groups, 1, size, d): as windows with one head each."""
        qkv = Reorder.apply(qkv, 3, self.order, self.inverse)
        return qkv.unflatten(3, self.pairs.shape[:2]).flatten(2, 3).unsqueeze(3)

    def unpack(self, x):
        """(B/K, heads * groups, size, d) -> (B/K, K * n, heads * d)."""
        groups, size = self.pairs.shape[:2]
        x = x.unflatten(1, (-1, groups)).flatten(2, 3).transpose(1, 2)  # (B/K, slots, heads, d)
        return Reorder.apply(x, 1, self.inverse, self.order).flatten(2)

    def bias(self, table):
        """What is added to the scores: table (offsets, heads) -> (heads * groups, 1, size, size)."""
        outside = table.new_tensor([BLOCKED, 0.0]).unsqueeze(1).expand(-1, table.shape[1])
        bias = BiasLookup.apply(torch.cat([table, outside]).t(), self.pairs.flatten())
        return bias.view(-1, 1, *self.pairs.shape[1:])


class Reorder(torch.autograd.Function):
    """x.index_select(dim, index), whose gradient is one as well.

    No element is in two places but in empty slots. What those get does not count, nor does what is made of them: they see
    each other only.

    Args:
        inverse: the place of every element of x.
    """

    @staticmethod
    def forward(ctx, x, dim, index, inverse):
        ctx.save_for_backward(inverse)
        ctx.dim = dim
        return x.index_select(dim, index)

    @staticmethod
    def backward(ctx, gradient):
        inverse, = ctx.saved_tensors
        return gradient.index_select(ctx.dim, inverse), None, None, None


class BiasLookup(torch.autograd.Function):
    """table.index_select(1, index) of a table (heads, rows), whose gradient is summed in float32 at least."""

    @staticmethod
    def forward(ctx, table, index):
        ctx.save_for_backward(index)
        ctx.num_rows = table.shape[1]
        return table.index_select(1, index)

    @staticmethod
    def backward(ctx, gradient):
        index, = ctx.saved_tensors
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        total = torch.zeros(len(gradient), ctx.num_rows, dtype=dtype, device=gradient.device)
        total = total.scatter_add(1, index.long().expand(len(gradient), -1), gradient.to(dtype))
        return total.to(gradient.dtype), None


class Packer:
    """From masks to Groups, for an encoder of windows on maps that halve from stage to stage.

    Args:
        windows: (h, w) tokens, for each stage.
        shifts: whether a stage has blocks of shifted windows, by half a window along the axes on which there is more than one.
    """

    def __init__(self, windows, shifts):
        self.windows, self.shifts = [tuple(window) for window in windows], tuple(shifts)
        self.cell = 2 ** (len(self.windows) - 1)  # tokens of the first stage that a cell of the last is wide

    def __call__(self, masks):
        """Groups of a batch, on the CPU.

        Args:
            masks: (B, h, w) bool or 0/1 integers on the patch grid, tensor or array; True = hidden, by whole cells.
        Raises: ValueError on masks of broken cells, or that hide different numbers of them.
        """
        masks = (masks.cpu().numpy() if isinstance(masks, torch.Tensor) else np.asarray(masks)).astype(bool)
        cells = masks[:, ::self.cell, ::self.cell]
        if not np.array_equal(cells.repeat(self.cell, axis=1).repeat(self.cell, axis=2), masks):
            raise ValueError(f"an encoder that drops tokens needs masks of whole cells, {self.cell}x{self.cell} patches of its "
                             f"first stage, of an image of whole cells.")
        cells = cells[:num_masks(cells)]
        visible = (~cells).reshape(len(cells), -1)
        counts = visible.sum(axis=1)
        if counts.min() != counts.max():
            raise ValueError(f"the masks of a batch must hide as many cells each, but between {counts.min()} and "
                             f"{counts.max()} are visible.")
        ids = np.nonzero(visible)[1].reshape(len(cells), -1)
        tables = []
        for stage, window in enumerate(self.windows):
            side = self.cell // 2 ** stage
            grid = tuple(cells * side for cells in cells.shape[1:])
            shift = tuple(w // 2 if tokens > w else 0 for tokens, w in zip(grid, window, strict=True))
            both = [(0, 0), shift] if self.shifts[stage] and any(shift) else [(0, 0)]
            tables.append(tuple(torch.from_numpy(self.table(ids, cells.shape[2], side, window, shift)) for shift in both))
        return Groups(torch.from_numpy(ids), tuple(tables))

    @staticmethod
    def table(ids, columns, side, window, shift):
        """Where every visible token of a stage goes.

        Args:
            ids: (K, V) visible cells of each mask.
            columns: cells in a row of the image.
            side: tokens of a cell.
            window: (h, w) tokens.
            shift: (y, x) tokens; windows begin that much further down and right, and before them are smaller ones.
        Returns: (3, groups, size) int32: number of the token (that of the first mask first, then cell by cell and row by row;
            K * n in an empty slot), its place in the window (y * (2w - 1) + x), and the number of its window, -1 in an empty
            slot.
        """
        within = np.arange(side)
        rows = (ids // columns * side)[..., None, None] + within[:, None]          # (K, V, side, 1)
        cols = (ids % columns * side)[..., None, None] + within                    # (K, V, 1, side)
        down, y = np.divmod(rows - shift[0], window[0])
        right, x = np.divmod(cols - shift[1], window[1])
        most = right.max() + 2  # -1 is there, too
        windows = (np.arange(len(ids))[:, None, None, None] * (down.max() + 2) + down + 1) * most + right + 1
        sizes = np.bincount(windows.ravel())
        number = np.cumsum(sizes > 0) - 1                                          # of those that are there
        windows, sizes = number[windows].ravel(), sizes[sizes > 0]
        size, start = pack(sizes)
        by_window = np.argsort(windows, kind="stable")
        rank = np.arange(len(windows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        slots = np.repeat(start, sizes) + rank
        groups = -(-int((start + sizes).max()) // size)
        table = np.empty((3, groups * size), dtype=np.int32)
        table[:] = np.array([[len(windows)], [0], [-1]])
        table[ORDER, slots] = by_window
        table[PLACE, slots] = (y * (2 * window[1] - 1) + x).ravel()[by_window]
        table[SEGMENT, slots] = windows[by_window]
        return table.reshape(3, groups, size)


def num_masks(masks):
    """The smallest K that divides the batch, with mask i equal to mask i % K in all of it: 1 where one is shared."""
    batch = len(masks)
    return next(k for k in range(1, batch + 1) if batch % k == 0 and
                (masks.reshape(batch // k, k, -1) == masks[:k].reshape(1, k, -1)).all())


def pack(sizes):
    """Put items into groups of one size, so that attention inside the groups costs little.

    Args:
        sizes: (n,) int, tokens of each item, at least 1; an item is not divided.
    Returns: (size of the groups, (n,) first slot of each item, counted through all groups).
    """
    counts = {int(size): int(count) for size, count in enumerate(np.bincount(sizes)) if count}
    total, best = int(sizes.sum()), None
    size = max(counts)
    while best is None or total * (size + SLOT_COST) < best[0]:  # without an empty slot it would still be cheaper
        patterns = fill(counts, size)
        cost = sum(times for _, times in patterns) * size * (size + SLOT_COST)
        if best is None or cost < best[0]:
            best = cost, size, patterns
        size += 1
    _, size, patterns = best
    items = {length: np.flatnonzero(sizes == length) for length in counts}
    start, first = np.empty(len(sizes), dtype=np.int64), 0
    for pattern, times in patterns:
        begins = (first + np.arange(times)) * size
        for length, number in pattern.items():
            chosen, items[length] = np.split(items[length], [number * times])
            start[chosen] = (begins[:, None] + np.arange(number) * length).ravel()
            begins = begins + number * length
        first += times
    return size, start


def fill(counts, size):
    """Groups for all items: each time the largest item that is left, and beside it what fills the group best.

    Args:
        counts: {length: number of items of it}.
        size: of a group, no less than the largest.
    Returns: [({length: number in a group}, number of such groups), ...].
    """
    left, patterns = dict(sorted(counts.items(), reverse=True)), []
    while left:
        largest = next(iter(left))
        left[largest] -= 1
        pattern = fullest(left, size - largest)
        pattern[largest] = pattern.get(largest, 0) + 1
        left[largest] += 1
        times = min(left[length] // number for length, number in pattern.items())
        patterns.append((pattern, times))
        for length, number in pattern.items():
            left[length] -= number * times
        left = {length: number for length, number in left.items() if number}
    return patterns


def fullest(counts, room):
    """The items that fill a room best, by dynamic programming over the lengths: {length: number}.

    Bit s of `reached` says whether some of the items seen so far fill s slots.
    """
    reached, before = 1, []
    for length, number in counts.items():
        before.append((length, reached))
        for _ in range(min(number, room // length)):
            reached |= reached << length
        reached &= (2 << room) - 1
    filled, chosen = reached.bit_length() - 1, {}
    for length, earlier in reversed(before):
        while not earlier >> filled & 1:
            filled -= length
            chosen[length] = chosen.get(length, 0) + 1
    return chosen
