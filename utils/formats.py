"""The two formats of a checkpoint file: PyTorch's, and safetensors for weights alone. Reading runs no code from a file.

What is damaged is refused: archives of torch have a checksum for each part, and safetensors files that we write have one for
all they hold.
"""
import argparse
import errno
import hashlib
import json
import logging
import os
import re
import warnings
import zipfile
from collections import OrderedDict
from functools import cache

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from utils.extent import check_extent
from utils.stand_ins import stand_ins

log = logging.getLogger("simmim.checkpoint")


def numpy_array(kind, shape, code):
    """An empty array, in place of numpy's own of any size: its content comes next, and tells the shape."""
    return np.empty(0, np.uint8)


def numpy_number(kind, content):
    """A number or text of numpy as one of Python. Raises ValueError on what is neither."""
    if kind.hasobject or kind.kind not in "?biufcSU" or len(content) != kind.itemsize:
        raise ValueError(f"it holds a value of numpy's type {kind}")
    return np.frombuffer(content, kind, 1)[0].item()


# where the weights of a checkpoint stand, the likelier first: `module` is DeepSpeed's, teacher and student are of distillation
WEIGHT_KEYS = ("model", "state_dict", "model_state_dict", "module", "network", "net", "weights", "params", "teacher", "student",
               "model_ema", "ema", "ema_state_dict", "state_dict_ema", "params_ema", "ema_model", "checkpoint", "encoder",
               "backbone")
AVERAGE_KEYS = ("model_ema", "ema", "ema_state_dict", "state_dict_ema", "params_ema", "ema_model")  # those of an average
# official files hold a pickled yacs node (SimMIM) or the arguments of the run (MAE) beside the weights: read as plain data
PLAIN_DATA = [(OrderedDict, "yacs.config.CfgNode"), argparse.Namespace, np.ndarray, np.dtype]
# numbers and arrays of numpy, whose module was renamed in numpy 2, and their types but for objects and structures
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    PLAIN_DATA += [(numpy_array, f"{_module}._reconstruct"), (numpy_number, f"{_module}.scalar")]
PLAIN_DATA += [type(np.dtype(kind)) for kind in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?SU"]
FORBIDDEN = re.compile(r"GLOBAL (\S+)")  # how torch names what a pickle would have called
ENTRIES = "checkpoint"  # entry of a safetensors file's metadata: what is not a tensor, as JSON
DIGEST = "sha256"  # another one: checksum of all the rest, see `_digest`
FOLDER_BIT = 0x10  # in the attributes of an archive's part
ARCHIVE_START = b"PK\x03\x04"  # by these bytes torch tells its archives from its old format
MOST_ITEMS = 10 ** 7  # numbers, texts, tensors and containers of a checkpoint
# of tensors, written out, may be in a file of the size 1: several names for one tensor are usual
LARGEST_SHARE, ALWAYS_FINE = 16, 2 ** 30  # bytes
SAVE_WEIGHTS = "Where it was made, save the weights alone: torch.save({'model': model.state_dict()}, path)."
OTHER = "is no checkpoint: it is "  # begins what is said of files of another kind
# what is taken for a checkpoint: how the file begins, what it is and what to do
LOOKALIKES = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file: fetch that with git lfs pull"),
    (b"<", "a web page, not the file: download that anew"),
    (b"{", "JSON: of a model in several files, give these one by one"),
    (b"\x89HDF", "HDF5, of another framework: convert it where it was made"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first (gunzip)"),
    *((b"\x80" + bytes([protocol]), f"a pickle that torch.save has not written; nothing of it was run. "
       f"{SAVE_WEIGHTS}") for protocol in (3, 4, 5)),
)
PARTS_OF_OTHERS = {  # a part of an archive, and what the archive is
    r".*/code/.*": f"a program of TorchScript. {SAVE_WEIGHTS}",
    r"[^/]*\.npy": f"arrays of numpy.savez. {SAVE_WEIGHTS}",
    r".*/models/.*|serialized_.*": f"a program of torch.export. {SAVE_WEIGHTS}",
}
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
        state: weights under `model` or `state_dict`, or standing alone; other entries are numbers, text, lists of text or None.
    Raises: ValueError on entries that the format can't hold.
    """
    key = next((key for key in WEIGHT_KEYS[:2] if isinstance(state.get(key), dict)), None)
    weights = state[key] if key else {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    entries = {name: value for name, value in state.items() if name != key and name not in weights}
    unfit = [name for name, value in weights.items() if not isinstance(value, torch.Tensor)]
    unfit += [name for name, value in entries.items() if not isinstance(value, str | int | float | None) and not (
        isinstance(value, list) and value and all(isinstance(item, str) for item in value))]
    if unfit:
        raise ValueError(f"a .safetensors file holds weights, numbers and text, but not {', '.join(unfit[:4])}: leave it out, "
                         f"or write a .pth file.")
    path.touch()
    mode = path.stat().st_mode
    weights, metadata = _separate(weights), {"format": "pt", ENTRIES: json.dumps(entries)}
    save_file(weights, path, metadata={**metadata, DIGEST: _digest(weights, metadata)})
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


def _digest(weights, metadata):
    """SHA-256 over names, types, shapes and bytes of contiguous weights on the CPU, and the {text: text} beside them."""
    names = sorted(weights)
    described = [[name, str(weights[name].dtype), list(weights[name].shape)] for name in names]
    total = hashlib.sha256(json.dumps([sorted(metadata.items()), described]).encode())
    for name in names:
        value = weights[name]
        value = torch.view_as_real(value) if value.is_complex() else value
        total.update(value.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def read(path):
    """Read a checkpoint file of either format, told by how it begins, onto the CPU.

    Returns: what was written; the weights of a safetensors file stand under `model`. A config pickled by yacs comes back as
        nested dictionaries.
    Raises: ValueError if the file is broken, or would run code if it were unpickled.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(32)
        other = next((what for beginning, what in LOOKALIKES if start.lstrip().startswith(beginning)), None)
        if other:
            raise ValueError(f"{OTHER}{other}")
        is_archive = start.startswith(ARCHIVE_START)
        return _read_safetensors(path) if _begins_safetensors(start, path) else _read_torch(path, is_archive)
    except Exception as error:  # torch raises many kinds: zip, pickle, runtime, end of file
        unreachable = isinstance(error, OSError) and error.errno != errno.EINVAL  # EINVAL: a seek in a cut file
        if unreachable or isinstance(error, MemoryError):
            raise  # the file may be fine: nothing to conclude about it
        raise ValueError(f"{path} {_complaint(str(error).strip() or type(error).__name__)}") from error


def _begins_safetensors(start, path):
    """By eight bytes with the length of a table in JSON; by the ending of the name where it is cut before, or no format."""
    return start[8:9] == b"{" or (is_safetensors(path) and not start.startswith(ARCHIVE_START))


def _read_torch(path, is_archive):
    if is_archive:
        _check_archive(path)
    known = [*PLAIN_DATA, *(_stand_ins(path) if is_archive else [])]
    with torch.serialization.safe_globals(known), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")  # it fails then, and we say so
        with open(path, "rb") as file:  # by a path that ends in .safetensors, newer versions would take it for one
            content = torch.load(file, map_location="cpu", weights_only=True)
    _check_content(content, os.path.getsize(path))
    if not is_archive:
        _warn_of_old_format(path)
    return content


def _stand_ins(path):
    """What stands in for the classes of other programs that a file names beside its weights."""
    with torch.serialization.safe_globals(PLAIN_DATA), open(path, "rb") as file:
        return stand_ins(torch.serialization.get_unsafe_globals_in_checkpoint(file))


def _check_content(content, size):
    """Refuse what a small file can hold by saying it often, and tensors without values, before anything walks through it.

    Args:
        size: of the file, in bytes.
    """
    tensors, seen = [], set()

    def held(item):
        if isinstance(item, torch.Tensor) and id(item) not in seen:
            seen.add(id(item))
            tensors.append(item)
        return _held(item)

    check_extent(content, held, MOST_ITEMS)
    if any(tensor.is_meta or tensor.layout != torch.strided for tensor in tensors):
        raise ValueError("it holds a tensor without values, or a sparse one")
    unfolded = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if unfolded > max(ALWAYS_FINE, LARGEST_SHARE * size):
        raise ValueError(f"its tensors take {unfolded / 2 ** 30:.0f} GB written out, but the file has {size / 2 ** 20:.1f} MB: "
                         f"save them with .contiguous()")


def _held(item):
    """What a container of a checkpoint holds, None for anything else."""
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    if isinstance(item, (list, tuple, set, frozenset)):
        return item
    return vars(item).values() if isinstance(item, argparse.Namespace) else None


def _check_archive(path):
    """Look at the checksums of an archive, which torch writes but does not look at; first at what would take for ever."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        other = next((what for part, what in PARTS_OF_OTHERS.items() if any(re.fullmatch(part, name) for name in names)), None)
        if other:
            raise ValueError(f"{OTHER}{other}")
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED or part.compress_size != part.file_size:
                raise ValueError(f"its part {part.filename} is compressed, as torch.save never does")
            if part.external_attr & FOLDER_BIT and part.file_size:  # torch would leave its memory as it finds it
                raise ValueError(f"its part {part.filename} is marked as a folder")
        if sum(part.file_size for part in archive.infolist()) > os.path.getsize(path):
            raise ValueError("its parts overlap")
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"the checksum of its part {damaged} is wrong")


@cache
def _warn_of_old_format(path):
    """Once a file."""
    log.warning("%s is of torch's old format, which has no checksums: damage would go unnoticed. Save it anew with torch.save, "
                "or tools/convert.py", path)


def _read_safetensors(path):
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = metadata.pop(DIGEST, None)  # files of others have none
    if expected is not None and _digest(weights, metadata) != expected:
        raise ValueError("its checksum is wrong")
    return {**json.loads(metadata.get(ENTRIES, "{}")), "model": weights}


def _complaint(text):
    """What is wrong with a file, from what torch or safetensors say about it."""
    forbidden = FORBIDDEN.search(text)
    if forbidden:
        return f"holds {forbidden[1]}, which is code, not data: refused, nothing was run. {SAVE_WEIGHTS}"
    if text.startswith(OTHER):
        return text if text.endswith(".") else f"{text}."
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Check the documentation")]
    refused = text.startswith("Weights only load failed")  # torch's first lines then advise to load it with code and all
    return (f"is not a readable checkpoint: broken, or written by something else than torch.save or safetensors; nothing of it "
            f"was run ({lines[-1 if refused else 0]}).")
