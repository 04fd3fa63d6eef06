"""Folders of images: which files are read, which folders are classes, and what is said where it is not what was expected."""
import logging
import os
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from pathlib import Path

from data.listings import Listings
from data.other_files import OtherFiles
from utils.files import expanded
from utils.names import alike, listed, plain, same_text, shown

log = logging.getLogger("simmim.data")

DATA_FLAG = "--data-path"
VAL_FLAG = "DATA.VAL_PATH"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".avif", ".tif", ".tiff",
                  ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".gif", ".jp2", ".j2k", ".jpx", ".tga"}
ARRAY_SUFFIXES = {".npy"}
CHANNEL_SUFFIXES = ARRAY_SUFFIXES | {".tif", ".tiff"}  # of images with other channels than pictures
OF_IMAGES = {"image", "images", "img", "imgs", "rgb", "jpegimages"}
OF_MASKS = {"mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "ground_truth",
            "segmentation", "segmentations", "segmentationclass", "segmentationobject", "depth", "depths"}
_listings = ContextVar("listings", default=None)
_suffixes = ContextVar("suffixes", default=IMAGE_SUFFIXES)  # of what counts as an image, see `listing`
ARCHIVES = {".zip": "unzip", ".tar": "tar -xf", ".tgz": "tar -xf", ".gz": "tar -xf", ".bz2": "tar -xf", ".xz": "tar -xf",
            ".7z": "7z x", ".rar": "unrar x"}
# what systems put beside files of their users: previews, deleted files, leftovers of an archive made elsewhere
OF_SYSTEMS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}


# ---- files --------------------------------------------------------------------------------------------------------

@contextmanager
def listing(mode, *roots, cache=None):
    """While folders are looked into for images of a mode: which files count, and what a list of them has that is kept.

    Arrays and TIFF where the mode is a number of channels that no picture has. Otherwise pictures, or arrays where there is no
    picture below the first of `roots` that is a folder: beside pictures they are often masks or features.

    Args:
        cache: folder of lists, see data/listings.py; None = there is none.
    """
    given = [expanded(str(root)) for root in roots if root]
    listings = Listings(given, cache)
    token = _listings.set(listings)
    try:
        with _suffixes_of(mode, given):
            yield
        listings.close()
    finally:
        _listings.reset(token)


@contextmanager
def _suffixes_of(mode, roots):
    suffixes = CHANNEL_SUFFIXES if isinstance(mode, int) else IMAGE_SUFFIXES
    root = next(filter(os.path.isdir, roots), None)
    if root and not isinstance(mode, int) and not has_images(root) and any(True for _ in _walk(root, suffixes=ARRAY_SUFFIXES)):
        suffixes = ARRAY_SUFFIXES
    token = _suffixes.set(suffixes)
    try:
        yield
    finally:
        _suffixes.reset(token)


def _is_image(name):
    return os.path.splitext(name)[1].lower() in _suffixes.get()


def image_files(root, flag=DATA_FLAG):
    """Paths (text) of all image files below a folder, sorted; links are followed.

    Raises: FileNotFoundError if the folder is missing; PermissionError if it, or one below it, may not be looked into;
        ValueError if it holds no image.
    """
    root = require_folder(root, flag)
    others = OtherFiles()
    files = sorted(_walk(root, others))
    if not files:
        inside = sorted(path.name for path in _looked_into(root))
        found = f"it holds {listed(inside)}" if inside else "it is empty"
        raise ValueError(f"{shown(root)} holds no images: {found}.{others.advice()} Expected files ending in "
                         f"{' '.join(sorted(_suffixes.get()))}, in the folder or below it; check {flag}.")
    others.say(root)
    return files


def require_folder(root, flag=DATA_FLAG):
    """Path of an existing folder; `flag` says where its name came from.

    Raises: ValueError without a name, FileNotFoundError where there is none, with what is there instead.
    """
    if not str(root):
        raise ValueError("no data folder is given: pass --data-path <folder> (DATA.DATA_PATH).")
    if "://" in str(root):
        raise FileNotFoundError(f"data folder {shown(root)} is an address, and data are not downloaded: fetch it, and pass the "
                                f"folder: check {flag}.")
    root = Path(expanded(root))
    if not root.is_dir():
        raise FileNotFoundError(f"data folder {shown(root)} {_instead(root)}: check {flag}.")
    return root


def _instead(root):
    """What is where a folder was expected, and what to do about it."""
    suffix, name = root.suffix.lower(), shown(root.name)
    if root.is_file() and suffix in ARCHIVES:
        return f"is a file, not a folder: unpack the archive ({ARCHIVES[suffix]} {name}) and pass the folder that this makes"
    if root.is_file() and _is_image(root.name):
        return f"is a file, not a folder: pass the folder that holds the image, {shown(root.parent)}"
    if os.path.lexists(root):
        return (f"is a link to {shown(os.readlink(root))}, which does not exist" if root.is_symlink() and not root.exists()
                else "is a file, not a folder: pass the folder that holds the images")
    nearest = next((place for place in root.parents if place.is_dir()), None)
    if nearest is None or nearest == root.parent and str(nearest) == ".":
        return "does not exist" + (f" in {os.getcwd()}" if not root.is_absolute() else "")
    inside = sorted(path.name for path in islice(_looked_into(nearest), 1000) if path.is_dir() and is_data(path.name))
    return f"does not exist ({shown(nearest)} does, and holds {listed(inside) if inside else 'no folder'})"


def is_data(name):
    """Whether a file or folder of this name may be data: hidden ones and those of operating systems are not."""
    return not name.startswith(".") and name.lower() not in OF_SYSTEMS


def has_images(folder):
    """Whether there is an image file in a folder or below it."""
    return any(True for _ in _walk(folder))


def holds_images_itself(folder):
    """Whether there is an image file in a folder, not only below it."""
    return any(is_data(path.name) and _is_image(path.name) and not path.is_dir()
               for path in _looked_into(folder))


def folders_with_images(root):
    """Names of the folders in `root` that hold images, sorted."""
    return sorted(path.name for path in _looked_into(root) if path.is_dir() and is_data(path.name) and has_images(path))


def _looked_into(folder):
    """Paths in a folder. Raises PermissionError that names it."""
    try:
        yield from Path(folder).iterdir()
    except OSError as error:
        _refuse(error)


def _refuse(error):
    """What is done with a folder that can't be listed, instead of passing over it."""
    if isinstance(error, PermissionError):
        raise PermissionError(f"folder {shown(error.filename)} may not be looked into: give yourself the right to "
                              f"(chmod u+rx), or move it out of the data.") from error
    raise error


def _walk(root, others=None, suffixes=None):
    """Image files below a folder, one after another (millions of files: no Path objects).

    Args:
        others: OtherFiles that gets the files that are none.
        suffixes: of images; None = as `listing` says.
    """
    suffixes = suffixes or _suffixes.get()
    seen = set()  # links may lead back up
    listings, pending = _listings.get() or Listings(), [str(root)]
    while pending:
        folder = pending.pop()
        place = os.path.realpath(folder)
        if place in seen:
            continue
        seen.add(place)
        try:
            subfolders, names = listings.entries(folder)
        except OSError as error:
            _refuse(error)
        pending += (os.path.join(folder, name) for name in sorted(filter(is_data, subfolders), reverse=True))
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in suffixes:
                yield os.path.join(folder, name)
            elif others is not None:
                others.add(folder, name, suffix)


def unlabelled_samples(root, flag=DATA_FLAG):
    """All images below a folder, flat or nested, without labels: [(path, -1), ...]."""
    return [(path, -1) for path in image_files(root, flag)]


# ---- classes ------------------------------------------------------------------------------------------------------

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
    samples = [(path, labels[same_text(name)]) for name in own for path in sorted(_walk(root / name, others))]
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
    for path in _looked_into(root):
        if path.name in own:
            continue
        if not is_data(path.name):
            if path.name.lower() not in OF_SYSTEMS and path.is_dir() and has_images(path):
                hidden.append(path.name)
        elif path.is_dir():
            empty.append(path.name)
        elif _is_image(path.name):
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
