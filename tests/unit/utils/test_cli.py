"""Flags of the mains, and errors as one line."""
import argparse
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config import load_config
from utils.cli import parse_arguments, positive, run


def config_of(*words):
    _, opts = parse_arguments("", ["--cfg", "recipe.yaml", *words])
    return load_config(opts=opts)


@pytest.mark.parametrize(("words", "section", "key", "value"), [
    (["--batch-size", "3"], "DATA", "BATCH_SIZE", 3),
    (["--data-path", "x y"], "DATA", "DATA_PATH", "x y"),
    (["--resume", "a.pth"], "MODEL", "RESUME", "a.pth"),
    (["--accumulation-steps", "2"], "TRAIN", "ACCUMULATION_STEPS", 2),
    (["--accumulation-steps", "0", "--opts", "TRAIN.ACCUMULATION_STEPS", "4"], "TRAIN", "ACCUMULATION_STEPS", 0),
    (["--use-checkpoint"], "TRAIN", "USE_CHECKPOINT", True),
    (["--pretrained", "p.pth"], None, "PRETRAINED", "p.pth"),
    (["--amp-opt-level", "O0"], None, "AMP_OPT_LEVEL", "O0"),
    (["--output", "o"], None, "OUTPUT", "o"),
    (["--tag", "2024-01-31"], None, "TAG", "2024-01-31"),
    (["--eval"], None, "EVAL_MODE", True),
    (["--throughput"], None, "THROUGHPUT_MODE", True),
    (["--local_rank", "1"], None, "LOCAL_RANK", 1),
    (["--local-rank", "1"], None, "LOCAL_RANK", 1),
    (["--opts", "SEED", "7"], None, "SEED", 7),
    (["--batch-size", "3", "--opts", "DATA.BATCH_SIZE", "5"], "DATA", "BATCH_SIZE", 3),
])
def test_flag_sets_its_key(words, section, key, value):
    config = config_of(*words)
    assert (config[section] if section else config)[key] == value


def test_flags_that_are_not_given_leave_the_config_alone():
    assert parse_arguments("", ["--cfg", "recipe.yaml"]) == ("recipe.yaml", [])


def test_batch_size_of_zero_is_not_ignored():
    """The official code drops falsy values (quirk 52)."""
    with pytest.raises(ValueError, match=r"DATA\.BATCH_SIZE=0 is out of range"):
        config_of("--batch-size", "0")


def test_unknown_level_lists_the_valid_ones(capsys):
    with pytest.raises(SystemExit):
        config_of("--amp-opt-level", "O3")
    assert "O0" in capsys.readouterr().err


def outcome(main, capsys):
    with pytest.raises(SystemExit) as caught:
        run(main)
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("two\nlines"), FileNotFoundError("two lines"), PermissionError("two lines")])
def test_error_of_the_user_becomes_one_line(capsys, monkeypatch, error):
    monkeypatch.delenv("SIMMIM_TRACEBACK", raising=False)

    def main():
        raise error

    assert outcome(main, capsys) == (2, "error: two lines\n")


def test_names_in_an_error_are_shown_in_signs_that_can_be_printed(capsys, monkeypatch):
    monkeypatch.delenv("SIMMIM_TRACEBACK", raising=False)

    def main():
        raise ValueError("größe 图 caf\udce9 \x1b[31m.jpg")

    assert outcome(main, capsys) == (2, "error: größe 图 caf\\udce9 \\x1b[31m.jpg\n")


def test_error_of_a_worker_is_shown_without_its_traceback(capsys, monkeypatch):
    monkeypatch.delenv("SIMMIM_TRACEBACK", raising=False)

    def main():
        raise ValueError("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                         "  File ...\nValueError: a.png can't be read: x: y")

    assert outcome(main, capsys) == (2, "error: a.png can't be read: x: y\n")


def test_error_of_the_program_keeps_its_traceback(capsys):
    def main():
        raise KeyError("bug")

    code, err = outcome(main, capsys)
    assert code == 1 and "Traceback" in err and err.strip().endswith("KeyError: 'bug'")


def test_error_keeps_its_traceback_when_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("SIMMIM_TRACEBACK", "1")

    def main():
        raise ValueError("x")

    code, err = outcome(main, capsys)
    assert code == 2 and "Traceback" in err and err.strip().endswith("ValueError: x")


def test_end_without_error_is_code_0_and_interruption_130(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert outcome(lambda: None, capsys)[0] == 0 and outcome(interrupted, capsys)[0] == 130


@pytest.mark.parametrize(("kind", "text", "message"), [
    (int, "0", "0 is not above 0"), (int, "-3", "-3 is not above 0"), (float, "nan", "nan is not above 0"),
    (float, "inf", "inf is not above 0"), (int, "1.5", "invalid int value")])
def test_positive_number_refuses_others(kind, text, message, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=positive(kind))
    assert parser.parse_args(["--number", "2"]).number == 2
    with pytest.raises(SystemExit):
        parser.parse_args(["--number", text])
    assert message in capsys.readouterr().err


def test_output_that_nobody_reads_any_more_is_no_error():
    code = "from utils.cli import run; run(lambda: [print('x' * 100) for _ in range(10000)])"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0


def test_console_that_cannot_show_a_name_gets_it_with_a_backslash():
    program = "import sys; sys.path.insert(0, '.'); from utils.cli import run; run(print, 'caf\\udce9 \u65e5')"
    shown = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], capture_output=True,
                           env={**os.environ, "PYTHONIOENCODING": "latin-1:strict"})
    assert (shown.returncode, shown.stdout) == (0, rb"caf\udce9 \u65e5" + os.linesep.encode()), shown.stderr


def test_garbage_is_looked_for_once_a_program_has_imported_all(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main_simmim.py"])
    parse_arguments("")
    assert not gc.isenabled()
    with pytest.raises(SystemExit):
        run(lambda: None)
    assert gc.isenabled()
