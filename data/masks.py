"""Which patches of an image are hidden."""
import numpy as np
import torch

from config import check_pretraining, encoder_config, image_size
from utils.registry import pick


def num_hidden(num_units, ratio, rounding):
    """How many of `num_units` a ratio hides; in floating point, as the official codes do.

    Args:
        rounding: `up` (SimMIM; 0.55 of 100 is 56), `down`, or `visible_down`: what stays visible is rounded down (MAE).
    """
    if rounding == "visible_down":
        return num_units - int(num_units * (1 - ratio))
    return int(np.ceil(num_units * ratio)) if rounding == "up" else int(num_units * ratio)


class HiddenCount:
    """How many units each mask hides: always as many, or a number from a range of ratios.

    Args:
        num_units: of an image.
        ratio, ratio_range: the ratio of a mask lies between `ratio` and `ratio + ratio_range`.
        rounding: see num_hidden.
    """

    def __init__(self, num_units, ratio, rounding, ratio_range):
        if not 0 <= ratio <= ratio + ratio_range <= 1:
            raise ValueError(f"mask_ratio={ratio} and, with ratio_range, {ratio + ratio_range} must lie between 0 and 1.")
        self.num_units, self.rounding = num_units, rounding
        self.ratios = (ratio, ratio + ratio_range)

    def draw(self, rng):
        """The number for one mask; where ratios do not differ, nothing is drawn."""
        low, high = self.ratios
        return num_hidden(self.num_units, low if low == high else rng.uniform(low, high), self.rounding)


class MaskGenerator:
    """Hide random square units of an image.

    Args:
        input_size: image side in pixels, or (height, width).
        mask_patch_size: side of a unit in pixels; divides the image.
        model_patch_size: side of the encoder's patch in pixels; divides the unit.
        mask_ratio: share of hidden units, 0 to 1.
        rounding: how it becomes a number of units, see num_hidden.
        ratio_range: every mask's ratio is drawn from mask_ratio to mask_ratio + ratio_range (MixMIM's official code).
    Raises: ValueError where sizes do not divide.
    Source: SimMIM (arXiv 2111.09886), section 3.2; draws equal those of the official MaskGenerator.
    """

    def __init__(self, input_size=192, mask_patch_size=32, model_patch_size=4, mask_ratio=0.6,
                 rounding="up", ratio_range=0.0):
        height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
        if height % mask_patch_size or width % mask_patch_size or mask_patch_size % model_patch_size:
            raise ValueError(f"a mask needs whole units: mask_patch_size={mask_patch_size} must divide the image "
                             f"{height}x{width} and be a multiple of model_patch_size={model_patch_size}.")
        self.units = (height // mask_patch_size, width // mask_patch_size)
        self.scale = mask_patch_size // model_patch_size
        self.count = HiddenCount(self.units[0] * self.units[1], mask_ratio, rounding, ratio_range)

    def __call__(self, rng=None):
        """Draw a mask.

        Args:
            rng: numpy RandomState; None = numpy's global legacy generator.
        Returns: (rows, cols) int64 on the encoder's patch grid, 1 = hidden.
        """
        rng = rng or np.random
        permutation = rng.permutation(self.count.num_units)
        mask = np.zeros(self.count.num_units, dtype=np.int64)
        mask[permutation[:self.count.draw(rng)]] = 1
        return mask.reshape(self.units).repeat(self.scale, axis=0).repeat(self.scale, axis=1)


class BlockwiseMaskGenerator:
    """Hide random square blocks of patches, a block in part where the number of hidden patches asks for it.

    Unlike units, blocks need not divide the image: those at the lower and right border may lie partly outside.

    Args:
        input_size: image side in pixels, or (height, width); whole patches.
        mask_patch_size: side of a block in pixels.
        model_patch_size: side of the encoder's patch in pixels; divides the block.
        mask_ratio: share of hidden patches, 0 to 1.
        rounding: how it becomes a number of patches, see num_hidden.
        ratio_range: as MaskGenerator.
    Raises: ValueError where patches do not divide image or block.
    Source: LSMAE (arXiv 2210.07224), section 3; the order within a block is that of the official code.
    """

    def __init__(self, input_size=448, mask_patch_size=32, model_patch_size=16, mask_ratio=0.75, rounding="visible_down",
                 ratio_range=0.0):
        height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
        if height % model_patch_size or width % model_patch_size or mask_patch_size % model_patch_size:
            raise ValueError(f"a mask needs whole patches: model_patch_size={model_patch_size} must divide the image "
                             f"{height}x{width} and mask_patch_size={mask_patch_size}.")
        self.grid = (height // model_patch_size, width // model_patch_size)
        side = mask_patch_size // model_patch_size
        rows, cols = np.divmod(np.arange(self.grid[0] * self.grid[1]), self.grid[1])
        blocks = tuple(-(-cells // side) for cells in self.grid)
        self.num_blocks = blocks[0] * blocks[1]
        self.block = rows // side * blocks[1] + cols // side      # of each patch
        self.rank = cols % side * side + rows % side              # within its block, column by column
        self.count = HiddenCount(len(rows), mask_ratio, rounding, ratio_range)

    def order(self, permutation):
        """All patches in the order of their blocks: (num_blocks,) block numbers -> (rows * cols,) row-major positions."""
        return np.lexsort((self.rank, np.argsort(permutation)[self.block]))

    def __call__(self, rng=None):
        """Draw a mask: as MaskGenerator; what comes first in `order` stays visible."""
        rng = rng or np.random
        order = self.order(rng.permutation(self.num_blocks))
        mask = np.zeros(len(order), dtype=np.int64)
        mask[order[len(order) - self.count.draw(rng):]] = 1
        return mask.reshape(self.grid)


# DATA.MASK_TYPE; models/inputs.py refuses early the sizes that some of them can't take
MASKS = {"blockwise": BlockwiseMaskGenerator, "random": MaskGenerator}


def build_mask_generator(config):
    """The mask generator named by DATA.MASK_TYPE, on the encoder's patch grid.

    Raises: ValueError on masks that do not fit image, encoder and method, or that hide nothing, which leaves nothing to learn,
        or everything, which leaves nothing to see.
    """
    mask, data = pick(MASKS, config.DATA.MASK_TYPE, "DATA.MASK_TYPE"), config.DATA
    check_pretraining(config)
    ratio_range = config.MODEL.MIXMIM.RANGE_MASK_RATIO if config.MODEL.METHOD == "mixmim" else 0.0
    generator = mask(image_size(config), data.MASK_PATCH_SIZE, encoder_config(config).PATCH_SIZE, data.MASK_RATIO,
                     data.MASK_ROUND, ratio_range)
    units, (low, high) = generator.count.num_units, generator.count.ratios
    place = f"an image (DATA.IMG_SIZE={data.IMG_SIZE}, DATA.MASK_PATCH_SIZE={data.MASK_PATCH_SIZE}"
    if units == 1:
        raise ValueError(f"DATA.MASK_PATCH_SIZE={data.MASK_PATCH_SIZE} makes one unit of {place}): it is hidden or visible "
                         f"as a whole. Use smaller units, or larger images.")
    for ratio, extreme, what in ((low, 0, "hides none"), (high, units, "hides all")):
        if num_hidden(units, ratio, data.MASK_ROUND) == extreme:
            above = f" plus MODEL.MIXMIM.RANGE_MASK_RATIO={ratio_range:g}" if ratio_range and what == "hides all" else ""
            raise ValueError(f"DATA.MASK_RATIO={data.MASK_RATIO:g}{above} {what} of the {units} units of {place}, "
                             f"DATA.MASK_ROUND={data.MASK_ROUND}): use a ratio that hides from 1 to {units - 1}, such as "
                             f"{_ratio_in_between(units, data.MASK_ROUND):g}, or smaller units.")
    return generator


def _ratio_in_between(units, rounding):
    """A short ratio, near SimMIM's 0.6, that hides some of `units` (2 or more) but not all."""
    return next(ratio for ratio in (0.6, 0.75, 0.5, 0.4) if 0 < num_hidden(units, ratio, rounding) < units)


def draw_masks(config, number, rng):
    """Masks of a batch of `number` images, (number, rows, cols) bool, from a numpy RandomState."""
    return torch.from_numpy(draw_mask_array(config, number, rng))


def draw_mask_array(config, number, rng):
    """As draw_masks, an array."""
    generator = build_mask_generator(config)
    different = 1 if config.DATA.MASK_SHARED else min(config.DATA.MASK_GROUPS or number, number)
    masks = [generator(rng) for _ in range(different)]
    return np.stack([masks[i % different] for i in range(number)]).astype(bool)
