"""One run, one folder: real processes that hold the lock, end, are killed, or only seem to live."""
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from utils import lock
from utils.lock import NAME, FolderLock

REPOSITORY = Path(__file__).parents[3]
HOLD = """
import sys
from utils.lock import FolderLock
held = FolderLock(sys.argv[1], print)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path / run until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], cwd=REPOSITORY, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def write_holder(folder, **values):
    folder.mkdir()
    (folder / NAME).write_text(json.dumps({"host": socket.gethostname(), "pid": 17, "since": "noon", **values}))


def test_run_folder_that_can_not_be_made_says_what_to_change(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(OSError, match=r"run folder .*/taken/run can't be made \(Not a directory\): choose another --output"):
        FolderLock(tmp_path / "taken" / "run", pytest.fail)


def test_second_process_is_refused_with_the_name_of_the_first(holder, tmp_path):
    with pytest.raises(ValueError, match=rf"in use by process {holder.pid} on {socket.gethostname()} since .*--tag"):
        FolderLock(tmp_path / "run", pytest.fail)
    assert (tmp_path / "run" / NAME).exists()


def test_refusal_does_not_free_the_lock(holder, tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="in use by"):
            FolderLock(tmp_path / "run", pytest.fail)


def test_lock_of_a_killed_process_is_taken_over_and_said(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    taken = FolderLock(tmp_path / "run", pytest.fail)
    assert f"process {holder.pid}" in taken.left_by
    assert json.loads((tmp_path / "run" / NAME).read_text())["pid"] == os.getpid()
    taken.release()


def test_released_lock_leaves_nothing_and_can_be_taken_again(tmp_path):
    for _ in range(2):
        held = FolderLock(tmp_path / "a" / "b" / "run", pytest.fail)
        assert held.left_by == ""
        held.release()
        assert list(tmp_path.iterdir()) == []


def test_folder_that_holds_files_stays(tmp_path):
    held = FolderLock(tmp_path / "run", pytest.fail)
    (tmp_path / "run" / "metrics.jsonl").touch()
    held.release()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_silent_holder_on_another_machine_is_watched_and_then_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WATCHED", 0.2)
    write_holder(tmp_path / "run", host="node7")
    reports = []
    taken = FolderLock(tmp_path / "run", reports.append)
    assert "process 17 on node7" in taken.left_by and "looking" in reports[0]
    taken.release()


def test_holder_on_another_machine_that_leaves_marks_of_life_is_not_disturbed(tmp_path, monkeypatch):
    write_holder(tmp_path / "run", host="node7", renewed=1.0)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: (tmp_path / "run" / NAME).write_text(
        json.dumps({"host": "node7", "pid": 17, "since": "noon", "renewed": 2.0})))
    with pytest.raises(ValueError, match="process 17 on node7"):
        FolderLock(tmp_path / "run", lambda line: None)


def test_without_locks_of_the_system_marks_of_life_decide(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "WATCHED", 0.2)
    write_holder(tmp_path / "run")
    taken = FolderLock(tmp_path / "run", lambda line: None)
    assert "process 17" in taken.left_by
    taken.release()


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\x01"])
def test_broken_lock_file_of_nobody_is_taken_over(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    held = FolderLock(tmp_path, pytest.fail)
    assert held.left_by == ""
    held.release()


def test_mark_of_life_is_renewed(tmp_path, monkeypatch):
    held = FolderLock(tmp_path, pytest.fail)
    before = json.loads((tmp_path / NAME).read_text())
    held.renew()
    assert json.loads((tmp_path / NAME).read_text()) == before  # not yet due
    monkeypatch.setattr(lock, "RENEWED", 0.0)
    held.renew()
    after = json.loads((tmp_path / NAME).read_text())
    assert after["renewed"] > before["renewed"] and after["pid"] == os.getpid()
    held.release()
