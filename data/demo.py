"""A small drawn image data set in ImageNet layout, so that the whole pipeline can run without a download.

Ten classes differ in the SHAPE of one object and in nothing else: object, background and distractors take hues and
textures from the same families, and size, pose and position have the same distribution for every class. In every class
the object is the lightest thing in view: a minute's training on a CPU must suffice to find it.
The backgrounds are correlated over large distances, as in photographs: a masked patch can be guessed from the
visible ones, which is what masked image modeling needs to have something to learn.

Only numpy and Pillow are imported here, so that the drawing processes start fast; they load this file alone.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import uuid
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

DRAWING_VERSION = 4  # raise with every change that alters pixels: old folders then count as different data
MANIFEST = "demo.json"
SPLITS = ("train", "val")
SUPERSAMPLING = 3  # outlines are rasterised this much larger, then averaged, for smooth edges
JPEG_QUALITY = 85
DEFAULT_SIZE_RANGE = (72, 120)
OBJECT_CONTRAST = (0.5, 0.8)  # range of the colour distance to the surroundings; RGB in [0, 1]; > 0: lighter than they
DISTRACTOR_CONTRAST = (-0.25, -0.1)
GROUND_LIGHT = (0.22, 0.42)  # range of the mean intensity of a background
MAX_TURN = math.radians(25)  # of an object, either way; things in photographs stand upright more often than not
IMAGES_PER_WORKER = 250  # below this a further process costs more to start than it saves


# ---------------------------------------------------------------------------------------------------------------
# Shapes. Each function returns [(vertices, value)]: closed outlines, about [-1, 1], painted in order with value 1
# (object) or 0 (hole). They draw their own proportions at random: no two objects of a class are congruent.


def _polar(angles, radii):
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=-1)


def _ellipse(center, radii, num_points=48):
    angles = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    return np.asarray(center) + _polar(angles, 1.0) * np.asarray(radii)


def _arrow(rng):
    shaft, head, neck = rng.uniform(0.14, 0.26), rng.uniform(0.55, 0.8), rng.uniform(-0.05, 0.3)
    barb = neck - rng.uniform(0.0, 0.15)
    upper = [(-1, shaft), (neck, shaft), (barb, head), (1, 0)]
    return [(np.array(upper + [(x, -y) for x, y in upper[-2::-1]]), 1)]


def _bolt(rng):
    lean, waist = rng.uniform(0.0, 0.2), rng.uniform(0.1, 0.2)
    half = [(0.25 + lean, -1), (-0.55, waist), (-0.1, waist)]
    return [(np.array(half + [(-x, -y) for x, y in half]), 1)]


def _crescent(rng):
    shift, inner = rng.uniform(0.35, 0.6), rng.uniform(0.75, 0.9)
    return [(_ellipse((0, 0), (1, 1)), 1), (_ellipse((shift, 0), (inner, inner)), 0)]


def _cross(rng):
    arm = rng.uniform(0.2, 0.34)
    corner = np.array([(1, -arm), (1, arm), (arm, arm)])
    turns = [np.array([(c, s), (-s, c)]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return [(np.concatenate([corner @ turn for turn in turns]), 1)]


def _fish(rng):
    height, tail, joint = rng.uniform(0.38, 0.58), rng.uniform(0.4, 0.6), rng.uniform(0.35, 0.45)
    x = np.linspace(-1, joint, 24)
    back = height * np.sin(np.pi * ((x + 1) / (joint + 1.2)) ** 0.8)
    body = np.concatenate([np.stack([x, back], -1), np.stack([x, -back], -1)[::-1]])
    fin = rng.uniform(0.25, 0.4)
    return [
        (body, 1),
        (np.array([(joint - 0.25, 0), (1, tail), (0.75, 0), (1, -tail)]), 1),
        (np.array([(-0.45, -height * 0.7), (0.0, -height - fin), (0.15, -height * 0.7)]), 1),
    ]


def _gear(rng):
    num_teeth, depth, hole = rng.integers(7, 10), rng.uniform(0.2, 0.28), rng.uniform(0.28, 0.42)
    tooth = np.array([0.0, 0.3, 0.42, 0.88])  # flank, top, flank, valley in units of one tooth
    angles = (np.arange(num_teeth)[:, None] + tooth).ravel() * 2 * np.pi / num_teeth
    radii = np.tile([1, 1, 1 - depth, 1 - depth], num_teeth)
    return [(_polar(angles, radii), 1), (_ellipse((0, 0), (hole, hole)), 0)]


def _heart(rng):
    t, stretch = np.linspace(0, 2 * np.pi, 64, endpoint=False), rng.uniform(0.9, 1.15)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [(np.stack([16 * np.sin(t) ** 3 * stretch, -y - 2.5], -1) / 16, 1)]


def _mug(rng):
    width, height, taper = rng.uniform(0.4, 0.5), rng.uniform(0.6, 0.8), rng.uniform(-0.05, 0.1)
    grip, reach, thickness = height * rng.uniform(0.6, 0.72), rng.uniform(0.58, 0.72), rng.uniform(0.15, 0.2)
    left, right = -0.35 - width, -0.35 + width
    body = [(left, -height), (right, -height), (right - taper, height), (left + taper, height)]
    handle = (right - 0.05, rng.uniform(-0.1, 0.1))
    return [
        (_ellipse(handle, (reach, grip)), 1),
        (_ellipse(handle, (reach - thickness, grip - thickness)), 0),
        (np.array(body), 1),
    ]


def _spiral(rng):
    turns, fill = rng.uniform(1.6, 2.2), rng.uniform(0.46, 0.58)
    angles = np.linspace(0.15, 1, 110) * turns * 2 * np.pi
    radii, half_width = angles / angles[-1] * 0.85, 0.85 / turns * fill / 2
    return [(np.concatenate([_polar(angles, radii + half_width), _polar(angles, radii - half_width)[::-1]]), 1)]


def _star(rng):
    inner = rng.uniform(0.36, 0.52)
    return [(_polar(np.arange(10) * np.pi / 5, np.tile([1, inner], 5)), 1)]


SHAPES = {
    "arrow": _arrow,
    "bolt": _bolt,
    "crescent": _crescent,
    "cross": _cross,
    "fish": _fish,
    "gear": _gear,
    "heart": _heart,
    "mug": _mug,
    "spiral": _spiral,
    "star": _star,
}
CLASSES = tuple(SHAPES)  # the order is part of every image's random seed


def _distractor(rng):
    """An ellipse, a rod or a wobbly blob; the same mixture accompanies every class."""
    kind = rng.integers(3)
    if kind == 0:
        return [(_ellipse((0, 0), (1, rng.uniform(0.4, 1))), 1)]
    if kind == 1:
        width = rng.uniform(0.1, 0.25)
        return [(np.array([(-1.6, -width), (1.6, -width), (1.6, width), (-1.6, width)]), 1)]
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    return [(_polar(angles, rng.uniform(0.5, 1, 7)), 1)]


# ---------------------------------------------------------------------------------------------------------------
# Pose and rasterisation.


def _subdivide(vertices, spacing=0.1):
    """Put points along the straight edges too, so that the warp bends them; corners are kept."""
    ends = np.roll(vertices, -1, axis=0)
    num_steps = np.maximum(np.ceil(np.linalg.norm(ends - vertices, axis=1) / spacing), 1).astype(int)
    edge = np.repeat(np.arange(len(vertices)), num_steps)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(num_steps) - num_steps, num_steps)
    return vertices[edge] + (ends - vertices)[edge] * (step / num_steps[edge])[:, None]


def _random_pose(rng, scale, center):
    """A random map from shape coordinates to pixels: mirror, wobble, perspective, stretch, shear and rotation.

    Args:
        scale: pixels per shape unit.
        center: (x, y) in pixels where the origin of the shape goes.
    Returns: function of (N, 2) shape coordinates giving (N, 2) pixel coordinates.
    """
    turn, stretch, shear = rng.uniform(-MAX_TURN, MAX_TURN), np.exp(rng.uniform(-0.18, 0.18)), rng.uniform(-0.2, 0.2)
    mirror = rng.choice([-1, 1])
    rotation = np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])
    linear = np.array([(mirror * stretch, shear), (0, 1 / stretch)]) @ rotation * scale
    vanishing = rng.normal(0, 0.1, 2).clip(-0.22, 0.22)
    waves, phases = rng.normal(0, 2.5, (3, 2)), rng.uniform(0, 2 * np.pi, 3)
    pushes = rng.normal(0, 0.035, (3, 2))

    def pose(points):
        bent = points + np.sin(points @ waves.T + phases) @ pushes
        return bent / (1 + bent @ vanishing)[:, None] @ linear + center

    return pose


def _paint(outlines, size, pose):
    """Rasterise outlines to an "L" image of (width, height) `size`, 255 = object."""
    mask = Image.new("L", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
    draw = ImageDraw.Draw(mask)
    for vertices, value in outlines:
        draw.polygon((pose(_subdivide(vertices)) * SUPERSAMPLING).ravel().tolist(), fill=255 * value)
    return mask.reduce(SUPERSAMPLING)


def _area(outlines):
    """Painted area in squared shape units, to a few percent."""
    mask = Image.new("L", (80, 80))
    draw = ImageDraw.Draw(mask)
    for vertices, value in outlines:
        draw.polygon((vertices * 25 + 40).ravel().tolist(), fill=value)
    return np.asarray(mask).sum() / 25**2


# ---------------------------------------------------------------------------------------------------------------
# Textures. Each function returns a (H, W) field in about [0, 1] which a random palette then turns into colours.


@lru_cache(maxsize=8)
def _frequencies(period):
    fy, fx = np.fft.fftfreq(period)[:, None], np.fft.rfftfreq(period)[None]
    return fx.astype(np.float32), fy.astype(np.float32)


def _noise(rng, shape, slope=1.0, stretch=1.0):
    """Gaussian noise with amplitude spectrum 1 / f**slope, zero mean and unit deviation.

    Args:
        shape: (H, W).
        slope: 1 is the average of photographs; more is smoother.
        stretch: > 1 elongates the structures by this ratio, in a random direction.
    Returns: (H, W) float32.
    """
    period = 1 << (max(shape) - 1).bit_length()
    fx, fy = _frequencies(period)
    if stretch != 1.0:
        turn = rng.uniform(0, math.pi)
        across, along = math.sin(turn), math.cos(turn)
        fx, fy = fx * along + fy * across, (fy * along - fx * across) * stretch
    squared = fx * fx + fy * fy
    squared[0, 0] = np.inf  # no mean
    amplitude = squared ** (-slope / 2)
    white = rng.standard_normal((*amplitude.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    field = np.fft.irfft2(white * amplitude, s=(period, period))[: shape[0], : shape[1]]
    field = field - field.mean()
    return field / (math.sqrt(np.square(field).mean()) + 1e-6)


def _coordinates(shape):
    """(x, y), each broadcasting to (H, W); the shorter image side has length 1."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return x.astype(np.float32) / min(shape), y.astype(np.float32) / min(shape)


def _clouds(rng, shape):
    return 0.5 + 0.27 * _noise(rng, shape, rng.uniform(1.1, 1.9), rng.uniform(1, 2.5))


def _marble(rng, shape):
    x, y = _coordinates(shape)
    turn, frequency = rng.uniform(0, 2 * math.pi), rng.uniform(1, 3)
    phase = frequency * (x * math.cos(turn) + y * math.sin(turn)) + rng.uniform(0.2, 0.45) * _noise(rng, shape, 1.6)
    veins = np.abs(np.sin(math.pi * phase)) ** rng.uniform(0.4, 1.2)
    return 0.8 * veins + 0.1 + 0.05 * _noise(rng, shape, 0.8)


def _wood(rng, shape):
    x, y = _coordinates(shape)
    turn, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 3)
    dx, dy = x - 0.5 - distance * math.cos(turn), y - 0.5 - distance * math.sin(turn)
    rings = np.sqrt(dx * dx + dy * dy) * rng.uniform(3, 8) + rng.uniform(0.2, 0.7) * _noise(rng, shape, 2.4)
    growth = rings - np.floor(rings)  # pale to dark within a year, then a sudden return
    return 0.2 + 2.6 * growth**2 * (1 - growth) ** 0.7 + 0.1 * _noise(rng, shape, 0.7, 6.0)


def _foliage(rng, shape):
    """Leaves over leaves, large ones first: occluding pieces of all sizes ("dead leaves" image model)."""
    num_leaves = 70
    lengths = np.sort(0.06 * rng.uniform(0.02, 1, num_leaves) ** -0.5)[::-1] * min(shape)  # power law
    turns = rng.normal(rng.uniform(0, 2 * math.pi), 0.7, num_leaves)
    outline = np.array([(-1, 0), (-0.5, 0.4), (0.1, 0.45), (1, 0), (0.1, -0.45), (-0.5, -0.4)])
    axes = np.stack([np.cos(turns), np.sin(turns), -np.sin(turns), np.cos(turns)], -1).reshape(-1, 2, 2)
    centers = rng.uniform(0, 1, (num_leaves, 1, 2)) * (shape[1], shape[0])
    leaves = (outline @ axes) * lengths[:, None, None] + centers
    tones = rng.integers(0, 256, num_leaves).tolist()
    tile = Image.new("L", (shape[1] * 2, shape[0] * 2), 128)
    draw = ImageDraw.Draw(tile)
    for leaf, tone in zip((leaves * 2).reshape(num_leaves, -1).tolist(), tones, strict=True):
        draw.polygon(leaf, fill=tone)
    return np.asarray(tile.reduce(2), np.float32) / 255 + 0.08 * _noise(rng, shape, 1.0)


def _hills(rng, shape):
    """Ridges one behind the other, the nearer the deeper in tone, under a smooth sky."""
    x, y = _coordinates(shape)
    turn = rng.normal(0, 0.35)
    along, down = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    field, rough = down * 0.25, 0.06 * _noise(rng, shape, 1.2)
    levels = np.sort(rng.uniform(0.05, 1.1, rng.integers(2, 5))).tolist()
    for position, level in enumerate(levels):
        ridge = down - level
        for wave in rng.uniform((2, 2, 4), (14, 14, 28)).tolist():
            ridge -= np.sin(along * wave + rng.uniform(0, 2 * math.pi)) * (0.35 / wave)
        field = np.where(ridge > 0, 0.25 + 0.75 * (position + 1) / len(levels) - 0.3 * ridge, field)
    return field + rough * (0.4 + field)


def _stones(rng, shape):
    """Rounded cells around random points, each with its own tone, and dark gaps between them."""
    x, y = _coordinates(shape)
    num_cells = int(rng.integers(8, 24))
    sites = rng.uniform(-0.1, 1.1, (num_cells, 2, 1, 1)) * np.reshape(shape[::-1], (2, 1, 1)) / min(shape)
    sites, warp = sites.astype(np.float32), 0.03 * _noise(rng, shape, 1.6)
    squared = (x + warp - sites[:, 0]) ** 2 + (y - warp - sites[:, 1]) ** 2  # (num_cells, H, W)
    owner = squared.argmin(axis=0)[None]
    nearest = np.take_along_axis(squared, owner, axis=0)
    np.put_along_axis(squared, owner, np.inf, axis=0)
    edge = np.clip((np.sqrt(squared.min(axis=0)) - np.sqrt(nearest[0])) * rng.uniform(6, 14), 0, 1)
    return rng.uniform(0.25, 1, num_cells).astype(np.float32)[owner[0]] * edge + 0.06 * _noise(rng, shape, 1.0)


TEXTURES = (_clouds, _marble, _wood, _foliage, _hills, _stones)


def _palette(rng):
    """256 related colours, dark to light or light to dark. Returns: (256, 3), about [0, 1]."""
    num_stops = 4
    earth_leaf_sky = (0.5, 1.6, 3.9)  # radians on the colour circle from red; photographs show mostly these
    hues = rng.choice(earth_leaf_sky) + rng.normal(0, 0.45) + rng.normal(0, 0.35, num_stops)
    chroma = rng.uniform(0.0, 0.13) * rng.uniform(0.6, 1.2, num_stops)
    light = rng.uniform(*GROUND_LIGHT) + np.linspace(-0.3, 0.3, num_stops) * rng.choice([-1, 1])
    thirds = np.array([0, 2 * math.pi / 3, -2 * math.pi / 3])
    stops = light[:, None] + chroma[:, None] * np.cos(hues[:, None] - thirds)  # (num_stops, 3)
    levels = np.linspace(0, num_stops - 1, 256)
    return np.stack([np.interp(levels, np.arange(num_stops), channel) for channel in stops.T], axis=-1)


def _texture(rng, shape, deviation):
    """A random texture in random, related colours.

    Args:
        shape: (H, W).
        deviation: largest standard deviation of any colour channel, in [0, 1] intensity units.
    Returns: (H, W, 3) float32, about [0, 1].
    """
    field = TEXTURES[rng.integers(len(TEXTURES))](rng, shape)
    tones = (field * 255).clip(0, 255).astype(np.uint8)
    # The statistics of the coloured texture follow from the histogram of tones, with 256 entries in place of H * W.
    weights = np.bincount(tones.ravel(), minlength=256) / tones.size
    palette = _palette(rng)
    mean = weights @ palette
    spread = math.sqrt((weights @ (palette - mean) ** 2).max())
    palette = mean + (palette - mean) * min(1.0, deviation / (spread + 1e-6))
    return palette.astype(np.float32)[tones]


# ---------------------------------------------------------------------------------------------------------------
# Composition.


def _blur(mask, radius):
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _contrast_shift(rng, texture, canvas, mask, contrast):
    """The colour to add to a texture so that it differs visibly from the canvas around the mask.

    Args:
        texture: (H, W, 3), canvas: (H, W, 3), mask: "L" image.
    Returns: (3,) float32; zero where the two means are already that far apart.
    """
    inside = np.asarray(mask, np.float32) / 255
    around = _blur(mask, 5) * (1 - inside) + 1e-4
    # einsum, not @: a threaded BLAS may sum in another order, and the same image must come out everywhere.
    surroundings = np.einsum("hw,hwc->c", around, canvas) / around.sum()
    own = np.einsum("hw,hwc->c", inside, texture) / (inside.sum() + 1e-4)
    difference = own - surroundings
    distance, wanted = np.linalg.norm(difference), rng.uniform(*contrast)
    if distance >= abs(wanted) and difference.sum() * wanted > 0:
        return np.zeros(3, np.float32)
    direction = difference / (distance + 1e-6) * 0.8 + math.copysign(1.0, wanted)  # keeps the hue, changes the lightness
    return (direction / np.linalg.norm(direction) * abs(wanted) - difference).astype(np.float32)


def _place(rng, canvas, mask, texture, light, contrast):
    """Lay a textured piece on the canvas, in place, with a drop shadow and shaded edges.

    Args:
        canvas: (H, W, 3) float32, changed.
        mask: "L" image of the same size, 255 = piece.
        texture: (H, W, 3) float32.
        light: (x, y) unit vector from the light across the image.
    """
    margin, lift = 12, rng.uniform(1, 4)  # pixels; blur and shadow stay within the margin
    left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)  # a distractor may lie outside the image
    left, top = max(left - margin, 0), max(top - margin, 0)
    box = (left, top, min(right + margin, mask.width), min(bottom + margin, mask.height))
    mask, area = mask.crop(box), (slice(top, box[3]), slice(left, box[2]))
    piece, texture = canvas[area], texture[area]
    texture = texture + _contrast_shift(rng, texture, piece, mask, contrast)

    shadow = Image.new("L", mask.size)
    shadow.paste(mask, tuple(round(step * lift) for step in light))
    piece *= (1 - rng.uniform(0.15, 0.5) * _blur(shadow, lift * 0.6))[..., None]
    relief_y, relief_x = np.gradient(_blur(mask, 2.5))
    shade = 1 - rng.uniform(0.3, 1.4) * (relief_x * light[0] + relief_y * light[1])
    opacity = np.asarray(mask, np.float32) / 255
    piece += opacity[..., None] * (texture * shade[..., None] - piece)


def _distractor_mask(rng, size, sides):
    """Mask of one distractor of `sides` (smallest, largest) half length relative to the shorter image side."""
    center = rng.uniform(0, 1, 2) * size
    return _paint(_distractor(rng), size, _random_pose(rng, rng.uniform(*sides) * min(size), center))


def _object_mask(rng, size, class_name):
    """Mask of the class's shape: about 60 to 90 percent of the shorter side wide, near the centre."""
    outlines = SHAPES[class_name](rng)
    # Half way between equal width and equal area for all classes, so that neither tells the class.
    scale = rng.uniform(0.6, 0.9) / 2 * min(size) * (1.3 / _area(outlines)) ** 0.25
    center = np.array(size) / 2 + rng.uniform(-0.08, 0.08, 2) * min(size)
    return _paint(outlines, size, _random_pose(rng, scale, center))


def _illuminate(rng, canvas, light):
    """Brighten the side of the light and darken the other one, in place."""
    x, y = _coordinates(canvas.shape[:2])
    canvas *= (1 - rng.uniform(0, 0.3) * ((x - 0.5) * light[0] + (y - 0.5) * light[1]))[..., None]


def draw_image(seed, split, class_name, index, size_range=DEFAULT_SIZE_RANGE):
    """Draw one image; a pure function of its arguments (for one version of numpy and Pillow).

    Args:
        seed: int >= 0.
        split: "train" or "val".
        class_name: one of CLASSES.
        index: number of the image in its class, >= 0.
        size_range: (smallest, largest) side in pixels, both included; width and height are drawn independently.
    Returns: RGB PIL image.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), CLASSES.index(class_name), index])
    size = tuple(rng.integers(size_range[0], size_range[1] + 1, 2).tolist())
    shape = size[::-1]
    turn = rng.uniform(0, 2 * math.pi)
    light = (math.cos(turn), math.sin(turn))

    canvas, surface, litter = (_texture(rng, shape, deviation) for deviation in (0.06, 0.05, 0.05))
    for _ in range(rng.integers(0, 3)):
        tint = rng.normal(0, 0.12, 3).astype(np.float32)
        _place(rng, canvas, _distractor_mask(rng, size, (0.06, 0.2)), litter + tint, light, DISTRACTOR_CONTRAST)
    mask = _object_mask(rng, size, class_name)
    _place(rng, canvas, mask, surface, light, OBJECT_CONTRAST)
    covered = np.asarray(mask, np.float32) / 255
    for _ in range(rng.integers(0, 2)):
        front, tint = _distractor_mask(rng, size, (0.05, 0.14)), rng.normal(0, 0.12, 3).astype(np.float32)
        if (covered * np.asarray(front, np.float32)).sum() / 255 < 0.15 * covered.sum():
            # Hiding more could remove what tells the class.
            _place(rng, canvas, front, litter + tint, light, DISTRACTOR_CONTRAST)
    _illuminate(rng, canvas, light)
    canvas += rng.uniform(0, 0.03) * rng.standard_normal(canvas.shape, dtype=np.float32)
    image = Image.fromarray((canvas * 255).clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.9)))


# ---------------------------------------------------------------------------------------------------------------
# Folders.


def _check_arguments(num_train_per_class, num_val_per_class, seed, size_range):
    for name, value, smallest in (
        ("num_train_per_class", num_train_per_class, 1),
        ("num_val_per_class", num_val_per_class, 1),
        ("seed", seed, 0),
    ):
        if not isinstance(value, int) or value < smallest:
            raise ValueError(f"{name}={value!r}: expected a whole number >= {smallest}. Correct {name}.")
    sides = tuple(size_range)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides) or not 32 <= sides[0] <= sides[1]:
        raise ValueError(
            f"size_range={size_range!r}: expected two whole numbers of pixels, 32 <= smallest <= largest. "
            f"Use for example size_range={DEFAULT_SIZE_RANGE}."
        )


def _already_made(root, manifest):
    """True if `root` holds the finished data of `manifest`, False if it is free; anything else is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    advice = "Delete it, or choose another folder."
    path = root / MANIFEST
    if not path.is_file():
        raise ValueError(f"{root} exists but is no demo data (a finished folder has a {MANIFEST}). {advice}")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}). {advice}") from error
    if found != manifest:
        found = found if isinstance(found, dict) else {}
        changes = [f"{k}={found.get(k)!r} instead of {v!r}" for k, v in manifest.items() if found.get(k) != v]
        raise ValueError(f"{root} holds other demo data: {', '.join(changes) or 'unknown entries'}. {advice}")
    return True


def _write_share(folder, manifest, worker, num_workers):
    """Draw and save every `num_workers`-th image, beginning with number `worker`."""
    counts = {"train": manifest["num_train_per_class"], "val": manifest["num_val_per_class"]}
    jobs = [(split, name, index) for split in SPLITS for name in CLASSES for index in range(counts[split])]
    for split, name, index in jobs[worker::num_workers]:
        image = draw_image(manifest["seed"], split, name, index, manifest["size_range"])
        image.save(Path(folder, split, name, f"{name}_{index:06d}.jpg"), quality=JPEG_QUALITY)


# A worker is a fresh interpreter that loads this file alone. multiprocessing would import the calling script and
# the whole `data` package, hence torch, once per worker, and would need a guarded `__main__` in every caller.
WORKER = (
    "import importlib.util as util, json, sys; spec = util.spec_from_file_location('demo', sys.argv[1]); "
    "demo = util.module_from_spec(spec); spec.loader.exec_module(demo); demo._write_share(*json.loads(sys.argv[2]))"
)


def _write_images(folder, manifest, num_workers):
    for split in SPLITS:
        for class_name in CLASSES:
            (folder / split / class_name).mkdir(parents=True)
    if num_workers is None:
        num_images = len(CLASSES) * (manifest["num_train_per_class"] + manifest["num_val_per_class"])
        num_workers = min(os.cpu_count() or 1, 1 + num_images // IMAGES_PER_WORKER)
    if num_workers <= 1:
        _write_share(folder, manifest, 0, 1)
        return
    script = str(Path(__file__).resolve())
    shares = [json.dumps([str(folder), manifest, worker, num_workers]) for worker in range(num_workers)]
    workers = []
    try:
        for share in shares:  # cwd: with -c it heads sys.path, and the new folder holds nothing to import
            workers.append(subprocess.Popen([sys.executable, "-c", WORKER, script, share], cwd=folder))
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()  # no effect on a finished one
            worker.wait()
    if any(codes):
        raise RuntimeError(f"Drawing the demo data failed in a worker (exit codes {codes}); its message is above.")


def make_demo_data(
    root, num_train_per_class, num_val_per_class, seed=0, size_range=DEFAULT_SIZE_RANGE, num_workers=None
):
    """Write the demo data set once; a finished folder with the same parameters is left as it is.

    Images are drawn in a temporary folder next to `root`, which is renamed as its last step: an interrupted run
    leaves no half-filled `root`, and of two runs at the same time one wins and both return.
    Image `index` of a class does not depend on the counts: a smaller set is the beginning of a larger one.

    Args:
        root: folder to create; gets train/<class>/*.jpg, val/<class>/*.jpg and demo.json.
        num_train_per_class, num_val_per_class: images per class, >= 1.
        seed: int >= 0.
        size_range: (smallest, largest) image side in pixels, both included.
        num_workers: drawing processes, 0 or 1 draws in this one; None: one per CPU core, fewer for small sets.
    Returns: absolute Path of the folder.
    Raises: ValueError for impossible arguments, or if `root` holds anything but the same data.
    """
    _check_arguments(num_train_per_class, num_val_per_class, seed, size_range)
    root = Path(root).expanduser().resolve()
    manifest = {
        "drawing_version": DRAWING_VERSION,
        "num_train_per_class": num_train_per_class,
        "num_val_per_class": num_val_per_class,
        "seed": seed,
        "size_range": list(size_range),
        "classes": list(CLASSES),
    }
    if _already_made(root, manifest):
        return root
    partial = root.with_name(f".{root.name}.{uuid.uuid4().hex[:12]}.partial")
    partial.mkdir(parents=True)
    try:
        _write_images(partial, manifest, num_workers)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        try:
            os.replace(partial, root)
        except OSError:
            if not _already_made(root, manifest):  # another process may have finished first: its data is the same
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def default_root():
    """Where demo data goes unless told otherwise: the user's cache folder. Returns: Path."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simmim-pytorch" / "demo"


def demo_data(num_train_per_class=1000, num_val_per_class=200, seed=0, root=None):
    """The demo data set with these parameters, drawn at the first call; sets live side by side under `root`.

    Args:
        root: parent folder of all sets; None: `default_root()`.
    Returns: absolute Path of the folder with train/ and val/.
    """
    name = f"v{DRAWING_VERSION}_train{num_train_per_class}_val{num_val_per_class}_seed{seed}"
    return make_demo_data(Path(root or default_root()) / name, num_train_per_class, num_val_per_class, seed)
