"""What a model is worth, measured by all processes together: accuracy, held-out loss, throughput."""
import itertools
import logging
import math
import os
import re
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from config import encoder_config, image_size, run_folder
from logger import log_to_file, record_line
from utils import distributed, stopping
from utils.confusion import Confusion
from utils.confusion_picture import confusion_picture
from utils.devices import packed, to_device, wait_for
from utils.files import naming, replacing, write_text

log = logging.getLogger("simmim.evaluation")

FOLDER = "eval"  # in the run folder: what evaluations found of each class
LARGEST_MATRIX = 2000  # classes; of more the matrix is neither written nor drawn


def note_whole_model(config):
    """Log that evaluation does not divide the model."""
    if config.TRAIN.PARALLEL == "fsdp":
        log.info("TRAIN.PARALLEL fsdp is for training: to evaluate, every process holds the whole model")


def in_step(loader, device):
    """(batch, whether it counts, images left out of it): the batches of this process, and then fillers that do not count until
    every process has had as many.

    A sharded model must be called by all processes or none, but images may not divide evenly. Images that could not be read
    are left out; a batch of which nothing is left does not count.
    Raises: stopping.Asked, on all processes after the same batch, if a training was asked to stop.
    """
    longest = distributed.largest_over_processes(torch.tensor(len(loader), device=device)).item()
    exchange = distributed.Exchange()
    for batch in packed(loader):
        blank = getattr(loader, "blank", [])  # a plain list of batches has none
        read = [i for i in range(len(batch[0])) if i not in blank] if blank else []
        yield [part[read] for part in batch] if read else batch, bool(read) or not blank, len(blank)
        _stop_if_asked(exchange)
    for _ in range(longest - len(loader)):
        yield loader.filler(), False, 0
        _stop_if_asked(exchange)


def _stop_if_asked(exchange):
    if stopping.saves_first():  # within a training, on all processes or none
        code, = exchange(stopping.requested())
        if code:
            raise stopping.Asked(code)


def images_of(loader, count, left_out):
    """{images, unreadable}, the latter only where some could not be read; warns of each once. All processes must call it.

    Args:
        loader: its `bad` has met them.
        count, left_out: images that were read and that were not, over all processes.
    Raises: ValueError if none could be read.
    """
    bad = getattr(loader, "bad", None)
    if left_out and bad:
        news = [found for found in distributed.from_all(bad.news()) if found]
        new = [bad.add(found) for found in news]
        if any(new) and distributed.rank() == 0:
            log.warning("%d of %d validation images can't be read and are left out: %s", int(left_out), int(count + left_out),
                        bad.listing())
    if not count:
        raise ValueError(f"none of {int(left_out)} validation images can be read{f': {bad.listing()}' if bad else ''}. Check "
                         f"--data-path and DATA.VAL_PATH.")
    return {"images": int(count)} | ({"unreadable": int(left_out)} if left_out else {})


@torch.no_grad()
def evaluate(model, loader, device, precision, confusion=None):
    """Accuracy of a classification model, each image counted once over all processes.

    Args:
        model: plain module, images -> logits.
        loader: batches of (images, labels).
        confusion: utils.confusion.Confusion that counts what images were taken for.
    Returns: {top1, top5 (of more than five classes only), balanced_accuracy (mean over classes), confidence (mean probability
        of what is predicted), all in percent, loss, images}, and see images_of.
    """
    model.eval()
    confusion = Confusion() if confusion is None else confusion
    sums = torch.zeros(6, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    for batch, counts, left_out in in_step(loader, device):
        images, labels = to_device(batch, device)
        with precision.autocast():
            logits = model(images)
        sums[5] += left_out
        num_classes = logits.shape[1]
        if not counts:
            continue
        logits = logits.float()
        best = logits.topk(min(5, num_classes), dim=1).indices
        confusion.add(labels, best[:, 0])
        hits = best.eq(labels.unsqueeze(1))
        loss = F.cross_entropy(logits, labels, reduction="sum")
        confidence = logits.softmax(dim=1).amax(dim=1).sum()
        sums[:5] += torch.stack([hits[:, 0].sum(), hits.any(dim=1).sum(), loss, confidence,
                                 torch.tensor(len(labels), device=device)]).to(sums)
    top1, top5, loss, confidence, count, left_out = distributed.sum_over_processes(sums).tolist()
    confusion.share()
    images = images_of(loader, count, left_out)
    return ({"top1": 100 * top1 / count} | ({"top5": 100 * top5 / count} if num_classes > 5 else {})
            | {"balanced_accuracy": confusion.balanced_accuracy(), "confidence": 100 * confidence / count, "loss": loss / count}
            | images)


def accuracy_line(numbers):
    """What `evaluate` found, for the log."""
    top5 = f", top-5 {numbers['top5']:.3f}%" if "top5" in numbers else ""
    return f"accuracy on {numbers['images']} images: top-1 {numbers['top1']:.3f}%{top5}, loss {numbers['loss']:.4f}"


def report_classes(config, numbers, confusion, classes, name=""):
    """Log what `evaluate` found of the classes, and write it to the run folder: classes.csv, confusion.csv, confusion.png.

    Of more than LARGEST_MATRIX classes classes.csv alone. Rank 0 writes.

    Args:
        classes: their names, in the order of the labels.
        name: of the folder below eval/; "" = one of its own, after the weights of --eval.
    Raises: OSError that names the file.
    """
    log.info("balanced accuracy %.3f%%, mean confidence %.3f%%", numbers["balanced_accuracy"], numbers["confidence"])
    for line in confusion.in_words(classes):
        log.info("%s", line)
    if distributed.rank() == 0:
        parent = Path(run_folder(config)) / FOLDER
        folder = parent / name if name else _new_folder(parent, config)
        write_text(folder / "classes.csv", confusion.class_table(classes))
        if len(classes) <= LARGEST_MATRIX:
            write_text(folder / "confusion.csv", confusion.matrix_table(classes))
            with replacing(folder / "confusion.png") as path:
                confusion_picture(confusion.matrix(len(classes)), classes).save(path, format="png")
        log.info("each class%s: %s", " and the confusion matrix" if len(classes) <= LARGEST_MATRIX else "", folder)


def _new_folder(parent, config):
    """Make the folder NNN_<weights> that no other evaluation writes to."""
    weights = Path((config.MODEL.RESUME or config.PRETRAINED).rstrip("/")).stem
    name = re.sub(r"[^\w.-]", "_", weights)[:60] + (f"_{config.PRETRAINED_KEY}" if config.PRETRAINED_KEY else "")
    with naming(parent):
        taken = [int(path.name.partition("_")[0]) for path in parent.glob("[0-9]*_*")]
        for number in itertools.count(max(taken, default=0) + 1):
            folder = parent / f"{number:03d}_{name}"
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:  # of an evaluation that has begun meanwhile
                continue


@torch.no_grad()
def heldout_loss(model, loader, device, precision):
    """Mean pre-training loss over held-out images with fixed masks: {loss, images}, and see images_of."""
    model.eval()
    sums = torch.zeros(3, dtype=torch.float32, device=device)
    for batch, counts, left_out in in_step(loader, device):
        images, masks = to_device(batch, device)
        with precision.autocast():
            loss = model(images, masks)
        sums[2] += left_out
        if not counts:
            continue
        sums[:2] += torch.stack([loss * len(images), torch.tensor(float(len(images)), device=device)])
    total, count, left_out = distributed.sum_over_processes(sums).tolist()
    return {"loss": total / count if count else 0.0} | images_of(loader, count, left_out)


def record_evaluation(config, *records):
    """Append the numbers of --eval to metrics.jsonl of the run folder, with the weights they belong to."""
    note_whole_model(config)
    log_to_file(run_folder(config), distributed.rank())
    append_records(config, "eval", records)
    if any(not math.isfinite(record.get("loss", 0.0)) for record in records):
        raise ValueError("the loss is NaN or infinite, and the other numbers mean nothing: the weights are finite, so their "
                         "format overflows. Try --amp-opt-level O0.")


def append_records(config, kind, records):
    """Add records {name: number or text} to metrics.jsonl of the run folder, with the weights they belong to."""
    if distributed.rank() == 0:
        key = {"key": config.PRETRAINED_KEY} if config.PRETRAINED_KEY else {}
        with open(os.path.join(run_folder(config), "metrics.jsonl"), "a", encoding="utf-8") as file:
            for record in records:
                file.write(record_line(kind, weights=config.MODEL.RESUME or config.PRETRAINED, **key, **record))


@torch.no_grad()
def throughput(model, shape, device, precision, warmup=5, rounds=30):
    """Images per second of inference on random images of one process.

    Args:
        shape: (B, C, H, W).
    """
    model.eval()
    images = torch.randn(shape, device=device)
    for i in range(warmup + rounds):
        if i == warmup:
            wait_for(device)
            begin = time.time()
        with precision.autocast():
            model(images)
    wait_for(device)
    return shape[0] * rounds / (time.time() - begin)


def report_throughput(model, config, device, precision):
    """Log images per second of inference at the config's size and batch."""
    note_whole_model(config)
    shape = (config.DATA.BATCH_SIZE, encoder_config(config).IN_CHANS, *image_size(config))
    log.info("batch size %d throughput %.1f images/s (%s, %s)", shape[0], throughput(model, shape, device, precision),
             device, precision)
