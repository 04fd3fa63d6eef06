"""Image files on disk as samples. Every random draw of a sample is a pure function of (seed, epoch, sample index)."""
from contextlib import nullcontext

import torch
from torch.utils.data import Dataset, default_collate

from data.batches import joined
from data.channels import blank
from data.pixels import DEFAULT
from data.reading import read_image, read_view, without_limit
from data.samples import Samples
from utils.seeding import AUGMENT, MASK, SUBSET, rng_for, seeded_globals

HELD_OUT_SEED = 0  # of held-out images and their masks, whatever SEED a run has: so that runs of several can be compared


class ImageDataset(Dataset):
    """Image files with labels, addressed by (epoch, index).

    Items have float images, normalised. Loader processes take them from `item`, pixels, whose normalisation `finished` does.

    Args:
        samples: [(path, label), ...]; labels are whole numbers, -1 = none.
        transform: data.transforms.Pipeline, or any function image -> tensor, which may draw from the global generators.
        mode: PIL mode, or number of channels, that the files are read in.
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
        return self.finished(self.item(key, whole_key(key)[1]))

    def finished(self, item):
        """An item as people read it, from one as it travels."""
        image, *others = item
        return self.normalise(image), *others

    @property
    def normalise(self):
        """From pixels to what a model sees; nothing where the transform does that itself."""
        return getattr(self.transform, "normalise", _as_it_is)

    def item(self, key, source):
        """The sample of a key as it travels, with another image than its own.

        Args:
            source: position of the image, whose label it has; the draws are those of the key. None = a blank one.
        Raises: BadImage that names the file if it can't be read.
        """
        return self.image(key, source), 0 if source is None else self.samples[source][1]

    def image(self, key, source):
        """Pixels, see data.batches.Normalisation."""
        epoch, index, _ = whole_key(key)
        transform, seeded = self.transform, getattr(self.transform, "seeded", seeded_globals)
        path = None if source is None else self.samples[source][0]
        with without_limit(), seeded(self.seed, AUGMENT, epoch, index) if seeded else nullcontext():  # it is of crops, too
            if source is not None and getattr(transform, "shows_views", False):
                return transform.rest(read_view(path, self.mode, transform.view, self.rules))
            picture = blank(self.mode) if source is None else read_image(path, self.mode, rules=self.rules)
            return getattr(transform, "pixels", transform)(picture)

    def collate(self, samples):
        """A batch of items, as they travel or finished."""
        images, *others = zip(*samples, strict=True)
        return [joined(images), *map(default_collate, others)]


def _as_it_is(image):
    return image


class MaskedImageDataset(ImageDataset):
    """Images with a mask for pre-training: items are (image, mask), mask (h, w) bool, True = hidden.

    Args:
        mask_generator: see data/masks.py.
        shared: all images of a batch get the mask of one of them, which their keys name: (epoch, index, that one).
        prepare: masks (B, h, w) -> nested tuples of tensors, which a batch then has as its third part; None = it has none.
    """

    def __init__(self, samples, transform, mask_generator, mode="RGB", seed=0, shared=False, rules=DEFAULT, prepare=None):
        super().__init__(samples, transform, mode, seed, rules)
        self.mask_generator = mask_generator
        self.shares_masks = shared
        self.prepare = prepare

    def item(self, key, source):
        epoch, _, first = whole_key(key)
        mask = self.mask_generator(rng_for(self.seed, MASK, epoch, first))
        return self.image(key, source), torch.from_numpy(mask).bool()

    def collate(self, samples):
        """A batch of items; of those that name none to share it with, the first one has the mask of all."""
        if self.shares_masks:
            samples = [(image, samples[0][1]) for image, _ in samples]
        batch = super().collate(samples)
        return [*batch, self.prepare(batch[1])] if self.prepare else batch


def whole_key(key):
    """(epoch, index, index of the image whose mask counts) of a key of a sampler, or of a plain index."""
    epoch, index, *first = key if isinstance(key, tuple) else (0, key)
    return epoch, index, *(first or [index])


def per_class_subset(samples, number, seed):
    """At most `number` samples of each label (0 = all), drawn by seed, in the given order."""
    if not number:
        return samples
    return _pick(samples, seed, lambda count: number)[0]


def spread_subset(samples, number):
    """At most `number` samples (0 = all), evenly spread over all, in the given order: the same for every seed."""
    if not 0 < number < len(samples):
        return samples
    return [samples[i * len(samples) // number] for i in range(number)]


def split_per_class(samples, fraction, seed=HELD_OUT_SEED):
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
