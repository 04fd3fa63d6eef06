import gc
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of the processes that tests start

import pytest  # noqa: E402
import torch  # noqa: E402

gc.disable()  # until all is imported and collected, which stays, so that looking through it is in vain
LONG = ("integration", "faults", "contracts", "parity")  # folders, those with the longest files first

torch.set_num_threads(1)  # recorded numbers were made with one thread, and models this small are faster so


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would end with the files of few tests, which are the long ones


def pytest_collection_modifyitems(items):
    """Long files begin first, so that no worker is left alone with one."""
    def rank(item):
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONG.index(folder) if folder in LONG else len(LONG)

    items.sort(key=rank)


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def seeded():
    """A test draws the same numbers whatever ran before it."""
    torch.manual_seed(0)
