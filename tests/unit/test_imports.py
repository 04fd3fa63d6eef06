"""What modules bring along: a program that only prepares images, or only looks at them, waits for nothing else."""
import subprocess
import sys
from pathlib import Path

import pytest

import data

ROOT = Path(__file__).parents[2]
HEAVY = {"timm", "data.loader", "data.demo"}
BRINGS_NOT = {"data.transforms": HEAVY, "data.masks": HEAVY, "data.datasets": HEAVY,
              "inference": HEAVY | {"engine", "optimizer", "lr_scheduler", "resume", "logger", "tensorboard"}}
# one interpreter with what most of them need in it; a copy of it imports each
LOOK = """
import importlib, os, sys, torch, torchvision
for name in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(name)
        print(name, *sys.modules, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def brought():
    """{module: names of all modules that are there once it is imported}."""
    result = subprocess.run([sys.executable, "-c", LOOK, *BRINGS_NOT], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name: set(names) for name, *names in map(str.split, result.stdout.splitlines())}


@pytest.mark.parametrize("module", BRINGS_NOT)
def test_module_does_not_bring_what_it_has_no_use_for(module, brought):
    assert {module, "torch"} <= brought[module] and BRINGS_NOT[module] & brought[module] == set()


def test_names_of_the_package_are_there_when_asked_for():
    assert {name: getattr(data, name).__name__ for name in data.__all__} == {name: name for name in data.__all__}


def test_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'loaders'"):
        data.loaders  # noqa: B018
