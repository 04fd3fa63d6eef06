"""What a run leaves, and whether it is what an uninterrupted one leaves."""
import json
import re

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from tests.integration.runs import unequal
from utils.checkpoint import load_checkpoint

SAME = ("model", "optimizer", "lr_scheduler", "scaler", "epoch", "max_accuracy", "best_epoch")
TIMES = {"timestamp", "time", "data_time", "images_per_second", "memory_mb",
         "waiting_for_data_percent"}  # of the machine, not of the training


def difference(folder, reference, last, numbers=True):
    """What differs between two runs that should have ended alike, in words; an empty list where nothing does.

    Args:
        folder, reference: run folders.
        last: number of the last epoch.
        numbers: whether metrics.jsonl and TensorBoard are compared, too.
    """
    found = []
    for name, entries in ((newest(reference, last), SAME), ("ckpt_best.pth", ("model", "epoch", "max_accuracy")),
                          ("encoder.pth", ("model", "epoch"))):
        if (reference / name).exists() and not (folder / name).exists():
            found.append(f"{name} is not there")
        elif (reference / name).exists():
            ours, theirs = load_checkpoint(folder / name), load_checkpoint(reference / name)
            found += [f"{name}: {leaf}" for entry in entries for leaf in unequal(ours.get(entry), theirs.get(entry), entry)]
    found += [f"{path.name} was left behind" for path in unfinished(folder)]
    if numbers:
        found += first_difference("metrics.jsonl", metrics(folder), metrics(reference))
        found += first_difference("TensorBoard", scalars(folder), scalars(reference))
    return found


def newest(folder, epoch):
    """Name of the checkpoint of an epoch, a file or a folder."""
    return f"ckpt_epoch_{epoch}" + ("" if (folder / f"ckpt_epoch_{epoch}").is_dir() else ".pth")


def unfinished(folder):
    """Checkpoints that are being written, or that a kill has left half written."""
    return sorted(folder.glob(".*.tmp"))


def metrics(folder):
    """Records of metrics.jsonl without those of starts and without what is of the machine; a broken line fails."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in record.items() if key not in TIMES} for record in map(json.loads, lines)
            if record["kind"] != "start"]


def scalars(folder):
    """Sorted [(tag, step, value), ...] that TensorBoard shows of a run, all event files together."""
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={SCALARS: 0}).Reload()
    return sorted((tag, event.step, repr(event.value)) for tag in board.Tags()["scalars"] if tag.rpartition("/")[2] not in TIMES
                  for event in board.Scalars(tag))


def first_difference(name, ours, theirs):
    if ours == theirs:
        return []
    pairs = zip(ours, theirs, strict=False)
    place = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs)))
    return [f"{name}: {len(ours)} records instead of {len(theirs)}, the first that differs is {place}: "
            f"{ours[place:place + 1]} instead of {theirs[place:place + 1]}"]


def steps_logged(folder):
    """(epoch, iteration) of every step that the log has, as often as it was done."""
    steps = re.findall(r"Train: \[(\d+)/\d+\]\[(\d+)/\d+\]", log_text(folder))
    return [(int(epoch), int(step)) for epoch, step in steps]


def log_text(folder):
    """The log file of rank 0, of all starts; empty before there is one."""
    path = folder / "log_rank0.txt"
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def checkpoints(folder):
    """Paths of all checkpoints of a run that carry their final name."""
    return sorted(path for pattern in ("ckpt_*", "encoder.pth") for path in folder.glob(pattern))


def error_lines(results):
    """The lines on stderr with which ranks say why they stop."""
    return [line for result in results for line in result.err.splitlines() if re.match(r"(\[rank \d+\] )?error: ", line)]


def tracebacks(results):
    """What a user should never see."""
    return [result.err for result in results if "Traceback" in result.err or "Traceback" in result.out]
