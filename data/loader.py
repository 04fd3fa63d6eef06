"""From a config to batches."""
import logging
from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset

from config import mask_preparation, with_values
from data.class_folders import say_pairs
from data.datasets import HELD_OUT_SEED, ImageDataset, MaskedImageDataset, per_class_subset, spread_subset
from data.features import FeatureLoader
from data.folders import VAL_FLAG, folders_with_images, listing, unlabelled_samples
from data.image_loader import ImageLoader, Pictures, epoch_sampler, eval_loader, skipped_images, train_loader
from data.listings import cache_folder
from data.masks import build_mask_generator
from data.samples import Samples
from data.sources import FINETUNE_SAMPLES, PRETRAIN_FOLDERS
from data.splits import warn_of_held_out, warn_of_overlap
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
from utils.names import listed, same_text
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
    train: ImageLoader | None
    val: ImageLoader | None
    classes: list = field(default_factory=list)
    pictures: Dataset | None = None
    plain: ImageLoader | None = None


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
                         f"classes. Leave it at 0; DATA.LIMIT pre-trains on a part of the images.")
    train_folder, val_folder = pick(PRETRAIN_FOLDERS, config.DATA.DATASET, "DATA.DATASET")(config, train)
    masks, mode = build_mask_generator(config), mode_of(config)

    def masked(samples, transform, rules, seed, prepare=None):
        return MaskedImageDataset(samples, transform, masks, mode, seed, config.DATA.MASK_SHARED, rules(config), prepare)

    def plain(samples):
        return masked(samples, heldout_transform(config), rules_of, HELD_OUT_SEED)

    held_out = plain(unlabelled_samples(val_folder, VAL_FLAG)) if val_folder else None
    val = eval_loader(config, held_out) if held_out else None
    if not train:
        return Loaders(None, val, pictures=held_out and Pictures(held_out))
    if val_folder:
        warn_of_overlap(train_folder, val_folder)
    found = unlabelled_samples(train_folder)
    warn_of_held_out((path for path, _ in found), train_folder, labelled=False)
    say_pairs(train_folder, folders_with_images(train_folder))
    samples = Samples(spread_subset(found, config.DATA.LIMIT))  # once for both
    if len(samples) < len(found):
        log.info("DATA.LIMIT: training on %d of %d images", len(samples), len(found))
    trained = masked(samples, pretrain_transform(config), training_rules_of, config.SEED, mask_preparation(config))
    loader = train_loader(config, trained, config.DATA.DATA_PATH or train_folder, config.DATA.MASK_GROUPS)
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

    val = eval_loader(config, images(val_samples, eval_transform))
    if not train:
        return Loaders(None, val, classes)
    check_classes(classes)
    samples = Samples(per_class_subset(samples, config.DATA.IMAGES_PER_CLASS, config.SEED))  # once for both
    augmented = None
    if config.PROBE.AUGMENT and not config.PROBE.KNN:
        augmented = train_loader(config, images(samples, probe_transform, training_rules_of), config.DATA.DATA_PATH)
    plain = eval_loader(config, images(samples, eval_transform), config.DATA.MAX_BAD_FRACTION,
                         skipped_images(config, samples, config.DATA.DATA_PATH))
    return Loaders(augmented, val, classes, plain=plain)


def feature_loader(config, loader, shuffled):
    """A FeatureLoader over the images of a loader, in the order of training or of evaluation."""
    labels = torch.from_numpy(loader.dataset.samples.labels)
    sampler = epoch_sampler(config, len(labels)) if shuffled else loader.sampler
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
    val = eval_loader(config, ImageDataset(val_samples, eval_transform(config), mode, config.SEED, rules_of(config)))
    if not train:
        return Loaders(None, val, classes)
    check_classes(classes)
    samples = per_class_subset(samples, config.DATA.IMAGES_PER_CLASS, config.SEED)
    dataset = ImageDataset(samples, finetune_transform(config), mode, config.SEED, training_rules_of(config))
    return Loaders(train_loader(config, dataset, config.DATA.DATA_PATH), val, classes)


def _labelled_samples(config, train, head):
    """(training samples, validation samples, names of the classes), see build_loader."""
    samples, val, classes = pick(FINETUNE_SAMPLES, config.DATA.DATASET, "DATA.DATASET")(config, train)
    if head is None:
        return samples, val, classes
    names = head.labels_of([classes[label] for label in sorted({label for _, label in val})], classes)
    labels = {same_text(name): label for label, name in enumerate(names)}
    return samples, [(path, labels[same_text(classes[label])]) for path, label in val], list(names)
