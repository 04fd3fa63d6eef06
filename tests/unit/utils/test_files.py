"""Writing: whole or not at all, and errors that say where."""
import errno
import os
import re

import pytest

from utils.files import naming, process_lives, replacing


def test_file_is_there_once_it_is_whole(tmp_path):
    with replacing(tmp_path / "sub" / "a.txt") as path:
        path.write_text("new")
        assert not (tmp_path / "sub" / "a.txt").exists()
    assert (tmp_path / "sub" / "a.txt").read_text() == "new"
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("odd"), KeyboardInterrupt()])
def test_what_was_there_stays_when_writing_fails(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)), replacing(tmp_path / "a.txt") as path:
        path.write_text("half")
        raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_error_of_writing_names_file_folder_and_free_space(tmp_path):
    with pytest.raises(OSError, match=rf"a\.txt could not be written to {re.escape(str(tmp_path))} \(No space left on device; "
                                      r"\d+ MB are free there\)"), naming(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_error_of_a_library_is_named_where_it_is_one_of_writing(tmp_path):
    with pytest.raises(OSError, match="unexpected pos"), naming(tmp_path / "a.txt", (RuntimeError,)):
        raise RuntimeError("unexpected pos 12\nand more")
    with pytest.raises(RuntimeError), naming(tmp_path / "a.txt"):
        raise RuntimeError("a fault of ours")


def test_error_is_named_once(tmp_path):
    with pytest.raises(OSError, match="^inner could not") as raised, naming(tmp_path / "outer"), naming(tmp_path / "inner"):
        raise OSError(errno.EIO, "Input/output error")
    assert "outer" not in str(raised.value)


def test_process_that_ended_does_not_live():
    assert process_lives(os.getpid()) and process_lives(os.getppid()) and not process_lives(99999999)
