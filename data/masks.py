"""Which patches of an image are hidden."""
import numpy as np
import torch

from config import check_pretraining, encoder_config, image_size
from data.mask_generators import (
    BlockMaskGenerator,
    BlockwiseMaskGenerator,
    FixedMask,
    MaskGenerator,
    SquareMaskGenerator,
    num_hidden,
)
from utils.registry import pick

# DATA.MASK_TYPE; models/inputs.py refuses early the sizes that some of them can't take
MASKS = {"block": BlockMaskGenerator, "blockwise": BlockwiseMaskGenerator, "file": FixedMask, "random": MaskGenerator,
         "square": SquareMaskGenerator}


def build_mask_generator(config):
    """The mask generator named by DATA.MASK_TYPE, on the encoder's patch grid.

    Raises: ValueError on masks that do not fit image, encoder and method, or that hide nothing, which leaves nothing to learn,
        or everything, which leaves nothing to see.
    """
    mask, data = pick(MASKS, config.DATA.MASK_TYPE, "DATA.MASK_TYPE"), config.DATA
    check_pretraining(config)
    ratio_range = config.MODEL.MIXMIM.RANGE_MASK_RATIO if config.MODEL.METHOD == "mixmim" else 0.0
    more = {"path": data.MASK_FILE} if data.MASK_TYPE == "file" else {}
    generator = mask(image_size(config), data.MASK_PATCH_SIZE, encoder_config(config).PATCH_SIZE, data.MASK_RATIO,
                     data.MASK_ROUND, ratio_range, **more)
    units, (low, high) = generator.count.num_units, generator.count.ratios
    place = f"an image (DATA.IMG_SIZE={data.IMG_SIZE}, DATA.MASK_PATCH_SIZE={data.MASK_PATCH_SIZE}"
    if units == 1:
        raise ValueError(f"DATA.MASK_PATCH_SIZE={data.MASK_PATCH_SIZE} makes one unit of {place}): it is hidden or visible "
                         f"as a whole. Use smaller units, or larger images.")
    for ratio, extreme, what in ((low, 0, "hides none"), (high, units, "hides all")):
        if num_hidden(units, ratio, generator.count.rounding) == extreme:
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
