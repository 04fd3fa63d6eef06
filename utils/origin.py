"""What a run was made with: command line, commit, versions, machine."""
import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
DRIVER = Path("/proc/driver/nvidia/version")
PATIENCE = 10  # seconds for git, which a slow disk may keep waiting


def origin(device):
    """Lines for the head of a log.

    Args:
        device: torch.device that is computed on.
    Returns: {name: text}, in order: command, commit, versions, machine.
    """
    return {"command": shlex.join([sys.executable, *sys.argv]), "commit": commit(), "versions": _versions(),
            "machine": f"{socket.gethostname()}, {os.cpu_count()} cores, {_device(device)}"}


def commit(root=ROOT):
    """The commit of a working copy, and whether its files are those of it; "unknown" without git or outside of a clone."""
    try:
        name, changes = (subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True,
                                        timeout=PATIENCE).stdout.strip()
                         for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{name}, {f'{len(changes.splitlines())} files changed since' if changes else 'clean'}"


def _versions():
    found = {"Python": platform.python_version(), "torch": torch.__version__, "CUDA": torch.version.cuda or "none",
             "driver": _driver(), "timm": _of_package("timm")}
    return ", ".join(f"{name} {number}" for name, number in found.items())


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
