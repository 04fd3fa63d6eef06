"""From a config to batches."""
import logging
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from config import with_values
from data.bad_images import BadImages, Reader, skipped_indices
from data.datasets import (
    DATA_FLAG,
    VAL_FLAG,
    ImageDataset,
    MaskedImageDataset,
    class_names,
    labelled_samples,
    per_class_subset,
    require_folder,
    split_per_class,
    unlabelled_samples,
)
from data.demo import demo_data
from data.features import FeatureLoader
from data.masks import build_mask_generator
from data.reading import BadImage, shown
from data.samplers import EpochSampler, EvalSampler
from data.samples import Samples
from data.transforms import (
    eval_transform,
    finetune_transform,
    heldout_transform,
    pil_mode,
    pretrain_transform,
    probe_transform,
    rules_of,
)
from data.workers import Notes, Workers
from utils import distributed
from utils.registry import pick

log = logging.getLogger("simmim.data")


@dataclass
class Loaders:
    """What a run reads.

    Attributes:
        train: batches of (images, masks) in pre-training, (images, labels) in fine-tuning; None for evaluation.
        val: batches of the same kind, each image once; None if there is no validation data.
        classes: names of the classes; empty in pre-training.
        pictures: pre-training: (image, mask) without augmentation, held out where possible, to look at; bad ones are blank.
        plain: probing: batches of the training images without augmentation, each once.
    """
    train: "ImageLoader | None"
    val: "ImageLoader | None"
    classes: list = field(default_factory=list)
    pictures: Dataset | None = None
    plain: "ImageLoader | None" = None


def build_loader(config, is_pretrain, train=True):
    """Loaders of a run.

    Args:
        config: from load_config.
        is_pretrain: images with masks, or images with labels.
        train: False leaves out the training data (evaluation).
    Returns: Loaders.
    Raises: ValueError or FileNotFoundError that says which folder or key is wrong.
    """
    return (_pretrain_loaders if is_pretrain else _finetune_loaders)(config, train)


def mixing_is_on(config):
    """Whether fine-tuning mixes images (mixup or cutmix), and so trains on soft labels."""
    return config.AUG.MIXUP > 0 or config.AUG.CUTMIX > 0 or config.AUG.CUTMIX_MINMAX is not None


def check_finetuning(config):
    """Refuse augmentation settings that do not fit the batch. Raises ValueError."""
    size = config.DATA.BATCH_SIZE
    if mixing_is_on(config) and size % 2:
        raise ValueError(f"DATA.BATCH_SIZE={size} is odd: mixup and cutmix pair the images of a batch. Use {size + 1}, or "
                         f"switch both off with --opts AUG.MIXUP 0 AUG.CUTMIX 0.")


def build_mixup(config, num_classes):
    """timm's mixup and cutmix: (images, labels) -> (images, soft labels with smoothing); None where both are off."""
    aug = config.AUG
    if not mixing_is_on(config):
        return None
    from timm.data import Mixup  # slow to import, and only fine-tuning needs it

    return Mixup(mixup_alpha=aug.MIXUP, cutmix_alpha=aug.CUTMIX, cutmix_minmax=aug.CUTMIX_MINMAX, prob=aug.MIXUP_PROB,
                 switch_prob=aug.MIXUP_SWITCH_PROB, mode=aug.MIXUP_MODE, label_smoothing=config.MODEL.LABEL_SMOOTHING,
                 num_classes=num_classes)


def _pretrain_loaders(config, train):
    if config.DATA.IMAGES_PER_CLASS:
        raise ValueError(f"DATA.IMAGES_PER_CLASS={config.DATA.IMAGES_PER_CLASS} is for fine-tuning: pre-training reads no "
                         f"classes. Leave it at 0.")
    train_folder, val_folder = pick(PRETRAIN_FOLDERS, config.DATA.DATASET, "DATA.DATASET")(config)
    masks, mode = build_mask_generator(config), pil_mode(config)

    def masked(samples, transform):
        return MaskedImageDataset(samples, transform, masks, mode, config.SEED, config.DATA.MASK_SHARED,
                                  rules_of(config))

    def plain(samples):
        return masked(samples, heldout_transform(config))

    held_out = plain(unlabelled_samples(val_folder, VAL_FLAG)) if val_folder else None
    val = _eval_loader(config, held_out) if held_out else None
    if not train:
        return Loaders(None, val, pictures=held_out and Pictures(held_out))
    _warn_of_val_inside(train_folder, val_folder)
    samples = Samples(unlabelled_samples(train_folder))  # once for both
    dataset = masked(samples, pretrain_transform(config))
    return Loaders(_train_loader(config, dataset, train_folder), val, pictures=Pictures(held_out or plain(samples)))


def build_probe_loaders(config, train=True):
    """Loaders of a probe; `train` augments as MAE's linear probe does and is None without PROBE.AUGMENT.

    Args:
        train: False leaves out the training data (evaluation of a head).
    """
    samples, val_samples, classes = pick(FINETUNE_SAMPLES, config.DATA.DATASET, "DATA.DATASET")(config, train)
    mode = pil_mode(config)

    def images(samples, transform):
        return ImageDataset(samples, transform(config), mode, config.SEED, rules_of(config))

    val = _eval_loader(config, images(val_samples, eval_transform))
    if not train:
        return Loaders(None, val, classes)
    samples = Samples(per_class_subset(samples, config.DATA.IMAGES_PER_CLASS, config.SEED))  # once for both
    augmented = None
    if config.PROBE.AUGMENT and not config.PROBE.KNN:
        augmented = _train_loader(config, images(samples, probe_transform), config.DATA.DATA_PATH)
    plain = _eval_loader(config, images(samples, eval_transform), config.DATA.MAX_BAD_FRACTION,
                         _skipped(config, samples, config.DATA.DATA_PATH))
    return Loaders(augmented, val, classes, plain=plain)


def feature_loader(config, loader, shuffled):
    """A FeatureLoader over the images of a loader, in the order of training or of evaluation."""
    labels = torch.from_numpy(loader.dataset.samples.labels)
    sampler = _epoch_sampler(config, len(labels)) if shuffled else loader.sampler
    return FeatureLoader(labels, config.DATA.BATCH_SIZE, sampler, seed=config.SEED if shuffled else None)


def with_classes(config, classes):
    """The config with the number of classes of the data. Raises ValueError where the user set another one."""
    if "MODEL.NUM_CLASSES" in config.given and config.MODEL.NUM_CLASSES != len(classes):
        raise ValueError(f"MODEL.NUM_CLASSES={config.MODEL.NUM_CLASSES} but the data has {len(classes)} classes "
                         f"({', '.join(classes[:4])}{', ...' if len(classes) > 4 else ''}). Leave it out to take it from the "
                         f"data, or check --data-path.")
    return with_values(config, MODEL__NUM_CLASSES=len(classes))


def _warn_of_val_inside(train_folder, val_folder):
    """Pre-training reads every image below its folder: say so where validation images are among them."""
    root = require_folder(train_folder)
    if (root / "train").is_dir() and (root / "val").is_dir():
        log.warning("%s holds train/ and val/, and pre-training reads both: use --data-path %s to keep the validation images "
                    "out", root, root / "train")
    elif val_folder and root.resolve() in (Path(val_folder).resolve(), *Path(val_folder).resolve().parents):
        log.warning("DATA.VAL_PATH %s lies inside the training folder %s: its images are trained on as well", val_folder, root)


def _finetune_loaders(config, train):
    check_finetuning(config)
    samples, val_samples, classes = pick(FINETUNE_SAMPLES, config.DATA.DATASET, "DATA.DATASET")(config, train)
    mode = pil_mode(config)
    val = _eval_loader(config, ImageDataset(val_samples, eval_transform(config), mode, config.SEED, rules_of(config)))
    if not train:
        return Loaders(None, val, classes)
    if len(classes) < 2:
        raise ValueError(f"the training data has one class, {classes[0]}: fine-tuning needs a folder for each of several "
                         f"classes. Check --data-path and DATA.DATASET.")
    samples = per_class_subset(samples, config.DATA.IMAGES_PER_CLASS, config.SEED)
    dataset = ImageDataset(samples, finetune_transform(config), mode, config.SEED, rules_of(config))
    return Loaders(_train_loader(config, dataset, config.DATA.DATA_PATH), val, classes)


# ---- where the files are ------------------------------------------------------------------------------------------

def _own_folder(config):
    """Pre-training reads every image below DATA_PATH, so that ImageNet's `train` folder and a flat folder both work."""
    return config.DATA.DATA_PATH, config.DATA.VAL_PATH


def _demo_folder(config):
    root = _draw_demo(config)
    return root / "train", config.DATA.VAL_PATH or root / "val"


def _imagenet_samples(config, train):
    """DATA_PATH/train and DATA_PATH/val (or VAL_PATH), a folder for each class."""
    root = require_folder(config.DATA.DATA_PATH)
    val = Path(config.DATA.VAL_PATH) if config.DATA.VAL_PATH else root / "val"
    for folder in ([root / "train"] if train else []) + [val]:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} does not exist: fine-tuning and evaluation expect {root}/train/<class>/ and {root}/val/<class>/ "
                f"(DATA.DATASET imagenet). For one folder of classes use --opts DATA.DATASET folder.")
    flag = VAL_FLAG if config.DATA.VAL_PATH else DATA_FLAG
    classes = class_names(root / "train") if (root / "train").is_dir() else class_names(val, flag)
    return labelled_samples(root / "train", classes) if train else None, labelled_samples(val, classes, flag), classes


def _folder_samples(config, train):
    """Any labelled tree: train/ and val/ inside DATA_PATH, or VAL_PATH, or a share of each class held out."""
    root = require_folder(config.DATA.DATA_PATH)
    train_root = root / "train" if (root / "train").is_dir() else root
    classes = class_names(train_root)
    samples = labelled_samples(train_root, classes)
    if config.DATA.VAL_PATH:
        return samples, labelled_samples(config.DATA.VAL_PATH, classes, VAL_FLAG), classes
    if train_root != root and (root / "val").is_dir():
        return samples, labelled_samples(root / "val", classes), classes
    if not config.DATA.VAL_FRACTION:
        raise ValueError(f"{root} has no val/ and DATA.VAL_FRACTION is 0: there is nothing to validate on. "
                         f"Give DATA.VAL_PATH, or a DATA.VAL_FRACTION such as 0.1.")
    kept, held_out = split_per_class(samples, config.DATA.VAL_FRACTION, config.SEED)
    if not held_out:
        raise ValueError(f"{root} has one image in each class: none can be held out. Give DATA.VAL_PATH.")
    return kept, held_out, classes


def _demo_samples(config, train):
    root = _draw_demo(config)
    classes = class_names(root / "train")
    val, flag = (config.DATA.VAL_PATH, VAL_FLAG) if config.DATA.VAL_PATH else (root / "val", DATA_FLAG)
    return labelled_samples(root / "train", classes), labelled_samples(val, classes, flag), classes


def _draw_demo(config):
    sizes = {"num_train_per_class": config.DATA.DEMO_TRAIN_PER_CLASS, "num_val_per_class": config.DATA.DEMO_VAL_PER_CLASS}
    with distributed.rank0_first():
        return demo_data(**sizes, root=config.DATA.DATA_PATH or None)


PRETRAIN_FOLDERS = {"imagenet": _own_folder, "folder": _own_folder, "demo": _demo_folder}
FINETUNE_SAMPLES = {"imagenet": _imagenet_samples, "folder": _folder_samples, "demo": _demo_samples}


# ---- batches ------------------------------------------------------------------------------------------------------

class ImageLoader:
    """Batches of an ImageDataset, lists of tensors.

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
        with self.workers.starting():
            batches = iter(self.loader)
        for number in count():
            with self.workers.watched(number):
                found = next(batches, None)
            if found is None:
                return
            batch, self.blank, bad = found
            self.bad.meet(bad)
            yield batch

    def filler(self):
        """A batch of one blank image, for a process that has run out of others."""
        return self.dataset.collate([self.dataset.item(0, None)])


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
            return self.dataset.item(index, None)


def _train_loader(config, dataset, root):
    bad = BadImages(len(dataset), config.DATA.MAX_BAD_FRACTION)
    reader = Reader(dataset, True, _skipped(config, dataset.samples, root), bad)
    return ImageLoader(config, reader, _epoch_sampler(config, len(dataset), dataset.shares_masks), persistent=True)


def _skipped(config, samples, root):
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


def _epoch_sampler(config, num_samples, shared=False):
    rank, world_size = distributed.rank(), distributed.world_size()
    sampler = EpochSampler(num_samples, config.DATA.BATCH_SIZE, rank, world_size, config.SEED, shared)
    if not sampler.num_batches:
        raise ValueError(f"{num_samples} training images do not fill one batch of {config.DATA.BATCH_SIZE} x {world_size} "
                         f"processes. Use a smaller --batch-size (at most {max(num_samples // world_size, 1)}).")
    return sampler


def _eval_loader(config, dataset, max_bad_fraction=None, skipped=frozenset()):
    """Each image once. Loader processes are not kept: idle ones would double the memory of training."""
    shared_by = config.DATA.BATCH_SIZE if dataset.shares_masks else 0
    sampler = EvalSampler(len(dataset), distributed.rank(), distributed.world_size(), shared_by)
    reader = Reader(dataset, skipped=skipped, bad=BadImages(len(dataset), max_bad_fraction))
    return ImageLoader(config, reader, sampler, persistent=False)
