import random

import numpy as np
import pytest
import torch

from utils.seeding import _Words, rng_for, seed_globals, seeded_globals


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_streams_repeat_for_equal_keys_and_differ_for_others():
    keys = [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1), (0, 1, 2, 3)]
    first = [rng_for(*key).randint(2 ** 31) for key in keys]
    assert [rng_for(*key).randint(2 ** 31) for key in keys] == first
    assert len(set(first)) == len(keys)


@pytest.mark.parametrize("keys", [(0,), (5, 0, 2 ** 40), tuple(range(9))])
def test_streams_are_those_of_numpy_s_seed_sequence(keys):
    """So masks and orders of a seed stay what they were, though their states are made faster."""
    expected = np.random.SeedSequence([len(keys), *keys])
    state = np.random.RandomState(np.random.MT19937(expected)).get_state()
    assert np.array_equal(rng_for(*keys).get_state()[1], state[1]) and rng_for(*keys).get_state()[2:] == state[2:]
    for number in (1, 4, 6):
        assert _Words(expected).generate_state(number) == expected.generate_state(number).tolist()


def test_globals_repeat_for_equal_keys_and_differ_for_others():
    seen = []
    for keys in ((3, 4), (3, 4), (3, 5)):
        seed_globals(*keys)
        seen.append(draws())
    assert seen[0] == seen[1]
    assert all(a != b for a, b in zip(seen[0], seen[2], strict=True))


def test_block_draws_the_same_whatever_the_state_around_it():
    inside = []
    for seed in (1, 2):
        seed_globals(seed)
        with seeded_globals(9, 8):
            inside.append(draws())
    assert inside[0] == inside[1]


@pytest.mark.parametrize("fails", [False, True])
def test_block_puts_all_states_back(fails):
    seed_globals(1)
    expected = [draws(), draws()]
    seed_globals(1)
    actual = [draws()]
    try:
        with seeded_globals(5):
            draws()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [*actual, draws()] == expected


def test_negative_seed_is_refused():
    with pytest.raises(ValueError):
        rng_for(-1)
