"""A run that is stopped within an epoch and goes on with another number of processes at the same global batch."""
import signal

import pytest

from tests.integration.recipes import method_settings

from .background import wait_until
from .ends import checkpoints, metrics
from .plans import SIMMIM, Plan

EPOCHS = 18  # of three steps: more than fifty
# drop path draws for each process
FREE_OF_RANKS = {"TRAIN.EPOCHS": EPOCHS, "MODEL.DROP_PATH_RATE": 0.0, "PRINT_FREQ": 1, "VIS_FREQ": 0}
METHODS = {"simmim": {}, "mixmim": method_settings("mixmim")}


def plan_of(method, ranks):
    return Plan("main_simmim.py", {**SIMMIM, **METHODS[method], **FREE_OF_RANKS, "DATA.BATCH_SIZE": 8 // ranks}, ranks=ranks)


def losses(folder):
    return {record["step"]: record["loss"] for record in metrics(folder) if record["kind"] == "train"}


@pytest.mark.faults
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_losses_go_on_as_those_of_the_run_that_was_not_stopped(bench, inject, tmp_path, method, before, after):
    whole = bench.reference(plan_of(method, before))
    inject(f"SIGTERM, then {after} process(es) instead of {before}")
    plan = plan_of(method, before)
    folder = bench.folder(plan, tmp_path)
    job = bench.start(plan, tmp_path)
    wait_until(lambda: (folder / "metrics.jsonl").exists() and len(losses_so_far(folder)) > 3, "no step was made")
    job.signal(signal.SIGTERM, rank=0)
    assert {result.code for result in job.wait()} == {143}
    assert any("_step_" in path.name for path in checkpoints(folder))
    stopped = max(losses(folder))

    results = bench.run(plan_of(method, after), tmp_path)
    assert "the learning rate stays" in results[0].out
    expected, found = losses(whole.folder), losses(folder)
    assert sorted(found) == sorted(expected) == list(range(3 * EPOCHS))
    assert [found[step] for step in range(stopped + 1)] == [expected[step] for step in range(stopped + 1)]
    first = range(stopped + 1, min(stopped + 4, 3 * EPOCHS))
    assert [found[step] for step in first] == pytest.approx([expected[step] for step in first], rel=0, abs=1e-6)
    assert list(found.values()) == pytest.approx([expected[step] for step in found], rel=1e-4)


def losses_so_far(folder):
    return (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
