"""Kinds of masks (DATA.MASK_TYPE): which units of an image are hidden."""
import math

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.files import expanded

SMALLEST_BLOCK = 64 ** 2          # pixels of a rectangle of `block`: 16 of BEiT's patches
BLOCK_SHAPES = (0.3, 1 / 0.3)     # of its height to its width
BLOCK_TRIALS = 10


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


class UnitMasks:
    """Base of those that hide square units of an image, each as a whole.

    Args:
        input_size: image side in pixels, or (height, width).
        mask_patch_size: side of a unit in pixels; divides the image.
        model_patch_size: side of the encoder's patch in pixels; divides the unit.
        mask_ratio: share of hidden units, 0 to 1.
        rounding: how it becomes a number of units, see num_hidden.
        ratio_range: every mask's ratio is drawn from mask_ratio to mask_ratio + ratio_range (MixMIM's official code).
    Raises: ValueError where sizes do not divide.
    """

    def __init__(self, input_size=192, mask_patch_size=32, model_patch_size=4, mask_ratio=0.6,
                 rounding="up", ratio_range=0.0):
        height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
        if height % mask_patch_size or width % mask_patch_size or mask_patch_size % model_patch_size:
            raise ValueError(f"a mask needs whole units: mask_patch_size={mask_patch_size} must divide the image "
                             f"{height}x{width} and be a multiple of model_patch_size={model_patch_size}.")
        self.units = (height // mask_patch_size, width // mask_patch_size)
        self.unit = mask_patch_size
        self.scale = mask_patch_size // model_patch_size
        self.count = HiddenCount(self.units[0] * self.units[1], mask_ratio, rounding, ratio_range)

    def __call__(self, rng=None):
        """Draw a mask.

        Args:
            rng: numpy RandomState; None = numpy's global legacy generator.
        Returns: (rows, cols) int64 on the encoder's patch grid, 1 = hidden.
        """
        mask = self.draw(rng or np.random).astype(np.int64)
        return mask.reshape(self.units).repeat(self.scale, axis=0).repeat(self.scale, axis=1)

    def draw(self, rng):
        """The units of a mask: 0 and 1, or booleans, (rows, cols) of `self.units` or as many in a row."""
        raise NotImplementedError(f"{type(self).__name__} must define draw")


class MaskGenerator(UnitMasks):
    """Hide random units.

    Source: SimMIM (arXiv 2111.09886), section 3.2; draws equal those of the official MaskGenerator.
    """

    def draw(self, rng):
        permutation = rng.permutation(self.count.num_units)
        mask = np.zeros(self.count.num_units, dtype=np.int64)
        mask[permutation[:self.count.draw(rng)]] = 1
        return mask


class SquareMaskGenerator(UnitMasks):
    """Hide one square at a random place.

    Its last row is cut where the number of units is no square, and it is as wide as it must where the image is not high
    enough.
    Source: SimMIM (arXiv 2111.09886), section 3.2, after Context Encoders (arXiv 1604.07379).
    """

    def draw(self, rng):
        number, mask = self.count.draw(rng), np.zeros(self.units, dtype=bool)
        if number:
            height = min(math.ceil(math.sqrt(number)), self.units[0])
            width = min(math.ceil(number / height), self.units[1])
            height = math.ceil(number / width)
            row, col = rng.randint(self.units[0] - height + 1), rng.randint(self.units[1] - width + 1)
            square = np.arange(height * width).reshape(height, width) < number
            mask[row:row + height, col:col + width] = square
        return mask


class BlockMaskGenerator(UnitMasks):
    """Hide rectangles of random area and shape until there are as many hidden units as the ratio asks for.

    A rectangle hides at least an area of SMALLEST_BLOCK, at most what is left to hide; one that would hide more in truth, or
    nothing new, is drawn again. Where none of some fits, the next one, around a visible unit, is cut: masks of a ratio hide
    equally many.
    Source: BEiT (arXiv 2106.08254), section 2.3, in the range of shapes of its code.
    """

    def draw(self, rng):
        number, mask = self.count.draw(rng), np.zeros(self.units, dtype=bool)
        while (left := number - int(mask.sum())) > 0:
            for _ in range(BLOCK_TRIALS):
                rows, cols = self._rectangle(rng, left)
                row, col = (rng.randint(side - length + 1) for side, length in zip(self.units, (rows, cols), strict=True))
                part = mask[row:row + rows, col:col + cols]
                if 0 < part.size - part.sum() <= left:
                    part[:] = True
                    break
            else:
                self._cut(rng, mask, left)
        return mask

    def _rectangle(self, rng, left):
        """Rows and columns, within the image."""
        smallest = min(max(SMALLEST_BLOCK // self.unit ** 2, 1), left)
        area = rng.uniform(smallest, left)
        shape = math.exp(rng.uniform(math.log(BLOCK_SHAPES[0]), math.log(BLOCK_SHAPES[1])))
        sides = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        return tuple(min(max(length, 1), side) for length, side in zip(sides, self.units, strict=True))

    def _cut(self, rng, mask, left):
        """Hide as many of the visible units of a rectangle as are left."""
        visible = np.argwhere(~mask)
        row, col = visible[rng.randint(len(visible))]
        rows, cols = self._rectangle(rng, left)
        part = mask[max(row - rows // 2, 0):row + (rows + 1) // 2, max(col - cols // 2, 0):col + (cols + 1) // 2]
        part[tuple(np.argwhere(~part)[:left].T)] = True


class FixedMask(UnitMasks):
    """The mask of a file, for every image.

    Args:
        path: of a picture (white, or anything but black, is hidden) or a NumPy array (.npy; True or not 0 is hidden), of
            pixels, patches or units.
        others: as UnitMasks; the ratio is that of the file.
    Raises: ValueError on a file that is no mask of this size, or hides units in part; OSError where there is none.
    """

    def __init__(self, input_size, mask_patch_size, model_patch_size, mask_ratio=0.6, rounding="up", ratio_range=0.0,
                 path=""):
        super().__init__(input_size, mask_patch_size, model_patch_size)
        hidden = read_mask(path)
        sizes = {"pixels": tuple(side * mask_patch_size for side in self.units),
                 "patches": tuple(side * self.scale for side in self.units), "units": self.units}
        if hidden.shape not in sizes.values():
            fitting = ", ".join(f"{size[0]}x{size[1]} {name}" for name, size in sizes.items())
            raise ValueError(f"the mask in {path} is of {'x'.join(map(str, hidden.shape))} cells; expected {fitting}.")
        rows, cols = (side // number for side, number in zip(hidden.shape, self.units, strict=True))
        share = hidden.reshape(self.units[0], rows, self.units[1], cols).mean(axis=(1, 3))
        cut = np.argwhere((share > 0) & (share < 1))
        if len(cut):
            raise ValueError(f"the mask in {path} hides {len(cut)} of its {share.size} units of {mask_patch_size} pixels in "
                             f"part (the first in row {cut[0][0]}, column {cut[0][1]}, counted from 0). Use a "
                             f"DATA.MASK_PATCH_SIZE that its edges lie on, or {model_patch_size}, the encoder's patch.")
        self.hidden = share == 1
        number = int(self.hidden.sum())
        if number in (0, share.size):
            raise ValueError(f"the mask in {path} hides {'all' if number else 'none'} of its {share.size} units: there is "
                             f"nothing {'to see' if number else 'to learn'}.")
        self.count = HiddenCount(share.size, (number - 0.5) / share.size, "up", 0.0)

    def draw(self, rng):
        return self.hidden


def read_mask(path):
    """The cells that a file hides, (H, W) bool, see FixedMask."""
    if not path:
        raise ValueError("DATA.MASK_TYPE file needs DATA.MASK_FILE: a picture, white where it hides, or a NumPy array (.npy).")
    path = expanded(path)
    if str(path).endswith(".npy"):
        try:
            values = np.load(path)
        except ValueError as error:
            raise ValueError(f"{path} is no array of numbers as numpy.save writes it ({error}).") from error
    else:
        try:
            with Image.open(path) as picture:
                values = np.asarray(picture.convert("L"))
        except UnidentifiedImageError as error:
            raise ValueError(f"{path} is no picture: DATA.MASK_FILE is a picture, white where it hides, or a NumPy array "
                             f"(.npy).") from error
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise ValueError(f"{path} holds {values.dtype} of shape {values.shape}: a mask has two axes, rows and columns, of "
                         f"numbers or booleans.")
    return values != 0


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
