"""Features of a frozen encoder: extracted once by all processes, kept on disk, read as batches."""
import hashlib
import json
import logging
import os
import time
import uuid
from pathlib import Path

import numpy as np
import torch

from data.bad_images import BadImages, named, replacement_index
from utils import distributed
from utils.devices import packed
from utils.files import naming

log = logging.getLogger("simmim.features")
FORMAT = 1  # of what the key says and the file holds
CHECKSUM = "sha256"  # of the rows, beside the key
ROWS = 4096  # read and written at once


class FeatureLoader:
    """Batches (features of each layer, ..., labels) in the order of a sampler; what it reads is given by `open`.

    Rows of NaN are of images that could not be read. In training, others stand in by the rule of data.bad_images; otherwise
    `blank` has their positions in the batch just given.

    Args:
        labels: (N,) int64.
        batch_size: images per process.
        sampler: gives keys (epoch, index) of this process.
        seed: of what stands in; None = nothing does.
    """

    def __init__(self, labels, batch_size, sampler, features=None, seed=None):
        self.labels = labels
        self.batch_size = batch_size
        self.sampler = sampler
        self.seed = seed
        self.blank = []
        self.bad = BadImages(len(labels))  # none: who extracts features has told of them
        self.open(features or [])

    def open(self, features):
        """Read from these: [(N, C) array, ...], one for each layer."""
        self.features = features
        self.unreadable = {int(i) for array in features for i in unreadable_rows(array)}
        if features and self.seed is not None and len(self.unreadable) == len(self.labels):
            raise ValueError(f"none of the {len(self.labels)} training images could be read: nothing is left to train on. "
                             f"Check --data-path.")

    def __len__(self):
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self):
        keys = list(self.sampler)  # an epoch may start at any batch
        if self.seed is not None and self.unreadable:
            keys = [(epoch, replacement_index(self.seed, epoch, index, self.unreadable, len(self.labels)))
                    for epoch, index in keys]
        indices = np.array([index for _, index in keys], dtype=np.int64)
        for start in range(0, len(indices), self.batch_size):
            batch = indices[start:start + self.batch_size]
            self.blank = [i for i, index in enumerate(batch) if index in self.unreadable] if self.unreadable else []
            yield self._batch(batch)

    def filler(self):
        """A batch of one row, for a process that has run out of others."""
        return self._batch([0])

    def _batch(self, indices):
        return [*(torch.from_numpy(np.asarray(array[indices])) for array in self.features), self.labels[indices]]


class FeatureCache:
    """Files of features in a folder, each with the key beside it that says what it depends on.

    A file is used where its key equals the wanted one and its checksum is right; otherwise the features are extracted, and
    the log says why. Rows of NaN are of images that could not be read.

    Args:
        folder: where the files are; all processes must see it.
        key: {name: text or number}, what all features depend on: weights, settings of the encoder, number format.
    """

    def __init__(self, folder, key):
        self.folder = Path(folder)
        self.run = distributed.from_rank0(uuid.uuid4().hex[:8])  # several runs may fill one folder at a time
        self.key = {"format": FORMAT, **key}

    def get(self, split, loader, layers, extract, device):
        """Features of all images of a loader; all processes must call it.

        Args:
            split: name of the images in the files' names.
            loader: ImageLoader whose sampler is an EvalSampler.
            layers: names of what is extracted.
            extract: (images (B, C, H, W), layers) -> list of (B, C_layer) float tensors.
            device: where images go.
        Returns: list of (N, C_layer) float32 arrays on disk, read-only, in the order of `layers`.
        """
        common = distributed.from_rank0({
            **self.key, "split": split, "images": images_checksum(loader.dataset.samples),
            "transform": repr(loader.dataset.transform), "mode": loader.dataset.mode,
            "reading": repr(loader.dataset.rules),
            **({"skipped": sorted(loader.skipped)} if loader.skipped else {})})
        keys = {layer: {**common, "layer": str(layer)} for layer in layers}
        count = len(loader.dataset)
        missing = distributed.from_rank0([layer for layer in layers if distributed.rank() == 0
                                          and not self._is_whole(keys[layer], count)])
        if missing:
            self._prepare()
            log.info("%s", self._reason(keys[missing[0]], count, missing))
            self._extract(loader, {layer: keys[layer] for layer in missing}, extract, device)
        for layer in set(layers) - set(missing):
            log.info("features of %d %s images, layer %s: those of %s", count, split, layer, self._path(keys[layer]))
        arrays = [self._read(keys[layer], count) for layer in layers]
        if any(array is None for array in arrays):
            raise FileNotFoundError(f"rank {distributed.rank()} can't see the features that rank 0 wrote to {self.folder}: put "
                                    f"--cache (or --output) on a file system that all machines share.")
        self._say_what_is_missing(split, loader, arrays, self._path(keys[layers[0]]))
        return arrays

    def _say_what_is_missing(self, split, loader, arrays, path):
        rows = {int(i) for array in arrays for i in unreadable_rows(array)}
        if rows and distributed.rank() == 0:
            places = [os.path.abspath(loader.dataset.samples[i][0]) for i in sorted(rows)]
            found = {place: loader.bad.found.get(place, "not read") for place in places}
            log.warning("%d of %d %s images could not be read when features were extracted, and are left out: %s. To try "
                        "again, remove %s", len(rows), len(loader.dataset), split, named(found), path)

    def _prepare(self):
        """Make the folder; remove what runs left that were killed a day ago or earlier."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*.tmp") if distributed.rank() == 0 else ():
            if time.time() - path.stat().st_mtime > 24 * 3600:
                path.unlink(missing_ok=True)

    def _path(self, key):
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"{key['split']}__{key['layer']}__{digest}.npy"

    def _read(self, key, count):
        """The array of a key, or None where there is no file of this key that is whole."""
        path = self._path(key)
        if not path.exists() or _stored_key(path) != key:
            return None
        try:
            array = np.load(path, mmap_mode="r")
        except Exception as error:  # a header of zeros is a SyntaxError, and so on
            log.warning("%s is broken (%s): extracting again", path, error)
            return None
        return array if array.ndim == 2 and len(array) == count and array.dtype == np.float32 else None

    def _is_whole(self, key, count):
        """Whether there is a file of a key with the bytes that were written."""
        array, path = self._read(key, count), self._path(key)
        if array is None:
            return False
        digest = hashlib.sha256()
        for start in range(0, count, ROWS):
            digest.update(np.ascontiguousarray(array[start:start + ROWS]))
        if digest.hexdigest() == _description(path).get(CHECKSUM):
            return True
        log.warning("%s has another checksum than %s says, or that has none: extracting again", path, path.with_suffix(".json"))
        return False

    def _reason(self, key, count, layers):
        """Why features are extracted, naming what differs in the newest file of the same images and layer."""
        text = f"extracting features of {count} {key['split']} images, layer {', '.join(map(str, layers))}"
        others = sorted(self.folder.glob(f"{key['split']}__{key['layer']}__*.npy"), key=os.path.getmtime)
        if not others:
            return f"{text}, into {self.folder}"
        stored = _stored_key(others[-1])
        differing = [name for name in key if stored.get(name) != key[name]]
        return f"{text}: {others[-1]} can't be used, it differs in {', '.join(differing) or 'its rows'}"

    def _extract(self, loader, keys, extract, device):
        """Every process writes the rows of its images; rank 0 puts them together."""
        rank, parts = distributed.rank(), {}
        try:
            for layer, key in keys.items():
                parts[layer] = open(self._part(key, rank), "wb")
            for images, _ in packed(loader):
                features = extract(images.to(device), list(keys))
                for layer, feature in zip(keys, features, strict=True):
                    feature = feature.float().cpu()
                    read = [i for i in range(len(feature)) if i not in loader.blank]
                    if not torch.isfinite(feature[read]).all():
                        raise ValueError(f"features of layer {layer} are not finite: are the weights those of this --cfg? Try "
                                         f"--amp-opt-level O0.")
                    if loader.blank:
                        feature = feature.index_fill(0, torch.tensor(loader.blank), torch.nan)
                    with naming(self._path(keys[layer])):
                        parts[layer].write(feature.numpy().tobytes())
            for layer, file in parts.items():
                with naming(self._path(keys[layer])):
                    file.close()
            for found in distributed.from_all(loader.bad.news()):
                loader.bad.add(found)  # ends the run where there are too many
            if rank == 0:
                for key in keys.values():
                    with naming(self._path(key)):
                        self._join(key, len(loader.dataset))
        finally:
            for layer, file in parts.items():
                file.close()
                if rank == 0:  # others may come here before rank 0 has read theirs
                    self._part(keys[layer], rank).unlink(missing_ok=True)
        distributed.barrier()

    def _part(self, key, rank):
        return self._path(key).with_suffix(f".{self.run}.rank{rank}.tmp")

    def _join(self, key, count, rows=ROWS):
        """Part files, rows alone, image `i` in the part of process i % world size -> one .npy file."""
        path, world_size = self._path(key), distributed.world_size()
        names = [self._part(key, rank) for rank in range(world_size)]
        width = sum(name.stat().st_size for name in names) // (4 * count)
        temporary = path.with_suffix(f".{self.run}.tmp")
        files, digest = [open(name, "rb") for name in names], hashlib.sha256()
        try:
            with open(temporary, "wb") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, width)})
                for start in range(0, count, rows * world_size):
                    block = np.empty((min(rows * world_size, count - start), width), dtype="<f4")
                    for rank, part in enumerate(files):
                        own = block[rank::world_size]
                        own[:] = np.frombuffer(part.read(own.nbytes), dtype="<f4").reshape(own.shape)
                    digest.update(block)
                    file.write(block.tobytes())
                file.flush()
                os.fsync(file.fileno())
            described = path.with_suffix(f".{self.run}.json.tmp")
            described.write_text(json.dumps({**key, CHECKSUM: digest.hexdigest()}, indent=1), encoding="utf-8")
            os.replace(described, path.with_suffix(".json"))
            os.replace(temporary, path)
        finally:
            for part in files:
                part.close()
            for name in (temporary, *names):
                name.unlink(missing_ok=True)


def _stored_key(path):
    return {name: value for name, value in _description(path).items() if name != CHECKSUM}


def _description(path):
    """What lies beside a file: its key and its checksum; {} where it can't be read."""
    try:
        found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def checksum(state_dict):
    """Text that tells two state dicts apart, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def images_checksum(samples):
    """Text that tells two lists of image files apart, by names and the time their folders changed.

    A file that is written again in place, under its name, goes unnoticed: looking at each would take minutes.
    """
    root = os.path.commonpath([os.path.dirname(path) for path, _ in samples])
    digest = hashlib.sha256()
    for folder in sorted({os.path.dirname(path) for path, _ in samples}):
        digest.update(str(os.stat(folder).st_mtime_ns).encode())
    for path, _ in samples:
        digest.update(os.fsencode(os.path.relpath(path, root)) + b"\0")
    return digest.hexdigest()


def unreadable_rows(array):
    """Positions of the rows that are NaN: of images that could not be read."""
    return np.flatnonzero(np.isnan(array[:, 0]))


def parts_of(array, rows=16384):
    """An (N, C) array as tensors of at most so many rows, without those of images that could not be read."""
    for start in range(0, len(array), rows):
        part = np.array(array[start:start + rows])
        yield torch.from_numpy(part[~np.isnan(part[:, 0])])
