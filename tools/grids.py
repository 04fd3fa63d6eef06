"""Grids of runs: what each row trains, one command after the other, and what came out; for tools/ablate.py and compare.py."""
import csv
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from config import encoder_config, flatten, load_config, run_folder
from data.masks import build_mask_generator
from utils.files import write_text
from utils.tables import aligned, markdown

ROOT = Path(__file__).resolve().parents[1]
NEIGHBOURS = 20  # whose vote is reported
# what can be measured: {column: (program, job whose recipe it takes, further flags)}
MEASURES = {"finetune": ("main_finetune.py", "finetune", ()), "linear": ("main_linprobe.py", "probe", ()),
            "knn": ("main_linprobe.py", "probe", ("--knn",))}
COLUMNS = ("loss", *MEASURES)
FORMATS = {"loss": ".4f", "minutes": ".1f"}  # others: percent
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Row:
    """One row of a table: what is pre-trained, and what is measured of it.

    Attributes:
        name: unique.
        recipes: {pretrain, finetune, probe: path}; without pretrain all is measured from scratch.
        settings: {job: {key: value}}, of the same jobs.
        labels: {axis: text}, of its place in the grid.
    """
    name: str
    recipes: dict
    settings: dict
    labels: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """One command of a row.

    Attributes:
        measure: what it gives, of COLUMNS; pre-training gives `loss`.
        job: whose figures it has.
        words: program and flags, without where it writes.
        tag, folder: of its run.
    """
    measure: str
    job: str
    words: tuple
    tag: str
    folder: Path

    @property
    def key(self):
        """What it is known by in the results."""
        return shlex.join(self.words)


class Grid:
    """Runs of rows, with several seeds each. What is done is kept in <output>/results.jsonl, and not done again.

    Args:
        rows: list of Row.
        measures: of COLUMNS, in order; `loss` is the held-out one of pre-training.
        seeds: list of numbers; None = that of the recipes.
        output: folder.
        opts: further settings for every command, [KEY, value, ...].
        jobs: commands at a time; each computes with its share of the cores.
    """

    def __init__(self, rows, measures, seeds, output, opts=(), jobs=1):
        self.rows, self.measures, self.seeds, self.jobs = rows, list(measures), list(seeds), jobs
        self.opts = [str(word) for word in opts]
        self.output = Path(output).absolute()
        self.output.mkdir(parents=True, exist_ok=True)
        self.done, path = {}, self.output / RESULTS
        if path.exists():
            self.done = {record["command"]: record for record in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
        self.plan, pretrained = {}, {}
        for seed in self.seeds:  # in this order: a first table after the first seed
            for row in rows:
                self.plan[row.name, seed] = self._commands(row, seed, pretrained)
        self.locks = {command.key: threading.Lock() for commands in self.plan.values() for command in commands}
        self.lock, self.running, self.failed, self.stopping = threading.Lock(), set(), {}, False

    def _commands(self, row, seed, pretrained):
        """Of a row; `pretrained`: {words: Command} of those before it, which rows that pre-train alike share."""
        commands, weights = [], ()
        if "pretrain" in row.recipes:
            own = self._command("loss", "main_simmim.py", "pretrain", row, seed)
            commands.append(pretrained.setdefault(own.words, own))
            weights = ("--pretrained", str(commands[0].folder / "encoder.pth"))
        for measure in self.measures:
            if measure in MEASURES:
                program, job, flags = MEASURES[measure]
                commands.append(self._command(measure, program, job, row, seed, *flags, *weights))
        return commands

    def _command(self, measure, program, job, row, seed, *flags):
        settings = row.settings.get(job, {}) | ({} if seed is None else {"SEED": seed})
        opts = [str(word) for pair in settings.items() for word in pair] + self.opts
        tag = "__".join([row.name, *(["knn"] if measure == "knn" else []), *([] if seed is None else [f"seed{seed}"])])
        config = load_config(row.recipes[job], [*opts, "OUTPUT", str(self.output), "TAG", tag])
        if job == "pretrain":
            build_mask_generator(config)  # so that a row that can't be is found before the first one is trained
        words = (program, "--cfg", str(row.recipes[job]), *flags, *(["--opts", *opts] if opts else []))
        return Command(measure, job, words, tag, ROOT / run_folder(config))

    def run(self):
        """Do what is not done. Returns: errors, a text each."""
        errors = []
        with ThreadPoolExecutor(self.jobs) as pool:
            waiting = {pool.submit(self._cell, commands): key for key, commands in self.plan.items()}
            try:
                for future in as_completed(waiting):
                    if future.exception() is not None:
                        name, seed = waiting[future]
                        errors.append(f"{name}{'' if seed is None else f', seed {seed}'}: {future.exception()}")
            except BaseException:
                self.stopping = True
                for process in list(self.running):
                    process.terminate()  # it saves, and goes on when the study does
                pool.shutdown(cancel_futures=True)
                raise
        return errors

    def _cell(self, commands):
        for command in commands:
            with self.locks[command.key]:
                if command.key in self.failed:
                    raise self.failed[command.key]
                if command.key not in self.done and not self.stopping:
                    try:
                        self.done[command.key] = self._run(command)
                    except Exception as error:
                        self.failed[command.key] = error  # of the other rows that share it, too
                        raise

    def _run(self, command):
        """Returns: its record in the results. Raises: ValueError that says how it failed, and where its output is."""
        log, begin = self.output / "logs" / f"{command.job}__{command.tag}.txt", time.monotonic()
        log.parent.mkdir(exist_ok=True)
        words = [command.words[0], "--output", str(self.output), "--tag", command.tag, *command.words[1:]]
        self._say(f"$ python {shlex.join(words)}")
        threads = {} if self.jobs == 1 else {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // self.jobs, 1))}
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                                       env={**os.environ, **threads})
            self.running.add(process)
            code = process.wait()
            self.running.discard(process)
        if code:
            said = [text for text in log.read_text(encoding="utf-8", errors="replace").splitlines() if text.strip()]
            raise ValueError(f"{said[-1] if said else 'it said nothing'} (exit code {code}; all it said is in {log})")
        record = {"command": command.key, "folder": str(command.folder), "seconds": round(time.monotonic() - begin, 1),
                  **figures(command.folder, command.job)}
        with self.lock, open(self.output / RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        told = [f"{name} {value:{FORMATS.get(name, '.2f')}}" for name, value in record.items()
                if name in ("loss", "top1") and value is not None]
        self._say(f"  {', '.join(told) or 'done'}, {record['seconds'] / 60:.1f} min")
        return record

    def _say(self, text):
        with self.lock:
            print(text, flush=True)

    def table(self):
        """What there is of each row: [{name, axis: text, measure: [values], minutes: [values]}]."""
        found = []
        for row in self.rows:
            values = {name: [] for name in (*self.measures, "minutes")}
            for seed in self.seeds:
                for command in self.plan[row.name, seed]:
                    record = self.done.get(command.key, {})
                    if command.measure in MEASURES and "top1" in record:
                        record = record | {command.measure: record["top1"]}
                    for name in {command.measure, "minutes"} & values.keys():
                        if record.get(name) is not None:
                            values[name].append(record[name])
            found.append({"name": row.name, **row.labels, **values})
        return found


def figures(folder, job):
    """Of a finished run: {loss, minutes} of pre-training, {top1} of the others."""
    if job == "pretrain":
        held_out = records(folder, "val")
        return {"loss": held_out[-1]["loss"] if held_out else None, "minutes": minutes(records(folder, "train"))}
    votes = [record["top1"] for record in records(folder, "eval") if record.get("k") == NEIGHBOURS]
    return {"top1": votes[-1] if votes else records(folder, "val")[-1]["top1"]}


def records(folder, kind):
    """Records of one kind in a run's metrics, in order."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def minutes(train):
    """Time of training from its records: each has the seconds an iteration took since the one before."""
    steps = [-1, *(record["step"] for record in train)]
    return sum(record["time"] * (step - before) for record, before, step in zip(train, steps, steps[1:], strict=False)) / 60


def encoder_settings(config):
    """{key: value} of the encoder, for a recipe that is to have the same."""
    section = f"MODEL.{config.MODEL.TYPE.upper()}"
    return {f"{section}.{key}": value for key, value in flatten(encoder_config(config)).items()}


def shown(name, values):
    """Mean and spread (standard deviation of a sample) of values, as a text."""
    if not values:
        return "-"
    text = f"{statistics.mean(values):{FORMATS.get(name, '.1f')}}"
    return text if len(values) < 2 or name == "minutes" else f"{text} ± {statistics.stdev(values):{FORMATS.get(name, '.1f')}}"


def texts(table, axes, measures):
    """(headings, rows of texts) of a table of `Grid.table`."""
    first = list(axes) or ["name"]
    columns = [*measures, "minutes"]
    seeds = [max((len(row[name]) for name in measures), default=0) for row in table]
    rows = [[*(row[axis] for axis in first), *(shown(name, row[name]) for name in columns), str(number)]
            for row, number in zip(table, seeds, strict=True)]
    return [*first, *columns, "seeds"], rows


def write_tables(folder, table, axes, measures):
    """table.md and table.csv (a line for each row: means, spreads, numbers of seeds) in a folder. Returns: aligned text."""
    headings, rows = texts(table, axes, measures)
    write_text(folder / "table.md", markdown(headings, rows))
    numbers = [f"{name} {what}" for name in measures for what in ("mean", "deviation", "seeds")]
    lines = [[*(axes or ["name"]), *numbers, "minutes"]]
    for row in table:
        numbers = []
        for name in measures:
            values = row[name]
            numbers += [statistics.mean(values) if values else "", statistics.stdev(values) if len(values) > 1 else "",
                        len(values)]
        lines.append([*(row[axis] for axis in axes or ["name"]), *numbers,
                      statistics.mean(row["minutes"]) if row["minutes"] else ""])
    with open(folder / "table.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    return "\n".join(aligned([headings, *rows], num_left=max(len(axes), 1)))


def plot(path, table, axes, measures):
    """Each measure over the first axis, a line for each combination of the others, spreads as bars; see tools/plots.py."""
    from tools.plots import panels, save

    figure, parts = panels(len(measures))
    x_axis, others = (axes[0], axes[1:]) if axes else ("name", [])
    places = list(dict.fromkeys(row[x_axis] for row in table))
    numeric = all(_number(place) is not None for place in places)
    for part, measure in zip(parts, measures, strict=True):
        lines = {}
        for row in table:
            if row[measure]:
                lines.setdefault(", ".join(f"{axis} {row[axis]}" for axis in others), []).append(row)
        for label, rows in lines.items():
            x = [_number(row[x_axis]) if numeric else places.index(row[x_axis]) for row in rows]
            spread = [statistics.stdev(row[measure]) if len(row[measure]) > 1 else 0.0 for row in rows]
            part.errorbar(x, [statistics.mean(row[measure]) for row in rows], spread, label=label or None, marker="o",
                          capsize=3, linestyle="-" if numeric else "none")
        part.set_title("held-out loss" if measure == "loss" else f"{measure}, top-1 in %")
        part.set_xlabel(x_axis)
        if not numeric:
            part.set_xticks(range(len(places)), places, rotation=45, ha="right")
        if others:
            part.legend(fontsize=7)
    save(figure, path)


def _number(text):
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
