"""Paths and labels of millions of images in three arrays."""
import os
import zlib
from collections.abc import Sequence

import numpy as np


class Samples(Sequence):
    """[(path, label), ...] that costs a loader process nothing.

    Of a list, each process would get a copy of its own, page by page, by counting the references to what it reads.

    Args:
        pairs: (path, label) of each image: text, in any bytes a file system allows, and a whole number.
    """

    def __init__(self, pairs):
        names, labels = [], []
        for path, label in pairs:
            names.append(os.fsencode(path))
            labels.append(label)
        self.ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
        self.names = np.frombuffer(b"".join(names), dtype=np.uint8)
        self.labels = np.array(labels, dtype=np.int64)

    @classmethod
    def of(cls, pairs):
        """As it is, or made from other pairs."""
        return pairs if isinstance(pairs, cls) else cls(pairs)

    def __len__(self):
        return len(self.labels)

    def mark(self, compared=256, weighed=16):
        """Text that tells these images from others, wherever they lie: their number, and names and sizes of some of them.

        Args:
            compared, weighed: how many names and sizes of files, evenly spread, count.
        """
        def spread(number):
            number = min(number, len(self))
            return [self[i * len(self) // number][0] for i in range(number)]

        paths = spread(compared)
        root = os.path.commonpath(map(os.path.dirname, paths))
        names = [os.path.relpath(path, root) for path in paths]
        sizes = [os.path.getsize(path) if os.path.exists(path) else -1 for path in spread(weighed)]
        return f"{len(self)} images, {zlib.crc32(os.fsencode(repr((names, sizes)))):08x}"

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        label = int(self.labels[index])  # IndexError beyond the last
        index = int(index) % len(self)
        return os.fsdecode(self.names[self.ends[index]:self.ends[index + 1]].tobytes()), label
