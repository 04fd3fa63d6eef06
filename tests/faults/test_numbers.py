"""NaN in a loss, a gradient, the weights, of one process of several: skipped, counted, never saved, and named when it stays."""
import re

import pytest
import torch

from utils.checkpoint import load_checkpoint

from .ends import checkpoints, difference, error_lines, metrics, tracebacks
from .plans import PLANS

pytestmark = pytest.mark.faults
STAYS = 10 ** 6  # steps
PLACES = [("swin", 0), ("vit_accumulation", 0), ("finetune", 0), ("two_processes", 0), ("two_processes", 1), ("fsdp", 1)]


def nonfinite(folder):
    """Names of the tensors in all checkpoints of a run that hold NaN or infinity."""
    found = []

    def look(value, name):
        if isinstance(value, dict):
            for key, part in value.items():
                look(part, f"{name}.{key}")
        elif isinstance(value, (list, tuple)):
            for i, part in enumerate(value):
                look(part, f"{name}.{i}")
        elif isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
            found.append(name)

    for path in checkpoints(folder):
        look(load_checkpoint(path), path.name)
    return found


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize(("name", "rank"), PLACES[:-1])  # a hook does not see the gradient of a part
@pytest.mark.parametrize("step", [0, 2, 7])
def test_one_step_without_numbers_is_skipped_and_counted(step, name, rank, kind, bench, inject, tmp_path):
    plan = PLANS[name]
    inject(f"NaN in one {kind}")
    for result in bench.start(plan, tmp_path, fault={"kind": kind, "rank": rank, "step": step}).wait():
        result.checked()
    folder = bench.folder(plan, tmp_path)
    skipped = [record["skipped"] for record in metrics(folder) if record["kind"] == "train"]
    assert skipped == [0] * step + [1] * (len(skipped) - step)
    assert nonfinite(folder) == []


@pytest.mark.parametrize("print_freq", [1, 50])
@pytest.mark.parametrize("kind", ["loss", "gradient", "weights"])
@pytest.mark.parametrize(("name", "rank"), PLACES)
def test_run_whose_numbers_stay_broken_stops_and_says_where(name, rank, kind, print_freq, bench, inject, rng, tmp_path):
    if name == "fsdp" and kind == "gradient":
        pytest.skip("a hook does not see the gradient of a part")
    plan, step = PLANS[name], rng.randint(1, 7)
    inject(f"NaN in the {kind} from a step on")
    settings = {"TRAIN.NONFINITE_LIMIT": 3, "PRINT_FREQ": print_freq, "SAVE_STEPS": rng.choice((0, 1, 2)),
                "SAVE_ASYNC": rng.choice((True, False))}
    job = bench.start(plan, tmp_path, fault={"kind": kind, "rank": rank, "step": step,
                                             "times": 1 if kind == "weights" else STAYS}, **settings)
    results, folder = job.wait(), bench.folder(plan, tmp_path)
    assert any(result.code == 2 for result in results) and all(result.code for result in results), results
    assert not tracebacks(results), results
    said = error_lines(results)
    lines = [line for line in said if re.search(r"iteration \d+", line)]
    assert lines, said
    assert any(f"rank {rank}" in line for line in lines) or kind == "gradient", said
    assert nonfinite(folder) == []
    there = [path.name for path in checkpoints(folder)  # none is good that followed a step without numbers
             if path.name.startswith("ckpt_epoch") and not load_checkpoint(path).get("skipped_in_row")]
    assert not there or any(name in line for name in there for line in lines), (there, lines, settings)

    bench.run(plan, tmp_path)  # the fault is gone
    assert nonfinite(folder) == []
    if kind == "weights" and plan.ranks == 1 and print_freq == 1:  # nothing was saved with steps left out
        found = difference(folder, bench.reference(plan).folder, plan.last)
        assert not found, found
