"""Files from the network: taken up again after an interruption, checked, and never half there under their final name."""
import hashlib
import logging
import os
import time
from contextlib import contextmanager
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

import torch
from tqdm import tqdm

from utils.files import expanded

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger("simmim.download")

FOLDER_VARIABLE = "SIMMIM_WEIGHTS"
SHARE_LINKS = ("drive.google.com", "docs.google.com")  # answer with a page that asks for confirmation
CHUNK = 2 ** 20
OVERLAP = 2 ** 16  # bytes fetched a second time when going on, to see that it is still the same file
ATTEMPTS = 3
PAUSE_S = 1.0  # between them
TIMEOUT_S = 60.0  # without a single byte


def hub_folder():
    """Where torch.hub keeps its downloads; the environment variable TORCH_HOME moves it."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def weights_folder(folder=None):
    """Where downloaded weights lie: `folder`, else that of the environment variable SIMMIM_WEIGHTS, else torch.hub's."""
    return Path(expanded(folder or os.environ.get(FOLDER_VARIABLE) or hub_folder()))


def fetch(url, target, sha256=None, progress=True):
    """Make sure that a file is on this machine.

    Any number of processes may ask for the same file at once: one downloads it, the others wait. An interrupted download
    goes on where it stopped, in the next call as well: what has come lies beside `target`, under its name and `.part`.

    Args:
        url: https or http address, or a path or file:// address, which is only looked at.
        target: where a download goes; what is there already is taken.
        sha256: published checksum in hexadecimal digits or the beginning of it; None = not known.
        progress: whether to show a bar, on a terminal.
    Returns: Path of the complete file.
    Raises: FileNotFoundError for a local file that does not exist; ValueError on any failure of a download or a wrong
        checksum, with what to do.
    """
    parts = urlparse(str(url))
    if parts.scheme in ("", "file"):
        path = Path(expanded(unquote(parts.path) if parts.scheme else url))
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: give the path or https address of a file.")
        check_sha256(path, sha256)
        return path
    target = Path(target)
    if target.is_file():
        check_sha256(target, sha256, f"Remove it to have it downloaded again from {url}.")
        return target
    by_hand = (f"Download it yourself and pass its path, or put it at {target} (the folder is weights_dir where a call takes "
               f"it, else the environment variable {FOLDER_VARIABLE}, else that of torch.hub).")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{url} is not an address that can be downloaded: https was expected. {by_hand}")
    if parts.hostname in SHARE_LINKS:
        raise ValueError(f"{url} is a share link that asks for confirmation in a browser. {by_hand}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _part_of(target) as part:
            if not target.is_file():  # no other process was faster
                _download(url, part, progress)
                _check_or_remove(part, sha256, url)
                os.replace(part, target)
    except (OSError, HTTPException) as error:
        raise ValueError(f"{url} could not be downloaded ({error}). {by_hand}") from error
    return target


def check_sha256(path, sha256, advice=""):
    """Raises ValueError with both checksums if that of a file does not begin with `sha256`; None = nothing to compare."""
    if sha256 is None:
        return
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            total.update(block)
    if not total.hexdigest().startswith(sha256.lower()):
        raise ValueError(f"{path} is not the published file: its SHA-256 is {total.hexdigest()}, the published one "
                         f"{'is' if len(sha256) == 64 else 'begins with'} {sha256}. {advice}".rstrip())


def _check_or_remove(part, sha256, url):
    try:
        check_sha256(part, sha256, f"It came from {url} and was removed; start again to download it anew.")
    except ValueError:
        part.unlink()
        raise


# ---- one process writes -------------------------------------------------------------------------------------------

@contextmanager
def _part_of(target):
    """Path of the unfinished file, to which no other process writes meanwhile. What has come stays there."""
    part = target.with_name(f"{target.name}.part")
    lock = _locked(part)
    if lock is None:  # a file of its own, which no other start can go on with
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        yield part
    finally:
        if lock is None:
            part.unlink(missing_ok=True)
        else:
            if _is_at(lock, part) and not part.stat().st_size:
                part.unlink()
            lock.close()


def _locked(part):
    """An open file at `part` that is locked for this process once others are done with it; None where there are no locks."""
    while fcntl is not None:
        file = open(part, "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process, which downloads %s", part)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # some network file systems have none
            file.close()
            part.unlink(missing_ok=True)
            break
        if _is_at(file, part):
            return file
        file.close()  # the process that was waited for has renamed or removed this very file
    return None


def _is_at(file, path):
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


# ---- HTTP ---------------------------------------------------------------------------------------------------------

def _download(url, part, progress):
    """Complete an unfinished file. Raises OSError or HTTPException; what has come is kept."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _receive(url, part, progress)
        except (ConnectionError, TimeoutError, IncompleteRead) as error:
            if attempt == ATTEMPTS:
                raise
            log.warning("%s: %s; going on in %g s", url, error, PAUSE_S)
            time.sleep(PAUSE_S)


def _receive(url, part, progress):
    """Ask once for what is missing and write what comes.

    Raises: ConnectionError if it is less than announced, or not of the file that had begun to come.
    """
    have = part.stat().st_size if part.exists() else 0
    start = max(have - OVERLAP, 0)
    headers = {"User-Agent": "simmim"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code != 416 or not start:  # range not satisfiable
            raise
        part.unlink()
        raise ConnectionError("the file there is shorter than what had come of it, so it is begun again") from error
    with response, open(part, "a+b") as file:
        if response.headers.get_content_type() == "text/html":
            raise OSError("the answer is a web page, not a file")
        if response.status == 206:
            _check_overlap(response, file, start)
        else:
            file.truncate(0)
            start = 0
        length = response.headers.get("Content-Length")
        _write(response, file, None if length is None else start + int(length), progress)


def _check_overlap(response, file, start):
    """Read what the unfinished file ends with once more. Raises ConnectionError, and empties it, if that is something else."""
    file.seek(start)
    if response.headers.get("Content-Range", "").startswith(f"bytes {start}-") and response.read(OVERLAP) == file.read():
        return
    file.truncate(0)
    raise ConnectionError("the file there is not the one that had begun to come, so it is begun again")


def _write(response, file, total, progress):
    """Append the rest of an answer, up to `total` bytes if that is known."""
    name, there = Path(file.name).name.removesuffix(".part"), file.seek(0, os.SEEK_END)
    with tqdm(desc=name, total=total, initial=there, unit="B", unit_scale=True, unit_divisor=1024,
              disable=None if progress else True) as bar:  # None: on a terminal only
        while block := response.read(CHUNK):
            file.write(block)
            bar.update(len(block))
    if total is not None and file.tell() != total:
        raise ConnectionError(f"the connection ended after {file.tell()} of {total} bytes; what came is kept, the next start "
                              f"goes on there")
