"""From an image to what a model sees; the official pre-training and fine-tuning pipelines."""
import math
import random
from dataclasses import replace

import torch
from PIL import Image, ImageColor, ImageOps
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import crop, get_image_size, hflip, pil_to_tensor

from config import encoder_config, image_size, pixel_statistics
from data.batches import Erased, Normalisation
from data.decoding import View, available
from data.pixels import PIL_MODES, Rules
from utils.seeding import seeded_globals, seeded_torch

SRC_PADDING = 4  # pixels
RATIO = (3.0 / 4.0, 4.0 / 3.0)  # width over height of random crops
THINNEST = 32  # long side over short side that is still resized as a whole


def mode_of(config):
    """What images are read as, by the encoder's channels: the PIL mode, or where PIL has none their number (data/channels)."""
    channels = encoder_config(config).IN_CHANS
    return PIL_MODES.get(channels, channels)


class Pipeline(transforms.Compose):
    """Steps from a picture to pixels (C, H, W), and their normalisation, which batches leave to the device.

    Where the first step shows a view that follows from the size of a picture, `view` says which, and `rest` does the others:
    so a file need not be decoded for more than that.

    Args:
        steps: functions of a PIL image or tensor; the last gives pixels as of Normalisation.
        statistics: (mean, std) per channel.
        seeded: what they draw from, utils.seeding.seeded_torch or seeded_globals; None = nothing.
    """

    def __init__(self, steps, statistics, seeded=None):
        super().__init__(steps)
        self.normalise = Normalisation(*statistics)
        self.seeded = seeded

    @property
    def shows_views(self):
        return hasattr(self.transforms[0], "view")

    def view(self, width, height):
        """data.decoding.View of a picture of a size; may draw."""
        return self.transforms[0].view(width, height)

    def rest(self, image):
        """What follows the view: pixels."""
        for step in self.transforms[1:]:
            image = step(image)
        return image

    def pixels(self, image):
        """All steps: (C, H, W) uint8, or floats from 0 to 1, or Erased."""
        return super().__call__(image)

    def __call__(self, image):
        """(C, H, W) float32, normalised."""
        return self.normalise(self.pixels(image))

    def __repr__(self):
        return f"{super().__repr__()}\n{self.normalise}"


class Bytes:
    """Pictures as uint8 tensors (C, H, W). Of float tensors, resizing may have brought values out of [0, 1]: they are cut."""

    def __call__(self, image):
        if not isinstance(image, torch.Tensor):
            return pil_to_tensor(image)
        return image.clamp(0, 1) if image.is_floating_point() else image

    def __repr__(self):
        return "Bytes()"


class Flip:
    """torchvision's random horizontal flip, with the same draws."""

    def __call__(self, image):
        return hflip(image) if torch.rand(1) < 0.5 else image

    def __repr__(self):
        return "Flip()"


class Picture:
    """uint8 tensors (C, H, W) as PIL images, for steps that know no others."""

    def __call__(self, image):
        if not isinstance(image, torch.Tensor) or image.is_floating_point():
            return image
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)

    def __repr__(self):
        return "Picture()"


def _interpolation(config, key, name):
    """DATA.INTERPOLATION or DATA.CROP_INTERPOLATION. Raises ValueError where it is for pictures alone and images are none."""
    if name == "lanczos" and isinstance(mode_of(config), int):
        raise ValueError(f"DATA.{key}=lanczos is for pictures, and images of MODEL.{config.MODEL.TYPE.upper()}.IN_CHANS="
                         f"{mode_of(config)} are none. Use --opts DATA.{key} bicubic.")
    return InterpolationMode(name)


def rules_of(config):
    """data.pixels.Rules of a config, for whatever is not trained on: Pillow decodes."""
    data = config.DATA
    if data.BACKGROUND == "mean":
        means = [round(255 * mean) for mean in pixel_statistics(config)[0]]
        colour = tuple(means[:3] if len(means) >= 3 else means[:1] * 3)
    else:
        colour = ImageColor.getrgb(data.BACKGROUND)
    return Rules(data.MAX_PIXELS, colour, data.WHITE, data.EXIF)


def training_rules_of(config):
    """data.pixels.Rules of training images: DATA.DECODER decodes."""
    return replace(rules_of(config), decoder=available(config.DATA.DECODER))


def pretrain_transform(config):
    """The crop of DATA.CROP, horizontal flip.

    Source: `rrc` with areas of 0.67 to 1, bilinear: official SimMIM; 0.2 to 1, bicubic: MAE. `src`: simple_resized_crop.
    """
    size, interpolation = image_size(config), _interpolation(config, "CROP_INTERPOLATION", config.DATA.CROP_INTERPOLATION)
    if config.DATA.CROP == "src":
        if min(size) <= SRC_PADDING:
            raise ValueError(f"DATA.IMG_SIZE={config.DATA.IMG_SIZE} is too small for DATA.CROP=src, which reflects "
                             f"{SRC_PADDING} pixels at each border. Use --opts DATA.CROP rrc, or larger images.")
        cropped = simple_resized_crop(size, interpolation).transforms
    else:
        cropped = [AreaCrop(size, tuple(config.DATA.CROP_SCALE), RATIO, interpolation)]
    return Pipeline([*cropped, Flip(), Bytes()], pixel_statistics(config), seeded_torch)


class AreaCrop(transforms.RandomResizedCrop):
    """torchvision's random crop of an area and a shape, with the same draws, known before there is a picture."""

    def view(self, width, height):
        """The View of a picture of a size, from torch's global generator."""
        return View(*self.box(width, height), tuple(self.size), self.interpolation)

    def box(self, width, height):
        """(top, left, height, width): up to ten draws, then the middle; in a quarter of torchvision's time."""
        number, low, high = torch.empty(1), *(math.log(side) for side in self.ratio)
        for _ in range(10):
            area = width * height * number.uniform_(*self.scale).item()
            ratio = number.uniform_(low, high).exp_().item()
            columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < columns <= width and 0 < rows <= height:
                top = torch.randint(0, height - rows + 1, (1,)).item()
                return top, torch.randint(0, width - columns + 1, (1,)).item(), rows, columns
        columns, rows = width, height
        if width < height * min(self.ratio):
            rows = round(width / min(self.ratio))
        elif width > height * max(self.ratio):
            columns = round(height * max(self.ratio))
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    def forward(self, img):
        return self.view(*get_image_size(img)).of(img)


def _of_size(width, height):
    """What torchvision and timm take for a picture of a size."""
    return torch.empty((1, height, width), dtype=torch.uint8, device="meta")


def simple_resized_crop(size, interpolation=InterpolationMode.BILINEAR):
    """Resize to just cover (height, width), pad 4 pixels by reflection, crop at random: objects stay whole.

    Source: PixMIM (arXiv 2303.02416), section 3.3.
    """
    return transforms.Compose([Cover(size, interpolation), transforms.Pad(SRC_PADDING, padding_mode="reflect"),
                               transforms.RandomCrop(size)])


def _not_too_thin(width, height):
    """(top, left, height, width) of the middle of a picture of more than THINNEST short sides, which would grow to gigabytes in
    resizing; all of others.
    """
    longest = THINNEST * min(width, height)
    return max(height - longest, 0) // 2, max(width - longest, 0) // 2, min(height, longest), min(width, longest)


class ShortSide(transforms.Resize):
    """Resize to a short side, for a crop of the middle."""

    def forward(self, img):
        return super().forward(crop(img, *_not_too_thin(*get_image_size(img))))


class Cover:
    """Resize so that the short side of a picture fits a size (height, width); the long one is rounded down."""

    def __init__(self, size, interpolation):
        self.size, self.interpolation = size, interpolation

    def view(self, width, height):
        """The View of a picture of a size: all of it."""
        (rows, columns), box = self.size, _not_too_thin(width, height)
        _, _, own_rows, own_columns = box
        if own_rows * columns >= own_columns * rows:
            rows = max(rows, int(columns * own_rows / own_columns))
        else:
            columns = max(columns, int(rows * own_columns / own_rows))
        return View(*box, (rows, columns), self.interpolation)

    def __call__(self, picture):
        return self.view(*get_image_size(picture)).of(picture)

    def __repr__(self):
        return f"Cover(size={self.size}, interpolation={self.interpolation.value})"


def finetune_transform(config):
    """timm's training pipeline. Images of at most 32 px are padded and cropped instead of resized, as official."""
    mean, std = pixel_statistics(config)
    size, aug = image_size(config), config.AUG
    _interpolation(config, "INTERPOLATION", config.DATA.INTERPOLATION)
    policy = None if aug.AUTO_AUGMENT is None or aug.AUTO_AUGMENT.lower() == "none" else aug.AUTO_AUGMENT
    arrays = isinstance(mode_of(config), int)
    if arrays and (policy or aug.COLOR_JITTER):
        raise ValueError(f"AUG.AUTO_AUGMENT={policy or 'none'} and AUG.COLOR_JITTER={aug.COLOR_JITTER:g} change the colours of "
                         f"pictures, and images of MODEL.{config.MODEL.TYPE.upper()}.IN_CHANS={len(mean)} have others. Use "
                         f"--opts AUG.AUTO_AUGMENT none AUG.COLOR_JITTER 0.")
    if policy and len(mean) > 3:
        raise ValueError(f"AUG.AUTO_AUGMENT={policy} works on grey and RGB images, not on the {len(mean)} channels of MODEL."
                         f"{config.MODEL.TYPE.upper()}.IN_CHANS. Use --opts AUG.AUTO_AUGMENT none.")
    try:
        transform = _timm_transform(config, policy, mean, std)
    except (AssertionError, ValueError, KeyError, TypeError) as error:  # how timm answers an unknown policy
        raise ValueError(f"AUG.AUTO_AUGMENT={policy!r} is no policy that timm knows, e.g. rand-m9-mstd0.5-inc1, original, "
                         f"augmix-m5-w4-d2; none switches it off.") from error
    steps = transform.transforms
    _allow_zero_bits(steps)
    steps[0] = _Viewed(steps[0])
    if max(size) <= 32:
        steps[0] = transforms.Compose([
            transforms.Resize(size, interpolation=_interpolation(config, "INTERPOLATION", config.DATA.INTERPOLATION)),
            transforms.RandomCrop(size, padding=4)])
    return Pipeline([step for found in steps for step in _of_bytes(found)], (mean, std), seeded_globals)


def _of_bytes(step):
    """What does the part of a step of timm's where batches are normalised later."""
    name = type(step).__name__
    if isinstance(step, _Viewed):
        return [step, Picture()]
    if name.endswith("ToTensor"):
        return [Bytes()]
    return {"Normalize": [], "RandomErasing": [Erasing(step)]}.get(name, [step])


class _Viewed:
    """timm's random crop, whose draws are known before there is a picture."""

    def __init__(self, step):
        self.step = step

    def view(self, width, height):
        """The View of a picture of a size, from the global generators."""
        step = self.step
        box = step.get_params(_of_size(width, height), step.scale, step.ratio)
        several = isinstance(step.interpolation, (tuple, list))
        return View(*box, tuple(step.size), random.choice(step.interpolation) if several else step.interpolation)

    def __call__(self, image):
        return self.view(*get_image_size(image)).of(image)

    def __repr__(self):
        return repr(self.step)


class Erasing:
    """timm's random erasing, written down instead of done: its values are those of normalised images.

    Args:
        step: timm's RandomErasing.
    """

    def __init__(self, step):
        self.step = step

    def __call__(self, image):
        """(C, H, W), or Erased where something is erased."""
        note = _Note(image)
        self.step(note)
        if not note.boxes:
            return image
        return Erased(image, torch.tensor(note.boxes), torch.cat(note.values))

    def __repr__(self):
        return f"Erasing({self.step})"


class _Note:
    """In the place of a float tensor (C, H, W): remembers what is written into its boxes."""

    dtype = torch.float32

    def __init__(self, image):
        self.shape, self.boxes, self.values = image.shape, [], []

    def size(self):
        return self.shape

    def __setitem__(self, place, values):
        _, rows, columns = place
        self.boxes.append([0, rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start, values.numel()])
        self.values.append(values.flatten())


def _timm_transform(config, policy, mean, std):
    from timm.data import create_transform  # slow to import, and evaluation does not need it

    size, aug = image_size(config), config.AUG
    return create_transform(
        input_size=size, is_training=True, scale=tuple(aug.CROP_SCALE), color_jitter=aug.COLOR_JITTER or None,
        auto_augment=policy, re_prob=aug.REPROB, re_mode=aug.REMODE, re_count=aug.RECOUNT,
        interpolation=config.DATA.INTERPOLATION, mean=mean, std=std)


def _allow_zero_bits(steps):
    """Let timm's strongest posterize (0 bits) make a black image, as it did before Pillow 13 refused it."""
    for step in steps:
        policies = getattr(step, "policy", [])  # AutoAugment has lists of operations, RandAugment one list
        for operation in [*getattr(step, "ops", []), *(op for policy in policies for op in policy)]:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize


def _posterize(picture, bits, **_):
    if bits >= 8:
        return picture
    return ImageOps.posterize(picture, bits) if bits > 0 else picture.point([0] * 256 * len(picture.getbands()))


class SingleDrawCrop(AreaCrop):
    """Random crop of an area and a shape that are drawn once; a side that does not fit becomes that of the image.

    torchvision draws again instead, up to ten times, and then falls back to the middle.
    Source: official MAE, util/crop.py, used by its linear probe.
    """

    def box(self, width, height):
        """(top, left, height, width), drawn once."""
        return self.get_params(_of_size(width, height), self.scale, self.ratio)

    @staticmethod
    def get_params(img, scale, ratio):
        """(top, left, height, width) of a crop of an image, from torch's global generator."""
        width, height = get_image_size(img)
        share = torch.empty(1).uniform_(*scale).item()
        log_ratio = torch.empty(1).uniform_(*torch.log(torch.tensor(ratio)).tolist())
        rows, columns = crop_size(height, width, share, log_ratio)
        top = torch.randint(0, height - rows + 1, (1,)).item()
        left = torch.randint(0, width - columns + 1, (1,)).item()
        return top, left, rows, columns


def crop_size(height, width, share, log_ratio):
    """(height, width) of a crop of `share` of an image's area whose width over height is exp(log_ratio), cut to the image.

    At least a pixel.
    """
    area, ratio = height * width * share, torch.exp(torch.as_tensor(log_ratio, dtype=torch.float32)).item()
    sides = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
    return tuple(min(max(side, 1), whole) for side, whole in zip(sides, (height, width), strict=True))


def probe_transform(config):
    """A crop drawn once, horizontal flip: all the augmentation of MAE's linear probe."""
    cropped = SingleDrawCrop(image_size(config), tuple(config.AUG.CROP_SCALE), RATIO,
                             _interpolation(config, "INTERPOLATION", config.DATA.INTERPOLATION))
    return Pipeline([cropped, Flip(), Bytes()], pixel_statistics(config), seeded_torch)


def eval_transform(config):
    """Resize so that the size is TEST.CROP_RATIO of the short side, and crop the centre; without TEST.CROP resize only."""
    size, interpolation = image_size(config), _interpolation(config, "INTERPOLATION", config.DATA.INTERPOLATION)
    if config.TEST.CROP and max(size) > 32:
        larger = tuple(int(side / config.TEST.CROP_RATIO) for side in size)
        shape = [ShortSide(larger[0] if size[0] == size[1] else larger, interpolation=interpolation),
                 transforms.CenterCrop(size)]
    else:
        shape = [transforms.Resize(size, interpolation=interpolation)]
    return Pipeline([*shape, Bytes()], pixel_statistics(config))


def heldout_transform(config):
    """As `eval_transform`, for the held-out reconstruction loss: always crops, with pre-training's bilinear resizing."""
    return Pipeline([*heldout_shape(config), Bytes()], pixel_statistics(config))


def heldout_shape(config):
    """The part of it in which a picture gets its size; for what lies on the picture, a mask say, as well."""
    size = image_size(config)
    return [ShortSide(max(size)), transforms.CenterCrop(size)]
