"""A short form of the campaign, for every day: some kills, signals and broken files, over two kinds of runs."""
import signal

import pytest

from . import damage
from .ends import difference, steps_logged
from .kills import kill_chain, wait_for_steps
from .plans import PLANS

TWO = ["vit_accumulation", "two_processes"]


@pytest.mark.parametrize("name", TWO)
def test_run_ends_as_if_it_had_not_been_killed(name, bench, inject, rng, tmp_path):
    kill_chain(bench, PLANS[name], tmp_path, rng, 2, inject, name)


@pytest.mark.parametrize("name", TWO)
def test_run_that_is_asked_to_stop_goes_on(name, bench, inject, rng, tmp_path):
    """SIGTERM to all processes, no step is done again; a kill, and the newest checkpoint cut off, and still it goes on."""
    plan, folder = PLANS[name], bench.folder(PLANS[name], tmp_path)
    job = bench.start(plan, tmp_path, SAVE_STEPS=1)
    if wait_for_steps(job, folder, 4):
        inject(f"SIGTERM: {name}")
    job.signal(signal.SIGTERM)
    codes = {result.code for result in job.wait()}
    assert codes in ({143}, {0})
    before = len(steps_logged(folder))
    job = bench.start(plan, tmp_path)
    if wait_for_steps(job, folder, before + 1):
        inject(f"kill -9 after a step: {name}")
    job.kill()
    steps = steps_logged(bench.reference(plan).folder)
    assert steps_logged(folder) == steps[:len(steps_logged(folder))]
    newest = max(folder.glob("ckpt_epoch_*"), key=lambda path: path.stat().st_mtime_ns)
    damage.cut(newest, rng)
    inject(f"cut: newest checkpoint of {name}")
    bench.run(plan, tmp_path)
    found = difference(folder, bench.reference(plan).folder, plan.last)
    assert not found, found
