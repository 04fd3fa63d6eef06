"""JPEG files like photographs, drawn: noise whose power falls with the frequency, and discs of texture with sharp edges."""
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

FALL, FINE = 1.25, 1.0  # exponents of the spectra: of scenes, of textures
QUALITIES = range(70, 100, 3)


def photographs(folder, count, size, kilobytes=None, quality=85, seed=0):
    """Write files and return their paths (text).

    Args:
        size: (width, height).
        kilobytes: the lowest quality with which a file is so large; None = `quality` says it.
    """
    rng, paths = np.random.RandomState(seed), []
    for i in range(count):
        picture = photograph(rng, *size)
        for tried in QUALITIES if kilobytes else [quality]:
            out = io.BytesIO()
            picture.save(out, "JPEG", quality=tried)
            if kilobytes and out.tell() >= 1000 * kilobytes:
                break
        paths.append(str(Path(folder) / f"{i:04d}.jpg"))
        Path(paths[-1]).write_bytes(out.getvalue())
    return paths


def photograph(rng, width, height):
    """A PIL image."""
    light, red, blue = (field(rng, height, width, FALL + colour) for colour in (0.0, 0.35, 0.35))
    pixels = 45 * np.stack([light + red / 2, light - red / 5 + blue / 5, light - blue / 2], axis=2) + rng.uniform(90, 150)
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    for _ in range(8):
        side = rng.randint(height // 20, height // 4)
        texture = 25 * field(rng, side, side, FINE)[..., None] + rng.uniform(30, 220, 3)
        disc = Image.new("L", (side, side))
        ImageDraw.Draw(disc).ellipse((0, 0, side - 1, side - 1), fill=255)
        place = rng.randint(0, width) - side // 2, rng.randint(0, height) - side // 2
        picture.paste(Image.fromarray(texture.clip(0, 255).astype(np.uint8)), place, disc)
    return picture


def field(rng, height, width, fall):
    """Noise (height, width) of mean 0 and deviation 1 whose amplitude is the frequency to the power of -fall."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    frequency = np.hypot(rows, columns) * max(height, width)
    frequency[0, 0] = 1
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency ** fall, s=(height, width))
    return (noise - noise.mean()) / noise.std()
