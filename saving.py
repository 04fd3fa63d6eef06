"""What a run leaves behind: checkpoints, the best model, the encoder alone. A job is an engine.Job."""
import logging
import os
from dataclasses import dataclass
from functools import partial

from config import dump
from utils import distributed, sharding, stopping
from utils.background import host_copy
from utils.checkpoint import (
    AVERAGE,
    BEST_AVERAGE_FILE,
    BEST_FILE,
    ENCODER_FILE,
    remove_old,
    rewrite_state,
    save_checkpoint,
    save_folder,
)

log = logging.getLogger("simmim.saving")


@dataclass
class Place:
    """Where a run is, between two optimizer steps.

    Attributes:
        epoch: number of epochs whose batches are all done: the number of the one it is in.
        batches: micro-batches done in it, by each process.
        steps: optimizer steps done in it.
        validated: whether the epoch before it was validated and its best model kept.
        meters: averages of the epoch so far, and since the last line of the log: [total, count] of each.
    """
    epoch: int = 0
    batches: int = 0
    steps: int = 0
    validated: bool = True
    meters: list | None = None

    def __str__(self):
        return f"step {self.steps} of epoch {self.epoch}" if self.steps else f"the start of epoch {self.epoch}"


def save(job, scheduled=True, again=False):
    """Write a checkpoint of where the run is; all ranks must call it, between two steps.

    At the end of an epoch it is ckpt_epoch_<epoch>; within one ckpt_epoch_<epoch>_step_<steps>, as are those that SAVE_FREQ
    does not ask for. Epochs count from 0. Rank 0 writes one file, of the ending .pth; of a sharded model every rank writes its
    part into a folder.

    Args:
        scheduled: whether a checkpoint is due here; otherwise the next ones replace it.
        again: whether this process has written it before, and weights and moments are the same.
    Returns: its path.
    """
    place, config = job.place, job.config
    ends_epoch = scheduled and not place.batches
    name = f"ckpt_epoch_{place.epoch - 1}" if ends_epoch else f"ckpt_epoch_{place.epoch}_step_{place.steps}"
    path, optimizer, average = os.path.join(job.folder, name), job.updater.optimizer, job.updater.average
    state = {"lr_scheduler": job.scheduler.state_dict(), "scaler": job.updater.precision.state_dict(),
             "epoch": place.epoch - 1 if ends_epoch else place.epoch, "validated": place.validated,
             "max_accuracy": job.best, "best_epoch": job.best_epoch, "started_from": job.started_from,
             "skipped": int(job.updater.skipped), "skipped_in_row": int(job.updater.skipped_in_row),
             "global_batch": global_batch(config), "files": job.metrics.position(), **_description(job)}
    if average is not None:
        state |= {"max_accuracy_ema": job.best_average, "best_epoch_ema": job.best_average_epoch}
    if not ends_epoch:
        state["position"] = {"steps": place.steps, "images": place.batches * images_of_batch(config),
                             "meters": distributed.from_all(place.meters)}
    written = partial(_written, job, path, (place.epoch, place.steps))
    if sharding.is_sharded(job.model):
        sharding.release(job.model)
        names = {parameter: name for name, parameter in job.model.named_parameters()}
        moments = {names[parameter]: moments for parameter, moments in optimizer.state.items()}
        groups = [{**group, "params": [names[parameter] for parameter in group["params"]]} for group in optimizer.param_groups]
        state["optimizer_groups"] = groups
        if not again:
            save_folder(path, job.model.state_dict(), moments, state, average and average.tensors())
        elif distributed.rank() == 0:
            rewrite_state(path, state)
        written()
    else:
        path += ".pth"
        content = {"model": job.model.state_dict(), "optimizer": optimizer.state_dict(), **state}
        if average is not None:
            content[AVERAGE] = {**content["model"], **average.tensors()}
        if config.SAVE_ASYNC and distributed.rank() == 0:
            job.writer.start(partial(_write, path, host_copy(content), written))
        elif distributed.rank() == 0:
            _write(path, content, written)
    distributed.barrier()
    return path


def _write(path, content, written):
    save_checkpoint(path, content)
    written()


def _written(job, path, place):
    """After a checkpoint is whole: say so, and remove what it replaces."""
    if distributed.rank() == 0:
        log.info("%s saved", path + ("" if os.path.isdir(path) else ".pth"))
        remove_old(job.folder, place, job.config.SAVE_KEEP, job.config.SAVE_KEEP_EVERY)


def images_of_batch(config):
    """Images of one micro-batch over all processes."""
    return config.DATA.BATCH_SIZE * distributed.world_size()


def global_batch(config):
    """What makes up the images of one step."""
    return {"batch": config.DATA.BATCH_SIZE, "processes": distributed.world_size(),
            "accumulation": max(config.TRAIN.ACCUMULATION_STEPS, 1)}


def save_best(job, epoch, average=False):
    """Write the best epoch so far as one file, of the weights or of their average; all ranks must call it.

    Either file holds the weights, and their average where there is one.
    """
    name, best = (BEST_AVERAGE_FILE, job.best_average) if average else (BEST_FILE, job.best)
    _save_weights(job, job.model, name, {"epoch": epoch, "max_accuracy": best})
    log.info("best%s so far (%.2f): %s saved", " of the average" if average else "", best, os.path.join(job.folder, name))


def save_encoder(job):
    """Write the encoder of a finished pre-training alone, for --pretrained; all ranks must call it."""
    path = os.path.join(job.folder, ENCODER_FILE)
    if distributed.from_rank0(not job.was_finished or not os.path.exists(path)):
        with stopping.saving_first():  # the run is done: a signal that comes now has nothing more to stop
            _save_weights(job, job.model.encoder, ENCODER_FILE, {"epoch": job.place.epoch - 1})
        log.info("encoder alone, for --pretrained: %s", path)


def _save_weights(job, module, name, state):
    first, average = distributed.rank() == 0, job.updater.average
    sharding.release(job.model)
    content = {"model": sharding.whole_tensors(module.state_dict(), keep=first), **state, **_description(job)}
    if average is not None:
        content[AVERAGE] = {**content["model"], **sharding.whole_tensors(average.tensors(module), keep=first)}
    if first:
        save_checkpoint(os.path.join(job.folder, name), content)


def _description(job):
    """What the weights are of, in plain text."""
    return {"config": dump(job.config, job.task), **({"classes": list(job.classes)} if job.classes else {}),
            **({"images": job.images} if job.images else {})}
