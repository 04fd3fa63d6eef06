"""The two formats of a checkpoint file: PyTorch's, and safetensors for weights alone. Reading runs no code from a file."""
import argparse
import errno
import json
import os
import re
import warnings
import zipfile
from collections import OrderedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

WEIGHT_KEYS = ("model", "state_dict")  # where the weights of a checkpoint stand
# official files hold a pickled yacs node (SimMIM) or the arguments of the run (MAE) beside the weights: read as plain data
PLAIN_DATA = [(OrderedDict, "yacs.config.CfgNode"), argparse.Namespace]
FORBIDDEN = re.compile(r"GLOBAL (\S+)")  # how torch names what a pickle would have called
ENTRIES = "checkpoint"  # entry of a safetensors file's metadata: what is not a tensor, as JSON
WRITE_ERRORS = (RuntimeError, SafetensorError)  # how torch and safetensors report that a write failed


def is_safetensors(path):
    return str(path).endswith(".safetensors")


def write_torch(path, state):
    """Write anything torch.save takes, down to the disk."""
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def write_safetensors(path, state):
    """Write weights, and the numbers and text beside them, down to the disk.

    Args:
        state: weights under `model` or `state_dict`, or standing alone; other entries are numbers, text or None.
    Raises: ValueError on entries that the format can't hold.
    """
    key = next((key for key in WEIGHT_KEYS if isinstance(state.get(key), dict)), None)
    weights = state[key] if key else {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    entries = {name: value for name, value in state.items() if name != key and name not in weights}
    unfit = [name for name, value in weights.items() if not isinstance(value, torch.Tensor)]
    unfit += [name for name, value in entries.items() if not isinstance(value, str | int | float | None)]
    if unfit:
        raise ValueError(f"a .safetensors file holds weights, numbers and text, but not {', '.join(unfit[:4])}: leave it out, "
                         f"or write a .pth file.")
    path.touch()
    mode = path.stat().st_mode
    save_file(_separate(weights), path, metadata={"format": "pt", ENTRIES: json.dumps(entries)})
    path.chmod(mode)  # newer versions leave files that only their owner can read
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _separate(weights):
    """The weights on the CPU, none sharing memory with another: the format has no way to say so."""
    separate, seen = {}, set()
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        separate[name] = value.clone() if place in seen else value
        seen.add(place)
    return separate


def read(path):
    """Read a checkpoint file of either format, told by its ending, onto the CPU.

    Returns: what was written; the weights of a safetensors file stand under `model`. A config pickled by yacs comes back as
        nested dictionaries.
    Raises: ValueError if the file is broken, or would run code if it were unpickled.
    """
    try:
        return _read_safetensors(path) if is_safetensors(path) else _read_torch(path)
    except Exception as error:  # torch raises many kinds: zip, pickle, runtime, end of file
        unreachable = isinstance(error, OSError) and error.errno != errno.EINVAL  # EINVAL: a seek in a cut file
        if unreachable or isinstance(error, MemoryError):
            raise  # the file may be fine: nothing to conclude about it
        raise ValueError(f"{path} {_complaint(str(error).strip() or type(error).__name__)}") from error


def _read_torch(path):
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # torch writes checksums into its archives but does not look at them
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"the checksum of its part {damaged} is wrong")
    with torch.serialization.safe_globals(PLAIN_DATA), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")  # it fails then, and we say so
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path):
    with safe_open(path, framework="pt", device="cpu") as file:
        entries = json.loads((file.metadata() or {}).get(ENTRIES, "{}"))
        return {**entries, "model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118


def _complaint(text):
    """What is wrong with a file, from what torch or safetensors say about it."""
    forbidden = FORBIDDEN.search(text)
    if forbidden:
        return (f"holds {forbidden[1]}, which is code, not data: refused, nothing was run. Where the file was made, save the "
                f"weights alone: torch.save({{'model': model.state_dict()}}, path).")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Check the documentation")]
    refused = text.startswith("Weights only load failed")  # torch's first lines then advise to load it with code and all
    return (f"is not a readable checkpoint: broken, or written by something else than torch.save or safetensors; nothing of it "
            f"was run ({lines[-1 if refused else 0]}).")
