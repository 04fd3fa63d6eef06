"""Which folders are classes, and what is said where they are not what was expected."""
import logging
import os
from pathlib import Path

from data.folders import (
    ARCHIVES,
    DATA_FLAG,
    OF_SYSTEMS,
    folders_with_images,
    has_images,
    holds_images_itself,
    image_files,
    images_below,
    is_data,
    is_image,
    looked_into,
    require_folder,
)
from data.other_files import OtherFiles
from utils.names import alike, listed, plain, same_text, shown

log = logging.getLogger("simmim.data")

OF_IMAGES = {"image", "images", "img", "imgs", "rgb", "jpegimages"}
OF_MASKS = {"mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "ground_truth",
            "segmentation", "segmentations", "segmentationclass", "segmentationobject", "depth", "depths"}


def class_names(root, flag=DATA_FLAG):
    """Names of the class folders in `root` that hold images, sorted as text.

    Raises: ValueError if there are none, two have one name in two forms of Unicode, or one leads to another.
    """
    root = require_folder(root, flag)
    names = folders_with_images(root)
    if not names:
        files = image_files(root, flag)
        raise ValueError(f"{shown(root)} holds {len(files)} images but no class folders: fine-tuning and evaluation need one "
                         f"folder for each class, so sort them (as of ImageNet's validation archive, which is flat). "
                         f"Pre-training works without labels: main_simmim.py.")
    first = {}
    for name in names:
        if first.setdefault(same_text(name), name) != name:
            raise ValueError(f"{shown(root)} has two class folders of one name, {ascii(first[same_text(name)])} and "
                             f"{ascii(name)}: they differ in the form of Unicode alone. Put the images into one of them.")
    _check_links(root, names)
    return names


def _check_links(root, names):
    """Refuse class folders that are links to another class or to what holds one: its images would have two labels."""
    links = [name for name in names if (root / name).is_symlink()]
    real = {name: os.path.realpath(root / name) for name in names} if links else {}
    for link in links:
        twin = next((name for name in names if name != link and f"{real[name]}/".startswith(f"{real[link]}/")), None)
        if twin:
            raise ValueError(f"{shown(root)} has a class folder {shown(link)} that is a link to {shown(real[link])}, where the "
                             f"images of {shown(twin)} are: each would have two labels. Remove one of them.")


def labelled_samples(root, names, flag=DATA_FLAG, owner="the training data"):
    """Images of the class folders of `root`, labelled by the position of their class in `names`.

    Args:
        owner: whose names they are, for the message.
    Raises: ValueError if the folder has classes that `names` lacks, or no image of any class.
    """
    root = require_folder(root, flag)
    own = class_names(root, flag)
    labels = {same_text(name): label for label, name in enumerate(names)}
    unknown = [name for name in own if same_text(name) not in labels]
    if unknown:
        pairs = [f"{shown(here)} here is {shown(there)} there" for here, there in alike(unknown, names).items()]
        spelled = f" (capitals and blanks count, so rename the folders: {listed(pairs, 3)})" if pairs else ""
        raise ValueError(f"{shown(root)} has class folders that {owner} has not: {listed(unknown)}{spelled}. Both need the "
                         f"same classes: there are {len(own)} here and {len(names)} there ({listed(names)}).")
    others = OtherFiles()
    samples = [(path, labels[same_text(name)]) for name in own for path in sorted(images_below(root / name, others))]
    others.say(root)
    _say_unread(root, own)
    absent = sorted(set(labels) - {same_text(name) for name in own})
    if absent:
        log.info("%s has images of %d of %d classes; none of: %s", shown(root), len(own), len(names),
                 listed(absent))
    return samples


def _say_unread(root, own):
    """Say what in a folder of classes belongs to none: images beside the class folders, folders without images, archives,
    hidden folders, dead links.
    """
    loose, empty, dead, packed, hidden = 0, [], [], [], []
    for path in looked_into(root):
        if path.name in own:
            continue
        if not is_data(path.name):
            if path.name.lower() not in OF_SYSTEMS and path.is_dir() and has_images(path):
                hidden.append(path.name)
        elif path.is_dir():
            empty.append(path.name)
        elif is_image(path.name):
            loose += 1
        elif path.is_symlink() and not path.exists():
            dead.append(f"{path.name} -> {os.readlink(path)}")
        elif path.suffix.lower() in ARCHIVES and path.name.partition(".")[0] not in own:
            packed.append(path.name)
    if loose:
        log.warning("%d images lie beside the class folders of %s: they belong to no class and are not read", loose,
                    shown(root))
    if empty:
        log.warning("%s has folders without images, which are no classes: %s", shown(root), listed(sorted(empty)))
    if dead:
        log.warning("%s has links to what does not exist, which are no classes: %s", shown(root), listed(sorted(dead)))
    if packed:
        log.warning("%s has archives beside its class folders, which are not read: %s. Unpack what is missing", shown(root),
                    listed(sorted(packed)))
    if hidden:
        log.info("%s has hidden folders with images, which are no classes: %s", shown(root), listed(sorted(hidden)))


def say_pairs(root, names):
    """Warn of a folder beside the images that by its name holds what was drawn to them: it is read like any other."""
    images, drawn = ([name for name in names if name.lower() in kind] for kind in (OF_IMAGES, OF_MASKS))
    if images and drawn:
        log.warning("%s holds %s beside %s: if these are masks of the images, they are read as images as well. Pass "
                    "--data-path %s to leave them out", shown(root), listed(drawn), listed(images),
                    shown(Path(root) / images[0]))


def say_doubts(root, names):
    """Warn of class folders that may not be what they seem: names that differ by a slip, folds that hold the classes, masks."""
    say_pairs(root, names)
    spelled = {}
    for name in names:
        spelled.setdefault(plain(name), []).append(name)
    twins = [f"{shown(group[0])!r} and {shown(group[1])!r}" for group in spelled.values() if len(group) > 1]
    if twins:
        log.warning("%s has class folders whose names differ in capitals or blanks alone: %s. They are different classes; put "
                    "the images together if that is not meant", shown(root), listed(twins, 3))
    flat = len(names) < 2 or any(holds_images_itself(root / name) for name in names[:2])
    inside = [] if flat else [folders_with_images(root / name) for name in names[:2]]
    if inside and len(inside[0]) > 1 and inside[0] == inside[1]:
        log.warning("%s holds %s, and these hold folders of the same names, %s. The outer ones are taken for the classes; if "
                    "the inner ones are, as of folds, pass --data-path %s", shown(root), listed(names, 3), listed(inside[0], 3),
                    shown(root / names[0]))


def say_order(names):
    """Say the order of class folders that are named by numbers: as text, where people expect numbers."""
    if all(name.isascii() and name.isdigit() for name in names) and names != sorted(names, key=int):
        label = next(i for i, (one, other) in enumerate(zip(names, sorted(names, key=int), strict=True)) if one != other)
        log.info("class folders that are numbers are ordered as text (%s): label %d is %s. Zeros in front (%s) keep the order",
                 listed(names), label, names[label], names[0].zfill(max(map(len, names))))
