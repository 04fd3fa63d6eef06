"""Images of any number of channels: arrays in .npy files, and pictures whose pages are channels.

A mode is that of PIL where it has one for the channels of the encoder, or else their number; then images are tensors (C, H, W)
of floats from 0 (black) to 1 (white), which the transforms take as well.
"""
import numpy as np
import torch
from PIL import Image, ImageOps

from data.pixels import DEFAULT, PIL_MODES, check_size, deep_shares, in_mode, is_deep, say_if_dark, shares_of_white

MAGIC = b"\x93NUMPY"  # how .npy files begin
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
WHITES = {"uint8": 255, "uint16": 65535, "bool": 1}  # of arrays; of floats 1, of other whole numbers DATA.WHITE alone


def blank(mode, side=64):
    """A black image."""
    return torch.zeros(mode, side, side) if isinstance(mode, int) else Image.new(mode, (side, side))


def read_array(file, mode=None, rules=DEFAULT, name="the array"):
    """A .npy file as an image. Its header is checked before anything is read; pickled objects are refused.

    Returns: (the image, (dtype and channels, width, height)).
    Raises: ValueError that says what is wrong.
    """
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"it is a .npy file of version {version[0]}.{version[1]}, which arrays of numbers do not need")
    shape, _, kind = HEADERS[version](file)
    check_array(shape, kind, mode)
    check_size(shape[1], shape[0], rules.max_pixels)
    file.seek(0)
    values = np.lib.format.read_array(file)  # refuses pickles
    stored_as = (f"{kind.name} x {shape[2] if len(shape) == 3 else 1}", shape[1], shape[0])
    return array_image(values, mode or stored_mode(shape), rules, name), stored_as


def stored_mode(shape):
    """The mode that an array has by its own shape."""
    own = shape[2] if len(shape) == 3 else 1
    return PIL_MODES.get(own, own)


def check_array(shape, kind, mode=None):
    """Refuse what is no image of a mode (None: of any). Raises ValueError."""
    wanted = channels_of(mode)
    if len(shape) not in (2, 3) or not all(shape):
        raise ValueError(f"its array has shape {tuple(shape)}, expected (H, W) or (H, W, {wanted or 'C'})")
    channels = shape[2] if len(shape) == 3 else 1
    if wanted not in (None, channels):
        first = ", with channels last: array.transpose(1, 2, 0)" if len(shape) == 3 and shape[0] == wanted else ""
        raise ValueError(f"its array has shape {tuple(shape)}, so {channels} channels, and IN_CHANS is {wanted}: expected "
                         f"(H, W, {wanted}){first}")
    if kind.kind not in "buif":
        raise ValueError(f"its array is of {kind}, expected whole numbers or floats")


def channels_of(mode):
    """Number of channels of a mode; None of None."""
    return next((channels for channels, known in PIL_MODES.items() if known == mode), mode)


def array_image(values, mode, rules=DEFAULT, name="the array"):
    """An array (H, W) or (H, W, C) as an image of a mode: uint8, uint16, floats where 1 is white, or as DATA.WHITE says.

    Transparency of an array of four channels is laid on the background where the mode has none.
    Raises: ValueError on another shape, or where the white is not known.
    """
    check_array(values.shape, values.dtype, mode)
    kind = values.dtype
    white = WHITES.get(kind.name, 1 if kind.kind == "f" else 0)
    if kind.name not in ("uint8", "bool"):
        white = rules.white or white
    if not white:
        raise ValueError(f"its array is of {kind.name}, so it is not known which value is white: set DATA.WHITE")
    if white == 65535 and not rules.white:
        say_if_dark(values.max(initial=0), name)
    shares = shares_of_white(values, white, rules.white or kind.kind != "f", name)
    return _image(shares if shares.ndim == 3 else shares[..., None], mode)


def picture_image(picture, mode, rules=DEFAULT, name="a picture"):
    """A PIL image as an image of a mode.

    Where the mode has more channels than a picture has, they are the pages of a TIFF, one after another: of those that PIL has
    a mode for, four grey pages are four channels.
    Raises: ValueError where the numbers differ, or the white is not known.
    """
    pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
    if isinstance(mode, int) or mode == "RGBA" and pages == 4 and len(picture.getbands()) == 1:
        return _image(_stacked(picture, pages, channels_of(mode), rules, name), mode)
    return in_mode(picture, mode, rules, name)


def _stacked(picture, pages, wanted, rules, name):
    """Channels of all pages, (H, W, C) float in [0, 1]."""
    found, bands = [], len(picture.getbands())
    if pages * bands == wanted:
        for page in range(pages):
            if pages > 1:
                picture.seek(page)
            check_size(*picture.size, rules.max_pixels)
            found.append(_shares(picture, rules, name))
    if len({values.shape[:2] for values in found}) > 1:
        raise ValueError(f"its {pages} pages differ in size, so they are no channels of one image")
    channels = sum(values.shape[2] for values in found)
    if channels != wanted:
        raise ValueError(f"it has {pages} page{'s' if pages > 1 else ''} of {bands} channel{'s' if bands > 1 else ''} (mode "
                         f"{picture.mode}), and IN_CHANS is {wanted}: expected a TIFF of {wanted} grey pages, or .npy of shape "
                         f"(H, W, {wanted})")
    return np.concatenate(found, axis=2)


def _shares(picture, rules, name):
    """One page, (H, W, C) float in [0, 1]."""
    if is_deep(picture):
        return deep_shares(picture, rules, name)[1][..., None]
    if rules.upright:
        picture = ImageOps.exif_transpose(picture)
    values = np.asarray(picture.convert("L") if picture.mode == "1" else picture, dtype=np.float32) / 255
    return values if values.ndim == 3 else values[..., None]


def _image(shares, mode):
    """(H, W, C) float in [0, 1] as an image."""
    if isinstance(mode, int):
        return torch.from_numpy(np.ascontiguousarray(shares.transpose(2, 0, 1)))
    pixels = (shares * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
