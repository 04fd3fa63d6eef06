"""From what users call an image to what a model sees."""
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from config import encoder_config
from data.channels import array_image, picture_image
from data.pixels import DEFAULT, PIL_MODES, in_mode
from data.reading import BadImage, read_image
from data.transforms import mode_of, rules_of
from utils.names import shown

KINDS = ("a path, a PIL image, the bytes of a file, a uint8 array (H, W, 3) in RGB order, a uint8 tensor (3, H, W), or a "
         "normalised float tensor (C, H, W)")


def as_list(images, folders=False):
    """One image or several.

    Args:
        images: an image, see `picture_of` and `Preparation`; a list or tuple of them; or a 4-d array or tensor.
        folders: whether paths may be those of folders.
    Returns: (list of images, whether it was a single one).
    Raises: ValueError if there is none; and of paths as `picture_of`, so that a misspelt one is said before hours of work.
    """
    several = isinstance(images, (list, tuple)) or (isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4)
    found = list(images) if several else [images]
    if not found:
        raise ValueError("no images were given: the list is empty.")
    for image in found:
        if isinstance(image, (str, Path)) and not (folders and Path(image).is_dir()):
            _check_path(image)
    return found, not several


class Preparation:
    """Images of any kind, read when their batch is due.

    Args:
        config: from load_config; its channels say how files are read.
        transform: PIL image -> (C, H, W) float, normalised.
    """

    def __init__(self, config, transform):
        self.config = config
        self.transform = transform

    def __call__(self, image, name="the image"):
        """(C, H, W) float32. A float tensor counts as normalised and goes to the model as it is; all else is transformed."""
        if isinstance(image, torch.Tensor) and image.is_floating_point():
            channels = encoder_config(self.config).IN_CHANS
            if image.ndim != 3 or image.shape[0] != channels:
                raise ValueError(f"{name} is a float tensor of shape {tuple(image.shape)}, expected ({channels}, H, W), "
                                 f"normalised.")
            return image.detach().float().cpu()
        return self.transform(picture_of(image, mode_of(self.config), name, rules_of(self.config)))

    def batches(self, images, batch_size):
        """Tensors (B, C, H, W), B up to `batch_size`.

        Raises: ValueError if tensors differ in size.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        shape = None
        for start in range(0, len(images), batch_size):
            batch = [self(image, f"image {start + i}") for i, image in enumerate(images[start:start + batch_size])]
            shape = shape or batch[0].shape
            other = next((i for i, tensor in enumerate(batch) if tensor.shape != shape), None)
            if other is not None:
                raise ValueError(f"image {start + other} has shape {tuple(batch[other].shape)}, those before it have "
                                 f"{tuple(shape)}: tensors of one call must be equal in size. Pass them one by one, or "
                                 f"pictures, which are brought to DATA.IMG_SIZE.")
            yield torch.stack(batch)


def picture_of(image, mode, name="the image", rules=DEFAULT):
    """An image in a mode: of PIL, or a tensor (C, H, W) of more channels than PIL has.

    Args:
        image: one of KINDS, but no float tensor. Arrays may also be (H, W) or have 1 or 4 channels, or as many as the mode;
            these may also be uint16, or floats from 0 to 1.
        mode: PIL mode, or a number of channels.
        name: what errors call an image that has no path.
        rules: what else a config says of files and pictures.
    Raises: FileNotFoundError; ValueError on what can't be read or is no image.
    """
    if isinstance(image, (str, Path)):
        _check_path(image)
        return read_image(image, mode, rules=rules)
    if isinstance(image, (bytes, bytearray)):
        return read_image(BytesIO(image), mode, f"{name} ({len(image)} bytes)", rules)
    if isinstance(image, Image.Image):
        return _named(image, mode, name, rules)
    if isinstance(image, torch.Tensor):
        known = [mode] if isinstance(mode, int) else list(PIL_MODES)
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in known:
            raise ValueError(f"{name} is a tensor of {image.dtype} and shape {tuple(image.shape)}, expected uint8 (C, H, W) of "
                             f"pixels with {' or '.join(map(str, known))} channels, or float (C, H, W), normalised.")
        image = image.permute(1, 2, 0).cpu().numpy()
    if isinstance(image, np.ndarray) and isinstance(mode, int):
        return _named(image, mode, name, rules)
    if isinstance(image, np.ndarray):
        return in_mode(_from_array(image, name), mode, rules)
    raise ValueError(f"{name} is {type(image).__name__}, expected {KINDS}.")


def _named(picture, mode, name, rules):
    """A PIL image, which may be a file that is decoded only now, or an array, in a mode; errors name it."""
    if isinstance(picture, Image.Image) and not all(picture.size):
        raise ValueError(f"{name} is a PIL image of {picture.width} x {picture.height} pixels: there is nothing to see.")
    make = picture_image if isinstance(picture, Image.Image) else array_image
    try:
        return make(picture, mode, rules, name)
    except (ValueError, OSError, SyntaxError) as error:
        raise BadImage(f"{name} can't be read as an image ({error}).", str(error)) from error


def _check_path(path):
    if "://" in str(path):
        raise ValueError(f"{path} is an address, and images are not downloaded: pass a path, or the bytes of the file.")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected an image file.")
    if not path.exists():
        raise FileNotFoundError(f"image {shown(path)} does not exist.")


def _from_array(pixels, name):
    if pixels.dtype != np.uint8:
        raise ValueError(f"{name} is an array of {pixels.dtype}, expected uint8, 0 to 255. Scale it, e.g. "
                         f"(image * 255).round().astype('uint8') of values in [0, 1].")
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.ndim not in (2, 3) or channels not in PIL_MODES or not pixels.size:
        raise ValueError(f"{name} has shape {pixels.shape}, expected (H, W) or (H, W, C) with 1, 3 (RGB) or 4 (RGBA) channels.")
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1) if pixels.ndim == 3 and channels == 1 else pixels))
