"""From a file to an image, whatever the file is: broken, huge, or none at all."""
import errno
import os
import stat
import time
from contextlib import contextmanager
from functools import cache
from threading import RLock

from PIL import Image, PngImagePlugin
from torchvision.transforms.functional import get_image_size

from data import decoding
from data.channels import MAGIC, picture_image, read_array
from data.other_files import looks_like
from data.pixels import DEFAULT, check_size, say_once
from utils.names import shown

PAUSES = (0.1, 0.4, 1.6)  # seconds before a file is tried again after an error that may pass
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}  # of the disk or the network; if it stays, of the file
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # of this machine: no fault of the file
KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device",
         stat.S_IFBLK: "a device"}
_no_limit = RLock()
# texts and profiles in a PNG say nothing of its pixels, so they may be large: workflows of generators, calibrations of scanners
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, 2 ** 25)


class BadImage(ValueError):
    """A file that can't be read as an image; `reason` says why without naming it."""

    def __init__(self, message, reason=""):
        super().__init__(message)
        self.reason = reason


def read_image(source, mode="RGB", name=None, rules=DEFAULT):
    """A file as a PIL image, or of more channels than PIL has as a tensor (C, H, W), float from 0 (black) to 1.

    Args:
        source: path, or a binary file object.
        mode: PIL mode, or a number of channels; None = the PIL mode of the file.
        name: what the error calls it; None = the path.
        rules: what else a config says.
    Raises: BadImage (a ValueError) that names the file if it can't be decoded; OSError where this machine has run out of
        memory or open files.
    """
    return _read(source, mode, name, rules)[0]


def read_view(source, mode, choose, rules=DEFAULT):
    """What a view shows of a file: a PIL image or a tensor as of read_image, or a tensor (C, height, width) uint8.

    Args:
        source, mode, rules: as of read_image.
        choose: (width, height) -> data.decoding.View; called once for a size, before anything is decoded if the decoder can
            make use of it.
    Raises: as read_image.
    """
    choose = cache(choose)
    image, stored_as = _read(source, mode, None, rules, choose if rules.decoder == "fast" else None)
    return image if stored_as is None else choose(*get_image_size(image)).of(image)


def examine(source, mode="RGB", rules=DEFAULT):
    """Read a file as training does, and tell how it is stored: (PIL mode, width, height). Raises as read_image."""
    return _read(source, mode, None, rules)[1]


def _read(source, mode, name, rules, choose=None):
    """(the image, how it is stored); with `choose` also (pixels of that view, None)."""
    name = shown(name or source)
    for pause in (*PAUSES, None):
        try:
            return _decoded(source, mode, rules, name, choose)
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


def _decoded(source, mode, rules, name, choose):
    with _file(source) as file:
        pixels = decoding.jpeg_view(file, mode, rules, choose) if choose else None
        if pixels is not None:
            return pixels, None
        file.seek(0)
        start = file.read(len(MAGIC))
        if not start:
            raise ValueError("the file is empty")
        file.seek(0)
        if start == MAGIC:
            return read_array(file, mode, rules, name)
        with without_limit():
            picture = _opened(file, mode)
        with picture:
            check_size(*picture.size, rules.max_pixels)
            stored_as = (picture.mode, *picture.size)
            if getattr(picture, "is_animated", False) and not _takes_pages(picture, mode):
                say_once("animated pictures and files of several pages: the first is taken, as of %s", name)
            if mode is None:
                picture.load()
                return picture, stored_as
            return picture_image(picture, mode, rules, name), stored_as


def _takes_pages(picture, mode):
    return picture.format == "TIFF" and (isinstance(mode, int) or mode == "RGBA" and picture.n_frames == 4)


def _opened(file, mode):
    try:
        return Image.open(file)
    except Image.UnidentifiedImageError as error:
        if isinstance(mode, int):
            raise ValueError("cannot identify image file: of TIFF, pages of one channel each can be read, or else "
                             ".npy") from error
        file.seek(0)
        what = looks_like(file.read(64))
        if what:
            raise ValueError(f"cannot identify image file: it is {what}") from error
        raise


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
