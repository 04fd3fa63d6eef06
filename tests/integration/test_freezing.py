"""TRAIN.FREEZE in runs as users start them: alone, on two processes, sharded, resumed."""
import shutil

import pytest
import torch

from utils.checkpoint import load_checkpoint

from ..unit.helpers import largest_difference
from .recipes import VIT
from .runs import checkpoint, losses, unequal

FREEZING = {"TRAIN.FREEZE": "1", "TRAIN.LAYER_DECAY": 0.7, "TRAIN.EPOCHS": 2, "DATA.BATCH_SIZE": 4, **VIT,
            "MODEL.DROP_PATH_RATE": 0.0, "AUG.MIXUP": 0.0, "AUG.CUTMIX": 0.0, "TRAIN.USE_CHECKPOINT": True}
FROZEN = ("patch_embed.", "cls_token", "blocks.0.")


def frozen(weights):
    return {name: value for name, value in weights.items() if name.startswith(FROZEN)}


@pytest.fixture(scope="module")
def source(train, tmp_path_factory):
    """Encoder of a pre-training."""
    return train("pretrain", tmp_path_factory.mktemp("source"), settings={**VIT, "TRAIN.EPOCHS": 1})[0] / "encoder.pth"


@pytest.fixture(scope="module")
def tuned(source, train, tmp_path_factory):
    """Fine-tuning on two processes of which the first block is frozen: (run folder, text)."""
    return train("finetune", tmp_path_factory.mktemp("tuned"), "--pretrained", source, settings=FREEZING, ranks=2)


def test_frozen_weights_are_those_of_the_file_and_the_others_are_not(source, tuned):
    folder, text = tuned
    before, after = load_checkpoint(source)["model"], checkpoint(folder, 1)["model"]
    ours = frozen(after)
    assert len(ours) > 8 and largest_difference(ours, {name: before[name] for name in ours}) == 0
    assert not torch.equal(before["blocks.1.mlp.fc1.weight"], after["blocks.1.mlp.fc1.weight"])
    assert "TRAIN.FREEZE=1: " in text and "of which 0.00M are trained" in text


def test_frozen_parameters_are_not_in_the_optimizer(tuned):
    content = checkpoint(tuned[0], 1)
    number = sum(len(group["params"]) for group in content["optimizer"]["param_groups"])
    assert number == len(content["optimizer"]["state"]) < len(content["model"]) - len(frozen(content["model"])) + 1


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="this torch shards on CUDA only")
def test_sharded_run_has_the_losses_of_ddp(source, tuned, train, tmp_path):
    folder, _ = train("finetune", tmp_path, "--pretrained", source, settings={**FREEZING, "TRAIN.PARALLEL": "fsdp"}, ranks=2)
    assert losses(folder) == pytest.approx(losses(tuned[0]), rel=0, abs=1e-5)
    before, after = load_checkpoint(source)["model"], load_checkpoint(folder / "ckpt_epoch_1")["model"]
    ours = frozen(after)
    assert largest_difference(ours, {name: before[name] for name in ours}) == 0


def test_run_resumes_bitwise_and_with_nothing_else_frozen(source, train, forks, cfg, images, tmp_path):
    settings = {**FREEZING, "DATA.BATCH_SIZE": 8, "MODEL.DROP_PATH_RATE": 0.3}
    whole, _ = train("finetune", tmp_path / "whole", "--pretrained", source, settings=settings)
    part = tmp_path / "part" / "finetune" / "default"
    shutil.copytree(whole, part)
    (part / "ckpt_epoch_1.pth").unlink()
    train("finetune", tmp_path / "part", "--pretrained", source, settings=settings)
    ours, theirs = ({key: checkpoint(folder, 1)[key] for key in ("model", "optimizer")} for folder in (part, whole))
    assert unequal(ours, theirs) == []
    other = [word for key, value in (settings | {"TRAIN.FREEZE": "2"}).items() for word in (key, value)]
    result = forks.run("main_finetune.py", "--cfg", cfg.finetune, "--data-path", images, "--output", tmp_path / "part",
                       "--opts", *other)
    assert result.code == 2 and "TRAIN.FREEZE=1, not 2: use the same, or another --tag for a new run" in result.err


def test_frozen_encoder_of_a_sharded_pretraining(source, train, tmp_path):
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("this torch shards on CUDA only")
    settings = {**VIT, "TRAIN.EPOCHS": 1, "DATA.BATCH_SIZE": 4, "TRAIN.FREEZE": "encoder"}
    runs = {kind: train("pretrain", tmp_path / kind, "--pretrained", source, ranks=2,
                        settings={**settings, "TRAIN.PARALLEL": kind})[0] for kind in ("ddp", "fsdp")}
    assert losses(runs["fsdp"]) == pytest.approx(losses(runs["ddp"]), rel=0, abs=1e-5)
    assert largest_difference(load_checkpoint(runs["fsdp"] / "encoder.pth")["model"], load_checkpoint(source)["model"]) == 0


def test_frozen_random_weights_are_warned_of(train, tmp_path):
    _, text = train("finetune", tmp_path, settings={**FREEZING, "TRAIN.EPOCHS": 1, "DATA.BATCH_SIZE": 8})
    assert "TRAIN.FREEZE=1 without --pretrained: what is frozen keeps random weights" in text
