"""What the head of a log says of a run."""
import json
import subprocess
import sys

import torch

from utils import distributed
from utils.origin import commit, in_words, origin


def test_origin_names_command_commit_versions_and_machine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main_simmim.py", "--data-path", "my images"])
    found = in_words(origin(torch.device("cpu")))
    assert list(found) == ["command", "commit", "versions", "machine"]
    assert found["command"].endswith("main_simmim.py --data-path 'my images'")
    assert f"torch {torch.__version__}" in found["versions"] and "timm" in found["versions"] and "driver" in found["versions"]
    assert found["machine"].endswith("cores, cpu")


def test_origin_is_a_record_that_json_can_hold(monkeypatch):
    found = origin(torch.device("cpu"))
    assert json.loads(json.dumps(found)) == found and found["versions"]["torch"] == torch.__version__
    assert (found["device"], found["processes"]) == ("cpu", 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    assert in_words(origin(torch.device("cpu")))["machine"].endswith("cores, cpu, 3 processes")


def test_commit_says_whether_files_have_changed_since(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True,
                       capture_output=True)

    assert commit(tmp_path) == "unknown"
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    assert commit(tmp_path).endswith(", clean") and len(commit(tmp_path)) == 40 + len(", clean")
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path).endswith(", 1 files changed since")


def test_commit_is_unknown_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == "unknown"
