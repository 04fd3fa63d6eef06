"""Folders of images that nobody prepared: icons on nothing, photographs as phones store them, scans with broken files.

All classes differ in what is drawn; size, place and colours are the same for all.
"""
import math

import numpy as np
from PIL import Image, ImageDraw

GLYPHS = ("bars", "cross", "disc", "ring", "square", "wedge")
TEXTURES = ("checks", "dots", "stripes", "waves")
TURNED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}  # EXIF: how it is stored
ORIENTATION = 0x0112


def icons(root, each, seed=0, side=48):
    """root/<class>/<n>.png: dark glyphs on transparency, RGBA."""
    rng = np.random.default_rng(seed)
    for name in GLYPHS:
        for number in range(each):
            size = int(side * rng.uniform(0.8, 1.4))
            picture = glyph(name, size, rng, colour=tuple(rng.integers(20, 150, 3)))
            _save(picture, root / name / f"{number:04}.png")


def scans(root, each, seed=0, side=96, broken=0.03):
    """root/<class>/<n>.png: glyphs on grey paper, of 8 bits; a share of the files is cut off."""
    rng = np.random.default_rng(seed)
    for name in GLYPHS:
        for number in range(each):
            height, width = (int(side * rng.uniform(0.9, 1.5)) for _ in range(2))
            paper = 215 + 12 * _smooth(height, width, rng) + rng.normal(0, 6, (height, width))
            page = Image.fromarray(paper.clip(0, 255).astype(np.uint8))
            ink = glyph(name, int(0.8 * min(height, width)), rng, colour=(int(rng.integers(20, 90)),) * 3)
            page.paste(ink.convert("L"), tuple(int(rng.uniform(0, page.size[i] - ink.size[i] + 1)) for i in (0, 1)),
                       ink.getchannel("A"))
            path = root / name / f"{number:04}.png"
            _save(page, path)
            if rng.random() < broken:
                path.write_bytes(path.read_bytes()[:200])


def photographs(root, each, seed=0, size=(640, 480), turned=0.4):
    """root/<class>/<n>.jpg: textures with light and shade; a share is stored lying down, as its EXIF says."""
    rng = np.random.default_rng(seed)
    for name in TEXTURES:
        for number in range(each):
            picture, exif = Image.fromarray(texture(name, *size, rng)), Image.Exif()
            if rng.random() < turned:
                exif[ORIENTATION] = int(rng.choice(list(TURNED)))
                picture = picture.transpose(TURNED[exif[ORIENTATION]])
            _save(picture, root / name / f"{number:04}.jpg", exif=exif, quality=85)


def glyph(name, side, rng, colour):
    """A glyph, turned a little, as RGBA of side x side pixels."""
    large = 4 * side
    picture = Image.new("RGBA", (large, large), (0, 0, 0, 0))
    draw, reach = ImageDraw.Draw(picture), large * rng.uniform(0.3, 0.45)
    low, high, thick = large / 2 - reach, large / 2 + reach, reach * rng.uniform(0.25, 0.45)
    box = (low, low, high, high)
    if name == "bars":
        for top in np.linspace(low, high - thick, 3):
            draw.rectangle((low, top, high, top + thick * 0.7), colour)
    elif name == "cross":
        draw.rectangle((low, large / 2 - thick / 2, high, large / 2 + thick / 2), colour)
        draw.rectangle((large / 2 - thick / 2, low, large / 2 + thick / 2, high), colour)
    elif name == "disc":
        draw.ellipse(box, colour)
    elif name == "ring":
        draw.ellipse(box, outline=colour, width=int(thick))
    elif name == "square":
        draw.rectangle(box, colour)
    else:
        draw.polygon([(low, high), (large / 2, low), (high, high)], colour)
    return picture.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC).resize((side, side), Image.Resampling.LANCZOS)


def texture(name, width, height, rng):
    """(height, width, 3) uint8: a pattern of two colours under uneven light."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    angle, length = rng.uniform(0, math.pi), min(width, height) * rng.uniform(0.08, 0.16)
    u, v = ((x * math.cos(angle) + y * math.sin(angle)) / length, (y * math.cos(angle) - x * math.sin(angle)) / length)
    pattern = {"checks": np.sign(np.sin(math.pi * u) * np.sin(math.pi * v)), "stripes": np.sign(np.sin(math.pi * u)),
               "dots": np.where((u % 2 - 1) ** 2 + (v % 2 - 1) ** 2 < 0.45, 1, -1),
               "waves": np.sign(np.sin(math.pi * (u + 0.5 * np.sin(math.pi * v))))}[name]
    first, second = rng.uniform(30, 225, (2, 3))
    share = (pattern[..., None] + 1) / 2
    light = 1 + 0.25 * _smooth(height, width, rng)[..., None]
    pixels = (share * first + (1 - share) * second) * light + rng.normal(0, 8, (height, width, 1))
    return pixels.clip(0, 255).astype(np.uint8)


def _smooth(height, width, rng):
    """(height, width) of values about -1 to 1 that change slowly."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (3, 4)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _save(picture, path, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **how)
