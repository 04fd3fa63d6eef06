"""--help and wrong flags are answered before anything heavy is imported."""
import json
import subprocess
import sys

import pytest

from .processes import ROOT, environment

FILES = [path for folder in (".", "tools", "examples") for path in (ROOT / folder).glob("*.py")]
PROGRAMS = sorted(path.relative_to(ROOT).as_posix() for path in FILES
                  if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"))
HEAVY = {"torch", "timm", "torchvision"}
ASK_ALL = f"""
import contextlib, io, json, runpy, sys
found = {{}}
for program in sys.argv[1:]:
    sys.argv, text = [program, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            runpy.run_path(program, run_name="__main__")
        code = "no end"
    except SystemExit as end:
        code = end.code
        text.write(code if isinstance(code, str) else "")
    found[program] = [code == 0 or program == "config.py", text.getvalue(), sorted({HEAVY} & set(sys.modules))]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers():
    result = subprocess.run([sys.executable, "-c", ASK_ALL, *PROGRAMS], cwd=ROOT, env=environment(), capture_output=True,
                            text=True, check=True)
    return json.loads(result.stdout)


def test_programs_are_found():
    assert {"main_simmim.py", "inference.py", "config.py", "tools/demo.py", "examples/detection.py"} <= set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_there_without_torch(program, answers):
    good, text, heavy = answers[program]
    assert good and program.rpartition("/")[2] in text and heavy == []
