"""Encoders to choose from: how large, for how many images, and at which learning rates.

Swin-B and ViT-B have the rates of SimMIM's recipes, the smallest ones those of configs/demo, tried there; what lies between
is our choice. A rate is of a step of `batch` images and falls with the root of a smaller batch.
"""
from dataclasses import dataclass

SIDES = (32, 64, 96, 128, 192, 224)  # of images, pixels
ENLARGED = 1.3  # images may be this much larger than they are stored
WINDOWS = (7, 6, 8, 5, 4)  # of Swin, tokens; the first that fits


@dataclass(frozen=True)
class Size:
    """An encoder of some size.

    Attributes:
        name: e.g. tiny.
        settings: {name: value} in the section of the encoder.
        largest: side of its images at most, pixels.
        images: fewer can't teach it more than a smaller one.
        seen: images that it must see in training, each as often as it comes, to be worth its time.
        work: multiply-adds of an image of 224 pixels in 16-pixel patches (ViT) or of 4-pixel ones (Swin), in 10^9.
        rate, batch: peak learning rate of pre-training, and the images of a step that it is for.
        tuning_rate, tuning_batch, layer_decay: of fine-tuning.
    """
    name: str
    settings: dict
    largest: int
    images: int
    seen: int
    work: float
    rate: float
    batch: int
    tuning_rate: float
    tuning_batch: int
    layer_decay: float

    @property
    def width(self):
        return self.settings["EMBED_DIM"]


def _swin(width, depths, heads):
    return {"EMBED_DIM": width, "DEPTHS": depths, "NUM_HEADS": heads}


def _vit(width, depth, heads, layer_scale):
    return {"EMBED_DIM": width, "DEPTH": depth, "NUM_HEADS": heads, "INIT_VALUES": layer_scale}


SWINS = (
    Size("nano", _swin(32, [2, 4, 2], [1, 2, 4]), 64, 0, 0, 0.5, 6e-3, 32, 1e-3, 32, 1.0),
    Size("micro", _swin(48, [2, 6, 2], [2, 4, 8]), 96, 500, 10 ** 5, 1.2, 4e-3, 64, 1e-3, 64, 0.9),
    Size("mini", _swin(64, [2, 2, 6, 2], [2, 4, 8, 16]), 128, 2000, 4 * 10 ** 5, 2.0, 2e-3, 128, 1e-3, 128, 0.9),
    Size("tiny", _swin(96, [2, 2, 6, 2], [3, 6, 12, 24]), 192, 4000, 2 * 10 ** 6, 4.5, 1e-3, 512, 1.5e-3, 512, 0.85),
    Size("base", _swin(128, [2, 2, 18, 2], [4, 8, 16, 32]), 192, 800_000, 5 * 10 ** 7, 15.4, 8e-4, 2048, 5e-3, 2048, 0.9))
VITS = (
    Size("nano", _vit(96, 4, 6, None), 64, 0, 0, 0.1, 4e-3, 32, 1e-3, 32, 1.0),
    Size("micro", _vit(192, 6, 6, None), 96, 500, 10 ** 5, 0.6, 2e-3, 64, 1e-3, 64, 0.9),
    Size("tiny", _vit(192, 12, 3, 0.1), 128, 2000, 4 * 10 ** 5, 1.3, 1.5e-3, 128, 1e-3, 128, 0.8),
    Size("small", _vit(384, 12, 6, 0.1), 224, 4000, 2 * 10 ** 6, 4.6, 8e-4, 512, 1.5e-3, 512, 0.75),
    Size("base", _vit(768, 12, 12, 0.1), 224, 800_000, 5 * 10 ** 7, 17.6, 4e-4, 2048, 5e-3, 2048, 0.65))
FAMILIES = {"swin": SWINS, "swinv2": SWINS, "vit": VITS}  # of MODEL.TYPE, from small to large


@dataclass(frozen=True)
class Encoder:
    """An encoder for images of a side.

    Attributes:
        family: MODEL.TYPE.
        size: Size.
        side: of the images, pixels.
    """
    family: str
    size: Size
    side: int

    @property
    def name(self):
        """e.g. swin nano."""
        return f"{self.family} {self.size.name}"

    @property
    def patch(self):
        if self.family == "vit":
            return 4 if self.side < 48 else 8 if self.side <= 128 else 16
        return 2 if self.side < 48 else 4

    @property
    def work(self):
        """Multiply-adds of an image, roughly, in 10^9."""
        tokens = (self.side / self.patch) ** 2
        return self.size.work * tokens / (196 if self.family == "vit" else 56 ** 2)

    @property
    def settings(self):
        """{key: value} of the encoder."""
        found = {"PATCH_SIZE": self.patch, **self.size.settings}
        if self.family != "vit":
            found["WINDOW_SIZE"] = self._window()
        section = f"MODEL.{self.family.upper()}."
        return {"MODEL.TYPE": self.family, **{section + name: value for name, value in found.items()}}

    def _window(self):
        maps = [self.side / self.patch / 2 ** stage for stage in range(len(self.size.settings["DEPTHS"]))]
        return next((w for w in WINDOWS if all(side <= w or side % w == 0 for side in maps)), WINDOWS[0])


def encoders(family, short_side, side=None):
    """Encoders of a family for images of a median short side, from small to large.

    Args:
        family: in FAMILIES.
        side: of the images that it takes, pixels, where that is fixed.
    """
    def fitting(size):
        return max((s for s in SIDES if s <= min(size.largest, ENLARGED * short_side)), default=SIDES[0])
    return [Encoder(family, size, side or fitting(size)) for size in FAMILIES[family]]


def size_of(family, width):
    """The Size of an encoder of a width that may be none of ours: the one whose width is nearest."""
    return min(FAMILIES.get(family, VITS), key=lambda size: abs(size.width - width))
