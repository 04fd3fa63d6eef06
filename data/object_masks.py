"""Masks that hide an object of an image, marked by a box or a picture."""
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision import transforms

from config import encoder_config
from data.inputs import picture_of
from data.mask_generators import read_mask
from data.transforms import heldout_shape, mode_of, rules_of
from utils.seeding import MASK, rng_for


def object_mask(config, path, given, part, seed):
    """Hide the units that an object lies on.

    Args:
        path: of the image.
        given: box or file, see --object.
        part: share of these units, drawn at random; at least one, and with less than 1 not all where there are several.
    Returns: (1, h, w) bool on the encoder's patch grid.
    Raises: ValueError if the object is not of the image's size, or the whole picture or nothing of it is hidden.
    """
    if config.MODEL.METHOD == "mixmim":
        raise ValueError("--object needs a method that sees one image at a time, and MixMIM mixes two: use random masks.")
    unit, patch = config.DATA.MASK_PATCH_SIZE, encoder_config(config).PATCH_SIZE
    picture = picture_of(path, mode_of(config), rules=rules_of(config))  # of many channels (C, H, W)
    size = picture.size if isinstance(picture, Image.Image) else tuple(picture.shape[:0:-1])
    shaped = np.asarray(transforms.Compose(heldout_shape(config))(object_of(given, size))) > 127  # as the image is, (H, W)
    rows, cols = (side // unit for side in shaped.shape)
    if shaped.shape != (rows * unit, cols * unit) or unit % patch:
        raise ValueError(f"--units {unit}: units must divide the image, {shaped.shape[0]}x{shaped.shape[1]} pixels, and be "
                         f"whole patches of {patch} pixels.")
    touched = np.flatnonzero(shaped.reshape(rows, unit, cols, unit).any(axis=(1, 3)))
    number = round(part * len(touched))
    if part < 1 and len(touched) > 1:
        number = min(max(number, 1), len(touched) - 1)
    units = np.zeros(rows * cols, dtype=bool)
    units[rng_for(seed, MASK).permutation(touched)[:number]] = True
    if number in (0, rows * cols):
        raise ValueError(f"--object {given} lies on {'all' if number else 'none'} of the {rows * cols} units of {unit} pixels "
                         f"that the model sees: there is nothing {'to see' if number else 'to hide'}. Use a smaller object, or "
                         f"--units.")
    mask = units.reshape(rows, cols).repeat(unit // patch, axis=0).repeat(unit // patch, axis=1)
    return torch.from_numpy(mask).unsqueeze(0)


def object_of(given, size):
    """--object as a PIL picture of (width, height) pixels, white where the object is."""
    parts = given.split(",")
    if len(parts) == 4 and not Path(given).exists():
        try:
            left, top, right, bottom = (int(part) for part in parts)
        except ValueError as error:
            raise ValueError(f"--object {given}: a box is four whole numbers, LEFT,TOP,RIGHT,BOTTOM in pixels.") from error
        if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
            raise ValueError(f"--object {given} is no box within the image of {size[0]} x {size[1]} pixels: LEFT,TOP,RIGHT,"
                             f"BOTTOM with LEFT < RIGHT and TOP < BOTTOM.")
        picture = Image.new("L", size)
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), fill=255)
        return picture
    hidden = read_mask(given)
    if hidden.shape[::-1] != tuple(size):
        raise ValueError(f"the mask in {given} is of {hidden.shape[1]} x {hidden.shape[0]} pixels, the image of {size[0]} x "
                         f"{size[1]}: an object is marked on the image as it is in its file.")
    return Image.fromarray(np.where(hidden, 255, 0).astype(np.uint8))
