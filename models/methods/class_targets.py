"""Targets of classes instead of values: the likeliest bin, colour or token (SimMIM, arXiv 2111.09886, section 4.1.4)."""
import pkgutil

import numpy as np
import torch
from torch import nn

from models.methods.target import Constants, Frozen, Target, as_channels, enlarged
from utils.checkpoint import load_checkpoint
from utils.files import expanded

WHITE = 2.0  # of pictures in colours of our own, on the scale of normalised images; black is its negative


class BinTarget(Target):
    """Every channel of a pixel as one of equal bins between black and white.

    Args:
        classes: number of bins.
        mean, std: per channel, that the images were normalised with.
    """

    def __init__(self, classes, mean, std):
        self.classes = classes
        self._statistics = Constants(*([[[value]] for value in values] for values in (mean, std)))

    def width(self, in_chans):
        return in_chans * self.classes

    @torch.no_grad()
    def __call__(self, images):
        mean, std = self._statistics.on(images.device)
        return ((images.float() * std + mean) * self.classes).floor().clamp(0, self.classes - 1).long()

    def view(self, values, images):
        mean, std = self._statistics.on(images.device)
        return ((values + 0.5) / self.classes - mean) / std


class ClusterTarget(Target):
    """The nearest of some colours, for each pixel.

    Args:
        palette: (K, C) float, colours of pixels in [0, 1].
        mean, std: as BinTarget.
    """

    def __init__(self, palette, mean, std):
        self.classes = len(palette)
        palette = (np.asarray(palette, dtype=np.float64) - np.asarray(mean)) / np.asarray(std)
        self._palette = Constants(palette.tolist(), list(std))

    def width(self, in_chans):
        return self.classes

    @torch.no_grad()
    def __call__(self, images):
        palette, std = self._palette.on(images.device)
        with torch.autocast(images.device.type, enabled=False):
            pixels = images.float().movedim(1, -1) * std                       # distances are those of pixels in [0, 1]
            return torch.stack([torch.cdist(rows.flatten(0, 1), palette * std).argmin(dim=-1).view(rows.shape[:2])
                                for rows in pixels]).unsqueeze(1)

    def view(self, values, images):
        palette, _ = self._palette.on(images.device)
        return palette[values.squeeze(1)].movedim(-1, 1)


class TokenTarget(Target):
    """The classes that a tokenizer gives to the cells of an image. It is shown as a colour for each class.

    Args:
        make: gives the tokenizer, a module: normalised images (B, C, H, W) -> (B, h, w) int64, with `num_tokens` classes and
            `cell`, the pixels per side of a cell. See tokenizer_of.
    """

    of_pixels = False

    def __init__(self, make):
        tokenizer = make()
        self.classes, self.cell = tokenizer.num_tokens, tokenizer.cell
        self._tokenizer, self._colours = Frozen(make), Constants(np.random.RandomState(0).rand(self.classes, 3).tolist())

    def width(self, in_chans):
        return self.classes

    @torch.no_grad()
    def __call__(self, images):
        with torch.autocast(images.device.type, enabled=False):
            ids = self._tokenizer.on(images)(images.float())
        expected = (len(images), *(side // self.cell for side in images.shape[2:]))
        if tuple(ids.shape) != expected or ids.dtype != torch.int64:
            raise ValueError(f"the tokenizer gives {ids.dtype} of shape {tuple(ids.shape)} for images of shape "
                             f"{tuple(images.shape)}; expected torch.int64 of shape {expected}: a class for each cell of "
                             f"{self.cell} pixels.")
        return ids.unsqueeze(1)

    def view(self, values, images):
        colours = self._colours.on(images.device)[0][values.squeeze(1)].movedim(-1, 1)
        return enlarged(as_channels((colours - 0.5) * 2 * WHITE, images.shape[1]), images.shape[2:])


class Tokenizer(nn.Module):
    """A small vector-quantised autoencoder, trained by tools/tokenizer.py: cells of an image as the nearest of some codes.

    Args:
        num_tokens: codes.
        cell: side in pixels of what becomes a token, a power of 2.
        in_chans: channels of the images.
        dim: width of a code.
    Source: VQ-VAE (arXiv 1711.00937).
    """

    def __init__(self, num_tokens=128, cell=8, in_chans=3, dim=32):
        super().__init__()
        self.num_tokens, self.cell, self.in_chans, self.dim = num_tokens, cell, in_chans, dim
        self.embed = nn.Sequential(nn.Conv2d(in_chans, dim, cell, stride=cell), nn.GELU(), nn.Conv2d(dim, dim, 1), nn.GELU(),
                                   nn.Conv2d(dim, dim, 1))
        self.codes = nn.Parameter(torch.randn(num_tokens, dim))
        self.decode = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.GELU(), nn.Conv2d(dim, in_chans * cell ** 2, 1),
                                    nn.PixelShuffle(cell))

    def sizes(self):
        """Its arguments, for a file."""
        return {"num_tokens": self.num_tokens, "cell": self.cell, "in_chans": self.in_chans, "dim": self.dim}

    def forward(self, images):
        """(B, C, H, W) normalised -> (B, h, w) int64."""
        return self.nearest(self.embed(images).movedim(1, -1))

    def nearest(self, vectors):
        """Codes of vectors (B, h, w, dim), (B, h, w) int64."""
        return torch.cdist(vectors.flatten(0, -2), self.codes).argmin(dim=-1).view(vectors.shape[:-1])


def tokenizer_of(place, in_chans):
    """A tokenizer.

    Args:
        place: a file of tools/tokenizer.py, or where a class stands, package.module:Class, which is called without arguments
            and gives a module as TokenTarget wants it.
        in_chans: channels of the images.
    Raises: ValueError, FileNotFoundError.
    """
    if not place:
        raise ValueError("MODEL.SIMMIM.TARGET tokens needs MODEL.SIMMIM.TOKENIZER: a file that tools/tokenizer.py wrote, or "
                         "package.module:Class.")
    with torch.device("cpu"):  # the model around it may be without memory yet
        return _tokenizer_of(place, in_chans)


def _tokenizer_of(place, in_chans):
    if ":" not in place:
        content = load_checkpoint(expanded(place))
        if "tokenizer" not in content:
            raise ValueError(f"{place} holds no tokenizer: make one with tools/tokenizer.py, or name a class, "
                             f"package.module:Class.")
        tokenizer = Tokenizer(**content["tokenizer"])
        tokenizer.load_state_dict(content["model"])
        if tokenizer.in_chans != in_chans:
            raise ValueError(f"{place} takes images of {tokenizer.in_chans} channels, the encoder of {in_chans}: make another "
                             f"with tools/tokenizer.py.")
        return tokenizer
    try:
        kind = pkgutil.resolve_name(place)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"MODEL.SIMMIM.TOKENIZER={place} can't be imported ({error}); expected package.module:Class, from the "
                         f"current folder or PYTHONPATH.") from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):  # nothing else is ever called by the text of a config
        raise ValueError(f"MODEL.SIMMIM.TOKENIZER={place} is no class of torch.nn.Module.")
    tokenizer = kind()
    for name in ("num_tokens", "cell"):
        if not isinstance(getattr(tokenizer, name, None), int):
            raise ValueError(f"MODEL.SIMMIM.TOKENIZER={place} has no whole number {name}: a tokenizer says how many classes it "
                             f"has (num_tokens), and the side in pixels of a cell (cell).")
    return tokenizer


def read_palette(path, channels):
    """Colours (K, C) of a file of tools/palette.py. Raises: ValueError, FileNotFoundError."""
    if not path:
        raise ValueError("MODEL.SIMMIM.TARGET clusters needs MODEL.SIMMIM.PALETTE: a file that tools/palette.py wrote.")
    try:
        palette = np.load(expanded(path))
    except ValueError as error:
        raise ValueError(f"{path} is no array of colours: make one with tools/palette.py ({error}).") from error
    if palette.ndim != 2 or palette.shape[1] != channels or len(palette) < 2 or palette.dtype.kind != "f":
        raise ValueError(f"the palette in {path} is {palette.dtype} of shape {palette.shape}; expected floats of shape "
                         f"(colours, {channels}), for images of {channels} channels. Make one with tools/palette.py.")
    if not (palette >= 0).all() or not (palette <= 1).all():
        raise ValueError(f"the palette in {path} has colours from {palette.min():g} to {palette.max():g}; expected pixels from "
                         f"0 (black) to 1 (white). Make one with tools/palette.py.")
    return palette
