"""From a PIL image of any mode to the one that is wanted, as the settings say: white, background, upright."""
import logging
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import get_worker_info

log = logging.getLogger("simmim.data")

MAX_PIXELS = 89478485  # PIL's own limit: 24-bit pictures of a quarter of a gigabyte
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # that images of so many channels are read in
WHITE_OF = {"PNG": 65535, "PPM": 65535}  # of 32-bit numbers: Pillow reads 16 bits of these formats so
UNSIGNED = ("I;32", "I;32N", "I;32B")  # which Pillow has in signed ones of 32 bits
PHOTOMETRIC, SAMPLE_FORMAT, SIGNED = 262, 339, 2  # of TIFF
EXTRA_SAMPLES = 338  # of TIFF: what channels beyond the colours are
NO_ALPHA = ("BMP", "DIB", "TGA", "DDS", "SGI")  # formats whose fourth channel is often left at 0 and meant as nothing
CODESTREAM, DEPTH_AT = b"\xff\x4f\xff\x51", 42  # of JPEG 2000: how one begins; where the bits of its first channel stand
_said = set()


@dataclass(frozen=True)
class Rules:
    """How files become pictures, the same in training, evaluation, probing and inference.

    Attributes:
        max_pixels: a picture with more is not decoded (DATA.MAX_PIXELS).
        background: (r, g, b) behind transparency (DATA.BACKGROUND).
        white: value that is white in pictures of 16 bits, 32 bits or floats; 0 = as the format says (DATA.WHITE).
        upright: whether to turn pictures as their EXIF says (DATA.EXIF).
        decoder: what reads views of JPEG files, see data/decoding.py (DATA.DECODER of training images).
    """
    max_pixels: int = MAX_PIXELS
    background: tuple = (255, 255, 255)
    white: float = 0.0
    upright: bool = False
    decoder: str = "pillow"


DEFAULT = Rules()


def say_once(text, *values):
    """A remark, once a process, and of loader processes only by the first."""
    worker = get_worker_info()
    if text not in _said and (worker is None or worker.id == 0):
        _said.add(text)
        log.warning(text, *values)


def in_mode(picture, mode, rules=DEFAULT, name="a picture"):
    """A PIL image in another mode, upright and without transparency as the rules say.

    Numbers of 16 bits, of 32 and floats are scaled, as converting alone would cut at 255: by a white that is that of the whole
    data set, not of one picture.

    Args:
        name: what remarks call it, which are made once.
    Raises: ValueError where the white is not known.
    """
    stored = _stored(picture)
    _scale_key(picture, stored)
    _check_colours(picture, stored, rules.white, name)
    hidden, unmeant = picture.info.get("transparency"), _is_unmeant_alpha(picture)
    if is_deep(picture):
        values, shares = deep_shares(picture, rules, name)
        picture = Image.fromarray((shares * 255).round().astype(np.uint8))
        if isinstance(hidden, int):
            picture.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
        hidden = None
    elif rules.upright:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode == "La":  # Pillow has no other way out of it
        picture = picture.convert("LA")
    if mode == "RGBA":
        return picture.convert(mode)
    if hidden is not None or picture.mode in ("RGBA", "LA", "PA", "RGBa"):
        picture = picture.convert("RGB") if unmeant else _on_background(picture, rules.background, name)
    if picture.mode == "LAB" and mode == "L":
        picture = picture.convert("RGB")
    return picture.convert(mode)


def is_deep(picture):
    """Whether a picture has one channel of more than 8 bits."""
    return picture.mode.startswith("I") or picture.mode == "F"


def deep_shares(picture, rules, name):
    """Pixels of a picture that is_deep, upright as the rules say.

    Returns: (H, W) as Pillow has them, and as floats from 0 (black) to 1 (white).
    Raises: ValueError where the white is not known.
    """
    stored = _stored(picture)
    white = _white_of(picture, stored, rules.white)
    may_be_dark = white == 65535 and not rules.white and _own_white(picture) in (None, 65535)
    inverted = picture.format == "TIFF" and picture.tag_v2.get(PHOTOMETRIC) == 0  # Pillow turns 8 bits alone
    values = np.asarray(ImageOps.exif_transpose(picture) if rules.upright else picture)  # a copy knows nothing of the file
    if stored in UNSIGNED:
        values = values.view(np.uint32)
    if may_be_dark:
        say_if_dark(values.max(initial=0), name)
    shares = shares_of_white(values, white, rules.white, name)
    return values, 1 - shares if inverted else shares


def check_size(width, height, most):
    """Refuse a picture with more pixels than DATA.MAX_PIXELS. Raises ValueError."""
    if width * height > most:
        raise ValueError(f"{width} x {height} pixels, more than DATA.MAX_PIXELS={most}: raise it, or store it smaller")


def _stored(picture):
    """How a file has its pixels, e.g. L;4 of 4 bits, in the words of Pillow's decoders; known until they are decoded."""
    tile = getattr(picture, "tile", None)
    described = tile[0][3] if tile else picture.mode
    first = described[0] if isinstance(described, tuple) else described
    return first if isinstance(first, str) else picture.mode  # some formats put numbers there


def _own_white(picture):
    """The largest value as a PPM or JPEG 2000 file says it, of which Pillow makes about 65535 or 255; None of other files."""
    tile = getattr(picture, "tile", None)
    if tile and picture.format == "PPM" and tile[0][0] in ("ppm", "ppm_plain"):
        described = tile[0][3]
        return described[-1] if isinstance(described, tuple) else described
    if tile and picture.format == "JPEG2000":
        place = picture.fp.tell()
        bits = _bits_of_jpeg2000(picture.fp)
        picture.fp.seek(place)
        return bits and 2 ** bits - 1
    return None


def _bits_of_jpeg2000(file):
    """Bits of the first channel of a JPEG 2000 file, or None where its codestream is not found.

    Source: ISO 15444-1, A.5.1 (SIZ) and I.4 (boxes).
    """
    start = 0
    try:
        while True:
            file.seek(start)
            header = file.read(DEPTH_AT + 1)
            if header.startswith(CODESTREAM):
                return (header[DEPTH_AT] & 127) + 1
            size, kind, long_size = struct.unpack_from(">I4sQ", header)
            inside = 16 if size == 1 else 8
            size = long_size if size == 1 else size
            if kind != b"jp2c" and size < inside:
                return None
            start += inside if kind == b"jp2c" else size
    except (struct.error, IndexError):
        return None


def _white_of(picture, stored, given):
    """The value that is white among those that Pillow gives; of floats 1 where nothing is given.

    Raises: ValueError where it is not known.
    """
    own = _own_white(picture)
    if given and own:  # a JPEG 2000 of 12 bits comes with 4 more bits of 0, a PPM stretched
        return given * (65536 / (own + 1) if picture.format == "JPEG2000" else 65535 / own)
    if given:
        return given
    if picture.mode == "F":
        return 1
    white = 4095 if stored == "I;12" else 65535 if picture.mode != "I" else WHITE_OF.get(picture.format)
    if not white:
        raise ValueError("its pixels have 32 bits or a sign, so it is not known which value is white: set DATA.WHITE, e.g. to "
                         "255, 4095 or 65535")
    return white


def shares_of_white(values, white, given, name):
    """Values as floats from 0 (black) to 1 (white); what is no number, or below 0, is black.

    Args:
        values: array.
        white: value that is.
        given: DATA.WHITE, or 0.
        name: of the file, for remarks.
    Raises: ValueError where nothing was given and floats are no shares.
    """
    values = np.asarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        say_once("%s has pixels that are no finite numbers: they are black, here and in other files", name)
        values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    peak = values.max(initial=0)
    if white == 1 and not given and peak > 1:
        raise ValueError(f"its pixels are floats up to {peak:g}, but 1 is white: set DATA.WHITE to the value that is")
    if values.min(initial=0) < 0:
        say_once("%s has pixels below 0, down to %g: they are black, here and in other files", name, values.min())
    return (values / np.float32(white)).clip(0, 1)


def say_if_dark(peak, name):
    """Files of 16 bits may hold 12, and are nearly black then: only the user knows whether they are meant to be."""
    if 0 < peak < 65536 / 8:
        say_once("%s has 16 bits a pixel, and none is above %d of 65535, so it is nearly black: if these files hold fewer "
                  "bits, set DATA.WHITE to what is white in them, e.g. 4095", name, peak)


def _scale_key(picture, stored):
    """The transparent value of a PNG, where Pillow leaves it in the file's bits and gives pixels of 8."""
    hidden = picture.info.get("transparency")
    if isinstance(hidden, int) and stored in ("L;2", "L;4"):
        picture.info["transparency"] = hidden * (85 if stored == "L;2" else 17)
    elif isinstance(hidden, tuple) and stored == "RGB;16B":
        picture.info["transparency"] = tuple(value >> 8 for value in hidden)


def _check_colours(picture, stored, white, name):
    """Refuse what Pillow reads wrong: it keeps the upper 8 bits of colours of 16, and the bits of signed numbers."""
    if picture.format == "TIFF" and picture.mode == "L" and SIGNED in picture.tag_v2.get(SAMPLE_FORMAT, ()):
        raise ValueError("its pixels are signed numbers of 8 bits: store them as unsigned ones, or as .npy with DATA.WHITE")
    own = _own_white(picture)
    if picture.format == "JPEG2000" and picture.mode == "L" and (own or 0) > 255:
        raise ValueError("it is a JPEG 2000 of 9 bits, which Pillow reads wrong: store it with 8 or 16 bits")
    if picture.mode.startswith("I") or not (stored.endswith((";16B", ";16L", ";16N")) or (own or 0) > 255):
        return
    if white and white not in (65535, own):
        raise ValueError(f"its colours have 16 bits each, of which Pillow reads the upper 8, too few for DATA.WHITE={white:g}: "
                         f"store it with 8 bits, or as .npy")
    bands = picture.convert("RGBA").getextrema() if not white and own in (None, 65535) else ()
    seen = max((high for _, high in bands[:3]), default=255)
    say_if_dark((seen + 1) * 256 - 1, name)


def _is_unmeant_alpha(picture):
    """Whether a fourth channel is 0 everywhere in a format whose writers leave it so, and viewers show the colours."""
    undeclared = picture.format in NO_ALPHA or picture.format == "TIFF" and EXTRA_SAMPLES not in picture.tag_v2
    return undeclared and picture.mode == "RGBA" and picture.getextrema()[3][1] == 0


def _on_background(picture, colour, name):
    """A picture with transparency on a colour, as RGB. What lies under transparency is often noise or a stray colour."""
    picture = picture.convert("RGBA")
    lowest, highest = picture.getextrema()[3]
    if lowest == 255:
        return picture.convert("RGB")
    if highest == 0:
        say_once("%s is transparent everywhere, so that nothing but DATA.BACKGROUND is seen: store it without transparency if "
                 "its colours are meant", name)
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*colour, 255)), picture).convert("RGB")
