"""What guards a run: steps with everything that happens between them beside bare ones, and what checkpoints take."""
import io
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

from config import with_values
from data.bad_images import BadImages
from engine import Job
from logger import MetricWriter
from lr_scheduler import build_scheduler
from saving import save
from tools.benchmarks.report import report
from tools.benchmarks.step import Candidate
from utils import distributed
from utils.devices import wait_for
from utils.heartbeat import Heartbeat
from utils.lock import FolderLock
from watch import Watch

COLUMNS = {"what": ("what", ""), "ms": ("ms of training", ".1f"), "share": ("share of the steps", ".2%")}


def main(args):
    device = distributed.start()
    candidate = Candidate(args.cfg, args, device)
    first = distributed.rank() == 0  # under torchrun all processes do the same, and the first says what it found
    with redirect_stdout(sys.stdout if first else io.StringIO()), tempfile.TemporaryDirectory() as folder:
        job = guarded(candidate, distributed.from_rank0(folder), device)
        for _ in range(3):
            ten_steps(candidate)
        times = []
        for _ in range(args.rounds):
            bare = ten_steps(candidate)
            job.heart = Heartbeat(job.lock, 1800)
            job.heart.start()
            safe = ten_steps(candidate, Watch(job))
            job.heart.end()
            times.append((bare, safe))
        saves = {name: [save_seconds(job, candidate, behind) for _ in range(args.rounds)]
                 for name, behind in (("in place", False), ("SAVE_ASYNC", True))}
        size = max((path.stat().st_size for path in Path(folder).glob("*.pth")), default=0) / 2 ** 20
        if first:
            job.lock.release()
            report_safety(args, candidate, times, saves, size)


def report_safety(args, candidate, times, saves, size):
    """Say what was measured: (bare, guarded) seconds of ten steps; seconds lost to checkpoints; MB of one."""
    step, ratio = statistics.median(bare for bare, _ in times) / 10, statistics.median(safe / bare for bare, safe in times)
    rows = [{"what": "guarding a step", "ms": (ratio - 1) * step * 1e3, "share": ratio - 1}]
    for name, seconds in saves.items():
        lost = statistics.median(seconds)
        rows.append({"what": f"a checkpoint, {name}", "ms": lost * 1e3, "share": lost / (args.save_steps * step)})
    report(args, candidate.device, COLUMNS, rows, batch=len(candidate.images), format=candidate.precision,
           ms_of_a_bare_step=step * 1e3, guarded_steps_over_bare_ones=ratio, MB_of_a_checkpoint=float(size),
           steps_between_checkpoints=args.save_steps)


class Endless:
    """In place of a loader: as long as none is, and nothing in it is bad."""

    bad = BadImages(10 ** 6)

    def __len__(self):
        return 10 ** 6


def guarded(candidate, folder, device):
    """A Job around a candidate: all that a run has beside its data."""
    loader, optimizer, first = Endless(), candidate.updater.optimizer, distributed.rank() == 0
    job = Job(config=candidate.config, task="pretrain" if candidate.is_pretrain else "finetune", device=device,
              model=candidate.updater.model, loader=loader, updater=candidate.updater,
              scheduler=build_scheduler(candidate.config, optimizer, len(loader)), compute_loss=None, validate=None,
              folder=folder, metrics=MetricWriter(folder if first else None), lock=FolderLock(folder, print) if first else None)
    job.place.meters = [[0.0, 0.0]] * 3
    return job


def ten_steps(candidate, watch=None):
    """Seconds of ten steps; with a Watch they are looked at as those of a run."""
    wait_for(candidate.device)
    begin = time.perf_counter()
    for i in range(10):
        candidate.updater.update([candidate.compute_loss])
        if watch:
            watch.at("iteration {} of epoch {}", i, 0)
            watch.step_done(0, i + 1, ())
    wait_for(candidate.device)
    return time.perf_counter() - begin


def save_seconds(job, candidate, behind):
    """Seconds by which a checkpoint makes ten steps longer; of one that is written behind them, what it takes from them."""
    job.config = with_values(job.config, SAVE_ASYNC=behind)
    bare = ten_steps(candidate)
    begin = time.perf_counter()
    save(job, scheduled=False)
    blocked = time.perf_counter() - begin
    with_it = blocked + ten_steps(candidate)
    job.writer.wait()
    return with_it - bare
