"""Reading what runs leave behind."""
import json
import re
import shutil

import torch

ACCURACY = re.compile(r"accuracy on (\d+) images: top-1 ([\d.]+)%(?:, top-5 ([\d.]+)%)?, loss ([\d.]+)")


def records(folder, kind):
    """Records of one kind in metrics.jsonl, in order."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses(folder):
    """Training loss of every step."""
    return [record["loss"] for record in records(folder, "train")]


def log_of(folder, rank=0):
    return (folder / f"log_rank{rank}.txt").read_text(encoding="utf-8")


def accuracies(text):
    """(images, top-1, top-5, loss) of every accuracy line in a log, as printed; top-5 "" of five classes and fewer."""
    return ACCURACY.findall(text)


def checkpoint(folder, epoch):
    return torch.load(folder / f"ckpt_epoch_{epoch}.pth", weights_only=True)


def checkpoint_names(folder):
    return sorted(path.name for path in folder.rglob("*.pth"))


def unequal(left, right, name=""):
    """Names of the leaves that are not bitwise equal in two nested structures of tensors and numbers."""
    if isinstance(left, dict) and isinstance(right, dict):
        if left.keys() != right.keys():
            return [f"{name}: other keys"]
        return [leaf for key in left for leaf in unequal(left[key], right[key], f"{name}.{key}")]
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        if len(left) != len(right):
            return [f"{name}: other length"]
        return [leaf for i, pair in enumerate(zip(left, right, strict=True)) for leaf in unequal(*pair, f"{name}.{i}")]
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return [] if torch.equal(left, right) else [name]
    return [] if left == right else [name]


def snapshot(folder):
    """{path: (time of writing, content)} of all files below a folder."""
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(folder.rglob("*")) if path.is_file()}


def changed(before, after):
    """Names of the files that were added, removed or written again between two snapshots."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def cut_back(source, target, last_epoch):
    """Copy a run folder as it was after `last_epoch`: without the later checkpoints and what comes at the end."""
    shutil.copytree(source, target)
    for path in target.glob("*.pth"):
        number = re.fullmatch(r"ckpt_epoch_(\d+)\.pth", path.name)
        if not number or int(number[1]) > last_epoch:
            path.unlink()
    return target


def truncate(path):
    """Cut a file to half its length, as a full disk or a kill would."""
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
