"""Released models by name: what they are, what was published about them, and where their weights are.

The data is zoo.json beside this file: groups of models, each with what its models share. docs/models.md is made of it.

A name says method, encoder, size, length of pre-training, then `ft<pixels>` or `linear` for a classifier, then who trained
it where that was not the authors of the method: `simmim_swin_base_100ep_ft192_mmpretrain`. Without the length (and the
pixels), `simmim_swin_base` and `simmim_swin_base_ft`, it stands for the longest pre-training by the authors, on all of
ImageNet-1K where there are several data sets, fine-tuned at 224 pixels. The names of mmpretrain are known, too.
"""
import difflib
import json
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from utils.download import check_sha256, fetch, hub_folder, weights_folder
from utils.registry import pick

DATA = Path(__file__).with_name("zoo.json")
TASKS = ("pretrain", "classification")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A released model. None = not known, unless said otherwise.

    Attributes:
        name: of this repository.
        family: heading of docs/models.md.
        task: pretrain (a method around an encoder) or classification.
        linear_probe: whether the classifier is one on a frozen encoder (models.probe), rather than a fine-tuned one.
        config: recipe with this architecture, relative to the root of the repository, or None if it can't be built here.
        opts: settings that this model has beside the recipe, as for load_config.
        obstacle: why it can't be built here; None if it can be.
        params: of the whole model: head, decoder and frozen position tables included.
        gflops: 1e9 multiply-adds for one image, as published.
        flops_note: what was measured there.
        pretraining: data and length, as far as published.
        validation_loss: of the pre-training, in its own units.
        top1: on ImageNet-1K, percent, as published.
        source: who released it.
        url: of the weights; may be a share link that needs a browser.
        filename: under which the weights are looked for.
        sha256: the published checksum or its beginning.
        layout: whose names the weights in the file have.
        aliases: other names.
        paper: arXiv number.
        note: what else to know.
    """
    name: str
    family: str
    task: str
    source: str
    layout: str
    paper: str
    pretraining: str
    config: str | None = None
    opts: tuple = ()
    obstacle: str | None = None
    linear_probe: bool = False
    params: int | None = None
    gflops: float | None = None
    flops_note: str | None = None
    validation_loss: float | None = None
    top1: float | None = None
    url: str | None = None
    filename: str | None = None
    sha256: str | None = None
    aliases: tuple = ()
    note: str | None = None


@cache
def entries():
    """{name: Entry} of all released models, in the order of zoo.json."""
    groups = json.loads(DATA.read_text(encoding="utf-8"))
    return {name: _entry({"name": name, **group["shared"], **own}) for group in groups for name, own in group["models"].items()}


def _entry(values):
    sequences = {field.name for field in fields(Entry) if field.type is tuple}
    return Entry(**{key: tuple(value) if key in sequences else value for key, value in values.items()})


@cache
def _names():
    """{name or alias: name}."""
    return {known: entry.name for entry in entries().values() for known in (entry.name, *entry.aliases)}


def list_models(pattern=None, task=None):
    """Names of released models, sorted.

    Args:
        pattern: shell wildcards, as if a * stood at the end. A model whose name does not match is listed under its aliases
            that do. None = all names, without aliases.
        task: pretrain or classification; None = both.
    Raises: ValueError on an unknown task, or a pattern that is no text.
    """
    if pattern is not None and not isinstance(pattern, str):
        raise ValueError(f"pattern={pattern!r} is {type(pattern).__name__}, expected one text, e.g. 'mae_vit*'.")
    if task is not None:
        pick(dict.fromkeys(TASKS), task, "task")
    found = []
    for entry in entries().values():
        if task in (None, entry.task):
            found += [entry.name] if _matches(entry.name, pattern) else [name for name in entry.aliases
                                                                         if _matches(name, pattern)]
    return sorted(found)


def _matches(name, pattern):
    return pattern is None or fnmatchcase(name, f"{pattern}*")


def find(name):
    """The Entry of a name or an alias.

    Raises: ValueError with the names most like it.
    """
    if name in _names():
        return entries()[_names()[name]]
    close = difflib.get_close_matches(str(name), _names(), n=3)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise ValueError(f"model {name!r} is unknown. {hint}docs/models.md and models.weights.zoo.list_models() have all names.")


def weights_file(entry, weights_dir=None, progress=True):
    """A local file with the weights of a model, downloaded if there is none yet.

    It is looked for under `entry.filename` in weights_dir, in the folder of the environment variable SIMMIM_WEIGHTS, and in
    torch.hub's `checkpoints`; a download goes into the first of these that is given. A published checksum is verified.

    Args:
        entry: from find.
        weights_dir: folder, or None.
        progress: whether to show a bar.
    Returns: Path.
    Raises: ValueError if no weights are known, or if they can't be downloaded: it says what to put where.
    """
    if entry.filename is None:
        raise ValueError(f"no weights of {entry.name} are known to be published: give a file of your own instead, or choose "
                         f"another model, docs/models.md has all.")
    first = weights_folder(weights_dir) / entry.filename
    for path in (first, weights_folder() / entry.filename, hub_folder() / entry.filename):
        if path.is_file():
            check_sha256(path, entry.sha256, "Remove or rename it, or give it as a file of your own.")
            return path
    if entry.url is None:
        raise ValueError(f"{entry.name} can't be downloaded: {entry.note}. Put the file at {first}.")
    return fetch(entry.url, first, entry.sha256, progress)
