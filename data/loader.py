"""From a config to batches."""
import logging
from dataclasses import dataclass, field
from itertools import count

import torch
from torch.utils.data import DataLoader, Dataset

from config import mask_preparation, with_values
from data.bad_images import BadImages, Reader, skipped_indices
from data.batches import Images
from data.datasets import ImageDataset, MaskedImageDataset, per_class_subset, split_per_class
from data.demo import demo_data
from data.features import FeatureLoader
from data.folders import (
    DATA_FLAG,
    VAL_FLAG,
    class_names,
    folders_with_images,
    labelled_samples,
    listing,
    require_folder,
    say_doubts,
    say_order,
    say_pairs,
    unlabelled_samples,
)
from data.listings import cache_folder
from data.masks import build_mask_generator
from data.reading import BadImage
from data.samplers import EpochSampler, EvalSampler
from data.samples import Samples
from data.splits import (
    find_splits,
    kind_of,
    pretraining_folder,
    say_what_is_read,
    warn_of_held_out,
    warn_of_overlap,
)
from data.transforms import (
    eval_transform,
    finetune_transform,
    heldout_transform,
    mode_of,
    pretrain_transform,
    probe_transform,
    rules_of,
    training_rules_of,
)
from data.workers import Notes, Workers
from utils import distributed
from utils.names import listed, same_text, shown
from utils.registry import pick

log = logging.getLogger("simmim.data")


@dataclass
class Loaders:
    """What a run reads.

    Attributes:
        train: batches of (images, masks) in pre-training, with what the model wants prepared of the masks; (images, labels)
            in fine-tuning; None for evaluation.
        val: batches of the same kind, each image once, with nothing prepared; None if there is no validation data.
        classes: names of the classes; empty in pre-training.
        pictures: pre-training: (image, mask) without augmentation, held out where possible, to look at; bad ones are blank.
        plain: probing: batches of the training images without augmentation, each once.
    """
    train: "ImageLoader | None"
    val: "ImageLoader | None"
    classes: list = field(default_factory=list)
    pictures: Dataset | None = None
    plain: "ImageLoader | None" = None


def build_loader(config, is_pretrain, train=True, head=None):
    """Loaders of a run.

    Args:
        config: from load_config.
        is_pretrain: images with masks, or images with labels.
        train: False leaves out the training data (evaluation).
        head: evaluation: utils.classes.Head of the checkpoint, whose classes count where it keeps their names; None = those
            of the data do.
    Returns: Loaders.
    Raises: ValueError or FileNotFoundError that says which folder or key is wrong.
    """
    with _listing(config):
        return _pretrain_loaders(config, train) if is_pretrain else _finetune_loaders(config, train, head)


def _listing(config):
    """While the folders of a config are looked into, see data.folders.listing."""
    return listing(mode_of(config), config.DATA.DATA_PATH, config.DATA.VAL_PATH, cache=cache_folder(config.DATA.LIST_CACHE))


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
    if train and config.DATA.IMAGES_PER_CLASS:
        raise ValueError(f"DATA.IMAGES_PER_CLASS={config.DATA.IMAGES_PER_CLASS} is for fine-tuning: pre-training reads no "
                         f"classes. Leave it at 0.")
    train_folder, val_folder = pick(PRETRAIN_FOLDERS, config.DATA.DATASET, "DATA.DATASET")(config, train)
    masks, mode = build_mask_generator(config), mode_of(config)

    def masked(samples, transform, rules, prepare=None):
        return MaskedImageDataset(samples, transform, masks, mode, config.SEED, config.DATA.MASK_SHARED, rules(config), prepare)

    def plain(samples):
        return masked(samples, heldout_transform(config), rules_of)

    held_out = plain(unlabelled_samples(val_folder, VAL_FLAG)) if val_folder else None
    val = _eval_loader(config, held_out) if held_out else None
    if not train:
        return Loaders(None, val, pictures=held_out and Pictures(held_out))
    if val_folder:
        warn_of_overlap(train_folder, val_folder)
    found = unlabelled_samples(train_folder)
    warn_of_held_out((path for path, _ in found), train_folder, labelled=False)
    say_pairs(train_folder, folders_with_images(train_folder))
    samples = Samples(found)  # once for both
    trained = masked(samples, pretrain_transform(config), training_rules_of, mask_preparation(config))
    loader = _train_loader(config, trained, config.DATA.DATA_PATH or train_folder, config.DATA.MASK_GROUPS)
    return Loaders(loader, val, pictures=Pictures(held_out or plain(samples)))


def build_probe_loaders(config, train=True, head=None):
    """Loaders of a probe; `train` augments as MAE's linear probe does and is None without PROBE.AUGMENT.

    Args:
        train: False leaves out the training data (evaluation of a head).
        head: as in build_loader.
    """
    mode = mode_of(config)
    with _listing(config):
        samples, val_samples, classes = _labelled_samples(config, train, head)

    def images(samples, transform, rules=rules_of):
        return ImageDataset(samples, transform(config), mode, config.SEED, rules(config))

    val = _eval_loader(config, images(val_samples, eval_transform))
    if not train:
        return Loaders(None, val, classes)
    check_classes(classes)
    samples = Samples(per_class_subset(samples, config.DATA.IMAGES_PER_CLASS, config.SEED))  # once for both
    augmented = None
    if config.PROBE.AUGMENT and not config.PROBE.KNN:
        augmented = _train_loader(config, images(samples, probe_transform, training_rules_of), config.DATA.DATA_PATH)
    plain = _eval_loader(config, images(samples, eval_transform), config.DATA.MAX_BAD_FRACTION,
                         _skipped(config, samples, config.DATA.DATA_PATH))
    return Loaders(augmented, val, classes, plain=plain)


def feature_loader(config, loader, shuffled):
    """A FeatureLoader over the images of a loader, in the order of training or of evaluation."""
    labels = torch.from_numpy(loader.dataset.samples.labels)
    sampler = _epoch_sampler(config, len(labels)) if shuffled else loader.sampler
    return FeatureLoader(labels, config.DATA.BATCH_SIZE, sampler, seed=config.SEED if shuffled else None)


def with_classes(config, classes, owner="the data"):
    """The config with a number of classes, of the data or whoever owns them. Raises ValueError where another one is set."""
    if "MODEL.NUM_CLASSES" in config.given and config.MODEL.NUM_CLASSES != len(classes):
        raise ValueError(f"MODEL.NUM_CLASSES={config.MODEL.NUM_CLASSES} but {owner} has {len(classes)} classes "
                         f"({listed(classes, 4)}). Use --opts MODEL.NUM_CLASSES {len(classes)}, or "
                         f"leave it out of --cfg and --opts; or check --data-path.")
    return with_values(config, MODEL__NUM_CLASSES=len(classes))


def check_classes(classes):
    """Refuse to train, or to choose, where there is no choice. Raises ValueError."""
    if len(classes) < 2:
        raise ValueError(f"the training data has one class, {classes[0]}: a classifier needs a folder for each of several "
                         f"classes. Check --data-path and DATA.DATASET.")


def _finetune_loaders(config, train, head):
    if train:
        check_finetuning(config)
    samples, val_samples, classes = _labelled_samples(config, train, head)
    mode = mode_of(config)
    val = _eval_loader(config, ImageDataset(val_samples, eval_transform(config), mode, config.SEED, rules_of(config)))
    if not train:
        return Loaders(None, val, classes)
    check_classes(classes)
    samples = per_class_subset(samples, config.DATA.IMAGES_PER_CLASS, config.SEED)
    dataset = ImageDataset(samples, finetune_transform(config), mode, config.SEED, training_rules_of(config))
    return Loaders(_train_loader(config, dataset, config.DATA.DATA_PATH), val, classes)


def _labelled_samples(config, train, head):
    """(training samples, validation samples, names of the classes), see build_loader."""
    samples, val, classes = pick(FINETUNE_SAMPLES, config.DATA.DATASET, "DATA.DATASET")(config, train)
    if head is None:
        return samples, val, classes
    names = head.labels_of([classes[label] for label in sorted({label for _, label in val})], classes)
    labels = {same_text(name): label for label, name in enumerate(names)}
    return samples, [(path, labels[same_text(classes[label])]) for path, label in val], list(names)


# ---- where the files are ------------------------------------------------------------------------------------------

def _own_folder(config, train):
    """Pre-training reads every image below DATA_PATH, so that ImageNet's `train` folder and a flat folder both work; of a
    folder with train/ and val/ it reads train/.
    """
    return pretraining_folder(config.DATA.DATA_PATH) if train else None, config.DATA.VAL_PATH


def _demo_folder(config, train):
    root = _draw_demo(config)
    return root / "train", config.DATA.VAL_PATH or root / "val"


def _imagenet_samples(config, train):
    """DATA_PATH/train and DATA_PATH/val (or VAL_PATH), a folder for each class."""
    splits = find_splits(config.DATA.DATA_PATH, certain=True)
    val = _validation_folder(config, splits)
    for name, folder in ([("train", splits.train)] if train else []) + [("val", val)]:
        if folder is None:
            state = "holds no images" if (splits.root / name).is_dir() else "does not exist"
            raise FileNotFoundError(
                f"{shown(splits.root / name)} {state}: fine-tuning and evaluation expect {shown(splits.root)}/train/<class>"
                f"/ and {shown(splits.root)}/val/<class>/ (DATA.DATASET imagenet). {_advice(splits, name)}")
    say_what_is_read(splits, val)
    return _labelled(config, splits.train, val, train)


def _advice(splits, missing):
    """What to type where a split is missing."""
    if missing == "val" and splits.test:
        return f"To evaluate on {shown(splits.test)} use --opts DATA.VAL_PATH {shown(splits.test)}."
    if kind_of(splits.root.name) and find_splits(splits.root.absolute().parent, certain=True).train:
        return f"{shown(splits.root)} is itself a split: use --data-path {shown(splits.root.parent)}."
    if missing == "val" and splits.train:
        return "To hold out a share of each class use --opts DATA.DATASET folder."
    return "For one folder of classes use --opts DATA.DATASET folder."


def _validation_folder(config, splits):
    """DATA.VAL_PATH, or the validation split, or None."""
    return require_folder(config.DATA.VAL_PATH, VAL_FLAG) if config.DATA.VAL_PATH else splits.val


def _folder_samples(config, train):
    """Any labelled tree: train/ and val/ inside DATA_PATH, or VAL_PATH, or a share of each class held out."""
    splits = find_splits(config.DATA.DATA_PATH)
    root = splits.root
    if splits and not splits.train and (train or not splits.val):
        raise ValueError(f"{shown(root)} holds {splits.names()} and no train/: there is nothing to train on. "
                         f"Check --data-path; to train on a part of one of them and hold out the rest, pass it: --data-path "
                         f"{shown(splits.val or splits.test)}.")
    train_folder, val = splits.train or (None if splits else root), _validation_folder(config, splits)
    if splits:
        say_what_is_read(splits, val)
    if val:
        return _labelled(config, train_folder, val, train)
    classes = class_names(train_folder)
    samples = _class_samples(train_folder, classes)
    if not config.DATA.VAL_FRACTION:
        raise ValueError(f"{root} has no val/ and DATA.VAL_FRACTION is 0: there is nothing to validate on. "
                         f"Give DATA.VAL_PATH, or a DATA.VAL_FRACTION such as 0.1.")
    kept, held_out = split_per_class(samples, config.DATA.VAL_FRACTION, config.SEED)
    if not held_out:
        raise ValueError(f"{root} has one image in each class: none can be held out. Give DATA.VAL_PATH.")
    return kept, held_out, classes


def _labelled(config, train_folder, val, train):
    """(training samples, validation samples, classes) of two folders of classes; the classes are those of the training."""
    flag = VAL_FLAG if config.DATA.VAL_PATH else DATA_FLAG
    classes = class_names(train_folder) if train_folder else class_names(val, flag)
    if train_folder:
        warn_of_overlap(train_folder, val)
    samples = _class_samples(train_folder, classes) if train else None
    return samples, labelled_samples(val, classes, flag), classes


def _class_samples(folder, classes):
    """Training samples of a folder of classes, with what there is to say of it."""
    say_order(classes)
    say_doubts(folder, classes)
    samples = labelled_samples(folder, classes)
    warn_of_held_out((path for path, _ in samples), folder, labelled=True)
    return samples


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


def _train_loader(config, dataset, root, num_masks=0):
    bad = BadImages(len(dataset), config.DATA.MAX_BAD_FRACTION)
    reader = Reader(dataset, True, _skipped(config, dataset.samples, root), bad)
    sampler = _epoch_sampler(config, len(dataset), dataset.shares_masks, num_masks)
    return ImageLoader(config, reader, sampler, persistent=True)


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


def _epoch_sampler(config, num_samples, shared=False, num_masks=0):
    rank, world_size = distributed.rank(), distributed.world_size()
    sampler = EpochSampler(num_samples, config.DATA.BATCH_SIZE, rank, world_size, config.SEED, shared, num_masks)
    if not sampler.num_batches:
        fewer = (f"a smaller --batch-size (at most {num_samples // world_size})" if num_samples >= world_size else
                 f"at most {num_samples} processes and --batch-size 1")
        raise ValueError(f"{num_samples} training images do not fill one batch of {config.DATA.BATCH_SIZE} x {world_size} "
                         f"processes (DATA.BATCH_SIZE={config.DATA.BATCH_SIZE}). Use {fewer}.")
    return sampler


def _eval_loader(config, dataset, max_bad_fraction=None, skipped=frozenset()):
    """Each image once. Loader processes are not kept: idle ones would double the memory of training."""
    shared_by = config.DATA.BATCH_SIZE if dataset.shares_masks else 0
    sampler = EvalSampler(len(dataset), distributed.rank(), distributed.world_size(), shared_by)
    reader = Reader(dataset, skipped=skipped, bad=BadImages(len(dataset), max_bad_fraction))
    return ImageLoader(config, reader, sampler, persistent=False)
