"""Pre-train, continue, fine-tune, evaluate, measure: the whole way with the real commands, one after the other."""
import csv
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from config import load_config

from .processes import finish, opts, start
from .recipes import CLASSES, PRETRAIN, VAL_IMAGES
from .runs import accuracies, changed, checkpoint, checkpoint_names, log_of, records, snapshot

STEPS_PER_EPOCH = 3  # 24 images, batch 8


@pytest.fixture(scope="module")
def pretraining(cfg, images, tmp_path_factory):
    """Two epochs with held-out images; `command` repeats it."""
    output = tmp_path_factory.mktemp("chain")
    command = ["main_simmim.py", "--cfg", cfg.pretrain, "--data-path", images / "train", "--output", output]
    settings = {"TRAIN.EPOCHS": 2, "DATA.VAL_PATH": images / "val"}
    result = finish(start(*command, *opts(settings))).checked()  # by a real interpreter, whose warnings would be seen
    folder = output / "pretrain" / "default"
    return SimpleNamespace(folder=folder, output=output, result=result, command=command, settings=settings,
                           files=snapshot(folder))


@pytest.fixture(scope="module")
def repeated(pretraining, forks):
    """The same command once more, beside what a process that was killed while it wrote the last file has left."""
    (pretraining.folder / ".encoder.pth.999999999.tmp").write_bytes(b"half")
    result = forks.run(*pretraining.command, *opts(pretraining.settings)).checked()
    return SimpleNamespace(result=result, files=snapshot(pretraining.folder))


@pytest.fixture(scope="module")
def longer(pretraining, repeated, forks):
    """The same command with a third epoch."""
    result = forks.run(*pretraining.command, *opts({**pretraining.settings, "TRAIN.EPOCHS": 3})).checked()
    return SimpleNamespace(result=result, files=snapshot(pretraining.folder))


@pytest.fixture(scope="module")
def finetuning(forks, cfg, images, pretraining, longer):
    """Three epochs from the pre-trained checkpoint; `command` lacks what to start from."""
    command = ["main_finetune.py", "--cfg", cfg.finetune, "--data-path", images, "--output", pretraining.output]
    result = forks.run(*command, "--pretrained", pretraining.folder / "ckpt_epoch_2.pth", *opts({"TRAIN.EPOCHS": 3})).checked()
    folder = pretraining.output / "finetune" / "default"
    return SimpleNamespace(folder=folder, result=result, command=command, files=snapshot(folder))


@pytest.fixture(scope="module")
def evaluation(finetuning, forks):
    """--eval --resume of the best checkpoint, in the run folder of the training."""
    return forks.run(*finetuning.command, "--eval", "--resume", finetuning.folder / "ckpt_best.pth").checked()


# ---- pre-training -------------------------------------------------------------------------------------------------

def test_pretraining_prints_nothing_on_stderr(pretraining):
    assert pretraining.result.err == ""


def test_pretraining_leaves_one_checkpoint_an_epoch_and_the_encoder(pretraining):
    names = [name for name in pretraining.files if name.endswith(".pth")]
    assert names == ["ckpt_epoch_0.pth", "ckpt_epoch_1.pth", "encoder.pth"]


def test_config_yaml_keeps_the_learning_rates_of_the_recipe(pretraining):
    config = load_config(pretraining.folder / "config.yaml")
    assert (config.TRAIN.BASE_LR, config.TRAIN.WARMUP_LR, config.TRAIN.MIN_LR) == (
        PRETRAIN["TRAIN.BASE_LR"], PRETRAIN["TRAIN.WARMUP_LR"], PRETRAIN["TRAIN.MIN_LR"])


def test_log_file_has_what_the_console_had(pretraining):
    messages = [line.partition("] ")[2] for line in pretraining.result.out.splitlines()]
    log = log_of(pretraining.folder)
    begin = next(i for i, message in enumerate(messages) if message.startswith("run folder:"))
    assert all(message in log for message in messages[begin:])
    assert any("held-out loss" in message for message in messages)


def test_metrics_have_a_train_record_for_each_step(pretraining):
    train = records(pretraining.folder, "train")[:2 * STEPS_PER_EPOCH]
    assert [record["step"] for record in train] == list(range(2 * STEPS_PER_EPOCH))
    assert [record["epoch"] for record in train] == [0, 0, 0, 1, 1, 1]
    assert all(record["loss"] > 0 and record["grad_norm"] > 0 and record["skipped"] == 0 for record in train)


def test_metrics_have_the_scaled_learning_rate_of_each_step(pretraining):
    first = records(pretraining.folder, "train")[:2]
    start, peak = (PRETRAIN[f"TRAIN.{name}_LR"] * 8 / 512 for name in ("WARMUP", "BASE"))
    assert [record["lr"] for record in first] == pytest.approx([start, start])  # as official: the first two steps share it
    assert records(pretraining.folder, "train")[2]["lr"] == pytest.approx(start + (peak - start) / STEPS_PER_EPOCH)


def test_metrics_have_a_heldout_loss_for_each_epoch(pretraining):
    val = records(pretraining.folder, "val")[:2]
    assert [(record["epoch"], record["images"]) for record in val] == [(0, VAL_IMAGES), (1, VAL_IMAGES)]
    assert all(0 < record["loss"] < 2 for record in val)


def test_tensorboard_events_hold_curves_and_pictures(pretraining):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(pretraining.folder / "tensorboard")).Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {"train/loss", "train/lr", "train/grad_norm", "train/epoch", "train/loss_epoch",
                                    "train/images_per_second", "train/waiting_for_data_percent", "val/loss"}
    assert tags["images"] == ["val/reconstructions"] and set(tags["tensors"]) == {"run/start", "run/settings"}
    logged = [record["loss"] for record in records(pretraining.folder, "val")[:2]]
    assert [event.value for event in events.Scalars("val/loss")][:2] == pytest.approx(logged, rel=1e-6)


def test_what_belongs_to_an_epoch_stands_at_its_last_iteration(pretraining):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(pretraining.folder / "tensorboard")).Reload()
    ends = [STEPS_PER_EPOCH - 1, 2 * STEPS_PER_EPOCH - 1]
    for tag in ("train/epoch", "train/loss_epoch", "train/images_per_second", "train/waiting_for_data_percent", "val/loss"):
        assert [event.step for event in events.Scalars(tag)][:2] == ends
    assert [event.step for event in events.Images("val/reconstructions")][:2] == ends
    assert [event.value for event in events.Scalars("train/epoch")][:2] == [1, 2]
    assert [record["step"] for record in records(pretraining.folder, "val")][:2] == ends


def test_every_start_is_a_record(pretraining, longer):
    """Two epochs, then the third; the start between them, of a finished run, changed nothing."""
    starts = records(pretraining.folder, "start")
    assert [(start["epoch"], start["step"], start["processes"]) for start in starts] == [(0, 0, 1), (2, 2 * STEPS_PER_EPOCH, 1)]
    assert all("main_simmim.py" in start["command"] and start["versions"]["torch"] == torch.__version__ for start in starts)
    assert all(record["timestamp"] for kind in ("start", "train", "val") for record in records(pretraining.folder, kind))


def test_reconstruction_pictures_have_a_row_for_each_image_and_four_columns(pretraining):
    side, gap, header = 128, 4, 16  # 32-px images are shown four times as large
    rows = PRETRAIN["VIS_IMAGES"]
    for epoch in (0, 1):
        with Image.open(pretraining.folder / "reconstructions" / f"epoch_{epoch:04d}.png") as picture:
            assert picture.size == (4 * (side + gap) - gap, header + rows * (side + gap) - gap)


def test_reconstruction_pictures_show_the_same_images_and_masks_in_every_epoch(pretraining):
    first, second = (Image.open(pretraining.folder / "reconstructions" / f"epoch_{epoch:04d}.png") for epoch in (0, 1))
    width = 2 * 132  # the columns original and masked
    box, prediction = (0, 16, width, first.height), (width, 16, first.width, first.height)
    assert first.crop(box).tobytes() == second.crop(box).tobytes()
    assert first.crop(prediction).tobytes() != second.crop(prediction).tobytes()


def test_epoch_checkpoint_holds_the_official_entries(pretraining):
    content = checkpoint(pretraining.folder, 1)
    assert {"model", "optimizer", "lr_scheduler", "scaler", "epoch", "max_accuracy", "config"} <= content.keys()
    assert content["epoch"] == 1
    assert isinstance(content["config"], str)
    assert content["config"] == (pretraining.files["config.yaml"][1]).decode()


def test_encoder_file_holds_the_encoder_of_the_last_epoch(pretraining, tmp_path):
    (tmp_path / "encoder.pth").write_bytes(pretraining.files["encoder.pth"][1])
    encoder = torch.load(tmp_path / "encoder.pth", weights_only=True)["model"]
    whole = checkpoint(pretraining.folder, 1)["model"]
    assert {f"encoder.{name}" for name in encoder} == {name for name in whole if name.startswith("encoder.")}
    assert all(torch.equal(value, whole[f"encoder.{name}"]) for name, value in encoder.items())


def test_log_file_begins_with_what_the_run_was_made_with(pretraining):
    lines = log_of(pretraining.folder).splitlines()
    for line, name in zip(lines, ("command: ", "commit: ", "versions: Python ", "machine: "), strict=False):
        assert name in line
    assert "--cfg" in lines[0] and "commit: " not in pretraining.result.out  # the console has none of it


def test_rates_are_logged_with_their_exponent(pretraining):
    rates = re.findall(r" lr (\S+)", log_of(pretraining.folder))
    assert rates and all(re.fullmatch(r"\d\.\de[+-]\d\d", rate) for rate in rates)


# ---- the same command again, and a longer run ---------------------------------------------------------------------

def test_finished_run_says_that_nothing_is_left_when_started_again(repeated):
    assert "nothing to train: 2 of 2 epochs are done" in repeated.result.out


def test_finished_run_writes_nothing_but_its_log_when_started_again(pretraining, repeated):
    written = [name for name in changed(pretraining.files, repeated.files)
               if not name.startswith(("tensorboard/", "log_rank0.txt"))]
    assert written == []


def test_finished_run_removes_what_a_kill_has_left_half_written(repeated):
    assert not [name for name in repeated.files if name.endswith(".tmp")]


def test_longer_run_goes_on_with_the_next_epoch(longer):
    assert "epoch 1 is done, going on with epoch 2" in longer.result.out
    assert "Train: [2/3][0/3]" in longer.result.out
    assert "Train: [1/" not in longer.result.out


def test_longer_run_says_which_setting_changed(longer):
    assert "TRAIN.EPOCHS was 2 in the checkpoint and is 3 now" in longer.result.out


def test_longer_run_appends_to_the_metrics(pretraining, longer):
    steps = [record["step"] for record in records(pretraining.folder, "train")]
    assert steps == list(range(3 * STEPS_PER_EPOCH))
    assert [record["epoch"] for record in records(pretraining.folder, "val")] == [0, 1, 2]


def test_longer_run_leaves_earlier_checkpoints_and_the_earlier_config(pretraining, repeated, longer):
    assert not {"ckpt_epoch_0.pth", "ckpt_epoch_1.pth"} & set(changed(repeated.files, longer.files))
    assert longer.files["config_1.yaml"][1] == pretraining.files["config.yaml"][1]
    assert load_config(pretraining.folder / "config.yaml").TRAIN.EPOCHS == 3


def test_eval_of_a_pretrained_model_gives_the_heldout_loss_of_its_training(pretraining, longer, forks):
    flags = ["--eval", "--resume", pretraining.folder / "ckpt_epoch_1.pth"]
    result = forks.run(*pretraining.command, *flags, *opts(pretraining.settings)).checked()
    assert f"held-out loss {records(pretraining.folder, 'val')[1]['loss']:.4f} on {VAL_IMAGES} images" in result.out


# ---- fine-tuning --------------------------------------------------------------------------------------------------

def test_finetuning_logs_what_it_took_from_the_checkpoint(finetuning):
    report = next(line for line in finetuning.result.out.splitlines() if "tensors matched" in line)
    assert "2 missing (head.weight, head.bias)" in report
    assert "1 unexpected (mask_token)" in report
    assert int(re.search(r"(\d+) tensors matched", report)[1]) > 20


def test_finetuning_keeps_that_report_in_the_log_file(finetuning):
    assert "tensors matched" in log_of(finetuning.folder)


def test_finetuning_takes_the_number_of_classes_from_the_data(finetuning):
    assert checkpoint(finetuning.folder, 2)["model"]["head.weight"].shape[0] == len(CLASSES)


def test_checkpoints_of_a_classifier_keep_the_names_of_its_classes(finetuning, pretraining):
    best = torch.load(finetuning.folder / "ckpt_best.pth", weights_only=True)
    assert best["classes"] == checkpoint(finetuning.folder, 2)["classes"] == list(CLASSES)
    assert "classes" not in checkpoint(pretraining.folder, 1)


def test_best_checkpoint_is_of_the_epoch_with_the_highest_accuracy(finetuning):
    val = records(finetuning.folder, "val")
    best = max(val, key=lambda record: record["top1"])  # the first of equals
    content = torch.load(finetuning.folder / "ckpt_best.pth", weights_only=True)
    assert (content["epoch"], content["max_accuracy"]) == (best["epoch"], best["top1"])


def test_best_checkpoint_is_written_when_no_image_is_classified_correctly(finetuning, forks, images, tmp_path):
    """One validation image at a time, by a model that does not learn: some image is classified wrongly."""
    frozen = {"TRAIN.EPOCHS": 1, "TRAIN.BASE_LR": 0.0, "TRAIN.WARMUP_LR": 0.0, "TRAIN.MIN_LR": 0.0}
    for name in CLASSES:
        val = tmp_path / name / "val" / name
        val.mkdir(parents=True)
        image = sorted((images / "val" / name).iterdir())[0]
        (val / image.name).symlink_to(image)
        forks.run(*finetuning.command, "--output", tmp_path / name, *opts({**frozen, "DATA.VAL_PATH": val.parent})).checked()
        folder = tmp_path / name / "finetune" / "default"
        if records(folder, "val")[0]["top1"] == 0:
            break
    assert records(folder, "val")[0]["top1"] == 0
    assert (folder / "ckpt_best.pth").exists()


# ---- evaluation ---------------------------------------------------------------------------------------------------

def test_eval_prints_the_accuracy_that_training_logged(finetuning, evaluation):
    logged = accuracies(finetuning.result.out)
    best = torch.load(finetuning.folder / "ckpt_best.pth", weights_only=True)["epoch"]
    assert len(logged) == 3
    assert accuracies(evaluation.out) == [logged[best]]


@pytest.mark.parametrize("flag", ["--resume", "--pretrained"])
@pytest.mark.parametrize("epoch", [0, 2])
def test_eval_uses_the_named_file_when_the_run_folder_has_others(flag, epoch, finetuning, evaluation, forks):
    result = forks.run(*finetuning.command, "--eval", flag, finetuning.folder / f"ckpt_epoch_{epoch}.pth").checked()
    assert accuracies(result.out) == [accuracies(finetuning.result.out)[epoch]]


@pytest.mark.parametrize("flag", ["--resume", "--pretrained"])
def test_eval_refuses_classes_that_the_checkpoint_does_not_know(flag, finetuning, images, cfg, forks, tmp_path):
    """One folder renamed, which moves the labels of those behind it."""
    for folder in (images / "val").iterdir():
        (tmp_path / "val" / ("zebra" if folder.name == "bee" else folder.name)).parent.mkdir(exist_ok=True)
        (tmp_path / "val" / ("zebra" if folder.name == "bee" else folder.name)).symlink_to(folder)
    result = forks.run("main_finetune.py", "--cfg", cfg.finetune, "--data-path", tmp_path, "--output", tmp_path / "out",
                       "--eval", flag, finetuning.folder / "ckpt_best.pth")
    assert result.code == 2 and "does not know 1 of the 8 of the data, zebra, and knows 8, ant, bee" in result.err


@pytest.mark.parametrize("flag", ["--resume", "--pretrained"])
def test_eval_tells_labels_by_name_where_the_data_has_some_of_the_classes(flag, finetuning, images, cfg, forks, tmp_path):
    """The images of all but the first class are as good as they were among all: each part is counted, and the sum is right."""
    hits = {}
    for part, names in (("last", CLASSES[3:]), ("first", CLASSES[:3]), ("all", CLASSES)):
        for name in names:
            (tmp_path / part / "val").mkdir(parents=True, exist_ok=True)
            (tmp_path / part / "val" / name).symlink_to(images / "val" / name)
        result = forks.run("main_finetune.py", "--cfg", cfg.finetune, "--data-path", tmp_path / part, "--output",
                           tmp_path / "out", "--eval", flag, finetuning.folder / "ckpt_best.pth").checked()
        (count, top1, top5, loss), = accuracies(result.out)
        hits[part] = [int(count) * float(number) for number in (top1, top5, loss)]
    assert [one + other for one, other in zip(hits["first"], hits["last"], strict=True)] == pytest.approx(hits["all"], abs=0.05)


def test_eval_says_what_became_of_each_class(finetuning, evaluation):
    record, folder = records(finetuning.folder, "eval")[0], finetuning.folder / "eval" / "001_ckpt_best"
    with open(folder / "classes.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(CLASSES)
    right, images = ([int(row[name]) for row in rows] for name in ("correct", "images"))
    assert sum(images) == VAL_IMAGES and 100 * sum(right) / VAL_IMAGES == pytest.approx(record["top1"])
    assert record["balanced_accuracy"] == pytest.approx(
        sum(100 * hits / count for hits, count in zip(right, images, strict=True)) / len(CLASSES))
    assert 100 / len(CLASSES) < record["confidence"] <= 100
    for words in (f"balanced accuracy {record['balanced_accuracy']:.3f}%", "least accurate: ", "most often mistaken: ",
                  str(folder)):
        assert words in evaluation.out
    assert Image.open(folder / "confusion.png").mode == "RGB"


def test_last_epoch_of_finetuning_says_what_became_of_each_class(finetuning):
    folders = [name for name in finetuning.files if name.startswith("eval/")]
    assert folders == [f"eval/epoch_2/{name}" for name in ("classes.csv", "confusion.csv", "confusion.png")]
    assert finetuning.result.out.count("balanced accuracy") == 1


def test_eval_neither_trains_nor_writes_checkpoints(finetuning, evaluation):
    assert "Train:" not in evaluation.out
    after = snapshot(finetuning.folder)
    written = changed(finetuning.files, after)
    assert [name for name in written if name not in ("metrics.jsonl", "log_rank0.txt") and not name.startswith("eval/0")] == []
    for name in finetuning.files.keys() & written:
        assert after[name][1].startswith(finetuning.files[name][1])  # appended at most
    assert len(records(finetuning.folder, "train")) == 3 * STEPS_PER_EPOCH


def test_eval_leaves_no_checkpoint_in_a_new_run_folder(finetuning, images, cfg, forks, tmp_path):
    forks.run("main_finetune.py", "--cfg", cfg.finetune, "--data-path", images, "--output", tmp_path, "--eval",
              "--resume", finetuning.folder / "ckpt_best.pth").checked()
    assert checkpoint_names(tmp_path) == []


def test_eval_needs_no_training_images(finetuning, evaluation, images, cfg, forks, tmp_path):
    (tmp_path / "val").symlink_to(images / "val")
    result = forks.run("main_finetune.py", "--cfg", cfg.finetune, "--data-path", tmp_path, "--output", tmp_path / "out",
                       "--eval", "--resume", finetuning.folder / "ckpt_best.pth").checked()
    assert accuracies(result.out) == accuracies(evaluation.out)


# ---- throughput ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stage", ["pretraining", "finetuning"])
def test_throughput_prints_a_number_and_writes_nothing(stage, request, forks, tmp_path):
    command = [word if word != request.getfixturevalue("pretraining").output else tmp_path / "out"
               for word in request.getfixturevalue(stage).command]
    result = forks.run(*command, "--throughput").checked()
    assert float(re.search(r"batch size 8 throughput ([\d.]+) images/s", result.out)[1]) > 0
    assert not (tmp_path / "out").exists()
