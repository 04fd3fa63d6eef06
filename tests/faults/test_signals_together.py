"""Two processes, or their launcher, are asked to stop at any moment: all agree on the step, save, and go on."""
import signal
import time

import pytest

from .background import shared_memory
from .ends import difference, steps_logged, tracebacks
from .kills import wait_for_moment, wait_for_save, wait_for_steps, wait_for_validation
from .plans import PLANS, varied

pytestmark = pytest.mark.faults
CODES = {"SIGTERM": 143, "SIGUSR1": 75, "SIGINT": 130, "SIGHUP": 129}
MOMENTS = {"step": lambda job, bench, plan, folder, rng: wait_for_steps(job, folder, rng.randint(1, 8)),
           "save": lambda job, bench, plan, folder, rng: wait_for_save(job, folder, rng),
           "validation": lambda job, bench, plan, folder, rng: wait_for_validation(job, folder),
           "random": lambda job, bench, plan, folder, rng: wait_for_moment(job, bench.reference(plan), rng)}


def assert_goes_on(bench, plan, output, again=False, **settings):
    """The same command ends as an uninterrupted run, and no step is done a second time."""
    bench.run(plan, output, **settings)
    folder, reference = bench.folder(plan, output), bench.reference(plan).folder
    found = difference(folder, reference, plan.last)
    assert not found, found
    assert again or steps_logged(folder) == steps_logged(reference)


@pytest.mark.parametrize(("moment", "whom"), [
    *((moment, whom) for moment in ("step", "save", "validation") for whom in ("all", "first", "second")), ("random", "all")])
@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("key", ["two_processes_accumulation", "fsdp"])
def test_signal_is_obeyed_by_all_ranks(key, name, moment, whom, bench, inject, rng, tmp_path):
    """One rank alone is only asked once all are there: before, the other would wait for it to come."""
    plan = PLANS[key]
    job, folder = bench.start(plan, tmp_path, **varied(rng)), bench.folder(plan, tmp_path)
    if MOMENTS[moment](job, bench, plan, folder, rng):
        inject(f"{name} to {'all' if whom == 'all' else 'one'}: {key}")
    job.signal(getattr(signal, name), {"all": None, "first": 0, "second": 1}[whom])
    results = job.wait()
    assert not tracebacks(results), results
    begun = bool(steps_logged(folder))
    if begun:
        assert len({result.code for result in results}) == 1 and results[0].code in (CODES[name], 0), results
    assert all(result.code for result in results) or not any(result.code for result in results), results
    assert_goes_on(bench, plan, tmp_path, again=not begun, **varied(rng))


@pytest.mark.parametrize("again", range(4))
def test_storm_of_signals_is_survived_together(again, bench, inject, rng, tmp_path):
    plan = PLANS["two_processes"]
    job = bench.start(plan, tmp_path, DATA__NUM_WORKERS=rng.choice((0, 2)))
    wait_for_steps(job, bench.folder(plan, tmp_path), rng.randint(1, 4))
    inject("storm of 20 signals: two processes")
    for _ in range(20):
        job.signal(getattr(signal, rng.choice(list(CODES))), rng.choice((None, 0, 1)))
        time.sleep(rng.uniform(0, 0.02))
    results = job.wait()
    assert not tracebacks(results) and all(result.code in (*CODES.values(), 0) for result in results), results
    assert_goes_on(bench, plan, tmp_path)


@pytest.mark.parametrize("moment", ["step", "save", "validation"])
@pytest.mark.parametrize("number", [*CODES, "SIGKILL"])
def test_signal_to_a_launcher_ends_its_ranks_with_a_checkpoint(number, moment, bench, inject, rng, tmp_path):
    """Also where the launcher can't tell them: they notice that it is gone."""
    plan = PLANS["two_processes"]
    job, folder = bench.launch(plan, tmp_path, DATA__NUM_WORKERS=2), bench.folder(plan, tmp_path)
    if MOMENTS[moment](job, bench, plan, folder, rng):
        inject(f"{number} to torchrun")
    job.signal(getattr(signal, number), job.launcher.pid)
    job.wait()  # until no process is left
    assert shared_memory(job) == []
    texts = [path.read_text(errors="replace") for path in tmp_path.glob("ranks/**/stderr.log")]
    assert len(texts) == 2 and not [text for text in texts if "Traceback" in text], texts
    assert_goes_on(bench, plan, tmp_path)
