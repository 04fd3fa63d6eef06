"""Moments of a run; kill -9 at such moments, and the same command again until it ends."""
import time

from .background import NAP
from .ends import difference, log_text, steps_logged, unfinished
from .plans import varied

DELAY = 0.03  # seconds, at most, between the begin of a save and the kill


def kill_chain(bench, plan, output, rng, kills, inject, name):
    """Start, kill, start again and so on, then let the run end and compare it with an uninterrupted one.

    A run that ends before its moment has come is compared, and another begins: so the number of kills does not depend on the
    speed of the machine. Every second kill is in a save.
    """
    reference, done, folders = bench.reference(plan), 0, [output / "0"]
    for attempt in range(20 * kills):
        job = bench.start(plan, folders[-1], **varied(rng))
        in_save = done % 2 == 1
        if wait_for_save(job, bench.folder(plan, folders[-1]), rng) if in_save else wait_for_moment(job, reference, rng):
            job.kill()
            inject(f"kill -9 {'in a save' if in_save else 'at a random moment'}: {name}")
            done += 1
            if done == kills:
                break
        else:
            finish(bench, plan, folders[-1], reference, job)
            folders.append(output / str(attempt + 1))
    finish(bench, plan, folders[-1], reference, bench.start(plan, folders[-1], **varied(rng)))


def finish(bench, plan, output, reference, job):
    """Wait for a run; its end must be that of the uninterrupted one."""
    for result in job.wait():
        result.checked()
    found = difference(bench.folder(plan, output), reference.folder, plan.last)
    assert not found, found


def wait_for_moment(job, reference, rng):
    """Wait for a random share of the time that an uninterrupted run takes. Returns whether the run is still there."""
    end = time.monotonic() + rng.uniform(0, reference.seconds)
    while time.monotonic() < end and job.running:
        time.sleep(10 * NAP)
    return job.running


def wait_for_save(job, folder, rng):
    """Wait for one of the next checkpoints to be written, and a little more. Returns whether the run is still there."""
    left, before, looks = rng.randint(1, 3), set(unfinished(folder)), 0
    while left:
        now = set(unfinished(folder))
        left -= bool(now - before)
        before, looks = now, looks + 1
        if looks % 20 == 0 and not job.running:  # asking costs more than looking
            return False
        time.sleep(NAP)
    time.sleep(rng.uniform(0, DELAY))
    return job.running


def wait_for_steps(job, folder, count):
    """Wait until so many steps are logged. Returns whether the run is still there."""
    return _wait(job, lambda: len(steps_logged(folder)) >= count)


def wait_for_file(job, path):
    """Wait until a file is there. Returns whether the run is, too."""
    return _wait(job, path.exists)


def wait_for_validation(job, folder):
    """Wait for the end of an epoch's steps, after which it is validated. Returns whether the run is still there."""
    return _wait(job, lambda: "training takes" in log_text(folder))


def _wait(job, reached):
    while not reached():
        if not job.running:
            return False
        time.sleep(NAP)
    return job.running
