"""Where the files of a data set are, and which of them are trained and validated on, by DATA.DATASET."""
import logging

from data.class_folders import class_names, labelled_samples, say_doubts, say_order
from data.datasets import split_per_class
from data.demo import MANIFEST, demo_data
from data.folders import DATA_FLAG, VAL_FLAG, require_folder
from data.splits import (
    find_splits,
    kind_of,
    pretraining_folder,
    say_what_is_read,
    warn_of_held_out,
    warn_of_overlap,
)
from utils import distributed
from utils.names import shown

log = logging.getLogger("simmim.data")


def _own_folder(config, train):
    """Pre-training reads every image below DATA_PATH, so that ImageNet's `train` folder and a flat folder both work; of a
    folder with train/ and val/ it reads train/.
    """
    return pretraining_folder(config.DATA.DATA_PATH) if train else None, config.DATA.VAL_PATH


def _demo_folder(config, train):
    root = _drawn(config)
    if root is None:
        return _own_folder(config, train)
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
    kept, held_out = split_per_class(samples, config.DATA.VAL_FRACTION)
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
    root = _drawn(config)
    if root is None:
        return _folder_samples(config, train)
    classes = class_names(root / "train")
    val, flag = (config.DATA.VAL_PATH, VAL_FLAG) if config.DATA.VAL_PATH else (root / "val", DATA_FLAG)
    return labelled_samples(root / "train", classes), labelled_samples(val, classes, flag), classes


def _drawn(config):
    """Folder of a drawn data set: DATA_PATH if that is one, without it the one in the cache; None for a folder of other images.

    Nothing is ever drawn into a folder that somebody named.
    """
    if not config.DATA.DATA_PATH:
        with distributed.rank0_first():
            return demo_data(config.DATA.DEMO_TRAIN_PER_CLASS, config.DATA.DEMO_VAL_PER_CLASS)
    root = require_folder(config.DATA.DATA_PATH)
    if (root / MANIFEST).is_file():
        return root
    log.info("DATA.DATASET demo with --data-path: the images of %s, nothing is drawn", shown(root))
    return None


PRETRAIN_FOLDERS = {"imagenet": _own_folder, "folder": _own_folder, "demo": _demo_folder}
FINETUNE_SAMPLES = {"imagenet": _imagenet_samples, "folder": _folder_samples, "demo": _demo_samples}
