"""Runs that go on in the background while a test does something to them."""
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tests.integration.processes import ROOT, Result, environment, result, usual_signals

NAP = 0.0005           # seconds between two looks, short beside the writing of a checkpoint
HANGS_AFTER = 200      # seconds; a run of a second or two that takes this long hangs, however slow the machine


class Forked:
    """Ranks forked from the process that has imported everything, in a process group of their own.

    Args:
        forks: processes.Forks.
        ranks: [(script, arguments, environment), ...].
        prelude: Python file that each process runs before its script.
    """

    def __init__(self, forks, ranks, prelude=None):
        self.forks = forks
        self.started = forks.start(ranks, prelude=prelude)
        self.pids = [pid for pid, _, _ in self.started]
        self.seen = set(self.pids)  # every process of the run that was ever looked at

    @property
    def running(self):
        """Whether any rank runs."""
        return None in self.forks.codes(self.pids)

    def processes(self):
        """Numbers of the live processes, those of loaders too."""
        alive = [pid for pid, _, group, state in process_table() if group == self.pids[0] and state not in "ZX"]
        self.seen |= set(alive)
        return alive

    def signal(self, number, rank=None):
        """Send a signal to one rank, or to every process of the run; one that has ended does not mind."""
        if not self.processes():  # then its number may be given to another
            return
        try:
            os.killpg(self.pids[0], number) if rank is None else os.kill(self.pids[rank], number)
        except ProcessLookupError:
            pass

    def kill(self):
        """kill -9 of everything at once; returns when nothing is left."""
        self.signal(signal.SIGKILL)
        wait_until(lambda: not self.processes(), "a killed run is still there")
        self.forks.codes(self.pids, wait=True)

    def wait(self):
        """Let it end by itself. Returns: [Result, ...], one for each rank."""
        try:
            wait_until(lambda: not self.running, "the run hangs", nap=0.01)
        except AssertionError as error:
            said = self.results()
            self.kill()
            raise AssertionError(f"{error}\n{said}") from None
        return self.results()

    def results(self):
        """[Result, ...]; the code of a rank that still runs is None."""
        codes = self.forks.codes(self.pids)
        return [result(code, out, err) for code, (_, out, err) in zip(codes, self.started, strict=True)]

    def texts(self):
        """What each rank has written to stderr so far."""
        return [one.err for one in self.results()]


class Launched:
    """A real launcher, torchrun by default, or a plain interpreter; its processes are known by a mark in their environment.

    Args:
        folder: where what it says goes.
        words: what follows `python`.
    """

    def __init__(self, folder, *words):
        self.mark = f"RUN_UNDER_TEST={uuid.uuid4().hex}"
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / f"{self.mark[-8:]}.out", folder / f"{self.mark[-8:]}.err"
        name, _, value = self.mark.partition("=")
        with open(self.out, "w") as out, open(self.err, "w") as err:
            self.launcher = subprocess.Popen(
                [sys.executable, *map(str, words)], cwd=ROOT, env=environment(**{name: value}), stdin=subprocess.DEVNULL,
                stdout=out, stderr=err, start_new_session=True, preexec_fn=usual_signals)
        self.seen = {self.launcher.pid}

    @property
    def running(self):
        """Whether any process runs."""
        self.launcher.poll()
        return bool(self.processes())

    def processes(self):
        """Numbers of the live processes: the launcher, ranks, loaders."""
        alive = []
        for pid, _, _, state in process_table():
            try:
                if state not in "ZX" and self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    alive.append(pid)
            except OSError:  # ended meanwhile
                pass
        self.seen |= set(alive)
        return alive

    def ranks(self):
        """Numbers of the ranks, which are the launcher's children."""
        children = [pid for pid, parent, _, _ in process_table() if parent == self.launcher.pid]
        return sorted(set(children) & set(self.processes()))

    def signal(self, number, *pids):
        """Send a signal to some processes, or to all."""
        for pid in pids or self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def kill(self):
        """kill -9 of everything; returns when nothing is left."""
        while self.processes():  # one that was starting others may need a second round
            self.signal(signal.SIGKILL)
            self.launcher.poll()
            time.sleep(NAP)
        self.launcher.wait()

    def wait(self):
        """Let all processes end by themselves. Returns: Result of the launcher."""
        try:
            wait_until(lambda: not self.running, "the run hangs", nap=0.05)
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}\n{self.err.read_text()}") from None
        return Result(self.launcher.wait(), self.out.read_text(), self.err.read_text())


def process_table():
    """[(pid, parent, process group, state), ...] of this machine."""
    table = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:  # ended meanwhile
                continue
            table.append((int(name), int(fields[1]), int(fields[2]), fields[0]))
    return table


def wait_until(reached, complaint, nap=NAP):
    """Look again and again; AssertionError where a machine of any speed would have got there."""
    end = time.monotonic() + HANGS_AFTER
    while not reached():
        assert time.monotonic() < end, f"{complaint} after {HANGS_AFTER} s"
        time.sleep(nap)


def shared_memory(job):
    """Segments in /dev/shm that processes of a run have made; torch puts their number into the name."""
    return [name for name in os.listdir("/dev/shm") if any(f"_{pid}_" in name for pid in job.seen)]
