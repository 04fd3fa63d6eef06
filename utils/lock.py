"""One run, one folder: a lock that holds while the process lives, on this machine and over a network file system."""
import json
import os
import socket
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what the holder writes into the file decides alone
    fcntl = None

NAME = "run.lock"
LENGTH = 300  # characters of the file
RENEWED = 10.0  # seconds between the marks of life of a holder
WATCHED = 35.0  # seconds without one, after which a holder that the kernel does not know is dead


class FolderLock:
    """The lock of a run folder: a file that names its holder.

    The kernel keeps it: POSIX record locks end with the process, whatever ends it, and network file systems pass them on to
    their server. Where they don't, or the holder was on another machine, its marks of life decide.

    Args:
        folder: run folder; made if it is not there.
        report: called with a line of text where there is something to wait for.
    Raises: ValueError that names the holder; OSError where the folder can't be written to.
    """

    def __init__(self, folder, report):
        self.path = Path(folder) / NAME
        self.own = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self.made = [folder for folder in self.path.parents if not folder.exists()]  # from the innermost out
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"the run folder {self.path.parent} can't be made ({error.strerror}): choose another "
                                       f"--output or --tag") from error
        self.file, holder = self._take(report)
        self.left_by = _described(holder)  # who held it before and ended without giving it back
        self.renewed = 0.0
        self.renew()

    def _take(self, report):
        """(open file, what was in it), once it is ours."""
        while True:
            file = open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8")
            kept = _kernel_lock(file)
            holder = _content(file)
            if kept is False or (holder and (kept is None or holder.get("host") != self.own["host"])
                                 and self._shows_life(file, holder, report)):
                name = _described(_content_soon(file))
                file.close()
                raise ValueError(
                    f"{self.path.parent} is in use by {name or 'another process'}: one run, one folder. Wait for "
                    f"it to end, or use another --tag or --output. (Several processes of one run are started by torchrun; "
                    f"without it each is a run of its own.)")
            if _is_at(file, self.path):
                return file, holder
            file.close()  # its holder ended and removed it in the meantime

    def _shows_life(self, file, holder, report):
        report(f"{self.path.parent} was in use by {_described(holder)}: looking for {WATCHED:.0f} s whether it still is")
        end = time.monotonic() + WATCHED
        while time.monotonic() < end:
            time.sleep(0.5)
            now = _content(file)
            if now != holder:
                return bool(now)
        return False

    def renew(self):
        """Leave a mark of life, if the last one is some time ago."""
        if self.file and time.monotonic() - self.renewed >= RENEWED or not self.renewed:
            self.renewed = time.monotonic()
            self.file.seek(0)
            self.file.write(json.dumps({**self.own, "renewed": time.time()}).ljust(LENGTH))  # whoever reads it sees it whole
            self.file.flush()

    def release(self):
        """Give the folder back; what the lock has made of it goes, too, if it is still empty."""
        if self.file:
            self.path.unlink(missing_ok=True)
            self.file.close()
            self.file = None
            for folder in self.made:
                if any(folder.iterdir()):
                    break
                folder.rmdir()


def _kernel_lock(file):
    """True: it is ours. False: another process has it. None: the system keeps no locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _content(file):
    file.seek(0)
    try:
        holder = json.loads(file.read())
    except ValueError:  # empty, or cut off by a full disk
        return {}
    return holder if isinstance(holder, dict) else {}


def _content_soon(file):
    """What the holder says of itself; one that has just come has not written it yet."""
    for _ in range(40):
        holder = _content(file)
        if holder:
            break
        time.sleep(0.05)
    return holder


def _described(holder):
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}" if holder else ""


def _is_at(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
