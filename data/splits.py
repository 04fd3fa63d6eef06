"""Which folders of a data set are its splits: the one place that decides what is trained on and what is held out."""
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from data.folders import folders_with_images, holds_images_itself, require_folder
from utils.names import listed, shown

log = logging.getLogger("simmim.data")

TRAIN, VALIDATION, TEST = "train", "validation", "test"
KINDS = {"train": TRAIN, "training": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION,
         "dev": VALIDATION, "eval": VALIDATION, "evaluation": VALIDATION, "test": TEST, "testing": TEST}
ADDED = re.compile(r"[-_ ]?(set|split|data|images|imgs|\d{4})$")  # test_set, train2017
DEEPEST = 3  # folders that hold nothing but one other, as archives are unpacked


def kind_of(name):
    """What split a folder of this name is, if it is one: TRAIN, VALIDATION, TEST, or None. Capitals do not count."""
    name = name.lower()
    return KINDS.get(name) or KINDS.get(ADDED.sub("", name))


@dataclass
class Splits:
    """The splits of a folder.

    Attributes:
        root: the folder that holds them.
        train, val, test: their folders, or None.
        unread: names of other folders with images.
    """
    root: Path
    train: Path | None = None
    val: Path | None = None
    test: Path | None = None
    unread: tuple = ()

    def __bool__(self):
        return bool(self.train or self.val or self.test)

    def names(self):
        """In words for a message: train/, valid/, test/."""
        return ", ".join(f"{shown(path.relative_to(self.root))}/" for path in (self.train, self.val, self.test) if path)


def find_splits(root, certain=False, depth=0):
    """The splits of a data folder, by the names of its folders and by what these hold.

    Folders named train, val and so on are splits where nothing else in the folder holds images. Beside others that do, they
    may be classes of these names; they are splits then if they are sorted into class folders and the others are not, or one
    another is beside them. A folder that holds nothing but one other is looked into.

    Args:
        certain: folders of these names are splits whatever is beside them.
    Returns: Splits, empty where the folder has none.
    Raises: FileNotFoundError; ValueError where two folders may be the same split, or a folder a split or a class.
    """
    root = require_folder(root)
    inside = folders_with_images(root)
    named = {name: kind_of(name) for name in inside if kind_of(name)}
    others = [name for name in inside if name not in named]
    if named and (certain or not others or _are_splits(root, named, others)):
        return Splits(root, **{key: _one(root, kind, named) for key, kind in
                               (("train", TRAIN), ("val", VALIDATION), ("test", TEST))}, unread=tuple(others))
    if len(inside) == 1 and not named and depth < DEEPEST and not holds_images_itself(root):
        below = find_splits(root / inside[0], depth=depth + 1)
        if below:
            return below
    return Splits(root)


def _are_splits(root, named, others):
    """Whether folders of the names of splits are that, and no classes, beside others with images. Raises ValueError."""
    sorted_ones = [name for name in named if _is_sorted(root / name)]
    if not any(named[name] == TRAIN for name in sorted_ones):
        return False
    if len({named[name] for name in sorted_ones}) > 1 or not any(_is_sorted(root / name) for name in others):
        return True
    train = next(name for name in sorted_ones if named[name] == TRAIN)
    raise ValueError(f"{shown(root / train)} may be the training split, or a class beside {listed(others, 3)}: all of them "
                     f"hold folders of images. If it is the split, pass --data-path {shown(root / train)}; if it is a class, "
                     f"rename it.")


def _is_sorted(folder):
    """Whether a folder has folders of images in it, as a split has and a class seldom."""
    return bool(folders_with_images(folder)) and not holds_images_itself(folder)


def _one(root, kind, named):
    """The folder of a kind of split, or None. Raises ValueError where there are several and none has the plain name."""
    names = [name for name in named if named[name] == kind]
    plain = [name for name in names if name.lower() in ("train", "val", "test")] or names
    if len(plain) > 1:
        flag = f"DATA.VAL_PATH {shown(root / plain[0])}" if kind == VALIDATION else f"--data-path {shown(root / plain[0])}"
        raise ValueError(f"{shown(root)} has several folders that may be its {kind} split: {listed(plain)}. Name one, e.g. "
                         f"{flag}, or move the others away.")
    return _undoubled(root / plain[0], kind) if plain else None


def _undoubled(folder, kind):
    """A split that holds nothing but a folder of its own name, train/train/, is the inner one."""
    for _ in range(DEEPEST):
        inside = folders_with_images(folder)
        if len(inside) != 1 or kind_of(inside[0]) != kind or holds_images_itself(folder):
            break
        folder = folder / inside[0]
    return folder


# ---- what is read -------------------------------------------------------------------------------------------------

def pretraining_folder(root):
    """The folder whose images pre-training reads: the training split of a folder that has others beside it, or all of it."""
    root = require_folder(root)
    try:
        splits = find_splits(root)
    except ValueError:  # without labels nothing depends on it; held-out images are named where they are read
        return root
    if not splits.train or not (splits.val or splits.test):
        return root
    held_out = splits.val or splits.test
    log.info("%s holds %s: pre-training reads %s alone. --opts DATA.VAL_PATH %s adds a held-out loss%s", shown(splits.root),
             splits.names(), shown(splits.train), shown(held_out), _also_there(splits))
    return splits.train


def splits_read_as_one(root):
    """In words, that a folder has splits and all of them are read, for who reads whatever is below it; "" where it has none."""
    try:
        splits = find_splits(root)
    except ValueError:  # what may be a split or a class
        return ""
    parts = [path for path in (splits.train, splits.val, splits.test) if path]
    if len(parts) < 2:
        return ""
    return (f"{shown(splits.root)} holds {splits.names()}: the images of all of them are read. For one alone pass "
            f"{shown(parts[1])}")


def _also_there(splits):
    loose = holds_images_itself(splits.root)
    left = [f"{shown(name)}/" for name in splits.unread] + (["the images beside these folders"] if loose else [])
    return f"; not read: {listed(left)}" if left else ""


def say_what_is_read(splits, val):
    """Say which folders fine-tuning and evaluation take, where that is not train/ and val/ alone.

    Args:
        val: folder of the validation images, or None where a share of the training images is.
    """
    plain = {splits.root / "train", splits.root / "val", None}
    unread = splits.test if splits.test != val else None
    rest = _also_there(splits)
    if {splits.train, splits.val, val} <= plain and not unread and not rest:
        return
    test = f"; {shown(unread)} is not read (DATA.VAL_PATH {shown(unread)} evaluates on it)" if unread else ""
    held_out = f"those of {shown(val)}" if val else "a share of them (DATA.VAL_FRACTION)"
    log.info("%s holds %s: training images are those of %s, validation images %s%s%s", shown(splits.root), splits.names(),
             shown(splits.train or "none"), held_out, test, rest)


def warn_of_held_out(paths, root, labelled):
    """Warn where training images lie in a folder named as held-out images are: pre-training reads all below a folder.

    Args:
        paths: of the training images.
        root: folder they were looked for in; only folders below it tell.
        labelled: folders in `root` are classes, whatever their names.
    """
    start = len(Path(root).parts)
    folders = {Path(folder).parts[start:] for folder in {os.path.dirname(path) for path in paths}}
    places = {parts[:i + 1] for parts in folders for i in range(len(parts))}
    with_train = {place[:-1] for place in places if kind_of(place[-1]) == TRAIN}
    found = sorted(place for place in places if kind_of(place[-1]) in (VALIDATION, TEST)
                   and (place[:-1] in with_train and len(place) > 1 if labelled else True))
    if found:
        log.warning("%s are trained on as well, named as held-out images are: %s. Move them out of %s to keep them apart",
                    f"{len(found)} folders" if len(found) > 1 else "images of a folder",
                    listed([str(Path(root, *place)) for place in found], 3), shown(root))


def warn_of_overlap(train, val):
    """Warn where validation images are in the training folder, and so are trained on; links of val, or in it, are followed."""
    train, val = Path(train), Path(val)
    links = [path for path in val.iterdir() if path.is_symlink()]  # class folders of a split that was linked together
    inside = [path for path in (val, *links) if train.resolve() in (path.resolve(), *path.resolve().parents)]
    if inside:
        log.warning("validation images of %s lie inside the training folder %s: they are trained on as well",
                    listed(inside, 3), shown(train))
