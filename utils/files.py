"""Writing so that a crash leaves what was there or what is new, and errors that say where and how much space is left."""
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

VARIABLE = re.compile(r"(?:^|(?<=/))\$(\w+|\{\w+\})")  # at the beginning of a part: elsewhere a $ may belong to a name


def expanded(path):
    """A path (text) with `~`, `$NAME` and `${NAME}` replaced, as a shell does; one that exists as it is stays so.

    Raises: ValueError if a variable at the beginning of a part is not set: what was meant as a place is not made a name.
    """
    path = str(path)
    if os.path.lexists(path):
        return path
    found = os.path.expandvars(os.path.expanduser(path))
    unset = VARIABLE.search(found)
    if unset:
        raise ValueError(f"{path}: the environment variable {unset[1].strip('{}')} is not set. Set it (export "
                         f"{unset[1].strip('{}')}=...), or write the path out.")
    return found


@contextmanager
def naming(path, also=()):
    """Errors of writing name the file, its folder and the space left there.

    Args:
        also: kinds of errors beside OSError by which a library says that it could not write.
    Raises: OSError.
    """
    try:
        yield
    except (OSError, *also) as error:
        if getattr(error, "named", False):
            raise
        path = Path(path)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip().splitlines()[0]
        named = OSError(f"{path.name} could not be written to {path.parent} ({reason}; {_free(path.parent)}). Make room, or "
                        f"see to it that the folder can be written to; the same command then goes on.")
        named.named = True
        raise named from error


def _free(folder):
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return "free space unknown"
    return f"{free / 2 ** 20:.0f} MB are free there"


@contextmanager
def replacing(path, also=()):
    """Give a temporary path to write to; what is there at the end gets the name, at once and for good.

    Args:
        path: destination; its folder is made.
        also: see naming.
    Raises: OSError that names the file; whatever the block raises, with the old file intact.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path, also):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path, text):
    """Write a text file in UTF-8, see replacing; names of files that are no text come back as they were (surrogateescape)."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def refuse_existing(path):
    """Raises: ValueError where there is something already."""
    if os.path.lexists(path):
        raise ValueError(f"{path} exists and is not written over: choose another name.")


def sync_folder(folder):
    """Bring new names in a folder down to the disk, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse; the file itself is written
    finally:
        os.close(descriptor)


def process_lives(pid):
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # not ours, but there
        return True
    return True
