"""A run folder belongs to one run at a time."""
import signal
import socket

import pytest

from .ends import difference, error_lines
from .kills import wait_for_save, wait_for_steps
from .plans import PLANS

pytestmark = pytest.mark.faults


def assert_refused(result, holder):
    """One line that names who has the folder."""
    assert result.code == 2 and len(error_lines([result])) == len(result.err.splitlines()) == 1, result
    assert str(holder) in result.err and socket.gethostname() in result.err


@pytest.mark.parametrize("again", range(20))
def test_of_two_starts_at_once_one_is_refused(again, bench, inject, rng, tmp_path):
    """Which one, is chance; where the first has ended before the second looked, the second finds nothing to do."""
    plan = PLANS["swin"]
    jobs = [bench.start(plan, tmp_path, DATA__NUM_WORKERS=rng.choice((0, 2))) for _ in range(2)]
    inject("two starts at once")
    results = [job.wait()[0] for job in jobs]
    assert 0 in [result.code for result in results], results
    for result, other in zip(results, reversed(jobs), strict=True):
        if result.code:
            assert_refused(result, other.pids[0])
    found = difference(bench.folder(plan, tmp_path), bench.reference(plan).folder, plan.last)
    assert not found, found


@pytest.mark.parametrize("moment", ["step", "save"])
def test_start_beside_a_run_that_is_stopped_is_refused(moment, bench, inject, rng, tmp_path):
    plan = PLANS["swin"]
    job, folder = bench.start(plan, tmp_path), bench.folder(plan, tmp_path)
    there = wait_for_steps(job, folder, 2) if moment == "step" else wait_for_save(job, folder, rng)
    job.signal(signal.SIGSTOP)
    if there and job.running:
        inject("start beside a stopped run")
        assert_refused(bench.start(plan, tmp_path, SEED=1).wait()[0], job.pids[0])
    job.signal(signal.SIGCONT)
    job.wait()[0].checked()
    found = difference(folder, bench.reference(plan).folder, plan.last)
    assert not found, found
