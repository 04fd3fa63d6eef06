"""Files of other origin through the real commands: laid out as the released ones, safetensors, and a malicious one."""
import os

import pytest
import torch
from yacs.config import CfgNode

from config import load_config
from models import build_model
from utils.checkpoint import load_checkpoint, save_checkpoint, weights_of

from .processes import opts
from .recipes import CLASSES
from .runs import accuracies, log_of, records

ONE_EPOCH = opts({"TRAIN.EPOCHS": 1})


def released(path, recipe, is_pretrain):
    """What the official code saves of a model: weights beside a pickled config node."""
    torch.manual_seed(5)
    model = build_model(load_config(recipe, opts=["MODEL.NUM_CLASSES", len(CLASSES)]), is_pretrain)
    config = CfgNode({"MODEL": {"TYPE": "swin"}, "AMP_OPT_LEVEL": "O1", "TRAIN": {"EPOCHS": 800}})
    torch.save({"model": model.state_dict(), "max_accuracy": 0.0, "epoch": 799, "config": config}, path)
    return path


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture(params=["pth", "safetensors"])
def weights(request, cfg, tmp_path):
    path = released(tmp_path / "released.pth", cfg.pretrain, is_pretrain=True)
    if request.param == "safetensors":
        path = tmp_path / "released.safetensors"
        save_checkpoint(path, {"model": weights_of(load_checkpoint(tmp_path / "released.pth"))})
    return path


def test_released_pretraining_file_is_finetuned(weights, forks, cfg, images, tmp_path):
    result = forks.run("main_finetune.py", "--cfg", cfg.finetune, "--data-path", images, "--output", tmp_path,
                       "--pretrained", weights, *ONE_EPOCH).checked()
    assert f"{weights} (pre-training model): " in result.out
    folder = tmp_path / "finetune" / "default"
    assert "2 missing (head.weight, head.bias); 1 unexpected (mask_token)" in log_of(folder)
    assert len(records(folder, "val")) == 1


def test_released_pretraining_file_is_trained_further(weights, forks, cfg, images, tmp_path):
    result = forks.run("main_simmim.py", "--cfg", cfg.pretrain, "--data-path", images / "train", "--output", tmp_path,
                       "--pretrained", weights, *ONE_EPOCH).checked()
    assert "0 missing; 0 unexpected" in result.out


@pytest.mark.parametrize("flag", ["--resume", "--pretrained"])
def test_released_finetuned_file_is_evaluated(flag, forks, cfg, images, tmp_path):
    path = released(tmp_path / "released.pth", cfg.finetune, is_pretrain=False)
    result = forks.run("main_finetune.py", "--eval", "--cfg", cfg.finetune, "--data-path", images, "--output", tmp_path,
                       flag, path).checked()
    assert len(accuracies(result.out)) == 1


@pytest.mark.parametrize("script", ["main_simmim.py", "main_finetune.py"])
@pytest.mark.parametrize("flag", ["--resume", "--pretrained"])
def test_malicious_file_ends_in_one_line_that_says_why_and_runs_nothing(flag, script, forks, cfg, images, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.ones(1)}, "config": Call(os.system, f"touch {marker}")}, path)
    pretrains = script == "main_simmim.py"
    result = forks.run(script, "--cfg", cfg.pretrain if pretrains else cfg.finetune, "--output", tmp_path / "output",
                       "--data-path", images / "train" if pretrains else images, flag, path)
    assert result.code not in (0, None) and not marker.exists()
    line, = result.err.splitlines()
    assert line.startswith(f"error: {path} holds {os.name}.system, which is code, not data: refused, nothing was run.")
