"""Random streams: every draw is a pure function of what it belongs to (seed, epoch, sample; or seed, iteration, rank)."""
import random
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch

# what a stream is for; the numbers separate streams that share all other keys
AUGMENT, MASK, STEP, SHUFFLE, SUBSET, REPLACE = range(6)


def rng_for(*keys):
    """A numpy RandomState for a tuple of whole numbers."""
    return np.random.RandomState(np.random.MT19937(_Words(_sequence(keys))))


class _Words(np.random.bit_generator.ISeedSequence):
    """The words that a SeedSequence of numpy gives, made at once and not one by one: a third of the time of an rng_for.

    Source: numpy.random.SeedSequence, whose constants these are.
    """

    FIRST, FACTOR, SHIFT = 0x8B51F9DD, 0x58F38DED, 16

    def __init__(self, sequence):
        self.sequence = sequence

    def generate_state(self, n_words, dtype=np.uint32):
        """List of whole numbers, which numpy copies faster than an array, one by one."""
        pool = self.sequence.pool
        factors = _powers(self.FIRST, self.FACTOR, n_words + len(pool) - n_words % len(pool) + 1)
        words = (pool ^ factors[:-1].reshape(-1, len(pool))) * factors[1:].reshape(-1, len(pool))
        return (words ^ (words >> self.SHIFT)).ravel()[:n_words].tolist()


@cache
def _powers(first, factor, number):
    """first * factor ** i for so many i, modulo 2 ** 32."""
    return np.array([first * pow(factor, i, 2 ** 32) % 2 ** 32 for i in range(number)], dtype=np.uint32)


def _sequence(keys):
    """The length goes in front: numpy pads with zeros, so that (0, 1) and (0, 1, 0) would be one stream."""
    return np.random.SeedSequence([len(keys), *map(int, keys)])


def seed_globals(*keys):
    """Seed the global generators of Python, numpy and torch (all devices) from a tuple of whole numbers."""
    words = _sequence(keys).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed((int(words[2]) << 32) + int(words[3]))


@contextmanager
def seeded_globals(*keys):
    """As `seed_globals` for the CPU generators, putting their states back afterwards.

    For libraries that draw from the global generators (timm's transforms).
    """
    states = random.getstate(), np.random.get_state()
    words = _sequence(keys).generate_state(2)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    try:
        with seeded_torch(*keys):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def seeded_torch(*keys):
    """As `seeded_globals`, torch's generator alone, with the same draws: a tenth of the time (torchvision's transforms)."""
    state = torch.get_rng_state()
    words = _sequence(keys).generate_state(4)
    torch.default_generator.manual_seed((int(words[2]) << 32) + int(words[3]))
    try:
        yield
    finally:
        torch.set_rng_state(state)
