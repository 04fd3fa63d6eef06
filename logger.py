"""What a run writes about itself: console (rank 0), a log file per rank, metrics.jsonl, TensorBoard."""
import json
import logging
import math
import os
import sys
from datetime import datetime, timezone
from logging.handlers import MemoryHandler
from pathlib import Path

from termcolor import colored
from tqdm import tqdm

from utils.board import Board
from utils.files import naming, replacing
from utils.libraries import Libraries
from utils.origin import in_words

ROOT = "simmim"
METRICS, BOARD = "metrics.jsonl", "tensorboard"  # files of a run
AGAIN = ("train", "val")  # kinds of records that a run which goes on writes again
TIME, CONSOLE_TIME = "%Y-%m-%d %H:%M:%S", "%m-%d %H:%M:%S"


class Line(logging.Formatter):
    """What a line says: time, level unless it is INFO, message.

    Args:
        rank: whose console it is; of others than 0 the lines say it.
        place: whether the file and line that say it follow the message, or its first line.
        coloured: for a terminal.
    """

    def __init__(self, time, rank=0, place=False, coloured=False):
        super().__init__(datefmt=time)
        self.who, self.place, self.coloured = f"rank {rank}: " if rank else "", place, coloured

    def usesTime(self):
        return True

    def formatMessage(self, record):
        begin, level = f"[{record.asctime}]", "" if record.levelno == logging.INFO else f"{record.levelname} "
        if self.coloured:
            begin = colored(begin, "green", force_color=True)
            level = colored(level, "red" if record.levelno >= logging.ERROR else "yellow", force_color=True) if level else ""
        first, newline, others = record.message.partition("\n")
        place = f" ({record.filename}:{record.lineno})" if self.place and not hasattr(record, "library") else ""
        return f"{begin} {self.who}{level}{first}{place}{newline}{others}"


class ConsoleHandler(logging.StreamHandler):
    """Writes past a progress bar instead of through it."""

    def emit(self, record):
        text = self.format(record).encode(errors="backslashreplace").decode()  # names of files may be no text
        tqdm.write(text, file=self.stream)


class LogFile(logging.FileHandler):
    """A log that can't be written, on a full disk say, is said once and ends nothing."""

    failed = False

    def handleError(self, record):
        if not self.failed:
            self.failed = True
            print(f"warning: {self.baseFilename} can't be written ({sys.exc_info()[1]})", file=sys.stderr)


def create_logger(rank=0):
    """Logger of the run; coloured lines on the console of rank 0, warnings and worse of our own on the others.

    Warnings of libraries come the same way, see Libraries.

    Returns: logging.Logger named `simmim`; modules log to children of it.
    """
    logger = logging.getLogger(ROOT)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    close_logger()
    # what is said before the run folder exists is kept for its log file
    logger.addHandler(MemoryHandler(capacity=10 ** 6, flushLevel=logging.CRITICAL + 1, flushOnClose=False))
    console = ConsoleHandler(sys.stdout)
    console.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    console.setFormatter(Line(CONSOLE_TIME, rank, coloured=use_colour()))
    console.addFilter(lambda record: rank == 0 or not hasattr(record, "library"))
    logger.addHandler(console)
    logging.getLogger().addHandler(Libraries())
    return logger


def log_to_file(folder, rank=0):
    """Add the log file of this rank, `log_rank<rank>.txt` in the run folder; an existing one is continued."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    handler = LogFile(Path(folder) / f"log_rank{rank}.txt", mode="a", encoding="utf-8", errors="backslashreplace")
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(Line(TIME, place=True))
    logger = logging.getLogger(ROOT)
    for earlier in [h for h in logger.handlers if isinstance(h, MemoryHandler)]:
        earlier.setTarget(handler)
        earlier.flush()
        logger.removeHandler(earlier)
    logger.addHandler(handler)


def close_logger():
    """Close files and forget all handlers."""
    logger, root = logging.getLogger(ROOT), logging.getLogger()
    for log, handler in [*((logger, handler) for handler in logger.handlers),
                         *((root, handler) for handler in root.handlers if isinstance(handler, Libraries))]:
        log.removeHandler(handler)
        handler.close()


def use_colour():
    """Colour on a terminal, or where FORCE_COLOR is set; never with NO_COLOR."""
    return not os.environ.get("NO_COLOR") and (sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR")))


def record_line(kind, **values):
    """One record as a line of JSON, with the time it is written at; NaN and infinity, which JSON lacks, become null."""
    record = {"kind": kind, "timestamp": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **values}
    finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


class MetricWriter:
    """Numbers and pictures of a run: one JSON object a line in metrics.jsonl, and TensorBoard events beside it.

    A step is the iteration after which something was written, counted from 0 over the run, here and there.

    Args:
        folder: run folder, or None to write nothing (ranks other than 0).
        step: iteration at which the run goes on; events from there on, of an earlier start, are void.
    Raises: OSError that names the file, on writing, too.
    """

    def __init__(self, folder, step=0):
        self.folder = folder and Path(folder)
        self.file = self.board = None
        if folder:
            with naming(self.folder / METRICS):
                self.folder.mkdir(parents=True, exist_ok=True)
                self.file = open(self.folder / METRICS, "a", encoding="utf-8")
                self.board = Board(self.folder / BOARD, step)

    def start(self, step, epoch, origin, config):
        """Note that a run starts here, or goes on.

        Args:
            step, epoch: the iteration that comes next, and the number of its epoch.
            origin: from utils.origin.origin.
            config: the settings as text.
        """
        if self.file:
            self.write("start", step, epoch=epoch, **origin)
            with naming(self.folder / BOARD):
                self.board.lines("run/start", step, {"epoch": epoch, "step": step, **in_words(origin)})
                self.board.block("run/settings", step, config)
                self.board.flush()

    def write(self, kind, step, **values):
        """Add one record to metrics.jsonl.

        Args:
            kind: start | train | val.
        """
        if self.file:
            with naming(self.folder / METRICS):
                self.file.write(record_line(kind, step=step, **values))
                self.file.flush()

    def draw(self, step, curves):
        """Add a point to each of some curves {group/name: number} in TensorBoard."""
        if self.file:
            with naming(self.folder / BOARD):
                for name, value in curves.items():
                    self.board.scalar(name, step, value)
                self.board.flush()

    def picture(self, name, epoch, step, picture):
        """Save a PIL image as <folder>/<name>/epoch_<epoch>.png and show it in TensorBoard, among what belongs to `val`."""
        if self.file:
            with replacing(self.folder / name / f"epoch_{epoch:04d}.png") as path:
                picture.save(path, format="png")
            with naming(self.folder / BOARD):
                self.board.picture(f"val/{name}", step, picture)
                self.board.flush()

    def position(self):
        """{file: bytes} of what has been written so far, down to the disk, for `cut_back`; {} of a writer of nothing."""
        if not self.file:
            return {}
        with naming(self.folder / METRICS):
            os.fsync(self.file.fileno())
        return {name: path.stat().st_size for name, path in _numbers_in(self.folder).items()}

    def close(self):
        """Close the files, which tries once more to write what could not be written."""
        if self.file:
            with naming(self.folder / METRICS):
                self.file.close()
            with naming(self.folder / BOARD):
                self.board.close()


def _numbers_in(folder):
    """{name: path} of the files a MetricWriter adds to."""
    files = [folder / METRICS, *sorted((folder / BOARD).glob("events.*"))]
    return {path.relative_to(folder).as_posix(): path for path in files if path.is_file()}


def cut_back(folder, position):
    """Remove what a run wrote after its checkpoint; it will write it again. Records of evaluations and of starts stay.

    Args:
        folder: run folder.
        position: from MetricWriter.position; {} = the run starts at its beginning.
    Returns: names of the files that are shorter than they were at the checkpoint.
    """
    folder, lost = Path(folder), []
    files = _numbers_in(folder)
    for name in position:
        if name not in files or files[name].stat().st_size < position[name]:
            lost.append(name)
    for name, path in files.items():
        size = position.get(name, 0)
        if path.stat().st_size <= size:
            continue
        if name == METRICS:
            _cut_records(path, size)
        elif size:
            os.truncate(path, size)
        else:
            path.unlink()
    return lost


def _cut_records(path, size):
    content = path.read_bytes()
    others = [line for line in content[size:].splitlines(keepends=True) if _kind(line) not in AGAIN]
    if content[size:] != b"".join(others):
        with replacing(path) as temporary:
            temporary.write_bytes(content[:size] + b"".join(others))


def _kind(line):
    """`kind` of a record; of a line that is not whole, "train"."""
    try:
        return json.loads(line)["kind"]
    except (ValueError, KeyError, TypeError):
        return "train"
