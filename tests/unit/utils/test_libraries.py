"""Warnings of libraries: through the log, once, with their source."""
import logging
import multiprocessing
import sys
import warnings

import pytest

from logger import close_logger, create_logger, log_to_file
from utils import libraries


@pytest.fixture(autouse=True)
def logger_as_before():
    before = warnings.showwarning
    yield
    close_logger()
    assert warnings.showwarning == before  # given back
    logger = logging.getLogger("simmim")
    logger.propagate, logger.level = True, logging.NOTSET


@pytest.fixture
def library():
    """library() -> logger of a library that writes to the console by itself, as torch's do."""
    log = logging.getLogger("some_library")

    def made():
        log.addHandler(logging.StreamHandler(sys.stderr))
        log.propagate = False
        return log
    yield made
    log.handlers.clear()
    log.propagate = True


def warn(text="odd", path="/env/lib/python3/site-packages/torch/nn/functional.py"):
    warnings.showwarning(UserWarning(text), UserWarning, path, 12)


def lines(text):
    return [line.partition("] ")[2] for line in text.splitlines()]


def test_warning_is_a_line_with_its_source_and_said_once(capsys, tmp_path):
    create_logger(0)
    log_to_file(tmp_path)
    for text in ("odd", "odd", "another\n  one"):
        warn(text)
    streams = capsys.readouterr()
    assert lines(streams.out) == ["WARNING torch/nn/functional.py:12: UserWarning: odd",
                                  "WARNING torch/nn/functional.py:12: UserWarning: another one"]
    assert streams.err == "" and lines((tmp_path / "log_rank0.txt").read_text()) == lines(streams.out)


def test_warnings_that_python_raises_come_the_same_way(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        create_logger(0)
        warnings.warn("odd", FutureWarning, stacklevel=1)
        close_logger()
    assert lines(capsys.readouterr().out)[0].startswith("WARNING tests/unit/utils/test_libraries.py:")


def test_logger_of_a_library_speaks_through_ours(capsys, library):
    log = library()
    create_logger(0)
    log.warning("no %s", "kernel")
    log.warning("no %s", "kernel")
    log.info("not said")
    streams = capsys.readouterr()
    assert streams.err == "" and len(lines(streams.out)) == 2  # of two places
    assert lines(streams.out)[0].startswith("WARNING tests/unit/utils/test_libraries.py:")
    assert lines(streams.out)[0].endswith(": no kernel")


def test_loggers_of_torch_keep_their_console_where_it_was_asked_for(capsys, library, monkeypatch):
    monkeypatch.setenv("TORCH_LOGS", "recompiles")
    log = library()
    create_logger(0)
    log.warning("as asked")
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err == "as asked\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_console_has_that_of_rank_0_and_each_log_file_its_own(rank, capsys, tmp_path):
    create_logger(rank)
    log_to_file(tmp_path, rank)
    warn()
    logging.getLogger("simmim").warning("ours")
    out = capsys.readouterr().out
    assert ("odd" in out) == (rank == 0) and "WARNING ours" in out
    text = (tmp_path / f"log_rank{rank}.txt").read_text()
    assert text.count("UserWarning: odd\n") == 1 and "ours (test_libraries.py:" in text


def test_forked_processes_say_together_once_what_all_of_them_meet(tmp_path):
    create_logger(0)
    log_to_file(tmp_path)
    context = multiprocessing.get_context("fork")
    for texts in (["first"], ["first", "second"]):  # one after the other, as epochs have them
        process = context.Process(target=lambda texts: [warn(text) for text in texts], args=(texts,))
        process.start()
        process.join()
        assert process.exitcode == 0
    warn("second")
    text = (tmp_path / "log_rank0.txt").read_text()
    assert text.count("first") == text.count("second") == 1


def test_more_texts_than_are_remembered_are_still_said(tmp_path, monkeypatch):
    monkeypatch.setattr(libraries, "MOST", 2)
    create_logger(0)
    log_to_file(tmp_path)
    for text in ("a", "b", "c", "a"):
        warn(text)
    assert (tmp_path / "log_rank0.txt").read_text().count("UserWarning") == 3
