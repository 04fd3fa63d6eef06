"""The one training loop: update, epoch, fit. Knows no method and no dataset; resume.py has its memory.

A job is a model, batches, and a function from (model, batch) to a loss. Iterations count micro-batches over the whole
run; the random draws of an iteration (drop path, mixup) are a pure function of (seed, iteration, rank).
"""
import datetime
import inspect
import logging
import math
import os
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from checks import check_steps, last_step
from config import dump, images_per_step, save_config
from logger import MetricWriter, create_logger, cut_back, log_to_file
from models import build_model
from models.build import build_sharded
from models.compiling import compile_units
from models.freezing import freeze, train_mode
from resume import is_finished, resume, say_finished
from saving import Place, save_best
from utils import distributed, stopping
from utils.average import Average
from utils.background import Writer
from utils.checkpoint import BEST_AVERAGE_FILE, check_places, remove_unfinished
from utils.devices import packed, to_device
from utils.heartbeat import Heartbeat
from utils.lock import FolderLock
from utils.meters import Meter, peak_memory_mb
from utils.origin import in_words, origin
from utils.precision import build_precision, computes_in_bfloat16
from utils.seeding import STEP, seed_globals
from utils.sharding import is_sharded, whole
from watch import Watch

log = logging.getLogger("simmim.engine")

COUNTS = ("images", "unreadable")  # what a validation gives beside its numbers


class Updater:
    """One optimizer step from one or several micro-batches.

    K micro-batches give the step of one batch K times as large: their gradients are averaged and clipped once. A step
    whose loss or gradient is not finite, on any process, is skipped on all of them and counted. Nothing here waits for the
    device, apart from optimizers that are not fused.

    Args:
        model: the module whose parameters the optimizer has, wrapped for parallel training or not.
        optimizer, precision: from build_optimizer and build_precision.
        clip: largest gradient norm, 0 or None = no clipping.
        average: utils.average.Average of the weights, or None.
    """

    def __init__(self, model, optimizer, precision, clip, average=None):
        self.model = model
        self.optimizer = optimizer
        self.precision = precision
        self.clip = clip or math.inf
        self.average = average
        self.skipped = 0         # steps skipped so far
        self.skipped_in_row = 0  # ... without a good one between; both become tensors with the first step
        self.loss = None         # of the last step, of this process

    def update(self, losses):
        """Run the micro-batches of one step.

        Args:
            losses: list of functions model -> scalar loss, one for each micro-batch.
        Returns: (mean loss, gradient norm before clipping), tensors on the device.
        """
        total = 0.0
        for i, compute_loss in enumerate(losses):
            last = i == len(losses) - 1
            with self._communication(last):
                with self.precision.autocast():
                    loss = compute_loss(self.model)
                # a factor of 1, or NaN where the loss is not finite: so its gradient, and that of all processes, is not, either
                finite = loss.detach() * 0 + 1
                self.precision.backward(loss * finite / len(losses), self.optimizer, last)
            total = total + loss.detach()
        parameters = self.precision.gradients(self.optimizer)
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, self.clip))  # over all parts of a sharded model
        nonfinite = ~torch.isfinite(norm)
        self.precision.step(self.optimizer, nonfinite)
        if self.average is not None:
            self.average.update(skipped=nonfinite)
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped = self.skipped + nonfinite
        self.skipped_in_row = (self.skipped_in_row + 1) * nonfinite
        self.loss = total / len(losses)
        return self.loss, norm

    def _communication(self, last):
        """Under ddp, gradients travel between processes with the last micro-batch only.

        Under fsdp with each: waiting would mean that every process holds the gradient of the whole model.
        """
        return nullcontext() if last or not hasattr(self.model, "no_sync") else self.model.no_sync()


@dataclass
class Job:
    """Everything a training run needs.

    Attributes:
        config: the raw config.
        task: pretrain, finetune or probe; says which settings are written down with the run.
        device: torch.device.
        model: the plain module; `updater.model` may wrap it.
        loader: training batches, tuples of tensors; its sampler has `set_epoch`; what it can't read is in its `bad`.
        updater, scheduler: what changes the weights, what sets the learning rate.
        compute_loss: (model, batch) -> scalar loss.
        validate: epoch -> {name: number}, on all ranks; {} if there is nothing to validate. Called again for the average of
            the weights, which the model then has.
        draw: epoch -> None, on all ranks: pictures of what the model makes, before it is validated; or None.
        folder: run folder.
        metrics: MetricWriter, made by open_run.
        place: saving.Place, where the run is.
        files: how long its metrics were at the checkpoint it goes on from; None where that is not known.
        was_finished: whether there was nothing left to do when it started.
        group: index of the parameter group whose learning rate is logged (official: first in pre-training, last in
            fine-tuning).
        score: name of the validation number whose highest value marks the best checkpoint, or None.
        started_from: checkpoint that the run was explicitly resumed from, as text.
        fixed: config keys that a checkpoint must share to be continued.
        classes: names of the classes in the order of the labels; checkpoints keep them.
        images: Samples.mark of the training images, by which a run knows them in another place; "" = not known.
        ignored: settings that the checkpoint of a finished run has otherwise: {key: (there, here)}.
    """
    config: Any
    task: str
    device: torch.device
    model: torch.nn.Module
    loader: Any
    updater: Updater
    scheduler: Any
    compute_loss: Any
    validate: Any
    folder: str
    metrics: Any = None
    group: int = 0
    score: str | None = None
    place: Place = field(default_factory=Place)
    files: dict | None = field(default_factory=dict)
    was_finished: bool = False
    draw: Any = None
    best: float = 0.0
    best_epoch: int = -1
    best_average: float = 0.0
    best_average_epoch: int = -1
    started_from: str = ""
    fixed: tuple = ()
    classes: tuple = ()
    images: str = ""
    ignored: dict = field(default_factory=dict)
    lock: Any = None
    heart: Any = None
    writer: Writer = field(default_factory=Writer)


def start(config):
    """Join the other processes, begin to log, seed: what every main does first.

    Returns: (torch.device, precision).
    Raises: ValueError if weights are to be chosen in no file.
    """
    if config.PRETRAINED_KEY and not config.PRETRAINED and not (config.EVAL_MODE and config.MODEL.RESUME):
        raise ValueError(f"PRETRAINED_KEY={config.PRETRAINED_KEY} (--ema is ema) chooses among the weights of --pretrained, or "
                         f"of --resume with --eval, and neither is given: leave it out, or pass a checkpoint.")
    device = distributed.start(config.LOCAL_RANK, config.DIST_TIMEOUT_MINUTES)
    create_logger(distributed.rank())
    if distributed.rank() == 0:
        for name, text in in_words(origin(device)).items():
            log.debug("%s: %s", name, text)
    precision = build_precision(config.AMP_OPT_LEVEL, config.AMP_BACKEND, device)
    seed_globals(config.SEED)  # the same start on every rank
    return device, precision


def build_for_training(config, is_pretrain, device, precision):
    """The model on its device, with what TRAIN.FREEZE names frozen; divided among the processes with TRAIN.PARALLEL fsdp.

    With TRAIN.COMPILE its blocks are compiled, in their first steps.
    Raises: ValueError where the precision can't be combined with it, TRAIN.FREEZE names nothing of the model, or there is no
        compiler.
    """
    model = _build(config, is_pretrain, device, precision)
    freeze(model, config.TRAIN.FREEZE)
    if config.TRAIN.FREEZE != "none" and not config.PRETRAINED and not config.MODEL.RESUME:
        log.warning("TRAIN.FREEZE=%s without --pretrained: what is frozen keeps random weights, unless the run folder holds a "
                    "checkpoint to resume", config.TRAIN.FREEZE)
    if config.TRAIN.COMPILE:
        log.info("TRAIN.COMPILE: the blocks are compiled during the first steps, which takes a while")
        compile_units(model)
    return model


def _build(config, is_pretrain, device, precision):
    if config.TRAIN.PARALLEL == "ddp" or distributed.world_size() == 1:
        if config.TRAIN.PARALLEL == "fsdp":
            log.info("TRAIN.PARALLEL fsdp divides the model among processes: this is one, so it holds all of it")
        return build_model(config, is_pretrain).to(device)
    if config.AMP_BACKEND == "apex":
        raise ValueError("TRAIN.PARALLEL fsdp does not work with AMP_BACKEND apex: use AMP_BACKEND native, or ddp.")
    if config.TRAIN.OPTIMIZER.NAME.startswith("fused_"):
        raise ValueError(f"TRAIN.PARALLEL fsdp does not work with TRAIN.OPTIMIZER.NAME {config.TRAIN.OPTIMIZER.NAME} of apex, "
                         f"which knows no divided parameters: use adamw, or ddp.")
    if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        raise ValueError(f"TRAIN.PARALLEL fsdp on the CPU needs a newer torch than {torch.__version__}: upgrade, or use ddp.")
    if config.SAVE_ASYNC:
        log.warning("SAVE_ASYNC is for whole models: with TRAIN.PARALLEL fsdp training waits until a checkpoint is written")
    return build_sharded(config, is_pretrain, device, precision.dtype)


def build_updater(config, model, optimizer, precision, device):
    """What changes the weights of a model, on all processes, and keeps their average where TRAIN.EMA_DECAY asks for one."""
    return Updater(parallel(model, device), optimizer, precision, config.TRAIN.CLIP_GRAD, build_average(config, model))


def build_average(config, model):
    """Average of the weights that a model has now, None without TRAIN.EMA_DECAY."""
    return Average(model, config.TRAIN.EMA_DECAY) if config.TRAIN.EMA_DECAY else None


def parallel(model, device):
    """Wrap for training on several processes; the model itself for one, or when it is sharded."""
    if not distributed.is_parallel() or is_sharded(model):
        return model
    ids = [device.index] if device.type == "cuda" else None
    # buffers are indices and masks, equal everywhere; the option that says so was renamed in torch 2.15
    options = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    for parameter in model.parameters():
        if parameter.requires_grad and (parameter.ndim == 4 or 1 in parameter.shape):
            parameter.register_hook(partial(_laid_out_as, parameter.stride()))
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, **{name: False})


def _laid_out_as(strides, gradient):
    """A gradient of a convolution in the layout of its weight, in which processes add it up; else torch warns."""
    if gradient.stride() == strides:
        return gradient
    return torch.empty_strided(gradient.shape, strides, dtype=gradient.dtype, device=gradient.device).copy_(gradient)


# ---- starting -----------------------------------------------------------------------------------------------------

@contextmanager
def running(job, scaled, num_train, num_val):
    """Claim the run folder, go on where the run stopped, open its files and say what will happen; at the end close them.

    Args:
        scaled, num_train, num_val: as of announce.
    Raises: ValueError if another process holds the folder, or steps are not what the rates are for.
    """
    check_steps(job.config, scaled, len(job.loader))
    first = distributed.rank() == 0
    if first:
        job.lock = FolderLock(job.folder, log.info)
        if job.lock.left_by:
            log.warning("%s was in use by %s, which ended without giving it back: taking it over", job.folder, job.lock.left_by)
        remove_unfinished(job.folder)  # of a finished run, too: one that was killed while it wrote encoder.pth is that
    distributed.barrier()
    job.heart = Heartbeat(job.lock, job.config.DIST_TIMEOUT_MINUTES * 60)
    job.heart.start()
    try:
        resume(job)
        job.was_finished = is_finished(job)
        if job.was_finished:
            say_finished(job)
        else:
            open_run(job)
            announce(job, scaled, num_train, num_val)
        yield
    except Exception as error:
        if distributed.is_waiting_in_vain(error):
            job.heart.await_verdict()
        raise
    finally:
        end(job)


def open_run(job):
    """Make the run folder: log files, metrics, and the config that reproduces the run (config.yaml)."""
    first = distributed.rank() == 0
    if first:
        check_places(job.folder)
    log_to_file(job.folder, distributed.rank())
    if first:
        save_config(job.config, job.folder, job.task)
        lost = cut_back(job.folder, job.files) if job.files is not None else []
        if lost:
            log.warning("%s of %s ends before the checkpoint: what is missing is lost, training is not", ", ".join(lost),
                        job.folder)
    job.loader.bad.read(job.folder)
    step = job.place.epoch * len(job.loader) + job.place.batches
    job.metrics = MetricWriter(job.folder if first else None, step)
    job.metrics.start(step, job.place.epoch, origin(job.device), dump(job.config, job.task))
    distributed.barrier()
    if is_sharded(job.model) and not os.path.exists(os.path.join(job.folder, "config.yaml")):
        raise ValueError(f"this machine does not see {job.folder} of rank 0, into which every process of a sharded run writes "
                         f"its part: put --output on a file system that all machines share.")


def end(job):
    """Close the files of a run and give its folder back."""
    try:
        if job.metrics is not None:
            job.metrics.close()
    finally:
        if job.heart is not None:
            job.heart.end()
        if job.lock is not None:
            job.lock.release()


def announce(job, scaled, num_train, num_val):
    """Log what will happen: sizes, effective batch, scaled learning rates, precision.

    Args:
        scaled: the config with effective learning rates.
        num_train, num_val: images; num_val may be None.
    """
    config, train = job.config, job.config.TRAIN
    log.debug("settings:\n%s", dump(config, job.task))
    log.debug("%s", job.model)
    total = sum(parameter.numel() for parameter in job.model.parameters())
    trained = sum(parameter.numel() for parameter in job.model.parameters() if parameter.requires_grad)
    log.info("%s / %s: %.2fM parameters, of which %.2fM are trained, %s, %s", config.MODEL.METHOD, config.MODEL.TYPE,
             total / 1e6, trained / 1e6, job.device, job.updater.precision)
    if job.device.type == "cpu" and not config.AMP_OPT_LEVEL and computes_in_bfloat16():
        log.info("this CPU computes in bfloat16, in which large models train faster: --amp-opt-level O1")
    log.info("%d training images in %d iterations an epoch, %s validation images%s", num_train, len(job.loader),
             num_val or "no", f", {len(job.classes)} classes" if job.classes else "")
    total = images_per_step(config, distributed.world_size())
    if is_sharded(job.model):
        log.info("every process holds a part of the model (TRAIN.PARALLEL fsdp)")
    steps, num_batches = max(train.ACCUMULATION_STEPS, 1), len(job.loader)
    images = config.DATA.BATCH_SIZE * distributed.world_size()
    log.info("effective batch: %d images x %d processes x %d accumulation steps = %d%s", config.DATA.BATCH_SIZE,
             distributed.world_size(), steps, total, "" if num_batches % steps == 0 else
             f"; the last step of an epoch has {last_step(steps, num_batches) * images}, at the same rate")
    log.info("an epoch is %d steps of %d of the %d images; %d of %d epochs are to come", math.ceil(num_batches / steps),
             images * num_batches, num_train, train.EPOCHS - job.place.epoch, train.EPOCHS)
    log.info("learning rates x %d / %d: base %.3e -> %.3e, warm-up start %.3e -> %.3e, minimum %.3e -> %.3e", total,
             train.LR_SCALE_BATCH, train.BASE_LR, scaled.TRAIN.BASE_LR, train.WARMUP_LR, scaled.TRAIN.WARMUP_LR, train.MIN_LR,
             scaled.TRAIN.MIN_LR)
    if train.WARMUP_EPOCHS == train.EPOCHS:
        log.warning("TRAIN.WARMUP_EPOCHS=%d is all of TRAIN.EPOCHS: the learning rate never falls", train.WARMUP_EPOCHS)
    if train.EMA_DECAY:
        steps, span = train.EPOCHS * -(-len(job.loader) // max(train.ACCUMULATION_STEPS, 1)), 1 / (1 - train.EMA_DECAY)
        log.info("an average of the weights is kept, over about %.0f of %d steps (TRAIN.EMA_DECAY %g)", span, steps,
                 train.EMA_DECAY)
        if span > steps:
            log.warning("TRAIN.EMA_DECAY=%g is slow for a run of %d steps: at its end %.0f%% of the average are the weights it "
                        "began with. %.4g averages over a tenth of the run", train.EMA_DECAY, steps,
                        100 * train.EMA_DECAY ** steps, max(1 - 10 / steps, 0.5))
    log.info("run folder: %s", job.folder)


# ---- training -----------------------------------------------------------------------------------------------------

def fit(job):
    """Train from job.place to TRAIN.EPOCHS: epochs, checkpoints, validation.

    An epoch is saved before it is validated, so that nothing that happens then costs more than the validation.
    Raises: Stopped, once the step is done and saved, if the processes were asked to stop.
    """
    begun = time.time()
    if job.was_finished:
        return
    watch = Watch(job)
    with stopping.saving_first():
        try:
            _epochs(job, watch)
        except stopping.Asked as asked:
            watch.stop(asked.code)
    log.info("training took %s", _duration(time.time() - begun))


def _epochs(job, watch):
    config = job.config
    if not job.place.validated:
        _validate(job, watch)
    for epoch in range(job.place.epoch, config.TRAIN.EPOCHS):
        train_epoch(job, epoch, watch)
        last = epoch == config.TRAIN.EPOCHS - 1
        if epoch % config.SAVE_FREQ == 0 or last:
            watch.save()
        _validate(job, watch)
        if last:
            watch.complete()
    job.writer.wait()


def _validate(job, watch):
    """Validate the epoch that was trained last; keep its model if it is the best."""
    epoch = job.place.epoch - 1
    watch.at("the validation of epoch {}", epoch)
    if job.draw is not None:
        job.draw(epoch)
    numbers, average, averaged = job.validate(epoch), job.updater.average, {}
    if numbers and average is not None:
        log.info("the average of the weights:")
        with average.in_place():
            averaged = job.validate(epoch)
    if numbers:
        of_average = {f"ema_{name}": value for name, value in averaged.items() if name not in COUNTS}
        step = last_iteration(job, epoch)
        job.metrics.write("val", step, epoch=epoch, **numbers, **of_average)
        job.metrics.draw(step, {f"val/{name}": value for name, value in (numbers | of_average).items() if name not in COUNTS})
    if _is_best(job, epoch, numbers, job.best, job.best_epoch):
        job.best, job.best_epoch = numbers[job.score], epoch
        job.writer.wait()  # the best without a checkpoint to go on from would be in the way of the next start
        save_best(job, epoch)
    if _is_best(job, epoch, averaged, job.best_average, job.best_average_epoch):
        job.best_average, job.best_average_epoch = averaged[job.score], epoch
        job.writer.wait()
        save_best(job, epoch, average=True)
    job.place.validated = True


def last_iteration(job, epoch):
    """Number of the last iteration of an epoch, counted over the run: the step of what is written at its end."""
    return (epoch + 1) * len(job.loader) - 1


def _is_best(job, epoch, numbers, best, best_epoch):
    """Whether the numbers of an epoch are better than the best so far."""
    if not math.isfinite(numbers.get("loss", 0.0)):
        log.warning("the validation loss of epoch %d is %s: it can't be the best", epoch, numbers["loss"])
        return False
    score = numbers.get(job.score) if job.score else None
    return score is not None and (best_epoch < 0 or score > best)


def report_best(job):
    """Log the best top-1 of a run, and that of the average of its weights.

    The images that it was chosen by have measured it, which flatters: the log says so.
    """
    log.info("best top-1 %.3f%% in epoch %d, the best of %d on these validation images: no figure of unseen ones", job.best,
             job.best_epoch, job.place.epoch)
    if job.best_average_epoch >= 0:
        log.info("best top-1 of the average of the weights %.3f%% in epoch %d (%s, --ema)", job.best_average,
                 job.best_average_epoch, BEST_AVERAGE_FILE)


def train_epoch(job, epoch, watch=None):
    """One pass over the training data from job.place on, in groups of TRAIN.ACCUMULATION_STEPS micro-batches.

    The last group of an epoch may be shorter; it makes a step of its own.

    Args:
        watch: Watch of the run; None = a new one.
    """
    config, loader, place = job.config, job.loader, job.place
    watch = watch or Watch(job)
    num_batches, size = len(loader), max(config.TRAIN.ACCUMULATION_STEPS, 1)
    loader.sampler.set_epoch(epoch, place.batches)
    train_mode(job.model)
    job.updater.optimizer.zero_grad(set_to_none=True)
    meters = epoch_loss, loss_meter, norm_meter = Meter(), Meter(), Meter()
    for meter, state in zip(meters, place.meters or (), strict=False):
        meter.load(state)
    clock = Clock()
    progress = _progress_bar(num_batches, f"epoch {epoch}")
    group = []
    for i, batch in enumerate(packed(loader), start=place.batches):
        iteration = epoch * num_batches + i
        clock.data_arrived()
        group.append(_loss_of(job, batch, iteration))
        if len(group) < size and i < num_batches - 1:
            clock.waits_for_data()
            continue
        watch.at("iteration {} of epoch {}", i, epoch)
        loss, norm = job.updater.update(group)
        rate = job.updater.optimizer.param_groups[job.group]["lr"]  # of the step just made
        job.scheduler.step_update(iteration)
        for meter, value in ((epoch_loss, loss), (loss_meter, loss), (norm_meter, norm)):
            meter.add(value)
        group = []
        if i // config.PRINT_FREQ > (i - size) // config.PRINT_FREQ or i == num_batches - 1:
            _report(job, epoch, i, rate, (loss_meter, epoch_loss, norm_meter), clock, progress, watch)
            loss_meter.reset()
            norm_meter.reset()
        progress.update(i + 1 - progress.n)
        watch.step_done(epoch, i + 1, meters)
        clock.waits_for_data()
        watch.at("waiting for data of iteration {} of epoch {}", i + 1, epoch)
    progress.close()
    job.place = Place(epoch + 1, validated=False)
    log.info("EPOCH %d training takes %s", epoch, _duration(clock.total))


def _loss_of(job, batch, iteration):
    def compute(model):
        seed_globals(job.config.SEED, STEP, iteration, distributed.rank())
        return job.compute_loss(model, to_device(batch, job.device))
    return compute


class Clock:
    """Wall time of an epoch and the part of it spent waiting for data, in seconds."""

    def __init__(self):
        self.begin = self.mark = self.waiting_since = time.time()
        self.data = self.total = self.total_data = 0.0
        self.batches = self.total_batches = 0

    def data_arrived(self):
        self.data += time.time() - self.waiting_since
        self.batches += 1

    def waits_for_data(self):
        self.waiting_since = time.time()

    def waiting(self):
        """Share of the time up to the last lap that was spent waiting for data."""
        return self.total_data / max(self.total, 1e-9)

    def lap(self):
        """(seconds a batch, seconds of waiting a batch) since the last lap."""
        now = time.time()
        each, waiting = (now - self.mark) / max(self.batches, 1), self.data / max(self.batches, 1)
        self.total, self.total_data, self.total_batches = (
            now - self.begin, self.total_data + self.data, self.total_batches + self.batches)
        self.mark, self.data, self.batches = now, 0.0, 0
        return each, waiting


def _report(job, epoch, i, rate, meters, clock, progress, watch):
    """Log one line; the only place where training waits for the device and for the other processes."""
    config, num_batches, updater = job.config, len(job.loader), job.updater
    numbers = torch.stack([torch.as_tensor(meter.mean(), dtype=torch.float32, device=job.device) for meter in meters])
    loss, average, norm = (distributed.sum_over_processes(numbers) / distributed.world_size()).tolist()
    skipped = int(updater.skipped)
    each, waiting = clock.lap()
    per_batch, step = config.DATA.BATCH_SIZE * distributed.world_size(), epoch * num_batches + i
    images = per_batch / max(each, 1e-9)
    memory = peak_memory_mb(job.device)
    left = each * (num_batches - i - 1)
    progress.set_postfix_str(f"loss {loss:.4f} lr {rate:.2e}")
    line = (f"Train: [{epoch}/{config.TRAIN.EPOCHS}][{i}/{num_batches}]\teta {_duration(left)} lr {rate:.1e}\t"
            f"time {each:.4f} data {waiting:.4f}\tloss {loss:.4f} ({average:.4f})\tgrad_norm {norm:.4f}\t"
            f"{images:.0f} images/s\tmem {memory:.0f}MB" + (f"\tskipped {skipped}" if skipped else ""))
    log.log(logging.DEBUG if progress.disable is False else logging.INFO, line)
    job.metrics.write("train", step, epoch=epoch, loss=loss, loss_epoch=average, lr=rate, grad_norm=norm, time=each,
                      data_time=waiting, images_per_second=images, memory_mb=memory, skipped=skipped)
    curves = {"train/loss": loss, "train/lr": rate, "train/grad_norm": norm} | ({"train/skipped": skipped} if skipped else {})
    if i == num_batches - 1:  # what begins anew with each epoch is drawn once it is over
        speed = per_batch * clock.total_batches / max(clock.total, 1e-9)
        curves |= {"train/epoch": epoch + 1, "train/loss_epoch": average, "train/images_per_second": speed,
                   "train/waiting_for_data_percent": 100 * clock.waiting()}
    job.metrics.draw(step, curves)
    collapsed = watch.collapse.add(loss, norm)
    if collapsed:
        log.warning("epoch %d, iteration %d: %s", epoch, i, collapsed)
    updater.precision.hold_scale()


def _progress_bar(total, name):
    """A bar on a terminal; elsewhere one that does nothing."""
    shown = distributed.rank() == 0 and sys.stderr.isatty()
    return tqdm(total=total, desc=name, disable=not shown, leave=False, dynamic_ncols=True, unit="it")


def _duration(seconds):
    return str(datetime.timedelta(seconds=int(seconds)))
