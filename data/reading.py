"""From a file to a PIL image, whatever the file is: broken, huge, or none at all."""
import errno
import logging
import os
import stat
import time
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin
from torch.utils.data import get_worker_info

from utils.names import shown

log = logging.getLogger("simmim.data")

MAX_PIXELS = 89478485  # PIL's own limit: 24-bit pictures of a quarter of a gigabyte
PAUSES = (0.1, 0.4, 1.6)  # seconds before a file is tried again after an error that may pass
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}  # of the disk or the network; if it stays, of the file
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # of this machine: no fault of the file
KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device",
         stat.S_IFBLK: "a device"}
_no_limit, _said = RLock(), set()
WHITE_OF = {"PNG": 65535, "PPM": 65535}  # of 32-bit numbers: Pillow reads 16 bits of these formats so
# texts and profiles in a PNG say nothing of its pixels, so they may be large: workflows of generators, calibrations of scanners
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, 2 ** 25)


@dataclass(frozen=True)
class Rules:
    """How files become pictures, the same in training, evaluation, probing and inference.

    Attributes:
        max_pixels: a picture with more is not decoded (DATA.MAX_PIXELS).
        background: (r, g, b) behind transparency (DATA.BACKGROUND).
        white: value that is white in pictures of 16 bits, 32 bits or floats; 0 = as the format says (DATA.WHITE).
        upright: whether to turn pictures as their EXIF says (DATA.EXIF).
    """
    max_pixels: int = MAX_PIXELS
    background: tuple = (255, 255, 255)
    white: float = 0.0
    upright: bool = False


DEFAULT = Rules()


class BadImage(ValueError):
    """A file that can't be read as an image; `reason` says why without naming it."""

    def __init__(self, message, reason=""):
        super().__init__(message)
        self.reason = reason


def read_image(source, mode="RGB", name=None, rules=DEFAULT):
    """A file as a PIL image.

    Args:
        source: path, or a binary file object.
        mode: PIL mode; None = that of the file.
        name: what the error calls it; None = the path.
        rules: what else a config says.
    Raises: BadImage (a ValueError) that names the file if it can't be decoded; OSError where this machine has run out of
        memory or open files.
    """
    name = shown(name or source)
    for pause in (*PAUSES, None):
        try:
            return _decoded(source, mode, rules)
        # decoders meet broken files with nearly every kind of error: struct.error, KeyError, IndexError, SyntaxError, ...
        except Exception as error:
            failure = error
            number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
        if number not in PASSING | EXHAUSTED:
            break
        if pause:
            time.sleep(pause)
    reason = shown(_reason(failure))
    if number in EXHAUSTED:
        raise OSError(number, f"{reason} while {name} was read: not the fault of the file. Close other programs, use fewer "
                              f"DATA.NUM_WORKERS, or raise the limit (ulimit -n for open files).") from failure
    raise BadImage(f"{name} can't be read as an image ({reason}). Repair or remove the file.", reason) from failure


def _reason(error):
    """The error in a few words, without the path it may end in."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, Image.UnidentifiedImageError):
        return "cannot identify image file"
    words = str(error)
    return words if isinstance(error, (OSError, ValueError, SyntaxError)) and words else f"{type(error).__name__}: {words}"


def _decoded(source, mode, rules):
    with _file(source) as file:
        if not file.read(1):
            raise ValueError("the file is empty")
        file.seek(0)
        with without_limit():
            picture = Image.open(file)
        with picture:
            width, height = picture.size
            if width * height > rules.max_pixels:
                raise ValueError(f"{width} x {height} pixels, more than DATA.MAX_PIXELS={rules.max_pixels}")
            if getattr(picture, "is_animated", False):
                _say_first_frame(shown(getattr(source, "name", source)))
            if mode is None:
                picture.load()
                return picture
            return in_mode(picture, mode, rules)


@contextmanager
def _file(source):
    """A binary file to read from, at its beginning. Whoever opens a pipe without O_NONBLOCK waits until someone writes."""
    if hasattr(source, "read"):
        source.seek(0)
        yield source
        return
    descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            raise ValueError(f"it is {KINDS.get(kind, 'no file')}")
        yield file


@contextmanager
def without_limit():
    """Switch off PIL's limit of pixels, which warns, and refuses where images are cropped too: read_image has its own."""
    with _no_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _say_first_frame(name):
    """Once a process, and of loader processes only in the first."""
    worker = get_worker_info()
    if worker is None or worker.id == 0:
        _say_once("animated pictures and files of several pages: the first is taken, as of %s", name)


def _say_once(text, *values):
    if text not in _said:
        _said.add(text)
        log.info(text, *values)


def in_mode(picture, mode, rules=DEFAULT):
    """A PIL image in another mode, upright and without transparency as the rules say.

    Numbers of 16 bits, of 32 and floats are scaled, as converting alone would cut at 255: by a white that is that of the whole
    data set, not of one picture.
    Raises: ValueError where the white is not known.
    """
    if rules.upright:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode == "La":  # Pillow has no other way out of it
        picture = picture.convert("LA")
    hidden = picture.info.get("transparency")
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float32)
        grey = Image.fromarray((_shares_of_white(values, picture, rules.white) * 255).round().astype(np.uint8))
        if isinstance(hidden, int):
            grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
        picture, hidden = grey, None
    if mode == "RGBA":
        return picture.convert(mode)
    if hidden is not None or picture.mode in ("RGBA", "LA", "PA", "RGBa"):
        picture = _on_background(picture, rules.background)
    if picture.mode == "LAB" and mode == "L":
        picture = picture.convert("RGB")
    return picture.convert(mode)


def _shares_of_white(values, picture, white):
    """Values as floats from 0 (black) to 1 (white); what is no number is black."""
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    if not white and picture.mode not in ("I", "F"):
        white = 65535
    if not white and picture.mode == "I":
        white = WHITE_OF.get(picture.format)
        if not white:
            raise ValueError("its pixels have 32 bits, so it is not known which value is white: set DATA.WHITE, e.g. to 255, "
                             "4095 or 65535")
    if not white and values.max(initial=0) > 1:
        raise ValueError(f"its pixels are floats up to {values.max():g}, but 1 is white: set DATA.WHITE to the value that is")
    return (values / (white or 1)).clip(0, 1)


def _on_background(picture, colour):
    """A picture with transparency on a colour, as RGB. What lies under transparency is often noise or a stray colour."""
    picture = picture.convert("RGBA")
    if picture.getextrema()[3][0] == 255:
        return picture.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*colour, 255)), picture).convert("RGB")
