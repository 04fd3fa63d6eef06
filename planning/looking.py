"""Facts about the images of a folder. The folder is read and never written."""
import math
import os
import statistics
import time
from functools import partial

import numpy as np
from PIL import Image

from data.bad_images import named
from data.examining import answers
from data.folders import folders_with_images, image_files, images_below, listing
from data.listings import cache_folder
from data.pixels import PIL_MODES, is_deep
from data.reading import BadImage, read_image, without_limit
from data.splits import find_splits, pretraining_folder
from planning.facts import Images
from utils.names import shown

MOST = 1000  # images that are looked at, evenly spread
TIMEOUT = 60.0  # seconds for one of them
SAMPLE = 32  # side of what is looked at of an image's colours, pixels
GREY = 8  # difference of colours, of 255, below which they are none
VISIBLE = 128  # alpha from which a pixel is seen, of 255
ORIENTATION, UPRIGHT = 0x0112, (None, 0, 1)  # of EXIF


def look(folder, num_workers, channels=None):
    """Look at the images of a folder.

    Args:
        folder: as --data-path.
        num_workers: processes that look.
        channels: of images that are no pictures, where their files do not tell (pages of a TIFF); None = as the files say.
    Returns: planning.facts.Images.
    Raises: ValueError or FileNotFoundError where there is nothing to train on.
    """
    mode = PIL_MODES.get(channels, channels) or "RGB"
    with listing(mode, folder, cache=cache_folder("auto")):
        paths = image_files(pretraining_folder(folder))
        facts = _of_labels(folder)
    number = min(len(paths), MOST)
    chosen = [os.path.abspath(paths[i * len(paths) // number]) for i in range(number)]
    found, bad = [], {}
    for path, answer in answers(chosen, partial(glance, channels=channels), num_workers, TIMEOUT):
        if isinstance(answer, OSError):
            raise answer
        if isinstance(answer, str):
            bad[path] = answer
        else:
            found.append(answer)
    if len(bad) > number / 2:
        raise ValueError(f"{len(bad)} of {number} images of {shown(folder)} can't be read: {named(bad)}. Check --data-path; "
                         f"tools/check_data.py names all of them.")
    return Images(number=len(paths), looked_at=number, bad=len(bad) / number, **facts, **summary(found))


def _of_labels(folder):
    """Facts about classes: of the training split, or the folder itself."""
    try:
        splits = find_splits(folder)
    except ValueError:  # what may be a split or a class: fine-tuning says which
        return {}
    if splits and not splits.train:
        return {}
    root = splits.train or splits.root
    classes = folders_with_images(root)
    if len(classes) < 2:
        return {}
    has_validation = bool(splits.val)
    number = sum(sum(1 for _ in images_below(os.path.join(root, name))) for name in classes)
    return {"classes": len(classes), "has_validation": has_validation,
            "labelled": number if has_validation else number - max(round(number / 10), len(classes))}


def glance(path, channels=None):
    """What one file is: a dict of facts; or as text why it can't be read, or the OSError that this machine is at its end."""
    begin = time.perf_counter()
    try:
        if channels not in (None, *PIL_MODES):
            image, stored = read_image(path, channels), {}
        elif path.lower().endswith(".npy"):
            image, stored = read_image(path, None), {}
        else:
            image, stored = read_image(path, "RGBA"), _header(path)
    except BadImage as error:
        return error.reason
    except OSError as error:
        return error
    facts = {"seconds": time.perf_counter() - begin, "turned": False, "peak": 0, "transparent": False, "light": None,
             "moments": None, **stored}
    if isinstance(image, Image.Image):
        return facts | {"side": min(image.size)} | _colours(image)
    values = image.flatten(1)
    return facts | {"side": min(image.shape[1:]), "channels": len(image),
                    "moments": (values.mean(dim=1).tolist(), values.square().mean(dim=1).tolist())}


def _header(path):
    """Facts that stand in a file beside its pixels, and the largest value of 16 bits."""
    with without_limit(), Image.open(path) as picture:
        deep = is_deep(picture) and picture.mode != "F"
        return {"turned": picture.getexif().get(ORIENTATION) not in UPRIGHT,
                "peak": int(np.asarray(picture).max()) if deep else 0}


def _colours(image):
    """Facts about what is seen of a picture."""
    sample = np.asarray(image.convert("RGBA").resize((SAMPLE, SAMPLE), Image.Resampling.NEAREST), dtype=np.float32)
    colours, seen = sample[..., :3], sample[..., 3] >= VISIBLE
    coloured = bool((np.ptp(colours, axis=-1)[seen] > GREY).any())
    transparent = not seen.all()
    return {"channels": 3 if coloured else 1, "transparent": bool(transparent),
            "light": float(colours[seen].mean()) / 255 if transparent and seen.any() else None}


def summary(found):
    """Facts about all images from those of each: {name: value} of planning.facts.Images."""
    channels = max(statistics.multimode([each["channels"] for each in found]))
    if channels == 1 and any(each["channels"] == 3 for each in found):
        channels = 3  # one image in colours is enough
    light = [each["light"] for each in found if each["light"] is not None]
    moments = [each["moments"] for each in found if each["moments"] and each["channels"] == channels]
    return {"short_side": int(statistics.median(each["side"] for each in found)), "channels": channels,
            "transparent": _share(found, "transparent"), "light": statistics.fmean(light) if light else 0.5,
            "turned": _share(found, "turned"), "peak": max(each["peak"] for each in found),
            "read_seconds": statistics.fmean(each["seconds"] for each in found),
            "moments": _moments(moments) if channels not in PIL_MODES else ()}


def _share(found, name):
    return sum(each[name] for each in found) / len(found)


def _moments(each):
    """(means, standard deviations) of channels, from mean and mean square of each image."""
    means, squares = (np.mean(column, axis=0) for column in zip(*each, strict=True))
    spread = [max(math.sqrt(max(square - mean ** 2, 0)), 0.01) for mean, square in zip(means, squares, strict=True)]
    return [float(mean) for mean in means], spread
