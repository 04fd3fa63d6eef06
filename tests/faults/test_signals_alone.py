"""One process is asked to stop at any moment: it saves, says what to type, ends with the code of the signal, and goes on."""
import os
import re
import signal
import time

import pytest

from .background import NAP
from .ends import difference, steps_logged, tracebacks
from .kills import wait_for_file, wait_for_moment, wait_for_save, wait_for_steps, wait_for_validation
from .plans import PLANS, varied

pytestmark = pytest.mark.faults
CODES = {"SIGTERM": 143, "SIGUSR1": 75, "SIGINT": 130, "SIGHUP": 129}
MOMENTS = ("step", "save", "validation", "random")


def wait_for(moment, bench, plan, output, job, rng):
    """Wait for a moment of a run, after its first line: before, only Python answers. Returns whether it is still there."""
    folder = bench.folder(plan, output)
    while job.running and not catches(job.pids[0], signal.SIGTERM):
        time.sleep(NAP)
    if moment == "step":
        return wait_for_steps(job, folder, rng.randint(1, 8))
    if moment == "save":
        return wait_for_save(job, folder, rng)
    if moment == "validation":
        return wait_for_validation(job, folder)
    return wait_for_moment(job, bench.reference(plan), rng)


def assert_goes_on(bench, plan, output, **settings):
    """The same command ends as an uninterrupted run, and no step is done a second time."""
    bench.run(plan, output, **settings)
    folder, reference = bench.folder(plan, output), bench.reference(plan).folder
    found = difference(folder, reference, plan.last)
    assert not found, found
    assert steps_logged(folder) == steps_logged(reference)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("plan", [name for name, plan in PLANS.items() if plan.ranks == 1])
def test_signal_is_obeyed_and_nothing_is_lost(plan, name, moment, bench, inject, rng, tmp_path):
    key, plan = plan, PLANS[plan]
    job = bench.start(plan, tmp_path, **varied(rng))
    if wait_for(moment, bench, plan, tmp_path, job, rng):
        inject(f"{name} in a {moment}: {key}" if moment in ("step", "save") else f"{name}, {moment}: {key}")
    job.signal(getattr(signal, name), rank=0)
    result = job.wait()[0]
    assert result.code in (CODES[name], 0), result
    if result.code:
        assert not tracebacks([result]), result
        lines = [line for line in result.err.splitlines() if "Ctrl-C again" not in line]
        assert len(lines) == 1 and name in lines[0], result
        assert "To go on:" in lines[0] or "nothing to save" in lines[0]
    assert_goes_on(bench, plan, tmp_path, **varied(rng))


@pytest.mark.parametrize("again", range(6))
@pytest.mark.parametrize("key", ["swin", "finetune"])
def test_storm_of_signals_is_survived(key, again, bench, inject, rng, tmp_path):
    plan = PLANS[key]
    job = bench.start(plan, tmp_path, DATA__NUM_WORKERS=rng.choice((0, 2)))
    wait_for(rng.choice(MOMENTS), bench, plan, tmp_path, job, rng)
    inject(f"storm of 20 signals: {key}")
    for _ in range(20):
        job.signal(getattr(signal, rng.choice(list(CODES))))  # to loaders, too
        time.sleep(rng.uniform(0, 0.02))
    result = job.wait()[0]
    assert result.code in (*CODES.values(), 0) and not tracebacks([result]), result
    assert_goes_on(bench, plan, tmp_path)


def test_second_ctrl_c_stops_at_once(bench, inject, tmp_path):
    plan, mark = PLANS["swin"], tmp_path / "hangs"
    job = bench.start(plan, tmp_path, fault={"kind": "hang", "rank": 0, "step": 4, "mark": str(mark)})
    assert wait_for_file(job, mark)
    job.signal(signal.SIGINT, rank=0)
    time.sleep(1.5)  # from a second on it counts
    assert job.running
    job.signal(signal.SIGINT, rank=0)
    inject("second Ctrl-C")
    result = job.wait()[0]
    assert result.code == 130 and not tracebacks([result]), result
    bench.run(plan, tmp_path)
    found = difference(bench.folder(plan, tmp_path), bench.reference(plan).folder, plan.last)
    assert not found, found


@pytest.mark.parametrize("again", range(3))
@pytest.mark.parametrize("name", CODES)
def test_signal_while_a_program_starts_ends_it_at_once(name, again, bench, inject, rng, tmp_path):
    """A real interpreter that imports; before its first line has run nobody but Python can say anything."""
    plan = PLANS["swin"]
    job, begin = bench.launch(plan, tmp_path), time.monotonic()
    while job.running and not catches(job.launcher.pid, signal.SIGTERM):
        time.sleep(NAP)
    boot = time.monotonic() - begin
    time.sleep(rng.uniform(0, 40 * boot))  # what is imported takes many times what the interpreter takes
    job.signal(getattr(signal, name), job.launcher.pid)
    inject(f"{name} at the start")
    result = job.wait()
    assert result.code in (CODES[name], 0) and not tracebacks([result]), result
    assert result.code == 0 or len([line for line in result.err.splitlines() if "Ctrl-C again" not in line]) == 1, result
    assert_goes_on(bench, plan, tmp_path)


def catches(pid, number):
    """Whether a process has a handler of its own for a signal."""
    try:
        with open(f"/proc/{pid}/status") as file:
            mask = re.search(r"SigCgt:\s*(\w+)", file.read())
    except OSError:
        return False
    return bool(mask) and bool(int(mask[1], 16) >> (number - 1) & 1) and os.path.exists(f"/proc/{pid}")
