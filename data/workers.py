"""Loader processes: what each is doing, and what is said when one hangs or dies."""
import atexit
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from contextlib import contextmanager

import torch
from torch.utils.data import get_worker_info

from utils import stopping
from utils.names import shown

PATIENCE = 10  # seconds that a process which has lost its connections may take to end
GOES_ON = "The same command goes on from the last checkpoint."

atexit.register(stopping.kill_children)  # multiprocessing would ask them to end, which they ignore, and wait


class Notes:
    """What each loader process has written down in shared memory: its pid, and the position of the image it is at.

    Args:
        num_workers: loader processes; without one nothing is noted.
    """

    def __init__(self, num_workers):
        self.values = multiprocessing.RawArray("q", 2 * max(num_workers, 1))  # pid, position + 1; 0 = none

    def begin(self, worker):
        """First thing in a new process. A worker per core is enough; more threads in each only compete."""
        torch.set_num_threads(1)
        stopping.ignore()  # what ends a run comes to all its processes: the main one finishes its step and ends the others
        self.values[2 * worker:2 * worker + 2] = [os.getpid(), 0]

    def note(self, index):
        """Write down which image is opened next; None = none."""
        info = get_worker_info()
        if info is not None:
            self.values[2 * info.id + 1] = 0 if index is None else index + 1

    def of(self, worker):
        """(pid, position or None) of a worker."""
        pid, place = self.values[2 * worker:2 * worker + 2]
        return pid, place - 1 if place else None


class Workers:
    """The loader processes of one loader, as its main process sees them.

    Args:
        samples: [(path, label), ...] of the images.
        notes: Notes of the processes.
        number: of processes; 0 = none.
        minutes: how long they may give nothing, 0 = for ever.
    """

    def __init__(self, samples, notes, number, minutes):
        self.samples, self.notes, self.number, self.minutes = samples, notes, number, minutes
        self.processes = []
        self.failure = None  # the first; killing the other workers makes more

    @contextmanager
    def starting(self):
        """While torch starts the processes, or tells those it has of a new epoch."""
        others = multiprocessing.active_children()
        # torch gives its workers a handler of SIGTERM that ends them, before `Notes.begin` is called
        with stopping.held_back(), self.watched():
            yield
        self.processes = [child for child in multiprocessing.active_children() if child not in others] or self.processes

    @contextmanager
    def watched(self, batch=0):
        """While this process waits for batch number `batch`, a dead or silent worker is an OSError in one line.

        At other times nobody is watched: torch would raise wherever the main process happens to be, in the middle of a step.
        """
        mine = self.number and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
        before, arrived = {}, False
        try:
            if mine:
                before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: self._check())
                before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda *_: self._hung(batch))
                # torch has a limit of its own, but none while it takes over the memory of a batch from a stopped worker
                signal.setitimer(signal.ITIMER_REAL, 60 * self.minutes)
            self._check()
            yield
            arrived = True
        except (EOFError, ConnectionError):  # of taking over the memory of a batch from a worker that is ending
            sentinels = {process.sentinel: process for process in self.processes}
            for ended in multiprocessing.connection.wait(list(sentinels), PATIENCE):
                sentinels[ended].join(PATIENCE)
            self._check()
            raise
        except RuntimeError as error:
            self._check()  # torch catches what is raised here, and says in other words that one has died
            if "DataLoader timed out" not in str(error):
                raise
            self._hung(batch)
        finally:
            if mine:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if not arrived:  # nobody goes on; they ignore what would end them, and one may be stuck
                for process in self.processes:
                    process.kill()
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _hung(self, batch):
        """Raises: OSError: the worker that a batch is due from gives nothing."""
        raise self._failure(batch % self.number, f"has given nothing for {self.minutes:g} minutes (DATA.TIMEOUT_MINUTES)",
                            f"Does the disk answer? Raise the limit where it only is slow (0 = none). {GOES_ON}")

    def _check(self):
        """Raises: OSError if a worker has died."""
        if self.failure:
            raise self.failure
        for process in self.processes:
            if process.exitcode:
                numbers = [worker for worker in range(self.number) if self.notes.of(worker)[0] == process.pid]
                raise self._failure(numbers[0] if numbers else None, *_cause(process.exitcode), pid=process.pid)

    def _failure(self, worker, what, advice, pid=None):
        noted, index = (0, None) if worker is None else self.notes.of(worker)
        place = "at no image" if index is None else f"at {shown(os.path.abspath(self.samples[index][0]))}"
        name = "a loader worker" if worker is None else f"loader worker {worker}"
        self.failure = OSError(f"{name} (pid {pid or noted}) {what}, {place}. {advice}")
        return self.failure


def _cause(exitcode):
    """What has happened, and what to do, in words."""
    if exitcode > 0:
        return f"has ended with exit code {exitcode}", GOES_ON
    name = signal.Signals(-exitcode).name
    out_of_memory = "If memory ran out (dmesg says so): fewer DATA.NUM_WORKERS or a smaller DATA.MAX_PIXELS. "
    return f"was killed by {name}", (out_of_memory if name == "SIGKILL" else "") + GOES_ON
