"""Loader processes that hang, die, or get the signals that are meant for the main process."""
import multiprocessing
import os
import signal

import pytest

from data.bad_images import BadImages, Reader
from data.datasets import ImageDataset
from data.image_loader import ImageLoader
from data.samplers import EvalSampler
from data.workers import Notes, Workers
from utils.stopping import kill_children

from ..helpers import write_image
from .test_loader import config_for


def hangs(picture):
    signal.pause()


def dies(picture):
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(picture):
    os._exit(7)


def fine(picture):
    return picture.size[0]


def loader_of(folder, transform, num_workers=1, minutes=10.0, name="0.png"):
    for i in range(1, 12):
        write_image(folder / f"{i}.png")
    samples = [(str(write_image(folder / name)), 0), *((str(folder / f"{i}.png"), 0) for i in range(1, 12))]
    config = config_for(folder, NUM_WORKERS=num_workers, TIMEOUT_MINUTES=minutes, BATCH_SIZE=1)
    reader = Reader(ImageDataset(samples, transform), bad=BadImages(len(samples)))
    return ImageLoader(config, reader, EvalSampler(len(samples), 0, 1), persistent=True)


def pids_of(loader):
    return [loader.workers.notes.of(worker)[0] for worker in range(loader.workers.number)]


@pytest.mark.parametrize(("transform", "minutes", "what"), [
    (hangs, 0.01, r"has given nothing for 0\.01 minutes \(DATA\.TIMEOUT_MINUTES\)"), (dies, 10, "was killed by SIGKILL"),
    (leaves, 10, "has ended with exit code 7")])
def test_worker_that_gives_nothing_is_one_line_that_names_worker_and_file(tmp_path, transform, minutes, what):
    loader = loader_of(tmp_path, transform, minutes=minutes)
    place = rf"at {tmp_path}/0\.png\."
    with pytest.raises(OSError, match=rf"^loader worker 0 \(pid \d+\) {what}, {place} .*last checkpoint\.$") as error:
        next(iter(loader))
    assert f"(pid {pids_of(loader)[0]})" in str(error.value)
    assert ("DATA.NUM_WORKERS" in str(error.value)) == (transform is dies)


def test_file_is_named_in_signs_that_can_be_printed(tmp_path):
    with pytest.raises(OSError, match=r"at .*/x\\udce9\\n\.png\.") as error:
        next(iter(loader_of(tmp_path, dies, name="x\udce9\n.png")))
    str(error.value).encode()


def test_hung_worker_is_no_more_after_the_error(tmp_path):
    loader = loader_of(tmp_path, hangs, minutes=0.01)
    batches = iter(loader)
    with pytest.raises(OSError):
        next(batches)
    loader.workers.processes[0].join()
    assert loader.workers.processes[0].exitcode == -signal.SIGKILL


def test_wait_that_torch_does_not_limit_ends_as_well(tmp_path):
    """As when a worker is stopped while the main process takes over the memory of its batch."""
    loader = loader_of(tmp_path, fine, minutes=0.01)
    before = signal.getsignal(signal.SIGALRM)
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="loader worker 0 .* has given nothing for 0.01 minutes"), loader.workers.watched():
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    assert signal.getsignal(signal.SIGALRM) == before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_worker_that_dies_between_batches_is_noticed_when_the_next_is_due(tmp_path):
    before = signal.getsignal(signal.SIGCHLD)
    loader = loader_of(tmp_path, fine, num_workers=2)
    batches = iter(loader)
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before
    pid = pids_of(loader)[0]  # the other may not have begun
    process = next(process for process in loader.workers.processes if process.pid == pid)
    process.kill()
    process.join()  # nothing is raised here, in the middle of a step
    with pytest.raises(OSError, match=rf"loader worker 0 \(pid {pid}\) was killed by SIGKILL, at "):
        list(batches)


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError])
def test_worker_that_dies_while_it_hands_over_a_batch_is_told_in_a_line(error):
    """What torch says of it then are errors of a connection."""
    workers = Workers([], Notes(0), 0, 0)
    workers.processes = [multiprocessing.get_context("fork").Process(target=lambda: os.kill(os.getpid(), signal.SIGKILL))]
    workers.processes[0].start()
    with pytest.raises(OSError, match="was killed by SIGKILL"), workers.watched():
        raise error


def test_signals_that_end_a_run_do_not_end_its_workers(tmp_path):
    loader = loader_of(tmp_path, fine, num_workers=2)
    batches = iter(loader)
    [next(batches) for _ in range(2)]  # one of each: both have begun
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        for process in loader.workers.processes:
            os.kill(process.pid, getattr(signal, name))
    assert len(list(batches)) == 10 and len(loader.workers.processes) == 2
    assert len(list(loader)) == 12 and all(process.is_alive() for process in loader.workers.processes)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signals_that_come_while_workers_start_do_not_end_them(tmp_path, name):
    loader = loader_of(tmp_path, fine, num_workers=2)
    begin = loader.loader.worker_init_fn

    def asked_at_once(worker):
        os.kill(os.getpid(), getattr(signal, name))
        begin(worker)

    loader.loader.worker_init_fn = asked_at_once
    assert len(list(loader)) == 12


def test_children_can_be_killed_and_leave_nothing_in_shared_memory(tmp_path):
    before = set(os.listdir("/dev/shm"))
    loader = loader_of(tmp_path, fine, num_workers=2)
    next(iter(loader))
    processes = loader.workers.processes
    kill_children()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2
    own = {name for name in set(os.listdir("/dev/shm")) - before if "pym" in name}
    assert own == set()


def test_error_in_a_worker_that_is_none_of_these_comes_as_it_is(tmp_path):
    def breaks(picture):
        raise RuntimeError("my own fault")

    with pytest.raises(RuntimeError, match="my own fault"):
        next(iter(loader_of(tmp_path, breaks)))


def test_no_limit_and_no_workers_are_possible(tmp_path):
    assert len(list(loader_of(tmp_path, fine, minutes=0))) == 12
    loader = loader_of(tmp_path, fine, num_workers=0)
    assert len(list(loader)) == 12 and loader.workers.processes == []
