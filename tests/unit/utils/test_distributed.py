"""Who may start alone, and what several processes add up."""
import multiprocessing
import time
import warnings

import pytest
import torch
from torch import distributed as dist

import engine
from utils import distributed

from ...contracts.tiny import CASES, build, make_config, make_images, make_mask

SRUN = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize("variables, said", [
    (SRUN, "task 1 of 4 (SLURM_PROCID, set by srun)"), (SRUN | {"SLURM_PROCID": "0"}, "task 0 of 4"),
    (SRUN | {"SLURM_STEP_NUM_TASKS": "2"}, "task 1 of 2"), ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "PMI_RANK, set by mpiexec"),
    ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, "set by mpirun"),
    (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, None), ({"SLURM_NTASKS": "4"}, None),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
    ({"SLURM_PROCID": "0"}, None)])
def test_one_of_several_tasks_does_not_start_alone(variables, said, monkeypatch):
    for name in {"WORLD_SIZE", *(name for number, counts in distributed.TASKS.values() for name in (number, *counts))}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if said is None:
        assert distributed.start().type in ("cpu", "cuda", "mps")
    else:
        with pytest.raises(ValueError) as error:
            distributed.start()
        assert said in str(error.value) and "torchrun" in str(error.value)


@pytest.fixture
def process_group(monkeypatch):
    """One process that takes itself for one of several."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(distributed, "is_parallel", lambda: True)
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)
    dist.destroy_process_group()


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_gradients_lie_as_they_are_added_up(case, process_group):
    """Or torch warns in each run, and copies them."""
    name, variant, method, kind = case
    config = make_config(name, variant, method, kind)
    model = engine.parallel(build(config, is_pretrain=True), torch.device("cpu"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model(make_images(config), make_mask(config)).backward()
    assert [str(warning.message)[:80] for warning in said if "strides" in str(warning.message)] == []


def test_gradient_in_another_layout_keeps_its_values():
    gradient = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    laid_out = engine._laid_out_as((12, 4, 2, 1), gradient)
    assert laid_out.stride() == (12, 4, 2, 1) and torch.equal(laid_out, gradient)


def _leaves(rank, folder, codes):
    """A process of two, of which the first has something left to do."""
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    if rank == 0:
        time.sleep(0.5)
        (folder / "done").touch()
    distributed.stop()
    codes.put((folder / "done").exists() and not dist.is_initialized())


def test_no_process_leaves_before_all_are_done(tmp_path):
    context = multiprocessing.get_context("fork")
    codes = context.Queue()
    ranks = [context.Process(target=_leaves, args=(rank, tmp_path, codes)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [codes.get() for process in ranks if process.exitcode == 0] == [True, True]
