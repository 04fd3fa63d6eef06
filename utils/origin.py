"""What a run was made with: command line, commit, versions, machine."""
import os
import platform
import shlex
import socket
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from utils import distributed

ROOT = Path(__file__).resolve().parents[1]
DRIVER = Path("/proc/driver/nvidia/version")
PATIENCE = 10  # seconds for git, which a slow disk may keep waiting


def origin(device):
    """What a record of a start says.

    Args:
        device: torch.device that is computed on.
    Returns: {command, commit, versions: {name: number}, host, cores, device, processes}.
    """
    return {"command": shlex.join([sys.executable, *sys.argv]), "commit": _commit_of_start(), "versions": _versions(),
            "host": socket.gethostname(), "cores": os.cpu_count(), "device": _device(device),
            "processes": distributed.world_size()}


def in_words(origin):
    """{name: text} of an origin, for the head of a log."""
    machine = "{host}, {cores} cores, {device}".format(**origin)
    return {"command": origin["command"], "commit": origin["commit"], "versions": _listed(origin["versions"]),
            "machine": f"{machine}, {origin['processes']} processes" if origin["processes"] > 1 else machine}


def commit(root=ROOT):
    """The commit of a working copy, and whether its files are those of it; "unknown" without git or outside of a clone."""
    try:
        name, changes = (subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True,
                                        timeout=PATIENCE).stdout.strip()
                         for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{name}, {f'{len(changes.splitlines())} files changed since' if changes else 'clean'}"


@cache
def _commit_of_start():
    """The commit as it was when the program began; the files may change while it runs."""
    return commit()


def _versions():
    return {"Python": platform.python_version(), "torch": torch.__version__, "CUDA": torch.version.cuda or "none",
            "driver": _driver(), "timm": _of_package("timm")}


def _listed(versions):
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _of_package(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _driver():
    """Version of NVIDIA's kernel module."""
    try:
        first = DRIVER.read_text().splitlines()[0]
    except (OSError, IndexError):
        return "none"
    return next((word for word in first.split() if word[:1].isdigit()), first)


def _device(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
