"""TRAIN.EMA_DECAY in runs as users start them, and --ema wherever a checkpoint is read."""
import json
import shutil

import pytest
import torch

from utils.checkpoint import load_checkpoint

from ..unit.helpers import largest_difference
from .processes import opts
from .recipes import PROBE, VAL_IMAGES, write_recipe
from .runs import accuracies, checkpoint, log_of, losses, records, unequal

needs_sharding = pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="this torch shards on CUDA only")
EMA = {"TRAIN.EMA_DECAY": 0.75, "TRAIN.EPOCHS": 2, "MODEL.DROP_PATH_RATE": 0.0, "AUG.MIXUP": 0.0, "AUG.CUTMIX": 0.0}
HALF = {**EMA, "DATA.BATCH_SIZE": 4}


@pytest.fixture(scope="module")
def tuned(train, tmp_path_factory):
    """Fine-tuning on two processes with an average: (run folder, text). Not to be written to."""
    return train("finetune", tmp_path_factory.mktemp("tuned"), settings=HALF, ranks=2)


@pytest.fixture(scope="module")
def pretrained(train, images, tmp_path_factory):
    """Run folder of a pre-training with an average and held-out images. Not to be written to."""
    return train("pretrain", tmp_path_factory.mktemp("ema"), settings={**EMA, "DATA.VAL_PATH": images / "val"})[0]


def test_average_lies_in_log_metrics_and_every_checkpoint(tuned):
    folder, text = tuned
    assert len(accuracies(text)) == 4 and text.count("the average of the weights:") == 2
    assert "an average of the weights is kept, over about 4 of 6 steps" in text and "best top-1 of the average" in text
    for record in records(folder, "val"):
        assert {"top1", "loss", "ema_top1", "ema_top5", "ema_loss"} <= record.keys() and record["loss"] != record["ema_loss"]
    assert sorted(path.name for path in (folder / "eval").iterdir()) == ["epoch_1", "epoch_1_ema"]
    for name in ("ckpt_epoch_0.pth", "ckpt_epoch_1.pth", "ckpt_best.pth", "ckpt_best_ema.pth"):
        content = load_checkpoint(folder / name)
        assert content["model"].keys() == content["model_ema"].keys()
        assert largest_difference(content["model"], content["model_ema"]) > 0


@needs_sharding
def test_sharded_run_has_the_average_of_ddp_and_goes_on_with_it_to_the_bit(tuned, train, tmp_path):
    ddp, sharded = tuned[0], {**HALF, "TRAIN.PARALLEL": "fsdp"}
    fsdp, _ = train("finetune", tmp_path / "whole", settings=sharded, ranks=2)
    ours, theirs = load_checkpoint(fsdp / "ckpt_epoch_1"), checkpoint(ddp, 1)
    assert ours.keys() == theirs.keys() and losses(fsdp) == pytest.approx(losses(ddp), abs=1e-5)
    for name, value in theirs["model_ema"].items():
        torch.testing.assert_close(ours["model_ema"][name], value, atol=2e-3, rtol=0)
    for name in ("ema_loss", "loss"):
        assert [record[name] for record in records(fsdp, "val")] == pytest.approx(
            [record[name] for record in records(ddp, "val")], abs=1e-3)
    best = load_checkpoint(fsdp / "ckpt_best_ema.pth")
    assert largest_difference(best["model_ema"], load_checkpoint(fsdp / f"ckpt_epoch_{best['epoch']}")["model_ema"]) == 0
    part, _ = train("finetune", tmp_path / "part", settings={**sharded, "SAVE_STEPS": 2}, ranks=2)
    for path in [*(part / "ckpt_epoch_1").iterdir(), part / "ckpt_epoch_1"]:
        path.rmdir() if path.is_dir() else path.unlink()
    train("finetune", tmp_path / "part", settings={**sharded, "SAVE_STEPS": 2}, ranks=2)
    again = load_checkpoint(part / "ckpt_epoch_1")
    assert largest_difference(again["model_ema"], ours["model_ema"]) == 0
    alone, text = train("finetune", tmp_path / "alone", "--resume", fsdp / "ckpt_epoch_0", settings=EMA)  # on one process
    assert "holds no average" not in text and losses(alone) == pytest.approx(losses(fsdp)[3:], abs=1e-4)
    torch.testing.assert_close(checkpoint(alone, 1)["model_ema"]["norm.weight"], ours["model_ema"]["norm.weight"], atol=1e-3,
                               rtol=0)


def test_run_on_two_processes_goes_on_with_its_average_to_the_bit(tuned, train, tmp_path):
    part = tmp_path / "finetune" / "default"
    shutil.copytree(tuned[0], part)
    (part / "ckpt_epoch_1.pth").unlink()
    train("finetune", tmp_path, settings=HALF, ranks=2)
    ours, theirs = ({key: checkpoint(folder, 1)[key] for key in ("model", "model_ema", "optimizer")}
                    for folder in (part, tuned[0]))
    assert unequal(ours, theirs) == []


def test_evaluation_takes_either(tuned, train, tmp_path):
    """--eval has no other way to say which; the record says what it was."""
    folder, record = tuned[0], records(tuned[0], "val")[-1]
    for flags, prefix, key in (((), "", None), (("--ema",), "ema_", "ema")):
        for source in ("--resume", "--pretrained"):
            output = tmp_path / f"{prefix}{source}"
            run, _ = train("finetune", output, "--eval", source, folder / "ckpt_epoch_1.pth", *flags)
            found, = records(run, "eval")
            assert found.get("key") == key and found["images"] == VAL_IMAGES
            assert found["loss"] == pytest.approx(record[f"{prefix}loss"], abs=1e-5)


def test_heldout_loss_of_either(pretrained, train, images, tmp_path):
    record = records(pretrained, "val")[-1]
    run, _ = train("pretrain", tmp_path, "--eval", "--resume", pretrained / "ckpt_epoch_1.pth", "--ema",
                   settings={"DATA.VAL_PATH": images / "val"})
    assert records(run, "eval")[0]["loss"] == pytest.approx(record["ema_loss"], abs=1e-6)
    assert record["loss"] != record["ema_loss"]
    assert len(list((pretrained / "reconstructions").iterdir())) == 2  # of the weights, once an epoch


def test_encoder_of_a_pretraining_holds_both_and_fine_tuning_chooses(pretrained, train, tmp_path):
    encoder, whole = load_checkpoint(pretrained / "encoder.pth"), checkpoint(pretrained, 1)
    for key in ("model", "model_ema"):
        assert largest_difference(encoder[key], {name.removeprefix("encoder."): value for name, value in whole[key].items()
                                                 if name.startswith("encoder.")}) == 0
    folder, text = train("finetune", tmp_path, "--pretrained", pretrained / "encoder.pth", "--ema",
                         settings={"TRAIN.FREEZE": "encoder", "TRAIN.EPOCHS": 1})
    assert "taken from model_ema" in text
    ours = checkpoint(folder, 0)["model"]
    same = [name for name, value in encoder["model_ema"].items() if name in ours and torch.equal(ours[name], value)]
    assert len(same) > len(encoder["model"]) - 3


def test_probe_averages_its_heads(pretrained, forks, images, tmp_path):
    recipe = write_recipe(tmp_path / "probe.yaml", PROBE)
    common = ["--cfg", recipe, "--data-path", images, "--output", tmp_path]
    forks.run("main_linprobe.py", *common, "--pretrained", pretrained / "encoder.pth", "--sweep",
              *opts({"TRAIN.EMA_DECAY": 0.75})).checked()
    folder = tmp_path / "linprobe" / "default"
    record = records(folder, "val")[-1]
    assert {"ema_top1", "ema_top1_layer_last"} <= record.keys()
    content = checkpoint(folder, 2)
    different = {name for name, value in content["model"].items() if not torch.equal(value, content["model_ema"][name])}
    assert different and all(name.startswith("head.") and "running" not in name for name in different)
    forks.run("main_linprobe.py", *common, "--eval", "--resume", folder / "ckpt_best_ema.pth", "--sweep", "--ema").checked()
    best = load_checkpoint(folder / "ckpt_best_ema.pth")["max_accuracy"]
    assert max(found["top1"] for found in records(folder, "eval")) == pytest.approx(best)


def test_tools_take_the_average(tuned, forks, tmp_path):
    source = tuned[0] / "ckpt_epoch_1.pth"
    averages = load_checkpoint(source)["model_ema"]
    forks.run("tools/consolidate.py", source, tmp_path / "one.safetensors", "--ema").checked()
    forks.run("tools/convert.py", source, tmp_path / "two.pth", "--to", "ours", "--ema").checked()
    assert largest_difference(load_checkpoint(tmp_path / "one.safetensors")["model"], averages) == 0
    theirs = load_checkpoint(tmp_path / "two.pth")["model"]
    assert all(torch.equal(value, averages[name]) for name, value in theirs.items())


def test_inference_takes_the_average(tuned, forks, images, cfg, tmp_path):
    recipe, picture = cfg.finetune, images / "val" / "ant" / "0.png"
    forks.run("tools/consolidate.py", tuned[0] / "ckpt_epoch_1.pth", tmp_path / "average.pth", "--ema").checked()
    found = []
    source = tuned[0] / "ckpt_epoch_1.pth"
    for weights, *flags in ((source, "--ema"), (tmp_path / "average.pth",), (source,)):
        result = forks.run("inference.py", "--model", recipe, "--weights", weights, "--task", "classification", "--json",
                           *flags, picture, "--opts", "MODEL.NUM_CLASSES", 8).checked()
        found.append(json.loads(result.out[result.out.index("["):]))
    assert found[0] == found[1] != found[2]


def test_choosing_in_no_file_or_where_there_is_none_is_refused(pretrained_run, cfg, images, forks, tmp_path):
    common = ["--cfg", cfg.finetune, "--data-path", images, "--output", tmp_path, "--ema"]
    result = forks.run("main_finetune.py", *common)
    assert result.code == 2 and "PRETRAINED_KEY=ema (--ema is ema) chooses among the weights of --pretrained" in result.err
    result = forks.run("main_finetune.py", *common, "--pretrained", pretrained_run / "encoder.pth")
    assert result.code == 2 and "the file holds no average of the weights (--ema, PRETRAINED_KEY=ema)" in result.err


def test_slow_average_of_a_short_run_is_warned_of(train, tmp_path):
    folder, _ = train("pretrain", tmp_path, settings={"TRAIN.EMA_DECAY": 0.9999, "TRAIN.EPOCHS": 1})
    assert "TRAIN.EMA_DECAY=0.9999 is slow for a run of 3 steps: at its end 100% of the average are" in log_of(folder)
