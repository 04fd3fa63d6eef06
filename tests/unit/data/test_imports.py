"""What the parts of data bring along: a program that only prepares images waits for nothing else."""
import subprocess
import sys
from pathlib import Path

import pytest

import data

ROOT = Path(__file__).parents[3]
HEAVY = {"timm", "data.loader", "data.demo"}


@pytest.mark.parametrize("module", ["data.transforms", "data.masks", "data.datasets"])
def test_module_brings_neither_loaders_nor_augmentation(module):
    code = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = result.stdout.split()
    assert module in modules and HEAVY & set(modules) == set()


def test_names_of_the_package_are_there_when_asked_for():
    assert {name: getattr(data, name).__name__ for name in data.__all__} == {name: name for name in data.__all__}


def test_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'loaders'"):
        data.loaders  # noqa: B018
