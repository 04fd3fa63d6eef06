"""What ranks tell each other of themselves, with a store in place of a launcher's."""
import os

import pytest
from torch import distributed as dist

from utils import distributed, heartbeat, stopping
from utils.heartbeat import Heartbeat


class Ended(Exception):
    """In place of the end of the process."""


@pytest.fixture
def beats(monkeypatch):
    """beats(rank, timeout) -> Heartbeat of a rank of two that share a store; `killed` lists whom it has killed."""
    store, killed = dist.HashStore(), []

    def leave(code):
        raise Ended(code)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "store", lambda: store)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
    monkeypatch.setattr(distributed, "from_rank0", lambda value: "this start")
    monkeypatch.setattr(heartbeat, "_heard", {})

    def make(rank, timeout=5.0):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        beat = Heartbeat(None, timeout)

        def look():
            monkeypatch.setattr(distributed, "rank", lambda: rank)
            if beat.store is not None:
                beat._tell()
            beat._look()
        beat.look = look
        return beat
    make.killed, make.store = killed, store
    return make


def test_silent_rank_is_named_with_what_it_was_at_and_ended(beats, capsys):
    first, second = beats(0), beats(1)
    second.at = ("iteration {} of epoch {}", (17, 2))
    for _ in range(3):
        first.look()
        second.look()
    with pytest.raises(Ended):
        for _ in range(9):
            first.look()
    err = capsys.readouterr().err
    assert f"[rank 0] error: rank 1 (process {os.getpid()}" in err and "last at iteration 17 of epoch 2" in err
    assert beats.killed == [os.getpid()]  # both ranks are this process here
    assert "rank 1 was last at iteration 17 of epoch 2" in heartbeat.others()


def test_silent_rank_that_has_ended_meanwhile_is_named_once(beats, monkeypatch, capsys):
    """There is no process to kill, and that is no reason to stay."""
    first, second = beats(0), beats(1)

    def gone(pid, number):
        raise ProcessLookupError
    monkeypatch.setattr(os, "kill", gone)
    second.look()
    with pytest.raises(Ended):
        for _ in range(9):
            first.look()
    assert capsys.readouterr().err.count("[rank 0] error: rank 1 ") == 1


def test_rank_that_answers_is_left_alone_however_slow_it_is(beats):
    first, second = beats(0), beats(1)
    for _ in range(8):
        second.look()
        for _ in range(3):  # patience is four looks
            first.look()


def test_suspended_job_goes_on(beats):
    """Looks are counted, not time: one that was stopped itself has not looked."""
    first, second = beats(0), beats(1)
    for _ in range(20):
        first.look()
        second.look()


def test_what_an_earlier_attempt_left_in_the_store_is_nobody(beats, monkeypatch):
    beats(1)
    monkeypatch.setattr(distributed, "from_rank0", lambda value: "a later start")
    first = beats(0)
    for _ in range(20):
        first.look()
    assert beats.killed == []


@pytest.mark.parametrize("kind", [RuntimeError, dist.DistNetworkError, ValueError, AttributeError])
def test_store_that_is_gone_is_not_asked_again(beats, kind):
    first = beats(0)

    def gone(*args):
        raise kind("Connection reset by peer")
    first.store = type("Gone", (), {"set": gone})()
    first.look()
    assert first.store is None
    first._tell()  # the thread that tells may have been on its way


def test_store_that_does_not_answer_is_rank_0_for_the_others(beats, capsys):
    """It keeps the store where no launcher does: whoever asks a stopped process waits without end."""
    first, second = beats(0), beats(1)
    for _ in range(3):
        first.look()
        second.look()
    with pytest.raises(Ended):
        for _ in range(9):
            second._look()  # while telling hangs
    assert "[rank 1] error: rank 0 " in capsys.readouterr().err


def test_store_that_does_not_answer_rank_0_is_nobodys_fault(beats):
    first, second = beats(0), beats(1)
    for _ in range(3):
        second.look()
        first.look()
    for _ in range(20):
        first._look()
    assert beats.killed == []


def test_end_of_the_launcher_asks_the_run_to_stop(beats, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    first = beats(0)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    try:
        first.look()
        assert stopping.requested() == stopping.REQUEUE
    finally:
        stopping._State.code = 0


def test_end_of_a_shell_asks_nothing(beats, monkeypatch):
    """A run in the background outlives the terminal it was started from."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    first = beats(0)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    first.look()
    assert stopping.requested() == 0
