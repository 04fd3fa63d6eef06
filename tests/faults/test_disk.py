"""No space, no inodes, no permission, files that can't grow: one line that says so, and the same command goes on afterwards."""
import shutil
import subprocess

import pytest

from . import damage
from .ends import checkpoints, difference, error_lines, tracebacks
from .plans import PLANS, varied

pytestmark = pytest.mark.faults
SHARES = range(1, 13)  # twelfths of what the run needs


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(options) -> folder on a file system in memory, mounted with them; `remount` in `mount`."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        flags = f"remount,{options}" if folder.is_mount() else options
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", flags, "none", str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"file systems can't be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


def stops_in_a_line(bench, plan, output, inject, kind, **start):
    """Start a plan; where it stops, it must be with code 2 and lines that name the folder. Returns whether it stopped."""
    results = bench.start(plan, output, **start).wait()
    if all(result.code == 0 for result in results):
        return False
    inject(kind)
    assert not tracebacks(results), tracebacks(results)
    assert 2 in [result.code for result in results], results
    lines = error_lines(results)
    assert lines and any(str(output) in line for line in lines), results
    return True


def goes_on(bench, plan, output):
    bench.run(plan, output)
    found = difference(bench.folder(plan, output), bench.reference(plan).folder, plan.last)
    assert not found, found


def needed(bench, plan):
    """Bytes of a finished run folder, and of its largest file."""
    sizes = [path.stat().st_size for path in bench.reference(plan).folder.rglob("*") if path.is_file()]
    return sum(-(-size // 4096) * 4096 for size in sizes), max(sizes)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["swin", "finetune", "fsdp", "probe"])
def test_full_disk(name, share, bench, small_disk, inject, rng):
    plan = PLANS[name]
    size = needed(bench, plan)[0] * share // 12 - rng.randrange(4096)
    output = small_disk(f"size={max(size, 4096)}")
    if stops_in_a_line(bench, plan, output, inject, f"full disk: {name}", **varied(rng)):
        small_disk("size=200m")
    goes_on(bench, plan, output)


@pytest.mark.parametrize("inodes", range(2, 16))
def test_no_inodes(inodes, bench, small_disk, inject):
    plan = PLANS["swin"]
    output = small_disk(f"nr_inodes={inodes}")
    if stops_in_a_line(bench, plan, output, inject, "no inodes left"):
        small_disk("nr_inodes=10000")
    goes_on(bench, plan, output)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["swin", "finetune", "two_processes"])
def test_files_that_can_not_grow(name, share, bench, inject, rng, tmp_path):
    plan = PLANS[name]
    limit = needed(bench, plan)[1] * share // 12 - rng.randrange(1000)
    settings = {**varied(rng), "DATA.NUM_WORKERS": 0}  # loaders hand over batches in files, which it is not about
    stops_in_a_line(bench, plan, tmp_path, inject, f"limit of file sizes: {name}", fault={"kind": "fsize", "bytes": limit},
                    **settings)
    goes_on(bench, plan, tmp_path)


@pytest.mark.parametrize("name", ["swin", "two_processes"])
@pytest.mark.parametrize("begun", [False, True])
def test_read_only_folder(begun, name, bench, small_disk, inject):
    plan = PLANS[name]
    output = small_disk("size=200m")
    if begun:
        shutil.copytree(bench.reference(plan).folder, bench.folder(plan, output))
        for path in checkpoints(bench.folder(plan, output)):
            if path.name not in ("ckpt_epoch_0.pth", "ckpt_epoch_1.pth"):
                damage.remove(path)
    small_disk("ro")
    assert stops_in_a_line(bench, plan, output, inject, "read-only folder")
    small_disk("rw")
    goes_on(bench, plan, output)
