"""Files in a data folder that are no images by their names: how many there are, and whether they are images all the same."""
import logging
import os
from collections import Counter

from utils.names import shown

log = logging.getLogger("simmim.data")

# pictures in formats that Pillow does not read, or that hold more than a picture
UNREAD = {".heic", ".heif", ".jxl", ".svg", ".psd", ".xcf", ".ico", ".exr", ".hdr", ".dds", ".dcm", ".nii", ".dng", ".nef",
          ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2"}
ODD_TIFF = "a TIFF that is broken, or of a kind that Pillow does not read: store it with 8 or 16 bits a channel, or as .npy"
LOOKALIKES = (  # what has the name of an image: how it begins, where, and what it is
    (b"version https://git-lfs", 0, "a pointer of Git LFS, not the file: fetch that with git lfs pull"),
    (b"<", 0, "text, as a web page or an SVG"), (b"{", 0, "text, as a web page or JSON"), (b"%PDF", 0, "a PDF"),
    (b"ftyphei", 4, "HEIC, as phones write it"), (b"ftypmif1", 4, "HEIC, as phones write it"),
    (b"ftyp", 4, "a video, or a picture of a kind that Pillow does not read"),
    (b"II*\0", 0, ODD_TIFF), (b"MM\0*", 0, ODD_TIFF),
    (b"PK\x03\x04", 0, "an archive, as .zip or .npz"), (b"\x1f\x8b", 0, "compressed by gzip"),
)
PACKED = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".parquet", ".arrow", ".tfrecord", ".h5", ".hdf5",
          ".mdb", ".rec"}  # which hold many images
CONTENT = {"JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF", "JPEG2000"}  # what is told apart from all other files
LOOKED_AT = 3  # files of each suffix
MOST_KINDS = 8  # in a message


class OtherFiles:
    """Counts of files by their suffixes, with the first of each."""

    def __init__(self):
        self.counts = Counter()
        self.first = {}

    def add(self, folder, name, suffix):
        self.counts[suffix] += 1
        first = self.first.setdefault(suffix, [])
        if len(first) < LOOKED_AT:
            first.append(os.path.join(folder, name))

    def say(self, root):
        """Say in one line each what below a folder is not read, and what of it was probably meant to be."""
        if self.counts:
            log.info("%d other files below %s are not read: %s", self.counts.total(), shown(root),
                     self._listed([suffix for suffix, _ in self.counts.most_common()]))
        unread, unnamed = self._unread(), self._unnamed()
        if unread:
            log.warning("pictures below %s are of kinds that are not read: %s. Convert them, e.g. to PNG", shown(root),
                        self._listed(unread))
        if unnamed:
            log.warning("files below %s are not read, but the first of them are images: %s. Names tell what is read: let them "
                        "end in .jpg or .png", shown(root), self._listed(unnamed))

    def advice(self):
        """The same for an error: what to do with the files that are there; "" where there is nothing to say."""
        unread, unnamed = self._unread(), self._unnamed()
        packed = [suffix for suffix, _ in self.counts.most_common() if suffix in PACKED]
        return "".join(text for text in (
            packed and f" {self._listed(packed)} may hold some: unpack them.",
            unread and f" {self._listed(unread)} are not read: convert them, e.g. to PNG.",
            unnamed and f" Names tell what is read, and {self._listed(unnamed)} are images: let them end in .jpg or .png.")
            if text)

    def _listed(self, suffixes):
        kinds = ", ".join(f"{self.counts[suffix]} {shown(suffix) or 'without suffix'}" for suffix in suffixes[:MOST_KINDS])
        return kinds + (", ..." if len(suffixes) > MOST_KINDS else "")

    def _unread(self):
        return [suffix for suffix, _ in self.counts.most_common() if suffix in UNREAD]

    def _unnamed(self):
        """Suffixes of files whose first are images by their content; of millions of files not all are opened."""
        kinds = [suffix for suffix, _ in self.counts.most_common(MOST_KINDS) if suffix not in UNREAD]
        return [suffix for suffix in kinds if any(map(_holds_image, self.first[suffix]))]


def looks_like(start):
    """What a file that is no image is by how it begins, in words that go on after "it is", or ""."""
    return next((what for beginning, place, what in LOOKALIKES if start[place:].lstrip().startswith(beginning)), "")


def _holds_image(path):
    from PIL import Image  # here, so that a folder without such files costs nothing

    try:
        with Image.open(path) if os.path.isfile(path) else open(os.devnull) as picture:
            return getattr(picture, "format", None) in CONTENT
    except Exception:  # decoders meet other files with nearly every kind of error
        return False
