"""Models whose parameters are divided among processes (FSDP2), and their tensors as files of a folder.

In a folder every process writes its own part (torch.distributed.checkpoint); any number of processes, or one without a
process group, can read it again.
"""
import hashlib
import os
import warnings
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError, _Unpickler

import torch
from torch import distributed as dist
from torch.distributed import checkpoint as sharded_files
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata

# the only loader of all supported versions (2.6 to 2.15) that reads in one process of a group
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

METADATA = ".metadata"
# all that the table of contents of a folder may be made of
DESCRIPTIONS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))},
    "pathlib": {"PosixPath", "PurePosixPath"},
}


def make_mesh(device):
    """All processes in one row."""
    return init_device_mesh(device.type, (dist.get_world_size(),))


def shard(module, mesh, dtype=None):
    """Divide the parameters of a module, but for those its children have divided already, among the processes.

    Args:
        module: on its device, with its weights.
        mesh: from make_mesh.
        dtype: what parameters are gathered and multiplied in; gradients are averaged in float32, the optimizer has float32
            parameters. None = float32 throughout.
    """
    policy = MixedPrecisionPolicy() if dtype is None else MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(module, mesh=mesh, mp_policy=policy)


def is_sharded(module):
    return any(isinstance(part, FSDPModule) for part in module.modules())


@contextmanager
def gathered(module):
    """Inside, the parameters that the root of a sharded model holds itself are whole: for methods other than `forward`."""
    if isinstance(module, FSDPModule):
        module.unshard()
    yield
    release(module)


def release(module):
    """Give back parameters that are whole because of an evaluation; the optimizer knows the parts only."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor):
    """The tensor that the processes hold the parts of, on each of them; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor):
    """What this process holds of a tensor; of one that is not divided, all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors, keep=True):
    """{name: tensor}, of possibly divided tensors, gathered one at a time; all processes must call it.

    Args:
        keep: whether this process wants the result (on the CPU where it was divided), else {}.
    """
    state = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor)
        if keep:
            state[name] = tensor if gathered is tensor else gathered.cpu()
    return state


def part_like(tensor, target):
    """The part of a whole tensor that this process holds of `target`; all processes must call it with the same tensor."""
    if not isinstance(target, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(target.device, target.dtype), target.device_mesh, target.placements)


def assign(module, weights):
    """Copy whole tensors, by name, into the parameters and buffers of a possibly sharded module."""
    fill(module.state_dict(), weights)


@torch.no_grad()
def fill(own, weights):
    """Copy whole tensors, by name, into those of `own`, which may be divided."""
    for name, tensor in weights.items():
        own[name].copy_(part_like(tensor, own[name]))


# ---- files --------------------------------------------------------------------------------------------------------

def write_tensors(folder, tensors):
    """Write tensors, each process its own parts; all processes must call it.

    Raises: OSError with the reason.
    """
    _run(sharded_files.save, folder, "written", tensors, storage_writer=sharded_files.FileSystemWriter(folder))


def read_tensors(folder, tensors):
    """Fill the given tensors, whole or sharded, in place; all processes must call it.

    Raises: ValueError if one is missing, of another shape, or the folder is broken.
    """
    contents = check_folder(folder)
    missing = [name for name in tensors if name not in contents]
    shapes = [f"{name} {tuple(contents[name].size)} instead of {tuple(tensors[name].shape)}"
              for name in tensors if name in contents and contents[name].size != tensors[name].shape]
    if missing or shapes:
        raise ValueError(f"{folder} is of another model: {len(missing)} tensors missing, {len(shapes)} of another shape "
                         f"({', '.join([*missing, *shapes][:3])}).")
    _run(sharded_files.load, folder, "read", tensors, storage_reader=_Reader(folder))


def read_whole_tensors(folder, prefix=""):
    """The tensors of a folder whose names start with `prefix`, whole, on the CPU of this process alone."""
    tensors = {name: torch.empty(described.size, dtype=described.properties.dtype)
               for name, described in check_folder(folder).items() if name.startswith(prefix)}
    _run(_load_state_dict, folder, "read", tensors, storage_reader=_Reader(folder), no_dist=True)
    return tensors


def check_folder(folder):
    """Table of contents of a folder, {name: description with `size`}, once all files it needs are found to be there.

    Raises: ValueError if the folder is broken, or holds more than tensors.
    """
    contents, needed = _table_of_contents(folder)
    others = [name for name, described in contents.items() if not isinstance(described, TensorStorageMetadata)]
    if others:
        raise ValueError(f"{folder} holds more than tensors ({others[0]}): refused.")
    for name, size in needed.items():
        path = os.path.join(folder, name)
        if os.path.basename(name) != name or not os.path.isfile(path) or os.path.getsize(path) < size:
            raise ValueError(f"{folder} is not a readable checkpoint: its file {name} is missing or cut off.")
    return contents


def _table_of_contents(folder):
    """{name: description}, {file: least size in bytes} as the table of contents of a folder says. Raises ValueError."""
    try:
        metadata = _Reader(folder).read_metadata()
        needed = {}
        for place in metadata.storage_data.values():
            name = str(place.relative_path)
            needed[name] = max(needed.get(name, 0), place.offset + place.length)
        contents = dict(metadata.state_dict_metadata)
        for name, described in contents.items():
            if isinstance(described, TensorStorageMetadata) and not _is_covered(described):
                raise ValueError(f"a part of {name} is missing")
        return contents, needed
    except Exception as error:  # a damaged pickle raises any kind, MemoryError and RuntimeError as well
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise  # says nothing about the file
        raise ValueError(f"{folder} is not a readable checkpoint: its table of contents, {METADATA}, is broken "
                         f"({' '.join(str(error).split()) or type(error).__name__}).") from error


def _is_covered(described):
    """Whether a tensor has as many values as its parts; others would be what memory happens to hold."""
    return sum(chunk.sizes.numel() for chunk in described.chunks) >= described.size.numel()


def digests(folder, rank):
    """{file: SHA-256} of the parts that a process wrote; the table of contents is the first one's."""
    names = [path.name for path in sorted(Path(folder).glob(f"__{rank}_*.distcp"))] + [METADATA] * (rank == 0)
    return {name: _digest(os.path.join(folder, name)) for name in names}


def _digest(path):
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2 ** 20):
            total.update(block)
    return total.hexdigest()


def check_digests(folder, expected):
    """Raises ValueError if the table of contents of a folder, or a part that it needs, is not what was written.

    Args:
        expected: {file: SHA-256}; one that lacks a file is not what a run writes.
    """
    for name in (METADATA, *_table_of_contents(folder)[1]):
        if not isinstance(expected, dict) or name not in expected:
            raise ValueError(f"{folder} is not a readable checkpoint: it has no checksum of its part {name}.")
        if _digest(os.path.join(folder, name)) != expected[name]:
            raise ValueError(f"{folder} is not a readable checkpoint: the checksum of its part {name} is wrong.")


class _Contents(_Unpickler):
    """Reads a table of contents, which is a pickle, without letting it name anything but descriptions of tensors.

    In Python's own version: that in C takes 20 GB of memory for one flipped bit in the number of an entry.
    """

    def find_class(self, module, name):
        if name not in DESCRIPTIONS.get(module, ()):
            raise UnpicklingError(f"it holds {module}.{name}, which is not a description of tensors; nothing was run")
        return super().find_class(module, name)


class _Reader(sharded_files.FileSystemReader):
    """Reads the files of a folder without ever running code from them."""

    def read_metadata(self, *args, **kwargs):
        with open(os.path.join(self.path, METADATA), "rb") as file:
            content = file.read()
        metadata = _Contents(BytesIO(content)).load()  # a file would make room for as much as a broken length asks for
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _run(action, folder, done, tensors, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(no process group|assuming the intent|single process).*")
        try:
            action(tensors, **options)
        except CheckpointException as error:  # collects what went wrong on any process; derives from BaseException
            reason = next(iter(error.failures.values()))[0]
            raise OSError(f"{folder} could not be {done}: {reason}") from error
