"""Files of a run are cut, flipped and replaced: it goes on from what is good, or says in one line why it can't."""
import re
import shutil

import pytest
import torch

from tests.integration.runs import changed, snapshot, unequal
from utils.checkpoint import load_checkpoint, save_checkpoint

from . import damage
from .ends import checkpoints, difference, error_lines, tracebacks
from .plans import PLANS

pytestmark = pytest.mark.faults
MIDWAY = 1  # the epoch that is done
SWIN, FSDP = PLANS["swin"], PLANS["fsdp"]


@pytest.fixture
def midway(bench, tmp_path):
    """midway(plan) -> run folder below tmp_path in which epochs 0 and 1 are done."""
    def copy(plan):
        target = bench.folder(plan, tmp_path)
        shutil.copytree(bench.reference(plan).folder, target)
        for path in checkpoints(target):
            number = re.match(r"ckpt_epoch_(\d+)", path.name)
            if not number or int(number[1]) > MIDWAY:
                damage.remove(path)
        return target
    return copy


def goes_on(bench, plan, tmp_path, numbers=True):
    """The command of a plan, which must end as if nothing had happened. Returns: what rank 0 said."""
    text = bench.run(plan, tmp_path)[0].out
    found = difference(bench.folder(plan, tmp_path), bench.reference(plan).folder, plan.last, numbers)
    assert not found, found
    return text


# ---- checkpoints --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("again", range(8))
@pytest.mark.parametrize("harm", ["cut", "flip", "zero"])
def test_broken_newest_file_is_passed_over(harm, again, bench, midway, inject, rng, tmp_path):
    getattr(damage, harm)(midway(SWIN) / f"ckpt_epoch_{MIDWAY}.pth", rng)
    inject(f"{harm}: ckpt_epoch_n.pth")
    text = goes_on(bench, SWIN, tmp_path)
    if harm == "cut":  # a bit may fall where nobody reads
        assert "WARNING" in text and "epoch 0 is done, going on with epoch 1" in text


@pytest.mark.parametrize("harm", ["empty", "noise", "dangling_link", "fifo"])
def test_odd_newest_file_is_passed_over(harm, bench, midway, inject, rng, tmp_path):
    getattr(damage, harm)(midway(SWIN) / f"ckpt_epoch_{MIDWAY}.pth", rng)
    inject(f"{harm}: ckpt_epoch_n.pth")
    text = goes_on(bench, SWIN, tmp_path)
    assert "WARNING" in text and f"ckpt_epoch_{MIDWAY}.pth" in text


@pytest.mark.parametrize("again", range(3))
@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "dangling_link", "fifo"])
def test_broken_step_checkpoint_is_passed_over(harm, again, bench, midway, inject, rng, tmp_path):
    """A file of that name in the epoch after: it is the newest, and what it holds is not what it should."""
    folder = midway(SWIN)
    newest = folder / f"ckpt_epoch_{MIDWAY + 1}_step_1.pth"
    shutil.copy(folder / f"ckpt_epoch_{MIDWAY}.pth", newest)
    getattr(damage, harm)(newest, rng)
    if harm == "flip":
        damage.cut(newest, rng)  # a file whose content is that of another one may well be believed
    inject(f"{harm}: ckpt_epoch_n_step_m.pth")
    assert f"epoch {MIDWAY} is done" in goes_on(bench, SWIN, tmp_path)


@pytest.mark.parametrize("name", [f"ckpt_epoch_{MIDWAY}.pth", f"ckpt_epoch_{MIDWAY + 1}_step_1.pth"])
def test_folder_in_the_place_of_a_file_is_left_alone(name, bench, midway, inject, rng, tmp_path):
    """It may hold anything, and a checkpoint needs its name: a line says so, before any step is done."""
    path = midway(SWIN) / name
    damage.folder(path, rng)
    (path / "precious").write_text("text")
    inject("folder: checkpoint")
    refused = bench.start(SWIN, tmp_path).wait()[0]
    assert refused.code == 2 and len(refused.err.splitlines()) == 1 and str(path) in refused.err
    assert (path / "precious").read_text() == "text"
    path.rename(tmp_path / "away")
    goes_on(bench, SWIN, tmp_path)


@pytest.mark.parametrize("again", range(3))
@pytest.mark.parametrize("harm", ["cut", "flip", "zero"])
@pytest.mark.parametrize("part", ["tensors", "state", "table_of_contents"])
def test_broken_newest_folder_is_passed_over(part, harm, again, bench, midway, inject, rng, tmp_path):
    newest = midway(FSDP) / f"ckpt_epoch_{MIDWAY}"
    path = {"tensors": rng.choice(sorted(newest.glob("*.distcp"))), "state": newest / "state.pth",
            "table_of_contents": newest / ".metadata"}[part]
    getattr(damage, harm)(path, rng)
    inject(f"{harm}: sharded checkpoint, {part}")
    goes_on(bench, FSDP, tmp_path)


@pytest.mark.parametrize("name", ["swin", "fsdp"])
def test_run_stops_and_writes_over_nothing_when_all_checkpoints_are_broken(name, bench, midway, inject, rng, tmp_path):
    plan = PLANS[name]
    folder = midway(plan)
    for path in checkpoints(folder):
        damage.cut(path / "state.pth" if path.is_dir() else path, rng)
    inject("cut: all checkpoints")
    before = {path.name: snapshot(path) if path.is_dir() else path.read_bytes() for path in checkpoints(folder)}
    results = bench.start(plan, tmp_path).wait()
    assert all(result.code != 0 for result in results) and any(result.code == 2 for result in results)
    assert error_lines(results) and not tracebacks(results)
    assert before == {path.name: snapshot(path) if path.is_dir() else path.read_bytes() for path in checkpoints(folder)}


@pytest.mark.parametrize("harm", ["cut", "flip", "zero"])
@pytest.mark.parametrize("again", range(8))
def test_broken_safetensors_is_refused_or_equal(again, harm, inject, rng, tmp_path):
    path = tmp_path / "weights.safetensors"
    state = {"model": {f"layer.{i}": torch.randn(5, 7) for i in range(6)}}
    save_checkpoint(path, state)
    getattr(damage, harm)(path, rng)
    inject(f"{harm}: .safetensors")
    try:
        content = load_checkpoint(path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error)
    else:
        assert unequal(content["model"], state["model"]) == []


# ---- what else lies in a run folder -------------------------------------------------------------------------------

@pytest.mark.parametrize("again", range(3))
@pytest.mark.parametrize("harm", ["cut", "flip", "zero"])
@pytest.mark.parametrize("ending", ["npy", "json"])
def test_broken_features_are_extracted_again(ending, harm, again, bench, inject, rng, tmp_path):
    plan, cache = PLANS["probe"], tmp_path / "cache"
    shutil.copytree(bench.reference(plan).folder / "features", cache)
    getattr(damage, harm)(rng.choice(sorted(cache.glob(f"*.{ending}"))), rng)
    inject(f"{harm}: features, .{ending}")
    bench.run(plan, tmp_path, PROBE__CACHE=cache)
    found = difference(bench.folder(plan, tmp_path), bench.reference(plan).folder, plan.last)
    assert not found, found


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "noise"])
@pytest.mark.parametrize("name", ["config.yaml", "run.lock", "bad_images.txt"])
def test_run_goes_on_beside_a_broken_file(name, harm, bench, midway, inject, rng, tmp_path):
    path = midway(SWIN) / name
    if not path.exists() or not path.stat().st_size:
        path.write_text(f"{tmp_path}/x.jpg\n")
    getattr(damage, harm)(path, rng)
    inject(f"{harm}: {name}")
    goes_on(bench, SWIN, tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
@pytest.mark.parametrize("again", range(4))
def test_numbers_are_whole_again_when_their_last_line_was_cut(again, name, bench, midway, inject, rng, tmp_path):
    path = midway(SWIN) / name
    damage.cut_a_little(next(path.iterdir()) if path.is_dir() else path, rng)
    inject(f"cut_a_little: {name}")
    goes_on(bench, SWIN, tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
@pytest.mark.parametrize("harm", ["cut", "flip", "zero", "empty", "noise"])
def test_training_goes_on_when_its_numbers_are_broken(harm, name, bench, midway, inject, rng, tmp_path):
    """What they said is lost; the training is not."""
    path = midway(SWIN) / name
    getattr(damage, harm)(next(path.iterdir()) if path.is_dir() else path, rng)
    inject(f"{harm}: {name}")
    goes_on(bench, SWIN, tmp_path, numbers=False)


# ---- a run that has ended -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", PLANS)
def test_finished_run_changes_no_file_when_started_again(name, bench, inject, tmp_path):
    plan = PLANS[name]
    target = bench.folder(plan, tmp_path)
    shutil.copytree(bench.reference(plan).folder, target)
    before = snapshot(target)
    inject("finished run started again")
    bench.run(plan, tmp_path)
    assert changed(before, snapshot(target)) == []
