"""Whose classes count: the names that a checkpoint keeps, those of the data, and the number that the settings say.

A checkpoint that keeps names is the authority for its head: data is scored by name, and a head is never taken for other classes
because their number is the same. One without names can be told by the number alone, and the log says so.
"""
import logging
import re
from dataclasses import dataclass
from itertools import zip_longest

from utils.names import alike, listed, same_text, shown

log = logging.getLogger("simmim.classes")

# a head by its names: of a classifier, of probes (one layer, several), of probes of mmpretrain and mmselfsup
HEADS = re.compile(r"(encoder\.)?head\.weight|head\.(\w+\.)?1\.weight|head\.layers\.head\.weight")


def kept_classes(content):
    """The names of the classes that a checkpoint keeps, in the order of its labels; [] where it keeps none.

    Args:
        content: from load_checkpoint; ours have them under `classes`, those of mmpretrain in `meta`.
    """
    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    described = meta.get("dataset_meta")
    for names in (content.get("classes"), described.get("classes") if isinstance(described, dict) else None,
                  meta.get("CLASSES")):
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return []


def head_size(weights):
    """How many classes the head among weights {name: tensor} is for, or None where there is none."""
    sizes = {len(value) for name, value in weights.items() if HEADS.fullmatch(name) and value.ndim == 2}
    return sizes.pop() if len(sizes) == 1 else None


def difference(kept, found):
    """Where two lists of classes differ first, in words; "" where they are the same."""
    for label, (there, here) in enumerate(zip_longest(kept, found)):
        if there is None or here is None or same_text(there) != same_text(here):
            there, here = ("no class" if name is None else shown(name) for name in (there, here))
            return f"label {label} is {there} there and {here} here"
    return ""


def check_same(kept, found, path):
    """Refuse to go on training a head on other classes than those it is for. Raises ValueError."""
    if kept and found and difference(kept, found):
        raise ValueError(f"{path} was trained on other classes than those of the data: {difference(kept, found)} ({len(kept)} "
                         f"classes there, {len(found)} here). Check --data-path; to train its encoder on these classes, use "
                         f"--pretrained {path} and another --tag.")


@dataclass
class Head:
    """What a checkpoint says of its head.

    Attributes:
        path: the file.
        names: of its classes, [] where it keeps none.
        size: number of its classes, or None where it has no head.
    """
    path: str
    names: list
    size: int | None

    def labels_of(self, found, classes):
        """The names in whose order the labels of the data are scored: those of the head, or of the data where it keeps none.

        Args:
            found: names of the classes of the data that have images.
            classes: names of all classes of the data.
        Raises: ValueError where the head does not know some of them, or is for another number.
        """
        if not self.names:
            self._check_number(classes)
            return classes
        known = {same_text(name) for name in self.names}
        unknown = [name for name in found if same_text(name) not in known]
        if unknown:
            pairs = [f"{shown(here)} here is {shown(there)} there" for here, there in alike(unknown, self.names).items()]
            spelled = f" (capitals and blanks count: {listed(pairs, 3)})" if pairs else ""
            raise ValueError(
                f"{self.path} was trained on other classes: it does not know {len(unknown)} of the {len(found)} of the data, "
                f"{listed(unknown)}{spelled}, and knows {len(self.names)}, {listed(self.names)}. Name the folders as it does, "
                f"evaluate on known ones alone (--opts DATA.VAL_PATH <folder>), or fine-tune on these classes: --pretrained "
                f"{self.path} without --eval.")
        if len(found) < len(self.names):
            log.info("the data has images of %d of the %d classes of %s: labels are told by name", len(found), len(self.names),
                     self.path)
        return self.names

    def _check_number(self, classes):
        if self.size is None:  # loading tells
            return
        if self.size != len(classes):
            raise ValueError(f"{self.path} has a head for {self.size} classes and keeps no names of them, but the data has "
                             f"{len(classes)} ({listed(classes, 4)}): which is which is not known. Evaluate on folders of all "
                             f"{self.size} classes: --data-path <folder with train/ or val/ of the training>.")
        log.info("%s keeps no names of its %d classes: label 0 is taken for %s, label %d for %s", self.path, self.size,
                 shown(classes[0]), self.size - 1, shown(classes[-1]))


def head_of(content, weights, path):
    """The Head of a checkpoint, from its content and its weights."""
    size, names = head_size(weights), kept_classes(content)
    return Head(str(path), names if size in (None, len(names)) else [], size)
