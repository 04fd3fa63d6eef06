"""Which patches of an image are hidden."""
import numpy as np


def num_hidden(num_units, ratio, rounding):
    """How many of `num_units` a ratio hides; in floating point, as the official codes do.

    Args:
        rounding: `up` (SimMIM; 0.55 of 100 is 56), `down`, or `visible_down`: what stays visible is rounded down (MAE).
    """
    if rounding == "visible_down":
        return num_units - int(num_units * (1 - ratio))
    return int(np.ceil(num_units * ratio)) if rounding == "up" else int(num_units * ratio)


class MaskGenerator:
    """Hide random square units of an image.

    Args:
        input_size: image side in pixels, or (height, width).
        mask_patch_size: side of a unit in pixels; divides the image.
        model_patch_size: side of the encoder's patch in pixels; divides the unit.
        mask_ratio: share of hidden units, 0 to 1.
        rounding: how it becomes a number of units, see num_hidden.
    Raises: ValueError where sizes do not divide.
    Source: SimMIM (arXiv 2111.09886), section 3.2; draws equal those of the official MaskGenerator.
    """

    def __init__(self, input_size=192, mask_patch_size=32, model_patch_size=4, mask_ratio=0.6,
                 rounding="up"):
        height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
        if height % mask_patch_size or width % mask_patch_size or mask_patch_size % model_patch_size:
            raise ValueError(f"a mask needs whole units: mask_patch_size={mask_patch_size} must divide the image "
                             f"{height}x{width} and be a multiple of model_patch_size={model_patch_size}.")
        if not 0 <= mask_ratio <= 1:
            raise ValueError(f"mask_ratio={mask_ratio} must lie between 0 and 1.")
        self.units = (height // mask_patch_size, width // mask_patch_size)
        self.scale = mask_patch_size // model_patch_size
        num_units = self.units[0] * self.units[1]
        self.num_hidden = num_hidden(num_units, mask_ratio, rounding)

    def __call__(self, rng=None):
        """Draw a mask.

        Args:
            rng: numpy RandomState; None = numpy's global legacy generator.
        Returns: (rows, cols) int64 on the encoder's patch grid, 1 = hidden.
        """
        permutation = (rng or np.random).permutation(self.units[0] * self.units[1])
        mask = np.zeros(self.units[0] * self.units[1], dtype=np.int64)
        mask[permutation[:self.num_hidden]] = 1
        return mask.reshape(self.units).repeat(self.scale, axis=0).repeat(self.scale, axis=1)


MASKS = {"random": MaskGenerator}
