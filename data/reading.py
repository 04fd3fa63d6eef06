"""From a file to a PIL image, whatever the file is: broken, huge, or none at all."""
import errno
import os
import stat
import time
from contextlib import contextmanager
from threading import RLock

import numpy as np
from PIL import Image

MAX_PIXELS = 89478485  # PIL's own limit: 24-bit pictures of a quarter of a gigabyte
PAUSES = (0.1, 0.4, 1.6)  # seconds before a file is tried again after an error that may pass
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}  # of the disk or the network; if it stays, of the file
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # of this machine: no fault of the file
KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device",
         stat.S_IFBLK: "a device"}
_no_limit = RLock()


class BadImage(ValueError):
    """A file that can't be read as an image; `reason` says why without naming it."""

    def __init__(self, message, reason=""):
        super().__init__(message)
        self.reason = reason


def read_image(source, mode="RGB", name=None, max_pixels=MAX_PIXELS):
    """A file as a PIL image.

    Args:
        source: path, or a binary file object.
        mode: PIL mode; None = that of the file.
        name: what the error calls it; None = the path.
        max_pixels: a picture with more is not decoded.
    Raises: BadImage (a ValueError) that names the file if it can't be decoded; OSError where this machine has run out of
        memory or open files.
    """
    name = shown(name or source)
    for pause in (*PAUSES, None):
        try:
            return _decoded(source, mode, max_pixels)
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


def _decoded(source, mode, max_pixels):
    with _file(source) as file:
        if not file.read(1):
            raise ValueError("the file is empty")
        file.seek(0)
        with without_limit():
            picture = Image.open(file)
        with picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise ValueError(f"{width} x {height} pixels, more than DATA.MAX_PIXELS={max_pixels}")
            if mode is None:
                picture.load()
                return picture
            return in_mode(picture, mode)


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


def in_mode(picture, mode):
    """A PIL image in another mode.

    Of 16 bits (or 32, with values of 8 or 16) and of floats it is scaled, as converting alone would cut at 255. Floats in
    [0, 1] are shares of white; others are read as whole numbers are.
    """
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture, dtype=np.float32), posinf=0.0, neginf=0.0)
        largest = values.max()
        if picture.mode == "F" and largest <= 1:
            scale = 1 / 255
        else:
            scale = 257 if picture.mode not in ("I", "F") or largest > 255 else 1
        picture = Image.fromarray((values / scale).clip(0, 255).round().astype(np.uint8))
    return picture.convert(mode)


def shown(path):
    """A path or another text for a message in one line: what can't be printed is written with a backslash."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(path))
