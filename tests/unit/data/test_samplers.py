"""Where an epoch starts, and what processes share: every case of small numbers, not a sample of them."""
from itertools import product

import pytest
import torch

from data import build_loader
from data.features import FeatureLoader
from data.samplers import EpochSampler, EvalSampler, pairs_of

from ..helpers import write_image
from .test_loader import config_for

CASES = list(product((1, 2, 3, 4), (1, 2, 4), (False, True)))  # images per process, processes, shared masks


def keys_of(sampler, epoch, start=0):
    sampler.set_epoch(epoch, start)
    return list(sampler)


@pytest.mark.parametrize(("size", "world_size", "shared"), CASES)
def test_epoch_from_any_batch_on_is_the_end_of_the_whole_epoch(size, world_size, shared):
    for num_samples, epoch, rank in product((size * world_size, 17, 38), (0, 3), range(world_size)):
        sampler = EpochSampler(num_samples, size, rank, world_size, seed=1, shared=shared)
        whole = keys_of(sampler, epoch)
        assert len(whole) == len(sampler) == sampler.num_batches * size
        for start in range(sampler.num_batches + 1):
            assert keys_of(sampler, epoch, start) == whole[start * size:]
            assert len(sampler) == len(whole)


def test_next_epoch_starts_at_its_beginning():
    sampler = EpochSampler(12, 2, 0, 1, seed=0)
    assert len(keys_of(sampler, 1, start=4)) == 4
    sampler.set_epoch(2)
    assert len(list(sampler)) == 12


@pytest.mark.parametrize("start", [-1, 7])
def test_start_outside_the_epoch_is_refused(start):
    with pytest.raises(ValueError, match="which has 6: data, batch size or number of processes have changed"):
        EpochSampler(12, 2, 0, 1, seed=0).set_epoch(0, start)


@pytest.mark.parametrize("num_workers", [0, 2, 4])
def test_batches_from_any_start_are_those_of_the_whole_epoch(tmp_path, num_workers):
    """Workers that persist serve whole and begun epochs in turn."""
    for i in range(9):
        write_image(tmp_path / f"{i}.png", (20 * i, 100, 150))
    loader = build_loader(config_for(tmp_path, NUM_WORKERS=num_workers), is_pretrain=True).train
    for epoch in (0, 2):
        loader.sampler.set_epoch(epoch)
        whole = list(loader)
        assert len(whole) == len(loader) == 4
        for start in (2, 4, 1):
            loader.sampler.set_epoch(epoch, start)
            assert len(loader) == 4
            for batch, expected in zip(loader, whole[start:], strict=True):
                assert all(torch.equal(one, other) for one, other in zip(batch, expected, strict=True))


def test_features_from_any_start_are_those_of_the_whole_epoch():
    loader = FeatureLoader(torch.arange(7), 2, EpochSampler(7, 2, 0, 1, seed=5))
    loader.open([torch.arange(7.0)[:, None].numpy()])
    loader.sampler.set_epoch(3)
    whole = list(loader)
    loader.sampler.set_epoch(3, start=1)
    assert len(loader) == len(whole) == 3
    for batch, expected in zip(loader, whole[1:], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(batch, expected, strict=True))


@pytest.mark.parametrize(("world_size", "num_masks"), product((1, 2, 4), (1, 2, 3, 8, 40)))
def test_masks_take_turns_in_the_global_batch_whoever_reads_it(world_size, num_masks):
    whole = keys_of(EpochSampler(50, 16, 0, 1, seed=3, num_masks=num_masks), 2)
    size = 16 // world_size
    parts = [keys_of(EpochSampler(50, size, rank, world_size, seed=3, num_masks=num_masks), 2) for rank in range(world_size)]
    together = [key for start in range(0, len(parts[0]), size) for part in parts for key in part[start:start + size]]
    assert together == whole and [key[1] for key in whole] == [key[1] for key in keys_of(EpochSampler(50, 16, 0, 1, seed=3), 2)]
    for i, (_, _, first) in enumerate(whole):
        assert first == whole[i // 16 * 16 + i % 16 % num_masks][1]


# ---- shared masks, pairs ------------------------------------------------------------------------------------------

def partners(batch):
    return {frozenset((one, other)) for one, other in zip(batch, reversed(batch), strict=True)}


def test_one_process_has_a_batch_in_its_order():
    assert all(pairs_of(count, 6, 0) == list(range(count)) for count in range(7))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_parts_of_a_batch_hold_its_pairs_whatever_the_processes(world_size):
    for per_process in (2, 4, 6):
        for count in range(1, per_process * world_size + 1):
            parts = [pairs_of(count, per_process, rank) for rank in range(world_size)]
            assert sorted(sum(parts, [])) == list(range(count)) and max(map(len, parts)) <= per_process
            assert set().union(*map(partners, parts)) == partners(range(count))


def steps_of(world_size, per_step, epoch, num_samples=37):
    """For each step: (images of the parts, masks they name) over all processes."""
    steps = []
    for rank in range(world_size):
        size = per_step // world_size
        keys = keys_of(EpochSampler(num_samples, size, rank, world_size, seed=2, shared=True), epoch)
        steps.append([keys[i:i + size] for i in range(0, len(keys), size)])
    return list(zip(*steps, strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_images_masks_and_pairs_of_a_step_do_not_depend_on_the_processes(world_size):
    for epoch in (0, 1):
        for parts, (whole,) in zip(steps_of(world_size, 8, epoch), steps_of(1, 8, epoch), strict=True):
            assert sorted(key for part in parts for key in part) == sorted(whole)
            assert {first for part in parts for _, _, first in part} == {whole[0][1]}
            assert set().union(*(partners([index for _, index, _ in part]) for part in parts)) == partners(
                [index for _, index, _ in whole])


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("per_step", [8, 12])
def test_masks_and_pairs_of_held_out_images_do_not_depend_on_the_processes(world_size, per_step):
    for num_samples in (1, 7, 8, 9, 21):
        masks, pairs = [], []
        for processes in (1, world_size):
            size, found, together = per_step // processes, {}, set()
            for rank in range(processes):
                keys = list(EvalSampler(num_samples, rank, processes, shared_by=size))
                found |= {index: first for _, index, first in keys}
                for i in range(0, len(keys), size):
                    together |= partners([index for _, index, _ in keys[i:i + size]])
            assert sorted(found) == list(range(num_samples))
            masks.append(found)
            pairs.append(together)
        assert masks[0] == masks[1] and (per_step // world_size % 2 or pairs[0] == pairs[1])


@pytest.mark.parametrize("size", [8, 7])
def test_masks_of_one_process_are_those_of_the_first_image_of_a_batch(size):
    keys = keys_of(EpochSampler(30, size, 0, 1, seed=0, shared=True), epoch=1)
    plain = keys_of(EpochSampler(30, size, 0, 1, seed=0), epoch=1)
    assert [key[:2] for key in keys] == plain
    assert [key[2] for key in keys] == [plain[i // size * size][1] for i in range(len(plain))]
