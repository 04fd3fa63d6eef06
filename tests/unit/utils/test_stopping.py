"""Signals sent to real processes that use utils.stopping as the mains do."""
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.processes import usual_signals
from utils.stopping import CODES

REPOSITORY = Path(__file__).parents[3]
SIGNALS = list(CODES)
STARTING = "from utils import stopping\nstopping.listen()\nprint('ready', flush=True)\nimport time\ntime.sleep(60)"
TRAINING = """
import time
from utils import stopping
stopping.listen()
stopping.AGAIN = {again}
with stopping.saving_first():
    print("ready", flush=True)
    while not stopping.requested():
        time.sleep(0.001)
    print("asked", flush=True)
    {then}
print(stopping.requested(), flush=True)
raise SystemExit(stopping.requested())
"""


def started(code):
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=usual_signals)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", SIGNALS)
def test_signal_before_training_ends_the_process_with_its_code_and_one_line(name):
    process = started(STARTING)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate()
    assert process.returncode == CODES[name]
    assert err.splitlines() == [f"{name}: stopped, there was nothing to save"]


@pytest.mark.parametrize("name", SIGNALS)
def test_signal_while_training_only_asks(name):
    process = started(TRAINING.format(again=1.0, then="pass"))
    process.send_signal(getattr(signal, name))
    out, err = process.communicate()
    assert (process.returncode, out) == (CODES[name], f"asked\n{CODES[name]}\n")
    assert "Traceback" not in err


def test_first_of_several_requests_holds_and_none_of_a_storm_ends_the_process():
    process = started(TRAINING.format(again=1e9, then="input()"))
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked\n"
    for name in SIGNALS * 5:
        process.send_signal(getattr(signal, name))
    out, err = process.communicate("\n")
    assert (process.returncode, out, err) == (143, "143\n", "")


def test_second_interrupt_stops_at_once():
    process = started(TRAINING.format(again=0.0, then="time.sleep(60)"))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and out == ""
    assert err.splitlines()[-1].startswith("stopped at once")


def test_interrupts_that_come_together_count_as_one():
    """A launcher passes on what the terminal has sent to all."""
    process = started(TRAINING.format(again=1e9, then="input()"))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate("\n")
    assert (process.returncode, out) == (130, "130\n")


def test_signal_that_was_ignored_stays_ignored():
    """As nohup and scripts start their background jobs."""
    code = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + TRAINING.format(again=1.0, then="pass")
    process = started(code)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 143


def test_children_that_ignore_signals_are_ended_with_the_process():
    code = """
import multiprocessing, time
from utils import stopping
def child():
    stopping.ignore()
    print("ready", flush=True)
    time.sleep(60)
if __name__ == "__main__":
    stopping.listen()
    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    process.start()
    input()
    stopping.kill_children()
    process.join()
    print(process.exitcode, flush=True)
"""
    process = started(code)
    out, _ = process.communicate("\n")
    assert out == f"{-signal.SIGKILL}\n"
