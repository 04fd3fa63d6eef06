import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of the processes that tests start

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # recorded numbers were made with one thread, and models this small are faster so


@pytest.fixture(autouse=True)
def seeded():
    """A test draws the same numbers whatever ran before it."""
    torch.manual_seed(0)
