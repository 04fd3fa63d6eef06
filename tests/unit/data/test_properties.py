"""Rules about the order of images, masks and places in an epoch that hold for any numbers (found by hypothesis)."""
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.masks import MaskGenerator
from data.samplers import EpochSampler, EvalSampler
from utils.seeding import MASK, rng_for

fast = settings(max_examples=60, deadline=None, derandomize=True)  # the same cases each time, and no clock
images, sizes, worlds, seeds, epochs = (st.integers(1, 400), st.integers(1, 24), st.integers(1, 9), st.integers(0, 2 ** 40),
                                        st.integers(0, 10 ** 6))


def global_batches(num_images, batch_size, world, seed, epoch, shared=False, start=0):
    """For each batch of an epoch the keys of all processes, process by process."""
    own = []
    for rank in range(world):
        sampler = EpochSampler(num_images, batch_size, rank, world, seed, shared)
        sampler.set_epoch(epoch, start)
        keys = list(sampler)
        own.append([keys[i:i + batch_size] for i in range(0, len(keys), batch_size)])
    return [list(parts) for parts in zip(*own, strict=True)]


def flat(parts):
    return [key for part in parts for key in part]


@fast
@given(images, sizes, worlds, seeds, epochs)
def test_an_epoch_shows_each_image_at_most_once_and_only_whole_batches(num_images, batch_size, world, seed, epoch):
    assume(num_images >= batch_size * world)
    batches = global_batches(num_images, batch_size, world, seed, epoch)
    shown = [index for parts in batches for _, index in flat(parts)]
    assert len(shown) == len(set(shown)) == num_images // (batch_size * world) * batch_size * world
    assert all(0 <= index < num_images for index in shown)


@fast
@given(st.integers(1, 400), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), seeds, epochs, st.booleans())
def test_global_batches_do_not_depend_on_the_number_of_processes(num_images, part, world, more, seed, epoch, shared):
    """The same images in the same steps, whoever reads them, with the same image deciding on a shared mask."""
    assume(num_images >= part * world * more)
    few = global_batches(num_images, part * more, world, seed, epoch, shared)
    many = global_batches(num_images, part, world * more, seed, epoch, shared)
    assert [sorted(flat(parts)) for parts in few] == [sorted(flat(parts)) for parts in many]
    if not shared:
        assert [flat(parts) for parts in few] == [flat(parts) for parts in many]


@fast
@given(st.integers(2, 400), st.integers(1, 6), st.integers(1, 5), seeds, epochs)
def test_partners_in_a_batch_do_not_depend_on_the_number_of_processes(num_images, half, world, seed, epoch):
    """MixMIM mixes image i of a batch with image -1 - i."""
    assume(num_images >= 2 * half * world)

    def partners(batches):
        return [sorted(tuple(sorted((one[1], other[1]))) for part in parts for one, other in zip(part, part[::-1], strict=True))
                for parts in batches]

    alone = global_batches(num_images, 2 * half * world, 1, seed, epoch, shared=True)
    together = global_batches(num_images, 2 * half, world, seed, epoch, shared=True)
    assert partners(alone) == partners(together)


@fast
@given(images, sizes, worlds, seeds, epochs, st.data())
def test_epoch_that_starts_anywhere_is_the_rest_of_the_whole_one(num_images, batch_size, world, seed, epoch, data):
    assume(num_images >= batch_size * world)
    whole = global_batches(num_images, batch_size, world, seed, epoch)
    start = data.draw(st.integers(0, len(whole)))
    assert global_batches(num_images, batch_size, world, seed, epoch, start=start) == whole[start:]
    sampler = EpochSampler(num_images, batch_size, world - 1, world, seed)
    assert all(sampler.keys(epoch, i) == whole[i][world - 1] for i in range(len(whole)))


@fast
@given(images, sizes, worlds, seeds, epochs, st.data())
def test_run_that_is_resumed_with_other_processes_shows_each_image_once(num_images, part, world, seed, epoch, data):
    """The place of a checkpoint is a number of images; here both runs have the same global batch."""
    assume(num_images >= part * world)
    first = global_batches(num_images, part * world, 1, seed, epoch)
    stop = data.draw(st.integers(0, len(first)))
    rest = global_batches(num_images, part, world, seed, epoch, start=stop)
    shown = [flat(parts) for parts in first[:stop]] + [flat(parts) for parts in rest]
    assert shown == [flat(parts) for parts in first]


@fast
@given(images, worlds, st.integers(0, 8))
def test_evaluation_reads_each_image_once_over_all_processes(num_images, world, shared_by):
    read = [key[1] for rank in range(world) for key in EvalSampler(num_images, rank, world, shared_by)]
    assert sorted(read) == list(range(num_images))


@fast
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.floats(0, 1), seeds, epochs, st.integers(0, 10 ** 7))
def test_mask_is_a_function_of_seed_epoch_and_image_with_a_fixed_share_hidden(rows, cols, scale, ratio, seed, epoch, index):
    generator = MaskGenerator((rows * scale * 4, cols * scale * 4), scale * 4, 4, ratio)
    mask = generator(rng_for(seed, MASK, epoch, index))
    assert np.array_equal(mask, generator(rng_for(seed, MASK, epoch, index)))
    assert mask.shape == (rows * scale, cols * scale)
    units = mask.reshape(rows, scale, cols, scale)
    assert (units == units[:, :1, :, :1]).all()  # whole units
    assert mask.sum() == int(np.ceil(rows * cols * ratio)) * scale ** 2
