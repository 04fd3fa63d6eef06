"""Loaders of images: batches from loader processes, and what a run passes over or can't read."""
import logging
from itertools import count

import torch
from torch.utils.data import DataLoader, Dataset

from data.bad_images import BadImages, Reader, skipped_indices
from data.batches import Images
from data.reading import BadImage
from data.samplers import EpochSampler, EvalSampler
from data.workers import Notes, Workers
from utils import distributed
from utils.names import shown

log = logging.getLogger("simmim.data")


class ImageLoader:
    """Batches of an ImageDataset: lists of tensors, the images normalised.

    Programs that have a device take those of `packed` instead: images are data.batches.Images, a quarter of the bytes, which
    utils.devices.to_device makes what a model sees.

    Attributes:
        dataset: the ImageDataset.
        sampler: gives the keys.
        bad: BadImages that this process has met.
        skipped: positions of images that are passed over unopened.
        blank: positions in the batch just given whose images could not be read. In training there are none: another image
            stands in; elsewhere whoever takes the batch leaves them out.

    Args:
        config: from load_config.
        reader: Reader of the dataset.
        persistent: keep the loader processes from epoch to epoch.
    """

    def __init__(self, config, reader, sampler, persistent):
        data, workers = config.DATA, config.DATA.NUM_WORKERS
        self.dataset, self.sampler, self.bad, self.skipped = reader.dataset, sampler, reader.bad, reader.skipped
        self.blank = []
        notes = Notes(workers)
        reader.note = notes.note
        self.workers = Workers(self.dataset.samples, notes, workers, data.TIMEOUT_MINUTES)
        self.loader = DataLoader(
            reader, sampler=sampler, batch_size=data.BATCH_SIZE, num_workers=workers,
            pin_memory=data.PIN_MEMORY and torch.cuda.is_available(), persistent_workers=persistent and workers > 0,
            timeout=60 * data.TIMEOUT_MINUTES if workers else 0, worker_init_fn=notes.begin, collate_fn=reader.collate)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for images, *others in self.packed():
            yield [images.to("cpu"), *others]

    def packed(self):
        """Batches as they have come from the loader processes: lists of Images and tensors."""
        with self.workers.starting():
            batches = iter(self.loader)
        for number in count():
            with self.workers.watched(number):
                found = next(batches, None)
            if found is None:
                return
            batch, self.blank, bad = found
            self.bad.meet(bad)
            yield self._packed(batch)

    def filler(self):
        """A batch of one blank image, for a process that has run out of others."""
        return self.dataset.collate([self.dataset.finished(self.dataset.item(0, None))])

    def _packed(self, batch):
        images, *others = batch
        return [Images(images, self.dataset.normalise), *others]


class Pictures(Dataset):
    """An ImageDataset to look at: an image that can't be read is blank, and the log says so once."""

    def __init__(self, dataset):
        self.dataset, self.samples, self.collate = dataset, dataset.samples, dataset.collate
        self.bad = BadImages(len(dataset))

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self.dataset[index]
        except BadImage as error:
            if self.bad.add({self.samples[index][0]: error.reason}):
                log.warning("%s can't be read (%s): its picture is blank", shown(self.samples[index][0]), error.reason)
            return self.dataset.finished(self.dataset.item(index, None))


def train_loader(config, dataset, root, num_masks=0):
    bad = BadImages(len(dataset), config.DATA.MAX_BAD_FRACTION)
    reader = Reader(dataset, True, skipped_images(config, dataset.samples, root), bad)
    sampler = epoch_sampler(config, len(dataset), dataset.shares_masks, num_masks)
    return ImageLoader(config, reader, sampler, persistent=True)


def skipped_images(config, samples, root):
    """Positions of the training images in DATA.SKIP_LIST."""
    path = config.DATA.SKIP_LIST
    if not path:
        return frozenset()
    skipped = skipped_indices(samples, path, root)
    if len(skipped) == len(samples):
        raise ValueError(f"DATA.SKIP_LIST={path} names all {len(samples)} training images: there is nothing to train on.")
    if skipped:
        log.info("%d of %d training images are passed over (DATA.SKIP_LIST %s)", len(skipped), len(samples), path)
    else:
        log.warning("DATA.SKIP_LIST %s names none of the training images below %s: nothing is passed over", path, root)
    return skipped


def epoch_sampler(config, num_samples, shared=False, num_masks=0):
    rank, world_size = distributed.rank(), distributed.world_size()
    sampler = EpochSampler(num_samples, config.DATA.BATCH_SIZE, rank, world_size, config.SEED, shared, num_masks)
    if not sampler.num_batches:
        fewer = (f"a smaller --batch-size (at most {num_samples // world_size})" if num_samples >= world_size else
                 f"at most {num_samples} processes and --batch-size 1")
        raise ValueError(f"{num_samples} training images do not fill one batch of {config.DATA.BATCH_SIZE} x {world_size} "
                         f"processes (DATA.BATCH_SIZE={config.DATA.BATCH_SIZE}). Use {fewer}.")
    return sampler


def eval_loader(config, dataset, max_bad_fraction=None, skipped=frozenset()):
    """Each image once. Loader processes are not kept: idle ones would double the memory of training."""
    shared_by = config.DATA.BATCH_SIZE if dataset.shares_masks else 0
    sampler = EvalSampler(len(dataset), distributed.rank(), distributed.world_size(), shared_by)
    reader = Reader(dataset, skipped=skipped, bad=BadImages(len(dataset), max_bad_fraction))
    return ImageLoader(config, reader, sampler, persistent=False)
