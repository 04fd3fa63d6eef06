"""Which images a process reads, in which order: keys (epoch, index), or (epoch, index, first) where a mask is shared."""
from torch.utils.data import Sampler

from utils.seeding import SHUFFLE, rng_for


def pairs_of(count, per_process, rank):
    """Positions in a global batch that a process gets, so that pairs from its two ends stay together.

    Image i of a batch and image -1 - i are partners (MixMIM), in the global batch as in the part of each process.

    Args:
        count: images of the global batch; where the last one is not full, the first processes have more than the others.
        per_process: images of a process in a full batch, even.
        rank: this process.
    """
    half = range(-(-count // 2))[rank * per_process // 2:(rank + 1) * per_process // 2]
    return [*half, *(count - 1 - i for i in reversed(half) if count - 1 - i != i)]  # the middle one of an odd batch once


class EpochSampler(Sampler):
    """Keys of one process, shuffled by (seed, epoch); only whole global batches.

    The order of the images does not depend on the number of processes: each global batch is cut into equal parts.

    Args:
        num_samples: images in the data set.
        batch_size: images per process and micro-batch.
        rank, world_size: this process among all.
        seed: the run's seed.
        shared: images of a batch share a mask: keys name the first image of the global batch, which decides on it, and where
            the batch of a process is even, partners stay together (see pairs_of).
        num_masks: of a global batch that is not shared by all, 0 = of each image its own: keys name image i modulo
            `num_masks` of the global batch. A batch of a process begins with the first mask where their number divides it.
    """

    def __init__(self, num_samples, batch_size, rank, world_size, seed, shared=False, num_masks=0):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.shared = shared
        self.num_masks = num_masks
        self.epoch = self.start = 0
        self.num_batches = num_samples // (batch_size * world_size)

    def set_epoch(self, epoch, start=0):
        """Choose what the next iteration gives: an epoch from its batch `start` on (of this process; 0 = all of it).

        Raises: ValueError where an epoch has fewer batches.
        """
        if not 0 <= start <= self.num_batches:
            raise ValueError(f"batch {start} of an epoch is asked for, which has {self.num_batches}: data, batch size or "
                             f"number of processes have changed. Start the epoch anew.")
        self.epoch, self.start = epoch, start

    def __len__(self):
        """Keys of a whole epoch, wherever it starts."""
        return self.num_batches * self.batch_size

    def __iter__(self):
        return iter(self._keys(self.epoch, self.start, self.num_batches))

    def keys(self, epoch, batch):
        """The keys of one batch of this process."""
        return self._keys(epoch, batch, batch + 1)

    def _keys(self, epoch, start, end):
        size = self.batch_size * self.world_size
        own = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        if self.shared and self.batch_size % 2 == 0:
            own = pairs_of(size, self.batch_size, self.rank)
        order = rng_for(self.seed, SHUFFLE, epoch).permutation(self.num_samples)[:self.num_batches * size]
        batches = order.reshape(self.num_batches, size)[start:end].tolist()
        if self.shared:
            return [(epoch, batch[i], batch[0]) for batch in batches for i in own]
        if self.num_masks:
            return [(epoch, batch[i], batch[i % self.num_masks]) for batch in batches for i in own]
        return [(epoch, batch[i]) for batch in batches for i in own]


class EvalSampler(Sampler):
    """Keys of epoch 0 of one process; over all processes each image comes exactly once.

    Args:
        num_samples, rank, world_size: as EpochSampler.
        shared_by: images per process of the batches that share a mask, as EpochSampler's `shared`; 0 = masks are not shared.
    """

    def __init__(self, num_samples, rank, world_size, shared_by=0):
        self.indices = range(rank, num_samples, world_size)
        self.size = shared_by * world_size
        if self.size and shared_by % 2 == 0:
            self.indices = [start + i for start in range(0, num_samples, self.size)
                            for i in pairs_of(min(self.size, num_samples - start), shared_by, rank)]

    def __len__(self):
        return len(self.indices)

    def __iter__(self):
        if self.size:
            return iter([(0, index, index // self.size * self.size) for index in self.indices])
        return iter([(0, index) for index in self.indices])
