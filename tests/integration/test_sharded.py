"""TRAIN.PARALLEL fsdp: the same training as ddp, in checkpoints that any number of processes goes on from."""
import shutil
from functools import cache

import pytest
import torch

from utils.checkpoint import load_checkpoint

from ..unit.helpers import largest_difference
from .recipes import VIT, method_settings
from .runs import checkpoint, log_of, losses, records, truncate

pytestmark = pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="this torch shards on CUDA only")
SWINV2 = {"MODEL.TYPE": "swinv2", "MODEL.SWINV2.EMBED_DIM": 8, "MODEL.SWINV2.DEPTHS": "[1,1]",
          "MODEL.SWINV2.NUM_HEADS": "[1,2]", "MODEL.SWINV2.WINDOW_SIZE": 4}
VISIBLE = {**SWINV2, "MODEL.SWINV2.DEPTHS": "[2,1]", "MODEL.METHOD": "mae", "MODEL.MAE.DECODER_EMBED_DIM": 16,
           "MODEL.MAE.DECODER_DEPTH": 1, "MODEL.MAE.DECODER_NUM_HEADS": 2, "DATA.MASK_GROUPS": 2}
ENCODERS = {"swin": {}, "swinv2": VISIBLE, "vit": {**VIT, "MODEL.DROP_PATH_RATE": 0.0}, "mixmim": method_settings("mixmim")}
# 12 training images a process in batches of 4; clipping takes effect; 11 validation images do not divide by 2
COMMON = {"TRAIN.EPOCHS": 2, "DATA.BATCH_SIZE": 4, "TRAIN.CLIP_GRAD": 0.5, "TRAIN.BASE_LR": 0.064}
FSDP = {"TRAIN.PARALLEL": "fsdp"}


@pytest.fixture(scope="module")
def pairs(train, images, tmp_path_factory):
    """(run folder by ddp, the one by fsdp, settings) of an encoder's pre-training on two processes; each is trained once."""
    @cache
    def pair(name):
        settings = {**COMMON, **ENCODERS[name], "DATA.VAL_PATH": images / "val"}
        runs = {kind: train("pretrain", tmp_path_factory.mktemp(f"{name}_{kind}"), ranks=2,
                            settings={**settings, "TRAIN.PARALLEL": kind})[0] for kind in ("ddp", "fsdp")}
        return runs["ddp"], runs["fsdp"], settings
    return pair


@pytest.fixture(params=ENCODERS)
def both(request, pairs):
    return pairs(request.param)


def test_sharded_training_has_the_losses_and_norms_of_ddp(both):
    ddp, fsdp, _ = both
    assert len(losses(ddp)) == 6
    assert losses(fsdp) == pytest.approx(losses(ddp), rel=0, abs=1e-5)
    norms = [[record["grad_norm"] for record in records(run, "train")] for run in (fsdp, ddp)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_sharded_evaluation_counts_every_image_once(both):
    ddp, fsdp, _ = both
    assert [record["images"] for record in records(fsdp, "val")] == [11, 11]
    assert [record["loss"] for record in records(fsdp, "val")] == pytest.approx(
        [record["loss"] for record in records(ddp, "val")], abs=1e-5)


def test_sharded_checkpoint_is_a_folder_with_the_content_of_a_file(both):
    ddp, fsdp, _ = both
    assert (fsdp / "ckpt_epoch_1").is_dir() and not (fsdp / "ckpt_epoch_1.pth").exists()
    ours, theirs = load_checkpoint(fsdp / "ckpt_epoch_1"), checkpoint(ddp, 1)
    assert ours.keys() == theirs.keys() and ours["epoch"] == 1
    assert ours["model"].keys() == theirs["model"].keys()
    assert all(type(value) is torch.Tensor for value in ours["model"].values())
    assert ours["optimizer"]["state"].keys() == theirs["optimizer"]["state"].keys()
    assert [group["params"] for group in ours["optimizer"]["param_groups"]] == [
        group["params"] for group in theirs["optimizer"]["param_groups"]]
    for name, value in theirs["model"].items():
        if not name.endswith("qkv.bias"):  # the bias of Swin's key has no gradient but rounding noise
            torch.testing.assert_close(ours["model"][name], value, atol=2e-4, rtol=0)


def test_encoder_of_a_sharded_run_is_one_ordinary_file(both):
    _, fsdp, _ = both
    encoder, whole = load_checkpoint(fsdp / "encoder.pth")["model"], load_checkpoint(fsdp / "ckpt_epoch_1")["model"]
    assert largest_difference(encoder, {name.removeprefix("encoder."): value for name, value in whole.items()
                                        if name.startswith("encoder.")}) == 0


def test_pictures_of_a_sharded_run_are_drawn(both):
    _, fsdp, _ = both
    assert sorted(path.name for path in (fsdp / "reconstructions").iterdir()) == ["epoch_0000.png", "epoch_0001.png"]


@pytest.mark.parametrize(("ranks", "kind", "both"), [
    (1, "ddp", "swin"), (2, "ddp", "mixmim"), (1, "fsdp", "vit"), (2, "fsdp", "swinv2")], indirect=["both"])
def test_sharded_run_goes_on_anywhere_with_the_same_losses(ranks, kind, both, train, tmp_path):
    """From the folder of epoch 0; one process takes batches twice as large, which gives MixMIM's images other partners."""
    _, fsdp, settings = both
    settings = {**settings, "TRAIN.PARALLEL": kind, "DATA.BATCH_SIZE": 8 // ranks}
    folder, _ = train("pretrain", tmp_path, "--resume", fsdp / "ckpt_epoch_0", ranks=ranks, settings=settings)
    assert losses(folder) == pytest.approx(losses(fsdp)[3:], rel=0, abs=1e-5)
    assert "epoch 0 is done, going on with epoch 1" in log_of(folder)


@pytest.mark.parametrize("both", ["swin"], indirect=True)
def test_sharded_run_goes_on_from_an_ordinary_file(both, train, tmp_path):
    ddp, _, settings = both
    folder, _ = train("pretrain", tmp_path, "--resume", ddp / "ckpt_epoch_0.pth", ranks=2, settings={**settings, **FSDP})
    assert losses(folder) == pytest.approx(losses(ddp)[3:], rel=0, abs=1e-5)


@pytest.fixture(scope="module")
def two_epochs(train, tmp_path_factory):
    """Output and run folder of a sharded run that is over, and its settings."""
    settings, output = {**COMMON, **FSDP, "VIS_FREQ": 0}, tmp_path_factory.mktemp("two_epochs")
    return output, train("pretrain", output, ranks=2, settings=settings)[0].relative_to(output), settings


def test_sharded_run_resumes_by_itself_bitwise(two_epochs, train, tmp_path):
    output, name, settings = two_epochs
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / name / "ckpt_epoch_1")
    (tmp_path / name / "encoder.pth").unlink()
    _, out = train("pretrain", tmp_path, ranks=2, settings=settings)
    assert "epoch 0 is done, going on with epoch 1" in out
    ours, theirs = (load_checkpoint(folder / name / "ckpt_epoch_1") for folder in (tmp_path, output))
    assert largest_difference(ours["model"], theirs["model"]) == 0


def test_broken_folder_is_passed_over(two_epochs, train, tmp_path):
    """However it is broken: tests/unit/utils/test_sharding.py."""
    output, name, settings = two_epochs
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / name / "ckpt_epoch_1"
    truncate(max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size))
    _, out = train("pretrain", tmp_path, ranks=2, settings=settings)
    assert "Trying the checkpoint before it" in out and "epoch 0 is done, going on with epoch 1" in out
    assert load_checkpoint(newest)["epoch"] == 1  # written again


@pytest.mark.parametrize("encoder", ["swinv2", "vit"])  # all kinds of parameters outside of layers
def test_sharded_training_in_mixed_precision_stays_near_ddp(encoder, train, tmp_path):
    """Not equal: parameters are gathered in bfloat16, those of norms, too."""
    settings = {**COMMON, **ENCODERS[encoder], "TRAIN.EPOCHS": 1, "AMP_OPT_LEVEL": "O1", "VIS_FREQ": 0}
    runs = [train("pretrain", tmp_path / kind, ranks=2, settings={**settings, "TRAIN.PARALLEL": kind})
            for kind in ("ddp", "fsdp")]
    assert all("mixed bfloat16" in out for _, out in runs)
    ddp, fsdp = (losses(folder) for folder, _ in runs)
    assert fsdp == pytest.approx(ddp, rel=0.01) and fsdp != ddp
    state = load_checkpoint(runs[1][0] / "ckpt_epoch_0")
    assert all(value.dtype == torch.float32 for value in state["model"].values() if value.is_floating_point())


# ---- fine-tuning --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("both", ["swinv2", "vit", "mixmim"], indirect=True)  # Swin's windows change as those of its heir do
def test_sharded_finetuning_from_a_checkpoint_equals_ddp(both, train, tmp_path):
    """At another image size, with layer decay, accumulation and recomputed activations."""
    _, pretrained, settings = both
    tuning = {**settings, "MODEL.DROP_PATH_RATE": 0.0, "TRAIN.EPOCHS": 1, "AUG.MIXUP": 0.0, "AUG.CUTMIX": 0.0,
              "DATA.IMG_SIZE": 64, "TRAIN.LAYER_DECAY": 0.7, "DATA.BATCH_SIZE": 2, "TRAIN.ACCUMULATION_STEPS": 2,
              "TRAIN.USE_CHECKPOINT": True, "MODEL.SWINV2.WINDOW_SIZE": 8, "MODEL.SWIN.WINDOW_SIZE": 8,
              "MODEL.SWINV2.PRETRAINED_WINDOW_SIZES": "[4,4]"}
    runs = {}
    for kind in ("ddp", "fsdp"):
        runs[kind], _ = train("finetune", tmp_path / kind, "--pretrained", pretrained / "ckpt_epoch_0", ranks=2,
                              settings={**tuning, "TRAIN.PARALLEL": kind})
    assert len(losses(runs["ddp"])) == 3
    assert losses(runs["fsdp"]) == pytest.approx(losses(runs["ddp"]), rel=0, abs=1e-5)
    ours, theirs = ([{key: record[key] for key in ("top1", "images")} for record in records(run, "val")]
                    for run in (runs["fsdp"], runs["ddp"]))
    assert ours == theirs and ours[0]["images"] == 11
    assert type(load_checkpoint(runs["fsdp"] / "ckpt_best.pth")["model"]["head.weight"]) is torch.Tensor


# ---- export -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("both", ["vit"], indirect=True)
def test_sharded_checkpoint_becomes_one_file_that_resumes(both, forks, train, tmp_path):
    _, fsdp, settings = both
    target = tmp_path / "whole.pth"
    forks.run("tools/consolidate.py", fsdp / "ckpt_epoch_0", target).checked()
    folder, _ = train("pretrain", tmp_path, "--resume", target, ranks=2, settings=settings)
    assert losses(folder) == pytest.approx(losses(fsdp)[3:], rel=0, abs=1e-5)


def test_sharded_checkpoint_gives_its_encoder(both, forks, tmp_path):
    _, fsdp, _ = both
    target = tmp_path / "encoder.pth"
    forks.run("tools/consolidate.py", fsdp / "ckpt_epoch_1", target, "--encoder").checked()
    ours, theirs = (load_checkpoint(path)["model"] for path in (target, fsdp / "encoder.pth"))
    assert largest_difference(ours, theirs) == 0


@pytest.mark.parametrize("both", ["vit"], indirect=True)
def test_consolidating_makes_no_checkpoint_of_a_run(both, forks):
    _, fsdp, _ = both
    result = forks.run("tools/consolidate.py", fsdp / "ckpt_epoch_1", fsdp / "ckpt_epoch_1.pth", "--encoder")
    assert result.code == 2 and "named like a checkpoint of a run" in result.err


@pytest.mark.parametrize("both", ["vit"], indirect=True)
def test_consolidating_writes_over_nothing(both, forks, tmp_path):
    _, fsdp, _ = both
    (tmp_path / "there.pth").write_text("precious")
    result = forks.run("tools/consolidate.py", fsdp / "ckpt_epoch_1", tmp_path / "there.pth")
    assert result.code == 2 and "exists and is not written over" in result.err
    assert (tmp_path / "there.pth").read_text() == "precious"
