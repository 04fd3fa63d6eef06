"""Several processes, or several micro-batches, do what one process does with one large batch."""
import pytest
import torch

from models.build import METHODS

from .processes import ROOT, opts
from .recipes import SWIN, VAL_IMAGES, VIT, method_settings
from .runs import checkpoint, log_of, losses, records

TWO_EPOCHS = {"TRAIN.EPOCHS": 2, "VIS_FREQ": 0}
# constant rates, because schedules count micro-batches; clipping that takes effect in every step
CONSTANT = {**TWO_EPOCHS, "TRAIN.WARMUP_EPOCHS": 0, "TRAIN.BASE_LR": 0.2, "TRAIN.MIN_LR": 0.2, "TRAIN.CLIP_GRAD": 0.5}
SAME_ON_EACH_RANK = {"AUG.MIXUP": 0.0, "AUG.CUTMIX": 0.0, "MODEL.DROP_PATH_RATE": 0.0}  # these draw for each process
VIT_MEAN = {**VIT, "MODEL.VIT.USE_MEAN_POOLING": True, "MODEL.DROP_PATH_RATE": 0.0}


@pytest.fixture(scope="module")
def launched(forks, cfg, images, tmp_path_factory):
    """Pre-training on two processes, batch 4 each: Swin by torchrun, ViT with mean pooling as a launcher starts them.

    Returns: run folder by name, and the warnings on stderr.
    """
    output = tmp_path_factory.mktemp("launched")

    def command(name, settings):
        return ("main_simmim.py", "--cfg", cfg.pretrain, "--data-path", images / "train", "--output", output, "--tag", name,
                "--batch-size", 4, *opts({**TWO_EPOCHS, **settings, "DATA.VAL_PATH": images / "val"}))

    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    results = [forks.run(*torchrun, *command("swin", {})), *forks.run_ranks(2, *command("vit", VIT_MEAN))]
    warnings = [line for result in results for line in result.checked().err.splitlines() if "Warning" in line]
    return {"swin": output / "pretrain" / "swin", "vit": output / "pretrain" / "vit", "warnings": warnings}


@pytest.fixture(scope="module")
def alone(train, images, tmp_path_factory):
    """The same trainings by one process with batch 8."""
    return {name: train("pretrain", tmp_path_factory.mktemp(f"alone_{name}"),
                        settings={**TWO_EPOCHS, **settings, "DATA.VAL_PATH": images / "val"})[0]
            for name, settings in (("swin", {}), ("vit", VIT_MEAN))}


def assert_close_weights(folder, other, epoch=1):
    """Weights agree to rounding. Left out: Swin's bias of the key, whose gradient is rounding noise (Adam turns it into
    moves of the size of the learning rate)."""
    ours, theirs = checkpoint(folder, epoch)["model"], checkpoint(other, epoch)["model"]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        compared = [value, theirs[name]]
        if name.endswith("attn.qkv.bias"):
            compared = [torch.cat([part for i, part in enumerate(bias.chunk(3)) if i != 1]) for bias in compared]
        torch.testing.assert_close(*compared, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


# ---- two processes ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["swin", "vit"])
def test_two_processes_log_the_losses_of_one_with_twice_the_batch(name, launched, alone):
    assert len(losses(launched[name])) == 6
    assert losses(launched[name]) == pytest.approx(losses(alone[name]), rel=0, abs=1e-5)


@pytest.mark.parametrize("method", [*METHODS, "mae of visible windows"])
def test_two_processes_do_what_one_does_with_two_micro_batches(method, train, tmp_path):
    """With every method. Where images share masks, or are mixed within a step, one process has the whole batch."""
    settings = {**method_settings(method.split()[0]), **CONSTANT, "DATA.BATCH_SIZE": 4, "TRAIN.EPOCHS": 1}
    if method not in METHODS:
        settings |= {**SWIN, "DATA.MASK_GROUPS": 2, "DATA.NUM_WORKERS": 1}
    whole = {"TRAIN.ACCUMULATION_STEPS": 2} if method in ("simmim", "mae") else {"DATA.BATCH_SIZE": 8}
    together, _ = train("pretrain", tmp_path / "together", ranks=2, settings=settings)
    alone, _ = train("pretrain", tmp_path / "alone", settings={**settings, **whole})
    assert len(losses(together)) == len(losses(alone)) == 3
    assert losses(together) == pytest.approx(losses(alone), rel=0, abs=1e-5)
    assert_close_weights(together, alone, epoch=0)


@pytest.mark.parametrize("name", ["swin", "vit"])
def test_two_processes_log_the_gradient_norms_of_one_with_twice_the_batch(name, launched, alone):
    norms = [[record["grad_norm"] for record in records(runs[name], "train")] for runs in (launched, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("name", ["swin", "vit"])
def test_two_processes_end_with_the_weights_of_one_with_twice_the_batch(name, launched, alone):
    assert_close_weights(launched[name], alone[name])


@pytest.mark.parametrize("name", ["swin", "vit"])
def test_two_processes_log_the_heldout_loss_of_one(name, launched, alone):
    ours, theirs = ([(record["images"], record["loss"]) for record in records(runs[name], "val")] for runs in (launched, alone))
    assert [images for images, _ in ours] == [VAL_IMAGES, VAL_IMAGES]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=0, abs=1e-5)


def test_two_processes_write_one_log_file_each_and_one_of_everything_else(launched):
    names = sorted(path.name for path in launched["swin"].iterdir())
    assert names == ["ckpt_epoch_0.pth", "ckpt_epoch_1.pth", "config.yaml", "encoder.pth", "log_rank0.txt", "log_rank1.txt",
                     "metrics.jsonl", "tensorboard"]
    assert len(list((launched["swin"] / "tensorboard").iterdir())) == 1


def test_two_processes_cause_no_warnings_of_libraries(launched):
    assert [line for line in launched["warnings"] if str(ROOT) in line and "site-packages" not in line] == []
    logs = [log_of(launched[name], rank) for name in ("swin", "vit") for rank in (0, 1)]
    assert [line for log in logs for line in log.splitlines() if "Warning: " in line or "site-packages" in line] == []


def test_checkpoint_of_two_processes_has_the_names_of_one(launched, alone):
    assert checkpoint(launched["swin"], 1)["model"].keys() == checkpoint(alone["swin"], 1)["model"].keys()


def test_checkpoint_of_two_processes_resumes_on_one(launched, train, tmp_path):
    folder, out = train("pretrain", tmp_path, "--resume", launched["swin"] / "ckpt_epoch_1.pth", settings={"TRAIN.EPOCHS": 3})
    assert "epoch 1 is done, going on with epoch 2" in out
    assert [record["epoch"] for record in records(folder, "train")] == [2, 2, 2]


def test_checkpoint_of_one_process_resumes_on_two(alone, train, tmp_path):
    settings = {"TRAIN.EPOCHS": 3, "VIS_FREQ": 0}
    one, _ = train("pretrain", tmp_path / "one", "--resume", alone["swin"] / "ckpt_epoch_1.pth", settings=settings)
    two, _ = train("pretrain", tmp_path / "two", "--resume", alone["swin"] / "ckpt_epoch_1.pth", "--batch-size", 4,
                   settings=settings, ranks=2)
    assert losses(two) == pytest.approx(losses(one), rel=0, abs=1e-5)


def test_finetuning_on_two_processes_logs_the_losses_of_one_with_twice_the_batch(train, pretrained_run, tmp_path):
    flags, settings = ["--pretrained", pretrained_run / "encoder.pth"], {"TRAIN.EPOCHS": 2, **SAME_ON_EACH_RANK}
    one, _ = train("finetune", tmp_path / "one", *flags, settings=settings)
    two, _ = train("finetune", tmp_path / "two", *flags, "--batch-size", 4, settings=settings, ranks=2)
    assert losses(two) == pytest.approx(losses(one), rel=0, abs=1e-5)
    assert_close_weights(two, one)


def test_evaluation_on_two_processes_gives_the_numbers_of_one_when_the_images_do_not_divide(
        forks, cfg, images, finetuned_run, tmp_path):
    arguments = ["main_finetune.py", "--cfg", cfg.finetune, "--data-path", images, "--eval", "--resume",
                 finetuned_run / "ckpt_epoch_0.pth", "--batch-size", 4]
    forks.run(*arguments, "--output", tmp_path / "one").checked()
    for rank in forks.run_ranks(2, *arguments, "--output", tmp_path / "two"):
        rank.checked()
    one, two = (records(tmp_path / name / "finetune" / "default", "eval") for name in ("one", "two"))
    assert len(one) == len(two) == 1
    for name in ("loss", "confidence"):
        assert two[0].pop(name) == pytest.approx(one[0].pop(name), rel=1e-6)
    assert one[0].pop("timestamp") <= two[0].pop("timestamp")
    assert two == one
    assert one[0]["images"] == VAL_IMAGES
    folders = [tmp_path / name / "finetune" / "default" / "eval" / "001_ckpt_epoch_0" for name in ("one", "two")]
    for name in ("classes.csv", "confusion.csv", "confusion.png"):
        one, two = ((folder / name).read_bytes() for folder in folders)
        assert one == two


def test_both_processes_stop_when_the_data_is_missing(forks, cfg, tmp_path):
    ranks = forks.run_ranks(2, "main_simmim.py", "--cfg", cfg.pretrain, "--data-path", tmp_path / "nowhere",
                            "--output", tmp_path)
    assert all(rank.code != 0 for rank in ranks)
    assert all("Traceback" not in rank.err for rank in ranks)
    assert any("error:" in rank.err and "nowhere does not exist" in rank.err for rank in ranks)


# ---- accumulation -------------------------------------------------------------------------------------------------

def test_accumulated_micro_batches_log_the_losses_of_one_large_batch(train, tmp_path):
    large, _ = train("pretrain", tmp_path / "large", settings=CONSTANT)
    small, _ = train("pretrain", tmp_path / "small", "--batch-size", 4, "--accumulation-steps", 2, settings=CONSTANT)
    assert losses(small) == pytest.approx(losses(large), rel=0, abs=1e-5)
    assert_close_weights(small, large)


def test_accumulation_on_two_processes_logs_the_losses_of_one_large_batch(train, tmp_path):
    large, _ = train("pretrain", tmp_path / "large", settings=CONSTANT)
    small, _ = train("pretrain", tmp_path / "small", "--batch-size", 2, "--accumulation-steps", 2, settings=CONSTANT, ranks=2)
    assert losses(small) == pytest.approx(losses(large), rel=0, abs=1e-5)
    assert_close_weights(small, large)


def test_accumulation_resumes_with_the_weights_of_an_uninterrupted_run(train, tmp_path):
    flags = ["--batch-size", 3, "--accumulation-steps", 3]  # 8 micro-batches: the last step of an epoch has two
    settings = {"TRAIN.EPOCHS": 2, "MODEL.DROP_PATH_RATE": 0.1, "VIS_FREQ": 0}
    folder, _ = train("pretrain", tmp_path, *flags, settings=settings)
    whole = checkpoint(folder, 1)
    for name in ("ckpt_epoch_1.pth", "encoder.pth"):
        (folder / name).unlink()
    train("pretrain", tmp_path, *flags, settings=settings)
    assert all(torch.equal(value, whole["model"][name]) for name, value in checkpoint(folder, 1)["model"].items())


def test_accumulation_reports_every_optimizer_step_and_none_twice(train, tmp_path):
    folder, text = train("pretrain", tmp_path, "--batch-size", 3, "--accumulation-steps", 3, settings={"TRAIN.EPOCHS": 1})
    assert "3 images x 1 processes x 3 accumulation steps = 9; the last step of an epoch has 6, at the same rate" in text
    assert "an epoch is 3 steps of 24 of the 24 images; 1 of 1 epochs are to come" in text
    assert [record["step"] for record in records(folder, "train")] == [2, 5, 7]
