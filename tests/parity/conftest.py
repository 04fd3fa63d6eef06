import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """The numbers were recorded with one thread; models this small are also faster that way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
