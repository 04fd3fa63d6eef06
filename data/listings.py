"""What folders hold, listed once: kept beside the user's other caches, and checked by the times at which folders changed."""
import hashlib
import json
import logging
import os
import time
from pathlib import Path

from utils import distributed
from utils.files import expanded, write_text
from utils.names import shown

log = logging.getLogger("simmim.data")

AUTO, NONE = "auto", "none"  # DATA.LIST_CACHE
FORMAT = 1
MANY = 10_000  # files from which on a list is kept: fewer are listed in no time
RECENT_S = 2.0  # a folder that changed so shortly before may change again at the same time, as its file system tells it


def cache_folder(setting):
    """Where lists are kept by DATA.LIST_CACHE; None = nowhere."""
    if setting.lower() == NONE:  # None of Python is meant so, too
        return None
    if setting.lower() != AUTO:
        return Path(expanded(setting))
    return Path(os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache")) / "simmim" / "lists"


class Listings:
    """Names in folders: of one that has not changed since they were looked up, the same.

    Args:
        roots: the folders that they lie in or below, which a list that is kept belongs to.
        folder: where it is kept; None = nowhere.
    """

    def __init__(self, roots=(), folder=None):
        self.known, self.kept = {}, {}  # {folder: [when it changed, names of folders, names of all else]}, of before and of now
        self.listed, self.file = {}, None  # {folder: number of files} of those that were listed anew
        if folder and roots:
            places = "\0".join(map(os.path.abspath, roots))
            self.file = folder / f"{hashlib.sha256(os.fsencode(places)).hexdigest()[:16]}.json"
            self.known = _read(self.file)

    def entries(self, folder):
        """(names of the folders, names of all else) in a folder, in any order. Raises OSError."""
        place, changed = os.path.abspath(folder), os.stat(folder).st_mtime_ns
        known = self.kept.get(place) or self.known.get(place)
        if known and known[0] == changed:
            self.kept[place] = known
            return known[1:]
        subfolders, names, steady = [], [], time.time_ns() - changed > RECENT_S * 10 ** 9
        with os.scandir(folder) as entries:
            for entry in entries:
                is_folder = _is_folder(entry)
                (subfolders if is_folder else names).append(entry.name)
                if entry.is_symlink() and (is_folder or not os.path.exists(entry.path)):
                    steady = False  # what a link leads to changes without its folder
        self.listed[place] = len(names)
        if steady:
            self.kept[place] = [changed, subfolders, names]
        return subfolders, names

    def close(self):
        """Say what came from a list, or keep one."""
        if self.file is None:
            return
        anew = sum(self.listed.values())
        reused = sum(len(names) for place, (_, _, names) in self.kept.items() if place not in self.listed)
        if reused >= MANY:
            log.info("%d files are those of the list in %s, as their folders have not changed (DATA.LIST_CACHE); %d were "
                     "listed anew", reused, self.file, anew)
        if anew >= MANY and self.kept and distributed.rank() == 0:
            self._write()

    def _write(self):
        kept = sum(len(names) for _, _, names in self.kept.values())
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.file, json.dumps({"format": FORMAT, "folders": self.kept}))
        except OSError as error:
            log.warning("the list of %d files is not kept, and they will be listed again: %s. DATA.LIST_CACHE names another "
                        "folder, or none", kept, error)
        else:
            log.info("the list of %d files in %d folders is kept in %s (DATA.LIST_CACHE)", kept, len(self.kept), self.file)


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:
        return False


def _read(file):
    """{folder: [when it changed, names of folders, names of all else]} of a list; {} where there is none, or another kind."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {place: [int(changed), list(subfolders), list(names)]
                for place, (changed, subfolders, names) in content["folders"].items()} if content["format"] == FORMAT else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.warning("%s is no list of files (%s): they are listed anew", shown(file), type(error).__name__)
        return {}
