"""Signals that ask a run to stop. A run that trains finishes its step, saves and ends with a code that says why.

The handlers stand before anything slow is imported. Until training begins there is nothing to save: a signal then ends the
process at once, with the same code. Signals that were ignored when the process began, by nohup say, stay ignored.
"""
import multiprocessing
import os
import signal
import threading
import time
from contextlib import contextmanager

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start me again
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": REQUEUE}  # otherwise 128 + signal, as shells count
CAUSES = {code: name for name, code in CODES.items()} | {REQUEUE: "SIGUSR1, or the end of the launcher"}
AGAIN, AGAIN_LAUNCHED = 1.0, 5.0  # seconds from which a second Ctrl-C counts: launchers pass on what the terminal sent, too


class Asked(Exception):
    """A process was asked to stop: raised where the step is done. `code` is the exit code."""

    def __init__(self, code):
        super().__init__(f"asked to stop by {CAUSES.get(code, code)}")
        self.code = code


class Stopped(Exception):
    """A run has saved and stops, as it was asked to; the text says what to do next. `code` is the exit code."""

    def __init__(self, text, code):
        super().__init__(text)
        self.code = code


class _State:
    owner = 0          # the process that listens; its children inherit the handlers
    saves = False      # whether it trains, and so has something to save
    code = 0           # exit code of what was asked first; 0 = nothing
    since = 0.0


def listen():
    """Take over the signals; called once, by the main thread."""
    _State.owner, _State.code, _State.saves = os.getpid(), 0, False
    for name in CODES:
        number = getattr(signal, name, None)  # Windows has two of them
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def ignore():
    """Leave the signals to the parent process, which decides when its children end; those of `held_back` are forgotten."""
    for name in CODES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _numbers())


@contextmanager
def held_back():
    """Inside, signals wait: processes that are started here get them when they call `ignore`, and not before."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _numbers())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _numbers():
    return {getattr(signal, name) for name in CODES if hasattr(signal, name)}


def _handle(number, frame):
    code = CODES[signal.Signals(number).name]
    if os.getpid() != _State.owner:
        if not _State.saves:  # a child of another kind ends as it would have; one that loads data is left to the run
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    if not _State.saves and not _State.code:
        _leave(f"{signal.Signals(number).name}: stopped, there was nothing to save", code)
    if _State.code and number == signal.SIGINT and time.monotonic() - _State.since >= _patience():
        _leave("stopped at once: what was not saved is lost", code)
    if not _State.code:
        request(code)
        if number == signal.SIGINT and int(os.environ.get("RANK", 0)) == 0:
            _say("finishing the step, then saving; Ctrl-C again stops at once")


def _patience():
    return AGAIN_LAUNCHED if "TORCHELASTIC_RUN_ID" in os.environ else AGAIN


def _say(text):
    os.write(2, f"{text}\n".encode())  # print may be what was interrupted


def _leave(text, code):
    if int(os.environ.get("RANK", 0)) == 0:
        _say(text)
    kill_children()
    os._exit(code)


def request(code):
    """Ask this process to stop; of several requests the first holds."""
    if not _State.code:
        _State.code, _State.since = code, time.monotonic()


def requested():
    """Exit code of what this process was asked, 0 if it was not."""
    return _State.code


@contextmanager
def saving_first():
    """Inside, a signal only asks: the code in it looks at `requested` where it can stop."""
    _State.saves = True
    try:
        yield
    finally:
        _State.saves = False


def saves_first():
    """Whether this process is inside `saving_first`."""
    return _State.saves


def kill_children():
    """End the loader's processes, which ignore signals; at once, for they hold nothing. The caller is about to end, too."""
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes their end for an accident
    for child in multiprocessing.active_children():
        child.kill()
