"""Console, log files and metrics of a run."""
import json
import logging
import re
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from logger import MetricWriter, close_logger, create_logger, cut_back, log_to_file, use_colour


@pytest.fixture(autouse=True)
def logger_as_before():
    """The root logger of the project is global: other tests listen to it."""
    yield
    close_logger()
    logger = logging.getLogger("simmim")
    logger.propagate, logger.level = True, logging.NOTSET


def test_lines_without_a_terminal_have_no_colour_codes(capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    create_logger(0).info("hello")
    assert re.fullmatch(r"\[\d\d-\d\d \d\d:\d\d:\d\d\] hello\n", capsys.readouterr().out)


def test_file_says_where_a_line_comes_from_and_the_console_does_not(tmp_path, capsys):
    create_logger(0)
    log_to_file(tmp_path)
    logging.getLogger("simmim.engine").warning("loss of\n0.5")
    logging.getLogger("simmim").info("next")
    assert re.fullmatch(r"\[.{14}\] WARNING loss of\n0\.5\n\[.{14}\] next\n", capsys.readouterr().out)
    text = (tmp_path / "log_rank0.txt").read_text()
    stamp = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] "
    assert re.fullmatch(rf"{stamp}WARNING loss of \(test_logger\.py:\d+\)\n0\.5\n{stamp}next \(test_logger\.py:\d+\)\n", text)


def test_error_with_a_traceback_keeps_it_below(tmp_path):
    create_logger(0)
    log_to_file(tmp_path)
    try:
        raise ValueError("oh")
    except ValueError:
        logging.getLogger("simmim").debug("stopped", exc_info=True)
    lines = (tmp_path / "log_rank0.txt").read_text().splitlines()
    assert "DEBUG stopped (test_logger.py:" in lines[0] and lines[1].startswith("Traceback") and lines[-1] == "ValueError: oh"


def test_colour_is_forced_or_forbidden_by_the_environment(capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    create_logger(0).info("hello")
    assert "\x1b[" in capsys.readouterr().out and use_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_colour()


@pytest.mark.parametrize(("rank", "expected"), [(0, ["info", "warning"]), (1, ["warning"])])
def test_console_of_other_ranks_shows_warnings_only(capsys, rank, expected):
    logger = create_logger(rank)
    for level in ("debug", "info", "warning"):
        getattr(logger, level)(f"<{level}>")
    out = capsys.readouterr().out
    assert [level for level in ("debug", "info", "warning") if f"<{level}>" in out] == expected
    assert ("rank 1: WARNING <warning>" in out) == (rank == 1)


def test_each_rank_writes_a_file_of_its_own_with_all_levels(tmp_path):
    for rank in (0, 3):
        create_logger(rank)
        log_to_file(tmp_path / "run", rank)
        logging.getLogger("simmim.engine").debug("detail of %d", rank)
    close_logger()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["log_rank0.txt", "log_rank3.txt"]
    text = (tmp_path / "run" / "log_rank3.txt").read_text()
    assert "detail of 3" in text and "detail of 0" not in text and "\x1b" not in text


def test_log_file_of_an_earlier_start_is_continued(tmp_path):
    for word in ("first", "second"):
        create_logger(0)
        log_to_file(tmp_path, 0)
        logging.getLogger("simmim").info(word)
    text = (tmp_path / "log_rank0.txt").read_text()
    assert text.index("first") < text.index("second") and text.count("\n") == 2


def test_creating_twice_writes_each_line_once(capsys):
    create_logger(0)
    create_logger(0).info("hello")
    assert capsys.readouterr().out.count("hello") == 1


# ---- metrics ------------------------------------------------------------------------------------------------------

def records(folder):
    """Records of metrics.jsonl without their times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "timestamp"} for line in lines]


START = {"command": "python main_simmim.py --data-path <a|b>", "commit": "unknown", "versions": {"torch": "2.6"}, "host": "h",
         "cores": 2, "device": "cpu", "processes": 1}


def test_each_record_is_a_line_of_json_and_there_at_once(tmp_path):
    writer = MetricWriter(tmp_path / "run")
    writer.write("train", 3, epoch=0, loss=0.5, lr=1e-20)
    writer.write("val", 7, epoch=0, top1=12.5)
    assert records(tmp_path / "run") == [{"kind": "train", "step": 3, "epoch": 0, "loss": 0.5, "lr": 1e-20},
                                         {"kind": "val", "step": 7, "epoch": 0, "top1": 12.5}]
    writer.close()
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_each_record_has_the_time_it_was_written_at(tmp_path):
    writer = MetricWriter(tmp_path)
    before = datetime.now(timezone.utc)
    writer.start(0, 0, START, "A: 1\n")
    writer.write("train", 0, loss=1.0, time=0.25)
    times = [datetime.fromisoformat(json.loads(line)["timestamp"]) for line in
             (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert before - timedelta(seconds=1) < times[0] <= times[1] <= datetime.now(timezone.utc)
    assert records(tmp_path)[1]["time"] == 0.25  # seconds of a batch


def test_start_is_a_record_and_two_texts_of_the_board(tmp_path):
    writer = MetricWriter(tmp_path, 7)
    writer.start(7, 2, START, "DATA:\n  IMG_SIZE: 64\n# a | b\n")
    writer.close()
    assert records(tmp_path) == [{"kind": "start", "step": 7, "epoch": 2, **START}]
    texts = {tag: (event.step, event.tensor_proto.string_val[0].decode()) for tag in ("run/start", "run/settings")
             for event in board(tmp_path).Tensors(tag)}
    assert texts["run/settings"] == (7, "    DATA:\n      IMG_SIZE: 64\n    # a | b\n")
    assert texts["run/start"][0] == 7 and "--data-path &lt;a|b&gt;</code>" in texts["run/start"][1]


def test_records_of_an_earlier_start_are_kept(tmp_path):
    for step in (1, 2):
        writer = MetricWriter(tmp_path)
        writer.write("train", step, loss=1.0)
        writer.close()
    assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_number_that_is_not_finite_stays_readable_for_strict_parsers(tmp_path):
    """NaN is no JSON: jq, JavaScript and others stop at it, just when a run needs to be looked at."""
    writer = MetricWriter(tmp_path)
    writer.write("train", 1, loss=float("nan"), grad_norm=float("inf"))
    writer.close()

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    line, = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["step"] == 1


def test_pictures_are_saved_under_their_name_and_epoch(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.picture("reconstructions", 12, 700, Image.new("RGB", (6, 4), "red"))
    writer.close()
    assert Image.open(tmp_path / "reconstructions" / "epoch_0012.png").size == (6, 4)
    assert [event.step for event in board(tmp_path).Images("val/reconstructions")] == [700]


def test_writer_of_other_ranks_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = MetricWriter(None)
    writer.start(0, 0, START, "")
    writer.write("train", 1, loss=1.0)
    writer.draw(1, {"train/loss": 1.0})
    writer.picture("reconstructions", 1, 1, Image.new("RGB", (6, 4)))
    writer.close()
    assert not any(tmp_path.iterdir())


# ---- what a run wrote after its checkpoint ------------------------------------------------------------------------

def board(folder):
    """What TensorBoard reads of a run."""
    return EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0}).Reload()


def scalars(folder):
    """[(tag, step, value)] of all events that TensorBoard shows."""
    events = board(folder)
    return [(tag, event.step, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]


def written(folder, steps, begin=0):
    """Write the training records of some steps, as one start of a run does; returns the position after each."""
    metrics, positions = MetricWriter(folder, begin), []
    metrics.start(begin, 0, START, "A: 1\n")
    for step in steps:
        metrics.write("train", step, loss=step / 2)
        metrics.draw(step, {"train/loss": step / 2})
        positions.append(metrics.position())
    metrics.close()
    return positions


def test_files_of_an_interrupted_run_equal_those_of_an_uninterrupted_one(tmp_path):
    written(tmp_path / "whole", range(6))
    positions = written(tmp_path / "cut", range(4))
    assert cut_back(tmp_path / "cut", positions[1]) == []
    written(tmp_path / "cut", range(2, 6), begin=2)
    whole, cut = ([record for record in records(tmp_path / name) if record["kind"] != "start"] for name in ("whole", "cut"))
    assert cut == whole
    assert scalars(tmp_path / "cut") == scalars(tmp_path / "whole") == [("train/loss", step, step / 2) for step in range(6)]


def test_run_without_a_checkpoint_starts_with_nothing_but_the_record_of_its_start(tmp_path):
    written(tmp_path, range(3))
    assert cut_back(tmp_path, {}) == []
    assert [record["kind"] for record in records(tmp_path)] == ["start"] and scalars(tmp_path) == []


def test_each_start_stays_known_and_none_is_there_twice(tmp_path):
    """Killed three times: before a checkpoint, twice after the same one."""
    written(tmp_path, range(3))
    cut_back(tmp_path, {})
    position = written(tmp_path, range(4))[1]
    for _ in range(2):
        cut_back(tmp_path, position)
        written(tmp_path, range(2, 5), begin=2)
    cut_back(tmp_path, position)
    assert [(record["kind"], record["step"]) for record in records(tmp_path)] == [
        ("start", 0), ("start", 0), ("train", 0), ("train", 1), ("start", 2), ("start", 2)]
    assert [event.step for event in board(tmp_path).Tensors("run/settings")] == [0]  # those of what is shown


def test_validation_of_the_epoch_before_stays_on_the_board_when_a_run_goes_on(tmp_path):
    """It belongs to the last iteration of its epoch, and what comes again begins with the next."""
    for begin in (0, 3):
        metrics = MetricWriter(tmp_path, begin)
        for step in range(begin, begin + 3):
            metrics.draw(step, {"train/loss": step})
        metrics.draw(begin + 2, {"val/loss": begin})
        metrics.close()
    assert [(step, value) for tag, step, value in scalars(tmp_path) if tag == "val/loss"] == [(2, 0), (5, 3)]


def test_evaluations_made_since_the_checkpoint_stay(tmp_path):
    first, _ = written(tmp_path, range(2))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "eval", "top1": 50.0}\n{"kind": "val", "step": 2}\n{"kind": "train", "st')
    cut_back(tmp_path, first)
    assert [record["kind"] for record in records(tmp_path)] == ["start", "train", "eval"]


def test_files_that_are_shorter_than_at_the_checkpoint_are_named(tmp_path):
    last = written(tmp_path, range(3))[-1]
    (tmp_path / "metrics.jsonl").write_text("")
    assert cut_back(tmp_path, last) == ["metrics.jsonl"]
    (tmp_path / "metrics.jsonl").unlink()
    assert cut_back(tmp_path, last) == ["metrics.jsonl"]


def test_log_that_can_not_be_written_is_said_once_and_ends_nothing(tmp_path, capsys):
    create_logger(0)
    log_to_file(tmp_path, 0)
    handler = logging.getLogger("simmim").handlers[-1]

    def full(*args):
        raise OSError(28, "No space left on device")
    handler.stream.close()
    handler.stream = SimpleNamespace(write=full, flush=lambda: None, close=lambda: None)
    for _ in range(3):
        logging.getLogger("simmim").debug("a line")
    err = capsys.readouterr().err
    assert err.count("can't be written") == 1 and "No space left" in err and "Traceback" not in err


def test_names_that_are_not_text_can_be_logged(tmp_path):
    create_logger(0)
    log_to_file(tmp_path, 0)
    logging.getLogger("simmim").debug("%s", b"caf\xe9.jpg".decode(errors="surrogateescape"))
    close_logger()
    assert "caf\\udce9.jpg" in (tmp_path / "log_rank0.txt").read_text()


def test_error_of_writing_metrics_names_the_file(tmp_path):
    metrics = MetricWriter(tmp_path)
    metrics.file.close()
    metrics.file = open("/dev/full", "w")
    with pytest.raises(OSError, match=r"metrics\.jsonl could not be written.*No space left"):
        metrics.write("train", 0, loss=1.0)
    with pytest.raises(OSError, match=r"metrics\.jsonl could not be written.*No space left"):  # what ends the run then
        metrics.close()
