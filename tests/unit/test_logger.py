"""Console, log files and metrics of a run."""
import json
import logging

import pytest
from PIL import Image

from logger import MetricWriter, close_logger, create_logger, log_to_file, use_colour


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
    out = capsys.readouterr().out
    assert "hello" in out and "INFO" in out and "\x1b" not in out


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


def test_each_rank_writes_a_file_of_its_own_with_all_levels(tmp_path):
    for rank in (0, 3):
        create_logger(rank)
        log_to_file(tmp_path / "run", rank)
        logging.getLogger("simmim.engine").debug("detail of %d", rank)
    close_logger()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["log_rank0.txt", "log_rank3.txt"]
    text = (tmp_path / "run" / "log_rank3.txt").read_text()
    assert "detail of 3" in text and "detail of 0" not in text and "\x1b" not in text and "simmim.engine" in text


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
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_record_is_a_line_of_json_and_there_at_once(tmp_path):
    writer = MetricWriter(tmp_path / "run")
    writer.write("train", 3, epoch=0, loss=0.5, lr=1e-20)
    writer.write("val", 7, epoch=0, top1=12.5)
    assert records(tmp_path / "run") == [{"kind": "train", "step": 3, "epoch": 0, "loss": 0.5, "lr": 1e-20},
                                         {"kind": "val", "step": 7, "epoch": 0, "top1": 12.5}]
    writer.close()
    assert list((tmp_path / "run" / "tensorboard").iterdir())


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
    writer.picture("reconstructions", 12, Image.new("RGB", (6, 4), "red"))
    writer.close()
    assert Image.open(tmp_path / "reconstructions" / "epoch_0012.png").size == (6, 4)


def test_writer_of_other_ranks_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = MetricWriter(None)
    writer.write("train", 1, loss=1.0)
    writer.picture("reconstructions", 1, Image.new("RGB", (6, 4)))
    writer.close()
    assert not any(tmp_path.iterdir())
