"""The training step on several processes of this machine, beside that of one."""
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tools.benchmarks.report import report
from tools.benchmarks.step import Candidate
from utils import distributed

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 2  # launches of each number of processes, in turn
COLUMNS = {"processes": ("processes", "d"), "batch": ("images each", "d"), "format": ("format", ""),
           "ms_per_step": ("ms/step", ".1f"), "images_per_second": ("images/s", ".1f"), "efficiency": ("of ideal", ".2f")}


def main(args):
    if args.worker:
        return work(args)
    threads = max((os.cpu_count() or 1) // max(args.processes), 1)  # as many for each process, however many there are
    found = {number: [] for number in args.processes}
    for _ in range(REPEATS):
        for number in args.processes:
            found[number].append(launch(args, number, threads))
    rows = []
    for number, launches in found.items():
        seconds = statistics.median(second for launch in launches for second in launch["seconds"])
        rows.append({"processes": number, "batch": launches[0]["batch"], "format": launches[0]["format"],
                     "ms_per_step": seconds * 1e3, "images_per_second": number * launches[0]["batch"] / seconds})
    for row in rows:
        row["efficiency"] = row["images_per_second"] / row["processes"] / (rows[0]["images_per_second"] / rows[0]["processes"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report(args, device, COLUMNS, rows, launches_of_each=REPEATS, threads_of_a_process=threads)


def launch(args, number, threads):
    """What the first of `number` processes found, see `work`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds.json"
        flags = ["--rounds", args.rounds, "--warmup", args.warmup, "--stage", args.stage, "--worker", path]
        flags += ["--batch-size", args.batch_size] if args.batch_size else []
        flags += ["--amp-opt-level", args.amp_opt_level] if args.amp_opt_level else []
        flags += ["--opts", *args.opts] if args.opts else []
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", number,
                   ROOT / "tools/benchmark.py", "scale", "--cfg", args.cfg, *flags]
        result = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                                env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        if result.returncode:
            raise ValueError(f"{number} processes ended with an error: {result.stderr.strip()[-600:]}")
        return json.loads(path.read_text())


def work(args):
    """One process of several: steps with the gradients of all, as a run makes them; the first one writes its times down."""
    candidate = Candidate(args.cfg, args, distributed.start())
    for _ in range(args.warmup):
        candidate.step()
    seconds = []
    for _ in range(args.rounds):
        distributed.barrier()
        seconds.append(candidate.step())
    if distributed.rank() == 0:
        found = {"seconds": seconds, "batch": len(candidate.images), "format": candidate.precision}
        Path(args.worker).write_text(json.dumps(found))
