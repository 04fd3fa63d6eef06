"""Downloads from a server on the loopback device that fails on demand."""
import fcntl
import hashlib
import multiprocessing
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from utils import download
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.download import fetch, hub_folder, weights_folder

CONTENT = bytes(torch.randint(256, (300_001,), generator=torch.Generator().manual_seed(0)).tolist())
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


class Server(ThreadingHTTPServer):
    """Serves `content` at any path, but for /absent.

    Attributes:
        content: bytes of the file.
        breaks: after how many bytes each of the next answers is cut off.
        knows_ranges: whether a part can be asked for.
        page: whether to answer with a web page.
        measured: whether to say how long the answer is.
        asked: what was asked for: the Range, or "all".
    """
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.breaks, self.knows_ranges, self.page, self.measured = CONTENT, [], True, False, True
        self.asked = []
        self.address = f"http://127.0.0.1:{self.server_port}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted or "all")
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.knows_ranges else 0
        if self.path == "/absent" or start >= len(server.content):
            return self.send_error(416 if start else 404)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Type", "text/html; charset=utf-8" if server.page else "application/octet-stream")
        if server.measured:
            self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        body = server.content[start:]
        self.wfile.write(body[:server.breaks.pop(0)] if server.breaks else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "a.pth"


def left(target):
    """Names in the folder of a target."""
    return sorted(path.name for path in target.parent.iterdir())


# ---- what works ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sha256", [None, SHA256, SHA256[:8].upper()])
def test_file_is_downloaded_once_and_alone_in_its_folder(server, target, sha256):
    for _ in range(2):
        assert fetch(server.address, target, sha256) == target
        assert target.read_bytes() == CONTENT
    assert server.asked == ["all"]
    assert left(target) == ["a.pth"]


def test_interrupted_download_goes_on_in_the_same_call(server, target):
    server.breaks = [200_000, 90_000]  # the second on top of what is asked for again
    fetch(server.address, target, SHA256)
    first, second = (f"bytes={have - download.OVERLAP}-" for have in (200_000, 200_000 - download.OVERLAP + 90_000))
    assert server.asked == ["all", first, second]
    assert left(target) == ["a.pth"]


def test_interrupted_download_goes_on_in_the_next_call(server, target):
    server.breaks = [150_000, 80_000, 70_000]
    with pytest.raises(ValueError, match=r"weights\.pth could not be downloaded \(the connection ended after 1\d{5} of 300001 "
                                         r"bytes; what came is kept, the next start goes on there\)"):
        fetch(server.address, target, SHA256)
    assert left(target) == ["a.pth.part"]
    fetch(server.address, target, SHA256)
    assert len(server.asked) == 4
    assert "all" not in server.asked[1:]
    assert target.read_bytes() == CONTENT
    assert left(target) == ["a.pth"]


def test_complete_part_is_only_compared(server, target):
    target.parent.mkdir()
    (target.parent / "a.pth.part").write_bytes(CONTENT)
    fetch(server.address, target)
    assert server.asked == [f"bytes={len(CONTENT) - download.OVERLAP}-"]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT[:1000], CONTENT[:200_000]], ids=["short", "long"])
def test_server_without_ranges_is_asked_for_the_whole_file(server, target, part):
    server.knows_ranges = False
    target.parent.mkdir()
    (target.parent / "a.pth.part").write_bytes(part)
    fetch(server.address, target)
    assert target.read_bytes() == CONTENT
    assert len(server.asked) == 1


@pytest.mark.parametrize("content", [CONTENT[::-1], CONTENT[:100_000]], ids=["other", "shorter"])
def test_file_that_has_changed_is_begun_again(server, target, content):
    target.parent.mkdir()
    (target.parent / "a.pth.part").write_bytes(CONTENT[:200_000])
    server.content = content
    fetch(server.address, target)
    assert target.read_bytes() == content
    assert server.asked[1:] == ["all"]


def test_answer_of_unknown_length_is_taken_to_its_end(server, target):
    server.measured = False
    fetch(server.address, target, SHA256)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("form", [str, Path.as_uri], ids=["path", "file"])
def test_local_file_is_found_where_it_is(tmp_path, target, form):
    path = tmp_path / "with space.pth"
    path.write_bytes(CONTENT)
    assert fetch(form(path), target, SHA256) == path
    with pytest.raises(ValueError, match="with space.pth is not the published file"):
        fetch(form(path), target, "00")
    assert not target.parent.exists()
    with pytest.raises(FileNotFoundError, match=r"absent\.pth does not exist: give the path or https address"):
        fetch(form(tmp_path / "absent.pth"), target)


def test_checkpoint_at_a_file_address_is_read(tmp_path):
    save_checkpoint(tmp_path / "a.pth", {"epoch": 3})
    assert load_checkpoint((tmp_path / "a.pth").as_uri())["epoch"] == 3


# ---- what fails ---------------------------------------------------------------------------------------------------

def test_wrong_checksum_names_both_and_leaves_nothing(server, target):
    with pytest.raises(ValueError, match=rf"is not the published file: its SHA-256 is {SHA256}, the published one begins "
                                         rf"with 0123abcd. It came from {server.address} and was removed"):
        fetch(server.address, target, "0123abcd")
    assert left(target) == []


def test_file_that_is_there_is_not_removed_for_a_wrong_checksum(server, target):
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"a\.pth is not the published file.*Remove it to have it downloaded again"):
        fetch(server.address, target, SHA256)
    assert target.read_bytes() == b"mine"
    assert server.asked == []


def test_missing_file_says_what_to_put_where(server, target):
    address = server.address.replace("weights.pth", "absent")
    with pytest.raises(ValueError, match=rf"{address} could not be downloaded \(HTTP Error 404: Not Found\). Download it "
                                         rf"yourself and pass its path, or put it at {target} .*SIMMIM_WEIGHTS"):
        fetch(address, target)
    assert server.asked == ["all"]
    assert left(target) == []


def test_web_page_is_not_taken_for_a_file(server, target):
    server.page = True
    with pytest.raises(ValueError, match="could not be downloaded .the answer is a web page, not a file"):
        fetch(server.address, target)
    assert left(target) == []


def test_server_that_closes_at_once_is_asked_three_times(server, target):
    server.breaks = [0, 0, 0]
    with pytest.raises(ValueError, match="the connection ended after 0 of 300001 bytes"):
        fetch(server.address, target)
    assert server.asked == ["all"] * 3
    assert left(target) == []


def test_no_connection_says_what_to_put_where(monkeypatch, target):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as unused:  # bound, but nobody listens
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/a.pth"
        with pytest.raises(ValueError, match=rf"{address} could not be downloaded .*refused.*put it at {target} "):
            fetch(address, target)
    assert left(target) == []


@pytest.mark.parametrize(("address", "reason"), [
    ("https://drive.google.com/file/d/1Wcbr66JL26FF30Kip9fZa_0lXrDAKP-d/view?usp=sharing", "is a share link that asks for"),
    ("ftp://127.0.0.1/a.pth", "is not an address that can be downloaded: https was expected")])
def test_address_of_another_kind_says_what_to_put_where(target, address, reason):
    with pytest.raises(ValueError, match=f"{re.escape(address)} {reason}.*put it at {target} "):
        fetch(address, target)
    assert not target.parent.exists()


def test_folder_that_cannot_be_made_is_an_error(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="could not be downloaded .*File exists: .*/file'"):
        fetch(server.address, tmp_path / "file" / "a.pth")


# ---- several processes --------------------------------------------------------------------------------------------

def hurry(address, target, gate):
    gate.wait()
    fetch(address, target, SHA256, progress=False)


def test_processes_that_start_together_download_once(server, target):
    server.breaks = [250_000]
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(3)
    processes = [context.Process(target=hurry, args=(server.address, target, gate)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert target.read_bytes() == CONTENT
    assert server.asked == ["all", f"bytes={250_000 - download.OVERLAP}-"]
    assert left(target) == ["a.pth"]


def test_every_waiting_one_tries_again_where_the_first_fails(server, target):
    def attempt(_):
        with pytest.raises(ValueError, match="the published one begins with 00"):
            fetch(server.address, target, "00", progress=False)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(attempt, range(4)))
    assert server.asked == ["all"] * 4
    assert left(target) == []


def test_who_has_waited_locks_the_file_that_is_there_now(target, monkeypatch):
    waits, done = threading.Event(), threading.Event()
    monkeypatch.setattr(download.log, "info", lambda *_: waits.set())
    taken = []

    def second():
        with download._part_of(target) as part, open(part, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                taken.append(part)
        done.set()

    target.parent.mkdir()
    with download._part_of(target) as part:
        threading.Thread(target=second, daemon=True).start()
        assert waits.wait(30)
        part.unlink()  # as after a wrong checksum
    assert done.wait(30)
    assert taken == [part]


def test_who_leaves_does_not_remove_the_file_of_the_next(target):
    target.parent.mkdir()
    with download._part_of(target) as part:
        part.unlink()
        part.touch()
    assert left(target) == ["a.pth.part"]


@pytest.mark.parametrize("locks", ["absent", "refused"])
def test_without_locks_a_process_has_an_unfinished_file_of_its_own(server, target, monkeypatch, locks):
    class Refusing:
        LOCK_EX, LOCK_NB = 2, 4

        @staticmethod
        def flock(*_):
            raise OSError("no locks available")

    monkeypatch.setattr(download, "fcntl", Refusing if locks == "refused" else None)
    server.breaks = [250_000]
    fetch(server.address, target, SHA256)
    assert left(target) == ["a.pth"]
    target.unlink()
    server.breaks = [250_000, 10_000, 10_000]
    with pytest.raises(ValueError, match="the connection ended"):
        fetch(server.address, target, SHA256)
    assert left(target) == []


# ---- places -------------------------------------------------------------------------------------------------------

def test_folder_is_the_given_one_then_the_variable_then_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SIMMIM_WEIGHTS", raising=False)
    assert weights_folder() == hub_folder() == tmp_path / "home" / "hub" / "checkpoints"
    monkeypatch.setenv("SIMMIM_WEIGHTS", "~/weights")
    assert weights_folder() == Path.home() / "weights"
    assert weights_folder("given") == Path("given")
