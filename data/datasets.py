"""Image files on disk as samples. Every random draw of a sample is a pure function of (seed, epoch, sample index)."""
import logging
import os
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from data.reading import DEFAULT, read_image, without_limit
from data.samples import Samples
from utils.seeding import AUGMENT, MASK, SUBSET, rng_for, seeded_globals

log = logging.getLogger("simmim.data")

DATA_FLAG = "--data-path"
VAL_FLAG = "DATA.VAL_PATH"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".avif", ".tif", ".tiff",
                  ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".gif", ".jp2", ".j2k", ".jpx", ".tga"}


class ImageDataset(Dataset):
    """Image files with labels, addressed by (epoch, index).

    Args:
        samples: [(path, label), ...]; labels are whole numbers, -1 = none.
        transform: PIL image -> tensor; may draw from the global generators.
        mode: PIL mode the files are read in.
        seed: the run's seed.
        rules: how files become pictures.
    """

    shares_masks = False

    def __init__(self, samples, transform, mode="RGB", seed=0, rules=DEFAULT):
        self.samples = Samples.of(samples)
        self.transform = transform
        self.mode = mode
        self.seed = seed
        self.rules = rules

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, key):
        return self.item(key, whole_key(key)[1])

    def item(self, key, source):
        """The sample of a key, with another image than its own.

        Args:
            source: position of the image, whose label it has; the draws are those of the key. None = a blank one.
        Raises: BadImage that names the file if it can't be read.
        """
        return self.image(key, source), 0 if source is None else self.samples[source][1]

    def image(self, key, source):
        """(C, H, W) float."""
        epoch, index, _ = whole_key(key)
        with without_limit():  # cropping looks at it, too
            if source is None:
                picture = Image.new(self.mode, (64, 64))
            else:
                picture = read_image(self.samples[source][0], self.mode, rules=self.rules)
            with seeded_globals(self.seed, AUGMENT, epoch, index):
                return self.transform(picture)

    def collate(self, samples):
        """A batch of items."""
        return default_collate(samples)


class MaskedImageDataset(ImageDataset):
    """Images with a mask for pre-training: items are (image, mask), mask (h, w) bool, True = hidden.

    Args:
        mask_generator: see data/masks.py.
        shared: all images of a batch get the mask of one of them, which their keys name: (epoch, index, that one).
    """

    def __init__(self, samples, transform, mask_generator, mode="RGB", seed=0, shared=False, rules=DEFAULT):
        super().__init__(samples, transform, mode, seed, rules)
        self.mask_generator = mask_generator
        self.shares_masks = shared

    def item(self, key, source):
        epoch, _, first = whole_key(key)
        mask = self.mask_generator(rng_for(self.seed, MASK, epoch, first))
        return self.image(key, source), torch.from_numpy(mask).bool()

    def collate(self, samples):
        """A batch of items; of those that name none to share it with, the first one has the mask of all."""
        if self.shares_masks:
            samples = [(image, samples[0][1]) for image, _ in samples]
        return super().collate(samples)


def whole_key(key):
    """(epoch, index, index of the image whose mask counts) of a key of a sampler, or of a plain index."""
    epoch, index, *first = key if isinstance(key, tuple) else (0, key)
    return epoch, index, *(first or [index])


def image_files(root, flag=DATA_FLAG):
    """Paths (text) of all image files below a folder, sorted; links are followed.

    Raises: FileNotFoundError if the folder is missing; ValueError if it holds no image.
    """
    root = require_folder(root, flag)
    others = Counter()
    files = sorted(_walk(root, others))
    _say_others(root, others)
    if not files:
        inside = sorted(path.name for path in root.iterdir())
        found = f"it holds {', '.join(inside[:5])}{', ...' if len(inside) > 5 else ''}" if inside else "it is empty"
        raise ValueError(f"{root} holds no images: {found}. Expected files ending in {' '.join(sorted(IMAGE_SUFFIXES))}, "
                         f"in the folder or below it; check {flag}.")
    return files


def _say_others(root, others):
    """Say in one line which files below a folder are no images by their names."""
    if others:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(8))
        log.info("%d other files below %s are not read: %s%s", others.total(), root, kinds, ", ..." if len(others) > 8 else "")


def _walk(root, others=None):
    """Image files below a folder, one after another (millions of files: no Path objects).

    Args:
        others: Counter that gets the suffixes of the files that are none.
    """
    seen = set()  # links may lead back up
    for folder, subfolders, names in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            subfolders[:] = []
            continue
        seen.add(place)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES:
                yield os.path.join(folder, name)
            elif others is not None:
                others[suffix] += 1


def require_folder(root, flag=DATA_FLAG):
    """Path of an existing folder; `flag` says where its name came from.

    Raises: ValueError without a name, FileNotFoundError where there is none.
    """
    if not str(root):
        raise ValueError("no data folder is given: pass --data-path <folder> (DATA.DATA_PATH).")
    root = Path(root)
    if not root.is_dir():
        kind = "is a file, not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"data folder {root} {kind}: check {flag}.")
    return root


def unlabelled_samples(root, flag=DATA_FLAG):
    """All images below a folder, flat or nested, without labels: [(path, -1), ...]."""
    return [(path, -1) for path in image_files(root, flag)]


def class_names(root, flag=DATA_FLAG):
    """Names of the class folders in `root` that hold images, sorted. Raises ValueError if there are none."""
    root = require_folder(root, flag)
    names = sorted(path.name for path in root.iterdir()
                   if path.is_dir() and not path.name.startswith(".") and any(True for _ in _walk(path)))
    if not names:
        files = image_files(root, flag)
        raise ValueError(f"{root} holds {len(files)} images but no class folders: fine-tuning and evaluation need one "
                         f"folder for each class. (Pre-training works without labels: main_simmim.py.)")
    return names


def labelled_samples(root, names, flag=DATA_FLAG):
    """Images of the class folders of `root`, labelled by the position of their class in `names`.

    Raises: ValueError if the folder has classes that `names` lacks, or no image of any class.
    """
    root = require_folder(root, flag)
    own = class_names(root, flag)
    unknown = sorted(set(own) - set(names))
    if unknown:
        raise ValueError(f"{root} has class folders that the training data has not: {', '.join(unknown[:5])}"
                         f"{', ...' if len(unknown) > 5 else ''}. Both need the same classes.")
    labels = {name: label for label, name in enumerate(names)}
    others = Counter()
    samples = [(path, labels[name]) for name in own for path in sorted(_walk(root / name, others))]
    _say_others(root, others)
    return samples


def per_class_subset(samples, number, seed):
    """At most `number` samples of each label (0 = all), drawn by seed, in the given order."""
    if not number:
        return samples
    return _pick(samples, seed, lambda count: number)[0]


def split_per_class(samples, fraction, seed):
    """Hold out a share of each label: (kept, held out); at least one of each class with two images is held out."""
    held, kept = _pick(samples, seed, lambda count: min(max(round(count * fraction), 1), count - 1))
    return kept, held


def _pick(samples, seed, how_many):
    by_label = {}
    for position, (_, label) in enumerate(samples):
        by_label.setdefault(label, []).append(position)
    chosen = set()
    for label, positions in by_label.items():
        order = rng_for(seed, SUBSET, label).permutation(len(positions))
        chosen.update(positions[i] for i in order[:how_many(len(positions))])
    return ([sample for i, sample in enumerate(samples) if i in chosen],
            [sample for i, sample in enumerate(samples) if i not in chosen])
