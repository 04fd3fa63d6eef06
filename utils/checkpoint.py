"""Checkpoint files: written atomically, read without ever running code from them."""
import errno
import hashlib
import os
import re
from collections import OrderedDict
from pathlib import Path
from urllib.parse import urlparse

import torch

EPOCH_FILE = re.compile(r"ckpt_epoch_(\d+)\.pth")
BEST_FILE = "ckpt_best.pth"
ENCODER_FILE = "encoder.pth"
USE_PRETRAINED = ("Use the --cfg it was made with; to start from the encoder of another model use --pretrained instead of "
                  "--resume.")
# official files hold a pickled yacs node beside the weights; it is read as a plain dictionary
PLAIN_DATA = [(OrderedDict, "yacs.config.CfgNode")]


def save_checkpoint(path, state):
    """Write a checkpoint so that a crash leaves either the old file or the new one, never a part.

    Args:
        path: destination.
        state: dictionary of tensors, numbers, text and containers of them.
    Raises: OSError (disk full, no permission) with the old file intact.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # how torch reports that a write failed
            raise OSError(f"{path} could not be written (is the disk full?): {error}") from error
        raise


def remove_unfinished(folder):
    """Remove what a killed process left of a checkpoint it was writing."""
    for path in Path(folder).glob(".*.pth.*.tmp"):
        path.unlink(missing_ok=True)


def load_checkpoint(source):
    """Read a checkpoint onto the CPU.

    Args:
        source: path, or http(s) address (downloaded once into torch.hub's cache).
    Returns: dictionary. A config pickled by yacs comes back as nested dictionaries.
    Raises: FileNotFoundError; ValueError if the file is broken or holds anything but plain data.
    """
    path = _download(source) if urlparse(str(source)).scheme in ("http", "https") else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist: give the path or https address of a .pth file.")
    try:
        with torch.serialization.safe_globals(PLAIN_DATA):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds: zip, pickle, runtime, end of file
        unreachable = isinstance(error, OSError) and error.errno != errno.EINVAL  # EINVAL: a seek in a cut file
        if unreachable or isinstance(error, MemoryError):
            raise  # the file may be fine: nothing to conclude about it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint: broken, or holding more than plain data ({reason}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected a dictionary of weights.")
    return content


def _download(address):
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(urlparse(address).path)
    # names repeat at other addresses, so the address is part of the file's name
    path = folder / f"{name.stem}-{hashlib.sha256(address.encode()).hexdigest()[:8]}{name.suffix}"
    if not path.is_file():
        try:
            torch.hub.download_url_to_file(address, str(path))
        except OSError as error:
            raise ValueError(f"{address} could not be downloaded ({error}). Fetch it yourself and pass its path, or put it "
                             f"at {path}.") from error
    return path


def epoch_checkpoints(folder):
    """{epoch: path} of the epoch checkpoints in a folder, oldest first."""
    folder = Path(folder)
    found = [(EPOCH_FILE.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def newest_good_checkpoint(folder, report):
    """The newest epoch checkpoint that can be read.

    Args:
        folder: run folder.
        report: called with a line of text for each broken file that is passed over.
    Returns: (path, content), or (None, None).
    """
    for path in reversed(epoch_checkpoints(folder).values()):
        try:
            return path, load_checkpoint(path)
        except ValueError as error:
            report(f"{error} Trying the checkpoint before it.")
    return None, None


def weights_of(content):
    """The state dict inside a checkpoint: under `model` or `state_dict`, or the content itself."""
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            return content[key]
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def load_weights(model, content, source, advice=USE_PRETRAINED):
    """Load a checkpoint of exactly this model.

    Args:
        content: from load_checkpoint.
        source: where it came from, for the message.
        advice: what to do where it does not fit, for the message.
    Raises: ValueError that says what does not fit.
    """
    weights, own = weights_of(content), model.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    shapes = [f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
              for name in own if name in weights and weights[name].shape != own[name].shape]
    problems = [f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" for kind, names in
                (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)) if names]
    if problems:
        raise ValueError(f"checkpoint {source} is of another model: {'; '.join(problems)}. {advice}")
    model.load_state_dict(weights)
