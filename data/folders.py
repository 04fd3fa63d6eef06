"""Folders of images: which files below them are read, and what is said where they are not what was expected."""
import logging
import os
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from pathlib import Path

from data.listings import Listings
from data.other_files import OtherFiles
from utils.files import expanded
from utils.names import listed, shown

log = logging.getLogger("simmim.data")

DATA_FLAG = "--data-path"
VAL_FLAG = "DATA.VAL_PATH"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".avif", ".tif", ".tiff",
                  ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".gif", ".jp2", ".j2k", ".jpx", ".tga"}
ARRAY_SUFFIXES = {".npy"}
CHANNEL_SUFFIXES = ARRAY_SUFFIXES | {".tif", ".tiff"}  # of images with other channels than pictures
_listings = ContextVar("listings", default=None)
_suffixes = ContextVar("suffixes", default=IMAGE_SUFFIXES)  # of what counts as an image, see `listing`
ARCHIVES = {".zip": "unzip", ".tar": "tar -xf", ".tgz": "tar -xf", ".gz": "tar -xf", ".bz2": "tar -xf", ".xz": "tar -xf",
            ".7z": "7z x", ".rar": "unrar x"}
# what systems put beside files of their users: previews, deleted files, leftovers of an archive made elsewhere
OF_SYSTEMS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}


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
    if root and not isinstance(mode, int) and not has_images(root):
        suffixes = ARRAY_SUFFIXES if any(True for _ in images_below(root, suffixes=ARRAY_SUFFIXES)) else suffixes
    token = _suffixes.set(suffixes)
    try:
        yield
    finally:
        _suffixes.reset(token)


def is_image(name):
    return os.path.splitext(name)[1].lower() in _suffixes.get()


def image_files(root, flag=DATA_FLAG):
    """Paths (text) of all image files below a folder, sorted; links are followed.

    Raises: FileNotFoundError if the folder is missing; PermissionError if it, or one below it, may not be looked into;
        ValueError if it holds no image.
    """
    root = require_folder(root, flag)
    others = OtherFiles()
    files = sorted(images_below(root, others))
    if not files:
        inside = sorted(path.name for path in looked_into(root))
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
    if root.is_file() and is_image(root.name):
        return f"is a file, not a folder: pass the folder that holds the image, {shown(root.parent)}"
    if os.path.lexists(root):
        return (f"is a link to {shown(os.readlink(root))}, which does not exist" if root.is_symlink() and not root.exists()
                else "is a file, not a folder: pass the folder that holds the images")
    nearest = next((place for place in root.parents if place.is_dir()), None)
    if nearest is None or nearest == root.parent and str(nearest) == ".":
        return "does not exist" + (f" in {os.getcwd()}" if not root.is_absolute() else "")
    inside = sorted(path.name for path in islice(looked_into(nearest), 1000) if path.is_dir() and is_data(path.name))
    return f"does not exist ({shown(nearest)} does, and holds {listed(inside) if inside else 'no folder'})"


def is_data(name):
    """Whether a file or folder of this name may be data: hidden ones and those of operating systems are not."""
    return not name.startswith(".") and name.lower() not in OF_SYSTEMS


def has_images(folder):
    """Whether there is an image file in a folder or below it."""
    return any(True for _ in images_below(folder))


def holds_images_itself(folder):
    """Whether there is an image file in a folder, not only below it."""
    return any(is_data(path.name) and is_image(path.name) and not path.is_dir()
               for path in looked_into(folder))


def folders_with_images(root):
    """Names of the folders in `root` that hold images, sorted."""
    return sorted(path.name for path in looked_into(root) if path.is_dir() and is_data(path.name) and has_images(path))


def looked_into(folder):
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


def images_below(root, others=None, suffixes=None):
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
