"""From an image to a normalised tensor; the official pre-training and fine-tuning pipelines."""
import math
from functools import partial

import torch
from PIL import ImageColor, ImageOps
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import crop, get_image_size, resize

from config import encoder_config, image_size, pixel_statistics
from data.pixels import PIL_MODES, Rules

SRC_PADDING = 4  # pixels
THINNEST = 32  # long side over short side that is still resized as a whole


def mode_of(config):
    """What images are read as, by the encoder's channels: the PIL mode, or where PIL has none their number (data/channels)."""
    channels = encoder_config(config).IN_CHANS
    return PIL_MODES.get(channels, channels)


class Shares:
    """Tensors whose values resizing brought out of [0, 1], cut to it, as pictures are."""

    def __call__(self, image):
        return image.clamp(0, 1)

    def __repr__(self):
        return "Shares()"


def _as_tensor(config):
    """From what is read to a float tensor in [0, 1]."""
    return Shares() if isinstance(mode_of(config), int) else transforms.ToTensor()


def _interpolation(config, key, name):
    """DATA.INTERPOLATION or DATA.CROP_INTERPOLATION. Raises ValueError where it is for pictures alone and images are none."""
    if name == "lanczos" and isinstance(mode_of(config), int):
        raise ValueError(f"DATA.{key}=lanczos is for pictures, and images of MODEL.{config.MODEL.TYPE.upper()}.IN_CHANS="
                         f"{mode_of(config)} are none. Use --opts DATA.{key} bicubic.")
    return InterpolationMode(name)


def rules_of(config):
    """data.pixels.Rules of a config."""
    data = config.DATA
    if data.BACKGROUND == "mean":
        means = [round(255 * mean) for mean in pixel_statistics(config)[0]]
        colour = tuple(means[:3] if len(means) >= 3 else means[:1] * 3)
    else:
        colour = ImageColor.getrgb(data.BACKGROUND)
    return Rules(data.MAX_PIXELS, colour, data.WHITE, data.EXIF)


def pretrain_transform(config):
    """The crop of DATA.CROP, horizontal flip, normalise.

    Source: `rrc` with areas of 0.67 to 1, bilinear: official SimMIM; 0.2 to 1, bicubic: MAE. `src`: simple_resized_crop.
    """
    mean, std = pixel_statistics(config)
    size, interpolation = image_size(config), _interpolation(config, "CROP_INTERPOLATION", config.DATA.CROP_INTERPOLATION)
    if config.DATA.CROP == "src":
        if min(size) <= SRC_PADDING:
            raise ValueError(f"DATA.IMG_SIZE={config.DATA.IMG_SIZE} is too small for DATA.CROP=src, which reflects "
                             f"{SRC_PADDING} pixels at each border. Use --opts DATA.CROP rrc, or larger images.")
        cropped = simple_resized_crop(size, interpolation)
    else:
        cropped = transforms.RandomResizedCrop(size, scale=tuple(config.DATA.CROP_SCALE), ratio=(3.0 / 4.0, 4.0 / 3.0),
                                               interpolation=interpolation)
    return transforms.Compose([
        cropped, transforms.RandomHorizontalFlip(), _as_tensor(config), transforms.Normalize(mean, std)])


def simple_resized_crop(size, interpolation=InterpolationMode.BILINEAR):
    """Resize to just cover (height, width), pad 4 pixels by reflection, crop at random: objects stay whole.

    Source: PixMIM (arXiv 2303.02416), section 3.3.
    """
    return transforms.Compose([transforms.Lambda(partial(_cover, size=size, interpolation=interpolation)),
                               transforms.Pad(SRC_PADDING, padding_mode="reflect"), transforms.RandomCrop(size)])


def _not_too_thin(picture):
    """The middle of a picture that is longer than THINNEST of its short sides, which would grow to gigabytes in resizing."""
    width, height = get_image_size(picture)
    longest = THINNEST * min(width, height)
    if max(width, height) <= longest:
        return picture
    left, top = max(width - longest, 0) // 2, max(height - longest, 0) // 2
    return crop(picture, top, left, min(height, longest), min(width, longest))


class ShortSide(transforms.Resize):
    """Resize to a short side, for a crop of the middle."""

    def forward(self, img):
        return super().forward(_not_too_thin(img))


def _cover(picture, size, interpolation):
    """The picture resized so that its short side fits; the long one is rounded down."""
    picture = _not_too_thin(picture)
    (height, width), (own_width, own_height) = size, get_image_size(picture)
    if own_height * width >= own_width * height:
        height = max(height, int(width * own_height / own_width))
    else:
        width = max(width, int(height * own_width / own_height))
    return resize(picture, [height, width], interpolation)


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
    _allow_zero_bits(transform)
    if arrays:
        transform.transforms = [Shares() if type(step).__name__.endswith("ToTensor") else step for step in transform.transforms]
    if max(size) <= 32:
        transform.transforms[0] = transforms.Compose([
            transforms.Resize(size, interpolation=_interpolation(config, "INTERPOLATION", config.DATA.INTERPOLATION)),
            transforms.RandomCrop(size, padding=4)])
    return transform


def _timm_transform(config, policy, mean, std):
    from timm.data import create_transform  # slow to import, and evaluation does not need it

    size, aug = image_size(config), config.AUG
    return create_transform(
        input_size=size, is_training=True, scale=tuple(aug.CROP_SCALE), color_jitter=aug.COLOR_JITTER or None,
        auto_augment=policy, re_prob=aug.REPROB, re_mode=aug.REMODE, re_count=aug.RECOUNT,
        interpolation=config.DATA.INTERPOLATION, mean=mean, std=std)


def _allow_zero_bits(transform):
    """Let timm's strongest posterize (0 bits) make a black image, as it did before Pillow 13 refused it."""
    for step in transform.transforms:
        policies = getattr(step, "policy", [])  # AutoAugment has lists of operations, RandAugment one list
        for operation in [*getattr(step, "ops", []), *(op for policy in policies for op in policy)]:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize


def _posterize(picture, bits, **_):
    if bits >= 8:
        return picture
    return ImageOps.posterize(picture, bits) if bits > 0 else picture.point([0] * 256 * len(picture.getbands()))


class SingleDrawCrop(transforms.RandomResizedCrop):
    """Random crop of an area and a shape that are drawn once; a side that does not fit becomes that of the image.

    torchvision draws again instead, up to ten times, and then falls back to the middle.
    Source: official MAE, util/crop.py, used by its linear probe.
    """

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
    """A crop drawn once, horizontal flip, normalise: all the augmentation of MAE's linear probe."""
    mean, std = pixel_statistics(config)
    cropped = SingleDrawCrop(image_size(config), scale=tuple(config.AUG.CROP_SCALE), ratio=(3.0 / 4.0, 4.0 / 3.0),
                             interpolation=_interpolation(config, "INTERPOLATION", config.DATA.INTERPOLATION))
    return transforms.Compose([
        cropped, transforms.RandomHorizontalFlip(), _as_tensor(config), transforms.Normalize(mean, std)])


def eval_transform(config):
    """Resize so that the size is TEST.CROP_RATIO of the short side, and crop the centre; without TEST.CROP resize only."""
    mean, std = pixel_statistics(config)
    size, interpolation = image_size(config), _interpolation(config, "INTERPOLATION", config.DATA.INTERPOLATION)
    if config.TEST.CROP and max(size) > 32:
        larger = tuple(int(side / config.TEST.CROP_RATIO) for side in size)
        shape = [ShortSide(larger[0] if size[0] == size[1] else larger, interpolation=interpolation),
                 transforms.CenterCrop(size)]
    else:
        shape = [transforms.Resize(size, interpolation=interpolation)]
    return transforms.Compose([*shape, _as_tensor(config), transforms.Normalize(mean, std)])


def heldout_transform(config):
    """As `eval_transform`, for the held-out reconstruction loss: always crops, with pre-training's bilinear resizing."""
    mean, std = pixel_statistics(config)
    size = image_size(config)
    return transforms.Compose([
        ShortSide(max(size)), transforms.CenterCrop(size), _as_tensor(config), transforms.Normalize(mean, std)])
