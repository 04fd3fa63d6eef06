"""Checkpoints: one file, or a folder to which every process adds its part of a sharded model.

Both are written atomically and read without ever running code from them.
"""
import hashlib
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlparse

import numpy as np
import torch

from utils import distributed, formats, parts, sharding
from utils.download import fetch, weights_folder
from utils.files import expanded, naming, process_lives, replacing, sync_folder
from utils.finite import check_finite

CHECKPOINT = re.compile(r"ckpt_epoch_(\d+)(?:_step_(\d+))?(\.pth)?")  # the name of a folder has no ending
# what DistributedDataParallel puts before names; torch.compile, FSDP and activation checkpointing put theirs anywhere
WRAPPERS = re.compile(r"^(module\.)+|_orig_mod\.(module\.)?|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
COUNTERS = ("n_averaged",)  # beside the weights in torch.optim.swa_utils.AveragedModel
UNFINISHED = re.compile(r"\..+\.(\d+)\.tmp")  # a file that is being written, with the number of its process
STATE_FILE = "state.pth"  # what a folder holds beside tensors
WEIGHT_FILES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")  # as other projects end them
BEST_FILE = "ckpt_best.pth"
BEST_AVERAGE_FILE = "ckpt_best_ema.pth"
ENCODER_FILE = "encoder.pth"
AVERAGE = "model_ema"  # where the average of the weights stands, beside `model`
ANY_AVERAGE = "ema"    # as PRETRAINED_KEY (--ema): under whichever of formats.AVERAGE_KEYS it stands
KEPT_FILES = (BEST_FILE, BEST_AVERAGE_FILE, ENCODER_FILE)  # files of weights that no later checkpoint replaces
USE_PRETRAINED = ("Use the --cfg it was made with; to start from the encoder of another model use --pretrained instead of "
                  "--resume.")


def save_checkpoint(path, state):
    """Write a checkpoint so that a crash leaves either the old file or the new one, never a part.

    Args:
        path: destination; one that ends in .safetensors holds weights, numbers and text only.
        state: dictionary of tensors, numbers, text and containers of them.
    Raises: OSError (disk full, no permission) with the old file intact; ValueError on what the format can't hold.
    """
    write = formats.write_safetensors if formats.is_safetensors(path) else formats.write_torch
    with replacing(path, formats.WRITE_ERRORS) as temporary:
        write(temporary, state)


def remove_unfinished(folder):
    """Remove what a killed process left of a file or folder it was writing; that of a live one stays."""
    for path in [*Path(folder).glob(".*.tmp"), *Path(folder).glob("*/.*.tmp")]:
        name = UNFINISHED.fullmatch(path.name)
        if path.is_dir() and CHECKPOINT.fullmatch(path.name[1:-4]):
            shutil.rmtree(path)
        elif name and (int(name[1]) == os.getpid() or not process_lives(int(name[1]))):
            path.unlink(missing_ok=True)


def load_checkpoint(source, moments=True):
    """Read a checkpoint onto the CPU.

    Args:
        source: path, or http(s) address (downloaded once, see utils.download), or file:// address. A table of parts, or a
            folder with one or with a file of weights, as transformers writes them, is read as a whole.
        moments: whether to read the moments of the optimizer from a folder, where they can be left on disk.
    Returns: dictionary. A config pickled by yacs comes back as nested dictionaries; a folder as one file would.
    Raises: FileNotFoundError; ValueError if the file is broken or holds anything but plain data.
    """
    if "://" in str(source) and urlparse(str(source)).scheme not in ("http", "https", "file"):
        raise ValueError(f"checkpoint {source} is an address of a kind that is not downloaded: fetch it, and give its path. "
                         f"https is downloaded.")
    path = _download(source) if urlparse(str(source)).scheme in ("http", "https", "file") else Path(expanded(source))
    if str(source) and path.is_dir():
        return load_folder(path, moments=moments)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder: expected a checkpoint.")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist: give the path or https address of a .pth or .safetensors "
                                f"file.")
    if path.name.endswith(parts.INDEX):
        return parts.read_parts(path)
    parts.check_no_part(path)
    content = formats.read(path)
    content = _entries(content) or content
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected a dictionary of weights. {formats.SAVE_WEIGHTS}")
    return content


def _download(address):
    name = Path(urlparse(address).path)
    # names repeat at other addresses, so the address is part of the file's name
    return fetch(address, weights_folder() / f"{name.stem}-{hashlib.sha256(address.encode()).hexdigest()[:8]}{name.suffix}")


def checkpoints(folder):
    """[((epochs done, steps of the next), path)] of the checkpoints of a run, oldest first; each a file or a folder.

    ckpt_epoch_3 is at (4, 0), ckpt_epoch_4_step_100 at (4, 100).
    """
    folder = Path(folder)
    found = [(CHECKPOINT.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((_place(match), path) for match, path in found if match)


def _place(match):
    epoch, step = match[1], match[2]
    return (int(epoch), int(step)) if step else (int(epoch) + 1, 0)


def place_of(content):
    """Where a run goes on from the content of a checkpoint: (epochs done, steps of the next). Raises ValueError."""
    position = content.get("position") or {}
    epoch, step = content.get("epoch"), position.get("steps", 0) if isinstance(position, dict) else None
    if type(epoch) is not int or type(step) is not int:
        raise ValueError(f"it says that it is of epoch {epoch!r}, step {step!r}")
    return (epoch, step) if position else (epoch + 1, 0)


def newest_good_checkpoint(folder, report):
    """The newest checkpoint of a run that can be read.

    Args:
        folder: run folder.
        report: called with a line of text for each that is passed over: broken, unreadable, or of another epoch than its name.
    Returns: (path, content as from load_for_resume), or (None, None).
    """
    for place, path in reversed(checkpoints(folder)):
        try:
            content = load_for_resume(path)
            if place_of(content) != place:
                raise ValueError("what is in it is of epoch {}, step {}".format(*place_of(content)))
            return path, content
        except (ValueError, OSError) as error:
            named = str(error) if str(path) in str(error) else f"{path} can't be used: {error}."
            report(f"{named} Trying the checkpoint before it.")
    return None, None


def remove_old(folder, place, keep, forever):
    """Remove checkpoints of a run that newer ones have replaced.

    Args:
        folder: run folder.
        place: of the one just written; later ones, which could not be read, stay.
        keep: epochs whose checkpoints stay, the last ones; 0 = all. Of those within an epoch the last two places stay.
        forever: every how many epochs one stays for good; 0 = none.
    """
    found = [(at, path) for at, path in checkpoints(folder) if at <= place]
    epochs = [(at, path) for at, path in found if "_step_" not in path.name]
    recent = {path for _, path in found[-min(keep or 2, 2):]}
    old = [path for _, path in found if "_step_" in path.name and path not in recent]
    if keep:
        old += [path for at, path in epochs[:-keep] if not forever or (at[0] - 1) % forever]
    for path in old:
        remove(path)


def remove(path):
    """Remove a checkpoint; a folder first loses its name, so that no half of it is ever taken for a checkpoint."""
    if path.is_dir():
        unnamed = path.with_name(f".{path.name}.tmp")
        os.rename(path, unnamed)
        shutil.rmtree(unnamed)
    else:
        path.unlink(missing_ok=True)


def check_places(folder):
    """Refuse a run folder in which a folder has the name of a file that will be written. Raises ValueError."""
    folder = Path(folder)
    for path in [*(path for _, path in checkpoints(folder)), *(folder / name for name in KEPT_FILES)]:
        if path.suffix and path.is_dir():
            raise ValueError(f"{path} is a folder, and a checkpoint needs this name: move it away.")


def save_folder(path, model, optimizer, state, average=None):
    """Write a checkpoint of a sharded model: each process its part, into a folder that appears once it is complete.

    All processes must call it.

    Args:
        model, optimizer: dictionaries of tensors: {parameter or buffer: tensor}, {parameter: {moment: tensor}}.
        state: what else belongs to the checkpoint; not tensors. Written by rank 0.
        average: {parameter: tensor} of those that an average is kept of.
    Raises: OSError, with an old folder of this name intact.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    first = distributed.rank() == 0
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
        with naming(path):
            temporary.mkdir(parents=True)
    distributed.barrier()
    try:
        with naming(path):
            sharding.write_tensors(temporary, _as_named(model, optimizer, average))
        digests = distributed.from_all(sharding.digests(temporary, distributed.rank()))
        if first:
            _complete(temporary, path, {**state, "digests": {name: text for part in digests for name, text in part.items()}})
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk is not to stay full
        raise
    distributed.barrier()


def _complete(temporary, path, state):
    """Give a folder that every process has written to its name. Raises OSError if a part is not there."""
    try:
        sharding.check_folder(temporary)
    except ValueError as error:
        raise OSError(f"{error} If other machines took part: --output must be on a file system that all of them "
                      f"share.") from error
    save_checkpoint(temporary / STATE_FILE, state)
    if path.exists():  # could not be read, or it would have been resumed
        replaced = path.with_name(f"replaced_{path.name}")
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(path, replaced)
    os.rename(temporary, path)
    sync_folder(path.parent)


def rewrite_state(path, state):
    """Give a complete folder, whose tensors stay, another state; rank 0 calls it alone."""
    digests = load_checkpoint(Path(path) / STATE_FILE)["digests"]
    save_checkpoint(Path(path) / STATE_FILE, {**state, "digests": digests})


def read_folder(path, model, optimizer, average=None):
    """Fill tensors, whole or sharded, from a folder; see save_folder. All processes must call it."""
    sharding.read_tensors(path, _as_named(model, optimizer, average))


def holds_average(content):
    """Whether a checkpoint, from load_for_resume, holds an average of the weights beside them."""
    if "folder" in content:
        return any(name.startswith(f"{AVERAGE}.") for name in sharding.check_folder(content["folder"]))
    return isinstance(content.get(AVERAGE), dict)


def load_folder(path, tensors=True, moments=True):
    """The content of a folder as one file would hold it.

    Args:
        tensors: whether to read them (every one, whole), or only to see that they are there.
        moments: whether to read those of the optimizer.
    Raises: ValueError if the folder is broken.
    """
    if not (Path(path) / STATE_FILE).is_file():
        index, whole = parts.index_of(path), parts.whole_of(path)
        if index or whole:  # of transformers and its relatives
            return parts.read_parts(index) if index else load_checkpoint(whole)
        inside = sorted(found.name for found in Path(path).glob("*") if found.suffix in WEIGHT_FILES)
        advice = f" Give one of its files: {', '.join(inside[:4])}." if inside else ""
        raise ValueError(f"{path} is not a checkpoint: a folder with {STATE_FILE} was expected, as sharded runs write "
                         f"it.{advice}")
    sharding.check_folder(path)
    content = load_checkpoint(Path(path) / STATE_FILE)
    digests = content.pop("digests", {})
    if distributed.rank() == 0:  # reading everything once is enough
        sharding.check_digests(path, digests)
    if not tensors:
        return {**content, "folder": str(path)}
    whole, groups = sharding.read_whole_tensors(path, "" if moments else "model"), content.pop("optimizer_groups")
    content["model"], averages = ({name.removeprefix(start): whole[name] for name in whole if name.startswith(start)}
                                  for start in ("model.", f"{AVERAGE}."))
    if averages:  # of what is trained
        content[AVERAGE] = {**content["model"], **averages}
    if not moments:
        return content
    numbers = {name: i for i, name in enumerate(name for group in groups for name in group["params"])}
    content["optimizer"] = {
        "state": {numbers[name]: {moment: whole[f"optimizer.{name}.{moment}"] for moment in moments}
                  for name, moments in moments_in(path).items()},
        "param_groups": [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]}
    return content


def shapes_in(path):
    """{weight: described, with its `shape`} of the model in a folder."""
    return {name.removeprefix("model."): SimpleNamespace(shape=tuple(described.size))
            for name, described in sharding.check_folder(path).items() if name.startswith("model.")}


def moments_in(path):
    """{parameter: {moment: shape}} of the optimizer in a folder."""
    found = {}
    for name, described in sharding.check_folder(path).items():
        owner, _, moment = name.removeprefix("optimizer.").rpartition(".")
        if name.startswith("optimizer."):
            found.setdefault(owner, {})[moment] = tuple(described.size)
    return found


def _as_named(model, optimizer, average):
    """What the tensors of a checkpoint are called in a folder."""
    return {**{f"model.{name}": tensor for name, tensor in model.items()},
            **{f"{AVERAGE}.{name}": tensor for name, tensor in (average or {}).items()},
            **{f"optimizer.{name}.{moment}": tensor for name, of in optimizer.items() for moment, tensor in of.items()}}


def load_for_resume(source):
    """As load_checkpoint, but the tensors of a folder stay on disk, to be read in place; `folder` then names it."""
    return load_folder(source, tensors=False) if Path(source).is_dir() else load_checkpoint(source)


def weights_of(content, key=""):
    """The state dict inside a checkpoint, as {name: tensor}.

    Names are without what DistributedDataParallel, FSDP, torch.compile and activation checkpointing add, and `rpe_mlp`, an
    early name of SwinV2's `cpb_mlp`, is brought up to date. The counter of an averaged model is left out.

    Args:
        content: from load_checkpoint.
        key: where the weights stand in it; "" = the first of formats.WEIGHT_KEYS that is there, or the content itself;
            ANY_AVERAGE = that one, or an average under another key.
    Raises: ValueError if nothing of that key is there.
    """
    place, weights = weights_at(content, key)
    return {WRAPPERS.sub("", str(name)).replace(".rpe_mlp.", ".cpb_mlp."): value for name, value in weights.items()
            if name not in COUNTERS}


def weights_in(content, path, key=""):
    """As weights_of. Raises: ValueError, also if there are none."""
    weights = weights_of(content, key)
    if not weights:
        raise ValueError(f"{path} holds no weights: expected a state dict, alone or under one of "
                         f"{', '.join(formats.WEIGHT_KEYS)}. Its entries are "
                         f"{', '.join(map(str, list(content)[:6])) or 'none'}. {formats.SAVE_WEIGHTS}")
    return weights


def weights_at(content, key=""):
    """(where they stand, "" = alone; {name: tensor}), see weights_of."""
    found, likely = _found(content)
    if key == ANY_AVERAGE not in found:
        key = next((name for name in found if set(name.split(".")) & set(formats.AVERAGE_KEYS)), key)
    if key:
        if key not in found:
            missing = (f"the file holds no average of the weights (--ema, PRETRAINED_KEY={key}), as a run with TRAIN.EMA_DECAY "
                       f"saves it" if key == ANY_AVERAGE else f"PRETRAINED_KEY={key} is not in the file")
            raise ValueError(f"{missing}. Weights stand under: {', '.join(name or 'no key' for name in found) or 'no key'}.")
        return key, found[key]
    if not likely and len(found) > 1:
        raise ValueError(f"weights stand under {', '.join(found)}, none of which is usual: choose with PRETRAINED_KEY, e.g. "
                         f"--opts PRETRAINED_KEY {next(iter(found))}.")
    return next(iter(found.items()), ("", {}))


def other_weights(content, place):
    """Keys beside `place` under which weights stand."""
    return [key for key in _found(content)[0] if key and key != place and not place.startswith(f"{key}.")]


def _found(content):
    """All state dicts in a checkpoint: {key, or keys with dots between: {name: tensor}}, the likelier first; and how many of
    them stand where programs usually put them.
    """
    usual, others = {}, {}
    _look_into(content, usual, others)
    return {**usual, **others}, len(usual)


def _look_into(content, usual, others, prefix="", depth=4, is_usual=True):
    inside = {key: value for key in formats.WEIGHT_KEYS if (value := _entries(content.get(key)))}
    for key, value in inside.items() if depth else ():
        _look_into(value, usual, others, f"{prefix}{key}.", depth - 1, is_usual)
    tensors = {name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
               for name, value in content.items() if isinstance(value, torch.Tensor) or _is_numeric(value)}
    if tensors and is_usual:
        usual[prefix.rstrip(".")] = tensors
    elif any(str(name).endswith("weight") and value.ndim > 1 for name, value in tensors.items()):
        others[prefix.rstrip(".")] = tensors
    for key, value in content.items() if depth else ():
        if isinstance(key, str) and key not in inside and (value := _entries(value)):
            _look_into(value, usual, others, f"{prefix}{key}.", depth - 1, False)


def _entries(value):
    """A dictionary, or a list of pairs (name, tensor) as one; None of anything else."""
    if isinstance(value, dict):
        return value
    pairs = isinstance(value, (list, tuple)) and value and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], torch.Tensor)
        for pair in value)
    return dict(value) if pairs else None


def _is_numeric(value):
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype != np.longdouble


def misfit_of(model, weights):
    """What a model says of weights {name: anything with a shape} that are not its own: a sentence and a space, or nothing."""
    reason = model.misfit({name: value.shape for name, value in weights.items()}) if hasattr(model, "misfit") else ""
    return f"{reason} " if reason else ""


def load_weights(model, content, source, advice=USE_PRETRAINED, key=""):
    """Load a checkpoint of exactly this model.

    Args:
        model: nn.Module; one with a `misfit(shapes)` says itself what to change, see models/methods/method.py.
        content: from load_checkpoint.
        source: where it came from, for the message.
        advice: what to do where it does not fit, for the message.
        key: which weights of it, see weights_of.
    Raises: ValueError that says what does not fit, or that the run had diverged.
    """
    weights, own = weights_of(content, key), model.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    shapes = [f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
              for name in own if name in weights and weights[name].shape != own[name].shape]
    problems = [f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" for kind, names in
                (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)) if names]
    if problems:
        raise ValueError(f"checkpoint {source} is of another model: {'; '.join(problems)}. "
                         f"{misfit_of(model, weights)}{advice}")
    check_finite({name: weights[name] for name in own}, source)
    sharding.assign(model, weights)
