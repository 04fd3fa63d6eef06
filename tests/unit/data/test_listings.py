"""Lists of folders that are kept: they say what the folders hold, whatever has happened since."""
import os
import shutil

import pytest

from config import load_config
from data import listings
from data.folders import image_files, listing

from ..helpers import write_image


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A tree of three images whose folders changed long ago."""
    monkeypatch.setattr(listings, "MANY", 3)
    for name in ("a/1.png", "a/2.png", "b/c/\udcff.png"):
        write_image(tmp_path / "data" / name)
    aged(tmp_path / "data")
    return tmp_path / "data"


def aged(root, seconds=100):
    for folder, *_ in os.walk(root):
        changed = os.stat(folder).st_mtime_ns - seconds * 10 ** 9
        os.utime(folder, ns=(changed, changed))


def names(root, cache):
    with listing("RGB", root, cache=cache):
        return [os.path.relpath(path, root) for path in image_files(root)]


def looked_into(monkeypatch):
    """Names of the folders that are listed from now on."""
    seen, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: seen.append(os.path.basename(folder)) or scandir(folder))
    return seen


def test_list_is_kept_used_and_brought_up_to_date(root, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    cache = tmp_path / "cache"
    first = names(root, cache)
    assert len(first) == 3 and "3 files in 4 folders is kept in" in caplog.text
    seen = looked_into(monkeypatch)
    assert names(root, cache) == first and not seen
    assert caplog.messages[-1].startswith("3 files are those of the list in") and "0 were listed anew" in caplog.messages[-1]
    write_image(root / "a/0.png")
    (root / "b/c/\udcff.png").unlink()
    assert names(root, cache) == ["a/0.png", "a/1.png", "a/2.png"] and set(seen) == {"a", "c"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1, "folders": {"a": 3}}', b'{"format": 2}', b"\xff"])
def test_broken_list_is_passed_over(root, tmp_path, content):
    cache = tmp_path / "cache"
    first = names(root, cache)
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert names(root, cache) == first and names(root, cache) == first
    assert file.read_bytes() != content


def test_nothing_is_kept_that_may_change_unseen(root, tmp_path, monkeypatch):
    """Folders that have just changed, and those with links to folders or to nothing."""
    write_image(tmp_path / "elsewhere/5.png")
    (root / "a/link").symlink_to(tmp_path / "elsewhere")
    (root / "b/dead.png").symlink_to(tmp_path / "nothing.png")
    aged(root)
    write_image(root / "b/c/new.png")
    cache = tmp_path / "cache"
    first = names(root, cache)
    seen = looked_into(monkeypatch)
    assert names(root, cache) == first and "a/link/5.png" in first and {"a", "b", "c"} <= set(seen)
    shutil.move(tmp_path / "elsewhere", tmp_path / "gone")
    assert "a/link/5.png" not in names(root, cache)


def test_where_no_list_can_be_kept_the_files_are_found_all_the_same(root, tmp_path, caplog, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    assert len(names(root, tmp_path / "file")) == 3 and "is not kept" in caplog.text
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert listings.cache_folder("auto") == tmp_path / "simmim" / "lists" and listings.cache_folder("none") is None
    assert listings.cache_folder("None") is None and listings.cache_folder("AUTO") == tmp_path / "simmim" / "lists"
    assert listings.cache_folder(str(tmp_path)) == tmp_path
    with pytest.raises(ValueError, match=r"DATA\.LIST_CACHE='?'? is empty: none keeps no list"):
        load_config(opts=["DATA.LIST_CACHE", ""])
