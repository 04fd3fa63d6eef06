"""A thread beside the training: renews the lock of the run folder, notices that the launcher died, or that a rank is silent."""
import json
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from contextlib import suppress

from torch import distributed as dist

from utils import distributed, stopping

log = logging.getLogger("simmim.heartbeat")

BEAT = 1.0  # seconds between two looks
SHARE = 0.8  # of the time-out of a collective operation, after which a silent rank is named: before that would end the job
_heard = {}  # rank: what it told last


class Heartbeat(threading.Thread):
    """Started with a run, stopped with it.

    Every process tells through the launcher's store that it lives and what it is at. Rank 0 watches all others, they watch
    rank 0. Counted are the looks at which another did not move, so that a job that was suspended as a whole goes on.

    All processes must make one.

    Args:
        lock: FolderLock to renew, or None.
        timeout: seconds that a process may be silent.
    """

    def __init__(self, lock, timeout):
        super().__init__(daemon=True, name="heartbeat")
        self.lock, self.patience = lock, max(timeout * SHARE, 2 * BEAT)
        self.at = ("starting", ())  # what this process is at: a text, and what is put into it
        self.parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.ended = threading.Event()
        self.beats, self.told, self.judged = {}, 0, 0  # rank: what it told last; how often this process has told; and looked
        self.silent = {}
        self.store = None
        if distributed.world_size() > 1:
            # nobody hears what ranks of an earlier attempt have told; from here on each knows the others
            self.store = dist.PrefixStore(distributed.from_rank0(uuid.uuid4().hex), distributed.store())
            for _ in range(2):
                self._tell()
                distributed.barrier()

    def run(self):
        # in a thread of its own, since it waits without end for a store whose process is stopped
        threading.Thread(target=self._keep_telling, daemon=True, name="telling").start()
        while not self.ended.wait(BEAT):
            try:
                self._look()
            except OSError as error:
                log.warning("the lock of the run folder can't be renewed: %s", error)

    def _keep_telling(self):
        while self.store is not None and not self.ended.wait(BEAT):
            self._tell()

    def _tell(self):
        """Tell the others that this process lives, and hear what they have told."""
        rank, store = distributed.rank(), self.store
        if store is None:  # the other thread has seen the launcher end
            return
        text, values = self.at  # at once: it changes meanwhile
        own = {"at": text.format(*values), "count": self.told, "pid": os.getpid(), "host": socket.gethostname()}
        try:
            store.set(f"beat_{rank}", json.dumps(own))
            for other in range(1, distributed.world_size()) if rank == 0 else [0]:
                if store.check([f"beat_{other}"]):
                    self.beats[other] = json.loads(store.get(f"beat_{other}"))
        # the store is gone, which torch says in many ways: collective operations will notice, or have ended
        except Exception as error:
            log.debug("nothing is told any more: %s", error)
            self.store = None
        self.told += 1

    def _look(self):
        if self.parent and os.getppid() != self.parent:
            if not stopping.requested():
                log.warning("the launcher of this process has ended: stopping after this step")
            stopping.request(stopping.REQUEUE)
            self.store = None  # it was the launcher's
        if self.lock:
            self.lock.renew()
        # a store that does not answer rank 0 is the launcher's; the others can't tell it from rank 0, which may keep it
        if self.store is not None and (distributed.rank() != 0 or self.told != self.judged):
            for other, beat in list(self.beats.items()):
                self._compare(other, beat)
        self.judged = self.told

    def _compare(self, other, beat):
        moved = beat != _heard.get(other)
        _heard[other] = beat
        self.silent[other] = 0 if moved else self.silent.get(other, 0) + 1
        if self.silent[other] * BEAT >= self.patience:
            text = (f"[rank {distributed.rank()}] error: rank {other} (process {beat['pid']} on {beat['host']}) has not "
                    f"answered for {self.silent[other] * BEAT:.0f} s: it was stopped, has ended, or its machine is gone. It "
                    f"was last at {beat['at']}. Start the same command again to go on from the newest checkpoint.")
            log.debug(text)
            print(text, file=sys.stderr, flush=True)
            if beat["host"] == socket.gethostname():  # it would be left over
                with suppress(OSError):  # it has ended by itself
                    os.kill(beat["pid"], signal.SIGKILL)
            stopping.kill_children()
            os._exit(1)

    def await_verdict(self):
        """After a collective operation timed out: if a rank is silent, this process ends here and says which."""
        self.ended.wait(self.patience + 5 * BEAT)

    def end(self):
        self.ended.set()
        self.join()  # not the one that tells: it may wait for a store that is no more


def others():
    """What the other ranks were last at, as far as this one has heard."""
    return "; ".join(f"rank {rank} was last at {beat['at']}" for rank, beat in sorted(_heard.items()))
