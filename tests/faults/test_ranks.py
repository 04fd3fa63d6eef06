"""A process of several is killed or stopped: the others end and say which one, and the same command goes on."""
import os
import signal

import pytest

from .background import shared_memory, wait_until
from .ends import difference, tracebacks
from .kills import wait_for_save, wait_for_steps, wait_for_validation
from .plans import PLANS

pytestmark = pytest.mark.faults
MOMENTS = {"step": lambda job, folder, rng: wait_for_steps(job, folder, rng.randint(1, 6)), "save": wait_for_save,
           "validation": lambda job, folder, rng: wait_for_validation(job, folder)}
SHORT = 0.1  # minutes


def assert_goes_on(bench, plan, output):
    bench.run(plan, output)
    found = difference(bench.folder(plan, output), bench.reference(plan).folder, plan.last)
    assert not found, found


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["two_processes", "fsdp"])
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
def test_lost_rank_ends_the_others(number, name, rank, moment, bench, inject, rng, tmp_path):
    """They end within DIST_TIMEOUT_MINUTES of falling silent; that they end at all is what can be tested."""
    plan, other = PLANS[name], 1 - rank
    job = bench.start(plan, tmp_path, DIST_TIMEOUT_MINUTES=SHORT, DATA__NUM_WORKERS=rng.choice((0, 2)))
    if MOMENTS[moment](job, bench.folder(plan, tmp_path), rng):
        inject(f"{number} of a rank: {name}")
    job.signal(getattr(signal, number), rank)
    wait_until(lambda: job.forks.codes(job.pids)[other] is not None, "the other rank hangs", nap=0.05)
    result = job.results()[other]
    if result.code:
        assert not tracebacks([result]), result
        assert f"rank {rank}" in result.err or number == "SIGKILL", result
    job.kill()  # a stopped rank may be there still, where the other does not live on its machine
    assert_goes_on(bench, plan, tmp_path)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
def test_lost_rank_ends_the_job_of_a_launcher_and_leaves_nothing(number, moment, bench, inject, rng, tmp_path):
    plan = PLANS["two_processes"]
    job, folder = bench.launch(plan, tmp_path, DIST_TIMEOUT_MINUTES=SHORT, DATA__NUM_WORKERS=2), bench.folder(plan, tmp_path)
    there, ranks = MOMENTS[moment](job, folder, rng), job.ranks()
    if there and ranks:
        inject(f"{number} of a rank of torchrun")
        job.signal(getattr(signal, number), rng.choice(ranks))
    job.wait()  # until no process is left
    assert shared_memory(job) == []
    texts = [path.read_text(errors="replace") for path in tmp_path.glob("ranks/**/stderr.log")]
    assert len(texts) == 2 and not [text for text in texts if "Traceback" in text], texts
    assert_goes_on(bench, plan, tmp_path)


@pytest.mark.parametrize("lost", [0, 1])
def test_launcher_that_may_starts_lost_ranks_again_and_they_go_on(lost, bench, inject, rng, tmp_path):
    plan = PLANS["two_processes"]
    job = bench.launch(plan, tmp_path, ["--max-restarts", 2], SAVE_STEPS=1)
    if wait_for_steps(job, bench.folder(plan, tmp_path), rng.randint(1, 6)) and len(job.ranks()) == 2:
        inject("SIGKILL of a rank of torchrun --max-restarts")
        job.signal(signal.SIGKILL, job.ranks()[lost])
    job.wait().checked()
    found = difference(bench.folder(plan, tmp_path), bench.reference(plan).folder, plan.last)
    assert not found, found


def test_dead_loader_process_is_survived_or_told_in_a_line(bench, inject, rng, tmp_path):
    plan = PLANS["swin"]
    for attempt in range(5):
        job = bench.start(plan, tmp_path / str(attempt), DATA__NUM_WORKERS=2)
        wait_for_steps(job, bench.folder(plan, tmp_path / str(attempt)), rng.randint(1, 4))
        loaders = [pid for pid in job.processes() if pid not in job.pids]
        for pid in loaders[:1]:
            inject("SIGKILL of a loader process")
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        result = job.wait()[0]
        assert not tracebacks([result]), result
        assert_goes_on(bench, plan, tmp_path / str(attempt))
