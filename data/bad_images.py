"""Images that can't be read: what stands in for them, how many are allowed, and the list of them."""
import json
import logging
import os

from torch.utils.data import Dataset

from data.datasets import whole_key
from data.reading import BadImage
from utils import distributed
from utils.files import write_text
from utils.names import shown
from utils.seeding import REPLACE, rng_for

log = logging.getLogger("simmim.data")

BAD_FILE = "bad_images.txt"
ADVICE = ("Repair or remove them, name a list of them in DATA.SKIP_LIST (tools/check_data.py makes one), or raise "
          "DATA.MAX_BAD_FRACTION.")


class BadImages:
    """The files of a data set that were met and can't be read.

    Args:
        num_images: of the data set.
        max_fraction: share of them that may be bad, but at least one image; 0 = none may; None = any number.

    Attributes:
        found: {absolute path: reason} of all that processes have told each other of, see `add`.
        met: those that this process has met and told nobody of.
    """

    def __init__(self, num_images, max_fraction=None):
        self.num_images, self.max_fraction = num_images, max_fraction
        self.allowed = num_images if max_fraction is None else max(int(num_images * max_fraction), int(max_fraction > 0))
        self.found = {}
        self.met = {}
        self._told = set()

    def meet(self, found):
        """Take note of {path: reason} that came with a batch of this process."""
        self.met.update({path: reason for path, reason in found.items() if path not in self._told and path not in self.found})

    def news(self):
        """{path: reason} of what this process has met since it was last asked, without what `found` has."""
        news = {path: reason for path, reason in self.met.items() if path not in self.found}
        self._told.update(news)
        self.met = {}
        return news

    def add(self, found):
        """Remember {path: reason}, the news of all processes; each process must be given the same.

        Returns: what is new among them.
        Raises: ValueError with a list once there are more than allowed.
        """
        new = {path: reason for path, reason in found.items() if path not in self.found}
        self.found.update(new)
        self.check(self.found)
        return new

    def check(self, found):
        """Raises: ValueError where {path: reason} are more than allowed."""
        if len(found) > self.allowed:
            raise ValueError(f"{len(found)} of {self.num_images} training images can't be read, more than "
                             f"DATA.MAX_BAD_FRACTION={self.max_fraction:g} allows ({self.allowed}): {named(found)}. {ADVICE}")

    def listing(self, found=None, most=10):
        """What was found, or {path: reason} of it, in words for a message."""
        return named(self.found if found is None else found, most)

    def write(self, folder):
        """Write <folder>/bad_images.txt anew, a line each: path, tab, reason. Rank 0 does it; with none found nobody."""
        if self.found and distributed.rank() == 0:
            write_list(os.path.join(folder, BAD_FILE), self.found)

    def read(self, folder):
        """Go on counting from the list of an earlier start; all processes must call it.

        A file that has changed since the list was written does not count: it may be repaired.
        Raises: ValueError where the others are more than allowed.
        """
        path = os.path.join(folder, BAD_FILE)
        listed = {}
        if distributed.rank() == 0 and os.path.exists(path):
            written = os.stat(path).st_mtime
            try:
                listed = {name: reason for name, reason in read_list(path).items() if _is_as_it_was(name, written)}
            except ValueError as error:
                log.warning("%s can't be read, counting anew: %s", path, error)
        self.found.update(distributed.from_rank0(listed))
        self.check(self.found)


def _is_as_it_was(path, moment):
    """Whether a file is there and has not changed since; one that is gone is met again."""
    try:
        return os.stat(path).st_ctime <= moment
    except (OSError, ValueError):  # no name of a file
        return False


def named(found, most=10):
    """{path: reason} as text, the rest counted."""
    names = [f"{shown(path)} ({reason})" for path, reason in list(found.items())[:most]]
    return "; ".join(names) + (f"; and {len(found) - most} more" if len(found) > most else "")


# ---- lists --------------------------------------------------------------------------------------------------------

def write_list(path, found):
    """Write {path: reason} as a list, whole or not at all. Raises OSError."""
    write_text(path, "".join(f"{_as_word(name)}\t{shown(reason)}\n" for name, reason in sorted(found.items())))


def _as_word(path):
    """A path as it stands in a list: as JSON where it could be misread (control characters, no UTF-8, a quote in front)."""
    return path if path.isprintable() and not path.startswith('"') and path == path.strip() else json.dumps(path)


def read_list(path):
    """{path: reason} of a list: a path a line, as it is or as JSON, and after a tab the reason, which may be missing.

    Raises: FileNotFoundError; ValueError on a line that is neither.
    """
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        lines = file.read().removeprefix("\ufeff").split("\n")  # a mark that editors put in front
    found = {}
    for number, line in enumerate(lines, start=1):
        name, _, reason = line.rstrip("\r").partition("\t")
        if name.startswith('"'):
            try:
                name = json.loads(name)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {shown(name)} is no text in JSON ({error}): expected a path, a tab "
                                 f"and a reason.") from error
        else:
            name = name.strip()  # a name that ends in a blank is written as JSON
        if name:
            found[name] = reason
    return found


def skipped_indices(samples, path, root):
    """Positions of the samples that a list names, as absolute paths or relative to `root`; frozenset.

    Raises: FileNotFoundError that names the setting.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"DATA.SKIP_LIST={path} does not exist: expected a list as tools/check_data.py writes it.")
    listed = {os.path.abspath(os.path.join(root, name)) for name in read_list(path)}
    return frozenset(i for i, (name, _) in enumerate(samples) if os.path.abspath(name) in listed)


# ---- reading past them --------------------------------------------------------------------------------------------

class Reader(Dataset):
    """What loaders read of an ImageDataset: (item, whether it is real, {path: reason} of what was found bad).

    Args:
        dataset: ImageDataset.
        replaces: training: another image stands in for a bad one, by a rule of (seed, epoch, index); the draws stay those of
            the key. Otherwise a blank does, to be left out by whoever reads the batch.
        skipped: positions of images that count as bad without being opened or listed.
        bad: BadImages; says how many may be met before the search for another one ends.
        note: called with the position of each image before it is opened, and None after a sample.
    """

    def __init__(self, dataset, replaces=False, skipped=frozenset(), bad=None, note=None):
        self.dataset, self.replaces, self.skipped = dataset, replaces, skipped
        self.bad = bad or BadImages(len(dataset))
        self.note = note or (lambda index: None)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        epoch, index, _ = whole_key(key)
        found = {}
        item = self._item(key, index, found)
        if item is None and self.replaces:
            item = self._replacement(key, rng_for(self.dataset.seed, REPLACE, epoch, index), found)
        self.note(None)
        return item or self.dataset.item(key, None), item is not None, found

    def _item(self, key, source, found):
        """The sample of a key with the pixels of an image, or None; what is bad is added to {path: reason}."""
        path = os.path.abspath(self.dataset.samples[source][0])
        if source in self.skipped or path in found:
            return None
        self.note(source)
        try:
            return self.dataset.item(key, source)
        except BadImage as error:
            found[path] = error.reason
            return None

    def _replacement(self, key, rng, found):
        item = None
        while item is None:
            self.bad.check(found)
            if len(found) + len(self.skipped) >= len(self):
                raise ValueError(f"none of the {len(self)} training images can be read: {named(found)}.")
            item = self._item(key, rng.randint(len(self)), found)
        return item

    def collate(self, results):
        """A batch of items, the positions in it that are blank, and what was found bad: numbers and texts travel well."""
        items, real, found = zip(*results, strict=True)
        blank = [i for i, is_real in enumerate(real) if not is_real]
        return self.dataset.collate(items), blank, {path: reason for one in found for path, reason in one.items()}


def replacement_index(seed, epoch, index, bad, count):
    """The image that stands in for a bad one where it is known which are bad: as a Reader finds it by trying.

    Args:
        bad: set of positions, fewer than `count`.
    """
    rng = rng_for(seed, REPLACE, epoch, index)
    while index in bad:
        index = rng.randint(count)
    return index
