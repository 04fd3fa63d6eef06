"""Losses, rates and accuracies of one or many runs side by side, from their metrics.jsonl; seeds of a run as a band.

  python tools/curves.py output/simmim_pretrain/base                                    a table of the last values
  python tools/curves.py output/simmim_pretrain/* --out curves.png                      and the curves
  python tools/curves.py pretrained=output/simmim_finetune/a scratch=output/simmim_finetune/b --out curves.png
  python tools/curves.py output --metrics val/top1 val/ema_top1 train/grad_norm --x step --out curves.png

A run is its folder, a folder of them, or a metrics.jsonl. Runs whose config.yaml differs in SEED alone, or that are given one
name, are one line: the mean, in a band from the lowest to the highest, as far as all of them have come. A run may still be
training.
"""
import argparse
import json
import math
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import run

METRICS = "metrics.jsonl"
DRAWN = ("train/loss", "val/loss", "val/top1", "train/lr", "train/grad_norm")  # of these what there is
KINDS = ("train", "val")  # records of a place in the training
NO_METRICS = ("kind", "step", "epoch", "timestamp", "time")
OF_THE_PLACE = ("SEED", "TAG", "OUTPUT")  # settings in which runs of one group may differ
TITLES = {"train/loss": "loss in training", "val/loss": "loss on held-out images", "val/top1": "top-1, %",
          "val/top5": "top-5, %", "train/lr": "learning rate", "train/grad_norm": "norm of the gradient"}


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="see above")
    parser.add_argument("--out", metavar="FILE.png", help="draw the curves; needs requirements-plots.txt")
    parser.add_argument("--metrics", nargs="+", metavar="KIND/NAME", help=f"default: of {', '.join(DRAWN)} what there is")
    parser.add_argument("--x", choices=("epoch", "step"), default="epoch", help="what they are drawn against (default: "
                                                                                "%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, the whole curves, instead of a table")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import numpy as np

from tools.plots import check_plot, panels, save
from utils.names import listed
from utils.registry import pick
from utils.tables import aligned
from utils.yaml_files import flatten, read_tree


def main(args):
    if args.out:
        check_plot(args.out)
    files = found_runs(args.runs)
    read = {file: read_curves(file) for _, file in files}
    groups = grouped([(name, file) for name, file in files if read[file]])  # evaluations alone have no curves
    if not groups:
        raise ValueError(f"{listed(read)}: no records of training or validation there (yet).")
    curves = {name: [read[file] for file in files] for name, files in groups.items()}
    known = {metric: None for runs in curves.values() for of_run in runs for metric in of_run}
    for metric in args.metrics or ():
        pick(known, metric, "--metrics")
    metrics = args.metrics or [metric for metric in DRAWN if metric in known] or list(known)
    merged = {metric: {name: merge([of_run[metric] for of_run in runs if metric in of_run], args.x)
                       for name, runs in curves.items()} for metric in metrics}
    merged = {metric: {name: curve for name, curve in of.items() if curve} for metric, of in merged.items()}
    print(json.dumps(merged, indent=1) if args.json else as_text(merged, {name: len(files) for name, files in groups.items()}))
    if args.out:
        save(figure_of(merged, args.x), args.out)


# ---- reading ------------------------------------------------------------------------------------------------------

def found_runs(given):
    """[(name or "", metrics.jsonl)] of what is given: runs, folders of runs and files. Raises ValueError."""
    runs = []
    for words in given:
        name, _, place = words.rpartition("=") if not Path(words).exists() else ("", "", words)
        place = Path(place)
        if not place.exists():
            raise ValueError(f"{place} does not exist: expected a run folder, a folder of them, or a {METRICS}.")
        files = [place] if place.is_file() else sorted(place.rglob(METRICS))
        if not files:
            raise ValueError(f"{place} holds no {METRICS}: it is no run folder, nor one of several.")
        runs += [(name, file) for file in files]
    return list(dict.fromkeys(runs))


def grouped(runs):
    """{name of a line: its metrics.jsonl files}: those of one name, or that differ in their seed alone."""
    groups = {}
    for name, file in runs:
        groups.setdefault((name, None if name else _settings(file)), []).append(file)
    jobs = {file.parent.parent.name for _, file in runs}
    named = {}
    for key, files in groups.items():
        tag = os.path.commonprefix([file.parent.name for file in files]).rstrip("_-. ") or files[0].parent.name
        name = key[0] or (tag if len(jobs) == 1 else f"{files[0].parent.parent.name}/{tag}")
        name = name if name not in named else str(files[0].parent)
        named[name] = files
    return named


def _settings(file):
    """What a run is of but for its seed, to compare; of one without config.yaml its own path."""
    path = file.with_name("config.yaml")
    if not path.is_file():
        return str(file)
    settings = {key: value for key, value in flatten(read_tree(path)).items() if key not in OF_THE_PLACE}
    return json.dumps(settings, sort_keys=True, default=str)


def read_curves(file):
    """Curves of a run.

    Args:
        file: metrics.jsonl; a last line that is not whole, as a run that is killed leaves it, counts as not there.
    Returns: {"kind/name": list of (epochs done, step, value)}, without values that were NaN or infinite; {} where nothing was
        trained or validated yet.
    Raises: ValueError that names file and line.
    """
    records, lines = [], file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if record["kind"] in KINDS:
                records.append({"step": int(record["step"]), "epoch": int(record["epoch"]), **record})
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines) or line.endswith("}"):
                raise ValueError(f"{file}, line {number} is no record of a run ({type(error).__name__}: {error}).") from error
    # the last line of an epoch tells its number of steps exactly, the others less
    length = max(((record["step"] + 1) / (record["epoch"] + 1) for record in records if record["kind"] == "train"), default=1.0)
    curves = {}
    for record in records:
        done = (record["step"] + 1) / length if record["kind"] == "train" else record["epoch"] + 1
        for name, value in record.items():
            if name not in NO_METRICS and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(f"{record['kind']}/{name}", []).append((done, record["step"], value))
    return curves


def merge(runs, x):
    """One curve of several runs.

    Args:
        runs: lists of (epochs, step, value).
        x: epoch or step.
    Returns: {x, mean, low, high: lists of one length; runs: their number}, where all runs have a value; {} of none.
    """
    if not runs:
        return {}
    at = 0 if x == "epoch" else 1
    values = [{round(point[at], 6): point[2] for point in points} for points in runs]
    shared = sorted(set.intersection(*(set(of) for of in values)))
    table = np.array([[of[place] for place in shared] for of in values], dtype=float)  # (runs, places)
    if not shared:
        return {}
    return {"x": shared, "mean": table.mean(axis=0).tolist(), "low": table.min(axis=0).tolist(),
            "high": table.max(axis=0).tolist(), "runs": len(runs)}


# ---- showing ------------------------------------------------------------------------------------------------------

def as_text(merged, sizes):
    """A line for each group of runs with its last values; of several runs the mean, and the lowest and highest."""
    rows = [("run", "runs", *merged)]
    for name, size in sizes.items():
        row = [name, str(size)]
        for of in merged.values():
            curve = of.get(name)
            if not curve:
                row.append("-")
            elif curve["low"][-1] == curve["high"][-1]:
                row.append(f"{curve['mean'][-1]:.4g}")
            else:
                row.append(f"{curve['mean'][-1]:.4g} ({curve['low'][-1]:.4g} to {curve['high'][-1]:.4g})")
        rows.append(row)
    return "\n".join(aligned(rows))


def figure_of(merged, x):
    """A panel for each metric, a line for each group, and a band where it has several runs."""
    names = list(dict.fromkeys(name for of in merged.values() for name in of))
    figure, axes = panels(len(merged))
    for axis, (metric, of) in zip(axes, merged.items(), strict=True):
        for name, curve in of.items():
            colour = f"C{names.index(name) % 10}"
            few = "o" if len(curve["x"]) < 30 else None
            axis.plot(curve["x"], curve["mean"], color=colour, marker=few, markersize=3, linewidth=1.2,
                      label=name if curve["runs"] == 1 else f"{name}, {curve['runs']} runs")
            if curve["runs"] > 1:
                axis.fill_between(curve["x"], curve["low"], curve["high"], color=colour, alpha=0.2, linewidth=0)
        axis.set(title=TITLES.get(metric, metric), xlabel="epochs" if x == "epoch" else "step")
        axis.locator_params(axis="x", integer=True, nbins=6)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 3), fontsize="small")
    return figure


if __name__ == "__main__":
    run(main, ARGUMENTS)
