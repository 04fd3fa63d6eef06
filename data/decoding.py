"""JPEG files read as far as a view of them needs it: only down to its last row, and smaller where it is shrunk far.

The library is simplejpeg (libjpeg-turbo, as Pillow's): the same pixels, bit for bit, without a copy for Pillow. What it can't
read as Pillow does is left to Pillow, which also decides whether a file is broken.
"""
import logging
import math
import os
from dataclasses import dataclass
from io import BytesIO
from threading import local

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import crop, get_image_size, pil_modes_mapping, resize

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

log = logging.getLogger("simmim.data")

MAGIC = b"\xff\xd8\xff"  # how JPEG files begin
END = b"\xff\xd9"
COLOURS = {"RGB": "RGB", "L": "GRAY"}  # modes that are decoded here
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), (0xC2,)
OTHER_FRAMES = {*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}  # lossless, hierarchical, arithmetic
START_OF_SCAN, PICTURES_INDEX = 0xDA, (0xE2, b"MPF\0")
ORIENTATION = 0x0112  # of EXIF
SCALES = (8, 4, 2)  # by which libjpeg-turbo shrinks fast
# What is left for resizing after libjpeg has shrunk. It cuts off frequencies sharply and resizing does so gently, so that
# noise comes out differently: with twice the size left by 2.9 of 255, with three times by 1.3 (docs/benchmarks.md).
LEFT_OVER = 3
CONTEXT = 2  # rows below that colours are smoothed with
LARGEST_FILE = 2 ** 28  # bytes that are read as a whole
LARGEST_BUFFER = 2 ** 24  # bytes that a process keeps from picture to picture
MORE_ROWS = 24  # at most, of which some are chosen, see Grid
RESIZED_BY_TORCH = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
_kept = local()


@dataclass(frozen=True)
class View:
    """A part of a picture, and the size it is brought to.

    Attributes:
        top, left, height, width: in pixels of the picture.
        size: (height, width).
        interpolation: torchvision's InterpolationMode.
    """
    top: int
    left: int
    height: int
    width: int
    size: tuple
    interpolation: InterpolationMode

    def of(self, picture):
        """What it shows of a whole picture, a PIL image or a tensor (C, H, W)."""
        if get_image_size(picture) != [self.width, self.height]:
            picture = crop(picture, self.top, self.left, self.height, self.width)
        return resize(picture, list(self.size), self.interpolation)

    @property
    def shrinks(self):
        """How many pixels become one, along the side that is shrunk less."""
        return min(self.height / self.size[0], self.width / self.size[1])


@dataclass(frozen=True)
class Frame:
    """What the head of a JPEG file says.

    Attributes:
        width, height: in pixels.
        place: of the two bytes that say the height.
        rows: whether the data has one row after another, in one scan.
        data: where they begin.
    """
    width: int
    height: int
    place: int
    rows: bool
    data: int


def available(decoder):
    """The decoder that is used where a config asks for one; says where that is not the one."""
    if decoder == "fast" and simplejpeg is None:
        log.warning("DATA.DECODER fast needs simplejpeg, which is not installed (pip install -r requirements.txt): Pillow "
                    "reads the images, at about half the speed. DATA.DECODER pillow switches this line off")
        return "pillow"
    return decoder


def jpeg_view(file, mode, rules, choose):
    """What a view shows of a JPEG file, or None where Pillow must read it.

    Args:
        file: binary file, at its beginning.
        mode: PIL mode.
        rules: data.pixels.Rules.
        choose: (width, height) -> View.
    Returns: (C, height, width) uint8.
    """
    if simplejpeg is None or mode not in COLOURS or file.read(len(MAGIC)) != MAGIC:
        return None
    size = file.seek(0, os.SEEK_END)
    if size > LARGEST_FILE:
        return None
    file.seek(0)
    data = memoryview(_memory("data", size))[:size]
    frame = read_frame(data.obj) if file.readinto(data) == size else None
    if frame is None or frame.width * frame.height > rules.max_pixels or data.obj.rfind(END, frame.data, size) < 0:
        return None  # without an end it is cut off
    if rules.upright and not _stands(data):
        return None
    view = choose(frame.width, frame.height)
    scale = next((scale for scale in SCALES if view.shrinks >= scale * LEFT_OVER), 1)
    try:
        pixels = _decoded(data, frame, view, scale, COLOURS[mode])
    except ValueError:  # of simplejpeg: Pillow says what is wrong, or reads it
        return None
    return None if pixels is None else _resized(pixels, view, scale)


def read_frame(data):
    """The Frame of a JPEG file; None of one that simplejpeg may read otherwise than Pillow, or not at all."""
    at, found = 2, None
    while at + 10 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:  # may be repeated
            at += 1
            continue
        body, length = at + 4, int.from_bytes(data[at + 2:at + 4], "big")
        several = kind == PICTURES_INDEX[0] and data.startswith(PICTURES_INDEX[1], body)
        if several or kind in OTHER_FRAMES or 0xD0 <= kind <= 0xD9:
            return None
        if kind in SEQUENTIAL + PROGRESSIVE:
            height, width = (int.from_bytes(data[place:place + 2], "big") for place in (body + 1, body + 3))
            if found or data[body] != 8 or not height or not width or data[body + 5] not in (1, 3):
                return None  # not 8 bits; a height that comes later; CMYK
            found = (width, height, body + 1), kind in SEQUENTIAL, data[body + 5]
        if kind == START_OF_SCAN:
            return found and Frame(*found[0], rows=found[1] and data[body] == found[2], data=body + length - 2)
        at = body + length - 2
    return None


def _stands(data):
    """Whether a file needs no turning."""
    with Image.open(BytesIO(bytes(data))) as picture:
        return picture.getexif().get(ORIENTATION, 1) == 1


def _decoded(data, frame, view, scale, colours):
    """The picture down to the last row of a view, a `scale`-th of its size: (rows, columns, channels) uint8, or None.

    Entropy coding has to be read from the beginning, but not to the end: a file whose height is made smaller is a whole one.
    """
    rows = min(frame.height, view.top + view.height + CONTEXT)
    if frame.rows and rows < frame.height:
        data[frame.place:frame.place + 2] = rows.to_bytes(2, "big")
    else:
        rows = frame.height
    height, width = -(-rows // scale), -(-frame.width // scale)
    if colours == "RGB" and not _by_torch(view):
        colours = "RGBX"  # as Pillow keeps it: no copy
    channels = {"RGB": 3, "RGBX": 4, "GRAY": 1}[colours]
    # tolerant, as Pillow is: of broken data it shows what there is; here the rest of the rows is surplus
    pixels = simplejpeg.decode_jpeg(data, colours, min_height=height, min_width=width, strict=False,
                                    buffer=_memory("pixels", height * width * channels))
    return pixels if pixels.shape == (height, width, channels) else None


def _memory(name, size):
    """Bytes, the same every time: asking the system for megabytes takes longer than filling them."""
    if size > LARGEST_BUFFER:
        return bytearray(size)
    if len(getattr(_kept, name, b"")) < size:
        setattr(_kept, name, bytearray(size))
    return getattr(_kept, name)


def _by_torch(view):
    """Whether torch resizes: several times as fast as Pillow where it has the instructions."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX") and view.interpolation in RESIZED_BY_TORCH


def _resized(pixels, view, scale):
    """(C, height, width) of a view; the memory of `pixels` may be used again."""
    starts, lengths = (view.top / scale, view.left / scale), (view.height / scale, view.width / scale)
    if _by_torch(view) and scale == 1:
        part = np.ascontiguousarray(pixels[view.top:view.top + view.height, view.left:view.left + view.width])
        found = F.interpolate(_as_images(part), view.size, mode=view.interpolation.value, antialias=True)[0]
        return found.clone() if found.data_ptr() == part.ctypes.data else found
    if _by_torch(view):
        grids = [_grid(*axis) for axis in zip(starts, lengths, view.size, strict=True)]
        part = np.ascontiguousarray(_rows(_rows(pixels, grids[0]).swapaxes(0, 1), grids[1]).swapaxes(0, 1))
        factors = [size / length for length, size in zip(lengths, view.size, strict=True)]
        found = F.interpolate(_as_images(part), scale_factor=factors, mode=view.interpolation.value, antialias=True,
                              recompute_scale_factor=False)
        rows, columns = (slice(grid.before, grid.before + size) for grid, size in zip(grids, view.size, strict=True))
        return found[0, :, rows, columns]
    height, width, channels = pixels.shape
    mode = {1: "L", 3: "RGB", 4: "RGBX"}[channels]
    picture = Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)
    (top, left), (rows, columns) = starts, lengths
    box = (left, top, left + columns, top + rows)
    shown = np.array(picture.resize(view.size[::-1], pil_modes_mapping[view.interpolation], box=box))
    return torch.from_numpy(shown.reshape(*view.size, channels)[..., :3]).permute(2, 0, 1)


def _as_images(pixels):
    """(rows, columns, channels) as torch resizes it, in an order that tells it that the channels of a pixel lie together."""
    return torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Grid:
    """Whole rows (or columns) that hold the pixels of a view, which may begin within one.

    Resizing knows no fractions of rows, but it makes every row of the result from `step` rows of the picture: some more rows in
    front, `before` of the result, bring its first row where it belongs, to a twentieth of a row or so.

    Attributes:
        first, end: rows of the picture; those outside of it are as its nearest.
        before: rows of the result that are cut off.
    """
    first: int
    end: int
    before: int


def _grid(start, length, size):
    """The Grid of a view that begins at `start`, and whose `length` becomes `size`."""
    first, step = int(start), length / size
    fraction = start - first

    def missing(rows):
        results = (rows + fraction) / step
        return abs(results - round(results)) * step

    rows = min(range(MORE_ROWS), key=missing)
    before = round((rows + fraction) / step)
    return Grid(first - rows, first - rows + math.ceil((before + size) * step) + 1, before)


def _rows(pixels, grid):
    """The rows of a Grid, with copies of the outermost where it goes beyond them."""
    part = pixels[max(grid.first, 0):grid.end]
    lacking = max(-grid.first, 0), grid.end - max(grid.first, 0) - len(part)
    return np.pad(part, (lacking, *[(0, 0)] * (pixels.ndim - 1)), mode="edge") if any(lacking) else part
