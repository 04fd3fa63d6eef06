"""docs/study.md: its commands are understood, and each of its pictures is made by one of them, or by a browser."""
import importlib
import re
import shlex
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "study.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
LINES = [line.strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
COMMANDS = [line for line in LINES if line.startswith("python tools/")]
LARGEST = 150_000  # bytes of a picture


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command):
    _, program, *words = shlex.split(command, comments=True)
    importlib.import_module(program.removesuffix(".py").replace("/", ".")).parse_arguments(words)


def test_every_picture_is_written_by_a_command_and_small():
    shown = re.findall(r'<img src="(images/[a-z_]+\.png)" alt="[^"]{20,}">', PAGE)
    assert shown and len(shown) == PAGE.count("<img")
    for picture in shown:
        assert sum(f" docs/{picture}" in line or f"--screenshot=docs/{picture} " in line for line in LINES) == 1, picture
        assert (DOCS / picture).stat().st_size < LARGEST
