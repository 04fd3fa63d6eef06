"""How a benchmark says what it measured, and where; and the matrix product that it is measured against."""
import datetime
import json
import platform
import time
from pathlib import Path

import torch

from utils.devices import wait_for
from utils.tables import aligned

SIDES = {"cuda": 8192}  # of the square matrices whose product is the peak; elsewhere SIDE
SIDE = 1536


def setting(device):
    """Where and when figures are measured: a dict of texts and numbers."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "python": platform.python_version(), "date": datetime.date.today().isoformat()}


def report(args, device, columns, rows, **facts):
    """Print the table of a command under its setting, and write both to the file that --json names.

    Args:
        columns: {key of the rows: (heading, format)}, in order; a format is that of `format()`, "" = as text. Keys that are
            no column are only written down.
        rows: dicts.
        facts: more figures of the whole run, printed in a line of their own.
    """
    where, rounds = setting(device), getattr(args, "rounds", None)
    print(f"{where['device']}, {where['threads']} CPU threads, torch {where['torch']}, Python {where['python']}, "
          f"{where['date']}{f', {rounds} interleaved rounds' if rounds else ''}")
    if facts:
        print(", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in facts.items()))
    texts = [[format(row[key], shape) for key, (_, shape) in columns.items()] for row in rows]
    print("\n".join(aligned([[heading for heading, _ in columns.values()], *texts])))
    if args.json:
        content = {"command": args.command, **where, "rounds": rounds, **facts, "rows": rows}
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n")


def _shown(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class MatrixPeak:
    """FLOP/s of the fastest product of two square matrices so far: what a step could compute with at the very best.

    Args:
        device: torch.device.
        dtype: of the matrices.
    """

    def __init__(self, device, dtype):
        self.device, self.best = device, 0.0
        side = SIDES.get(device.type, SIDE)
        self.left, self.right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        self.measure()
        self.best = 0.0  # the first product makes room and threads

    def measure(self):
        """One more product; to be called in turn with what is measured beside it."""
        wait_for(self.device)
        begin = time.perf_counter()
        self.left @ self.right
        wait_for(self.device)
        self.best = max(self.best, 2 * len(self.left) ** 3 / (time.perf_counter() - begin))
