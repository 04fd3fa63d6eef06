"""Paths and labels in arrays: what a list of pairs would say, and nothing that grows in a loader process."""
import multiprocessing
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from data.samples import Samples

PAIRS = [("/a/b.png", 3), ("", 0), ("/a/caf\udce9.png", -1), ("/a/\u65e5\u672c\n.png", 2 ** 40)]


def test_samples_are_the_pairs():
    samples = Samples(PAIRS)
    assert list(samples) == PAIRS and len(samples) == 4 and samples[1:3] == PAIRS[1:3]
    assert [samples[i] for i in range(-4, 4)] == PAIRS * 2 and samples[np.int64(2)] == PAIRS[2]
    assert list(pickle.loads(pickle.dumps(samples))) == PAIRS and Samples.of(samples) is samples
    for index in (4, -5):
        with pytest.raises(IndexError):
            samples[index]
    assert list(Samples([])) == []


def own_memory(samples, result):
    """Kilobytes that a process gets of its own by reading all of them."""
    def private():
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Private_Dirty")).split()[1])
    for _ in samples[:1000]:
        pass
    before = private()
    for i in range(len(samples)):
        samples[i]
    result.put(private() - before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind, fits", [(list, False), (Samples, True)])
def test_reading_them_costs_a_process_no_memory(kind, fits):
    samples = kind([(f"/data/n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG", i % 1000) for i in range(60_000)])
    context = multiprocessing.get_context("fork")
    result = context.SimpleQueue()
    process = context.Process(target=own_memory, args=(samples, result))
    process.start()
    grown = result.get()
    process.join()
    assert (grown < 1500) == fits  # kB; a list is copied, 6 MB of it


def test_mark_is_that_of_the_same_images_in_another_place_alone(tmp_path):
    def made(folder, names=("a/1.jpg", "a/2.jpg", "b/1.jpg"), size=5):
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(b"." * size)
        return Samples([(str(tmp_path / folder / name), -1) for name in names]).mark()

    first = made("one")
    assert first.startswith("3 images, ") and made("two/below") == first
    assert len({first, made("fewer", ("a/1.jpg", "a/2.jpg")), made("named", ("a/1.jpg", "a/2.jpg", "b/3.jpg")),
                made("larger", size=6)}) == 4
    assert Samples([("gone.jpg", 0)]).mark().startswith("1 images, ")
