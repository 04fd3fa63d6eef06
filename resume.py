"""How a run goes on from what one has left behind. A job is an engine.Job."""
import logging
import math
import os
from pathlib import Path

import torch

from config import differences, images_per_step, keys_of
from defaults import settings
from saving import Place, global_batch, images_of_batch
from utils import distributed, sharding
from utils.checkpoint import (
    AVERAGE,
    KEPT_FILES,
    USE_PRETRAINED,
    checkpoints,
    holds_average,
    load_checkpoint,
    load_for_resume,
    load_weights,
    misfit_of,
    moments_in,
    newest_good_checkpoint,
    read_folder,
    shapes_in,
    weights_of,
)
from utils.classes import check_same, kept_classes
from utils.finite import nonfinite
from utils.settings import IMAGES, PATH, START, shown

log = logging.getLogger("simmim.resume")

MODELS = ("MODEL.METHOD", "MODEL.TYPE")  # settings that tell kinds of models apart
# settings that say how a run starts, and so mean nothing for one that goes on
NOT_RESUMED = {"BASE", "MODEL.RESUME", "OUTPUT", "TAG", "LOCAL_RANK", "EVAL_MODE", "THROUGHPUT_MODE",
               "TRAIN.START_EPOCH", "TRAIN.AUTO_RESUME", "TRAIN.ALLOW_CHANGES"}
KINDS = ("betas", "momentum", "trust_coefficient")  # settings that tell kinds of optimizers apart


def newest_sound(folder):
    """The newest checkpoint of a run whose weights are finite and followed a step that was kept.

    Returns: (path, True); without one the oldest that is finite, saved while steps were being skipped, (path, False); or
        (None, False).
    """
    finite = None
    for _, path in reversed(checkpoints(folder)):
        try:
            content = load_checkpoint(path)
        except (ValueError, OSError):
            continue
        if not nonfinite_in(content):
            finite = str(path)
            if not content.get("skipped_in_row"):
                return finite, True
    return finite, False


def nonfinite_parts(job):
    """Names of the weights, buffers, averages and moments of a run, as far as this process has them, that are not finite."""
    named = dict(job.model.state_dict())
    if job.updater.average is not None:
        named |= {f"the average of {name}": value for name, value in job.updater.average.tensors().items()}
    names = {parameter: name for name, parameter in job.model.named_parameters()}
    for parameter, moments in job.updater.optimizer.state.items():
        named |= {f"{moment} of {names.get(parameter, 'a parameter')}": value for moment, value in moments.items()}
    return nonfinite({name: sharding.own_part(value) for name, value in named.items() if isinstance(value, torch.Tensor)})


def nonfinite_in(content):
    """Names of the weights, averages and moments of a checkpoint that hold NaN or infinity."""
    moments = (content.get("optimizer") or {}).get("state", {})
    averages = content[AVERAGE] if holds_average(content) else {}
    named = {**content["model"], **{f"the average of {name}": value for name, value in averages.items()},
             **{f"{moment} of parameter {i}": value for i, of in moments.items() for moment, value in of.items()}}
    return nonfinite({name: value for name, value in named.items() if isinstance(value, torch.Tensor)})


def resume(job):
    """Continue a run where it stopped, if there is anything to continue.

    Auto-resume takes the newest readable checkpoint of the run folder. With an explicit MODEL.RESUME it does so only if
    that checkpoint descends from the named file (a restarted job), and says so. Nothing that exists is overwritten: where
    training would write over checkpoints of another run, it refuses; and so it does where what is learnt would change on the
    way, without TRAIN.ALLOW_CHANGES.
    """
    config = job.config
    if config.TRAIN.ALLOW_CHANGES:
        log.warning("TRAIN.ALLOW_CHANGES is on: a checkpoint is gone on from whatever data and settings it was made with")
    explicit = config.MODEL.RESUME
    if explicit and "://" not in explicit:
        explicit = os.path.abspath(explicit)
    path = content = None
    if config.TRAIN.AUTO_RESUME:
        path, content = _newest_on_rank0(job.folder)
        if content and explicit and content.get("started_from") != explicit:
            path = content = None
        elif content and explicit:
            log.info("%s was started from %s and is newer: continuing with it", path, explicit)
    job.started_from = explicit
    if content is not None:
        restore(job, content, path, advice="Use the --cfg and --opts of that run, or another --tag for a new one.")
        return  # later files, if any, are broken
    if explicit:
        restore(job, load_for_resume(explicit), explicit)
    else:
        job.place = Place(config.TRAIN.START_EPOCH)
    _refuse_overwriting(job, explicit)


def _newest_on_rank0(folder):
    """Rank 0 decides which checkpoint is the newest good one, so that all ranks go on from the same."""
    path = content = None
    if distributed.rank() == 0:
        path, content = newest_good_checkpoint(folder, log.warning)
    path = distributed.from_rank0(path)
    if path and content is None:
        if not Path(path).exists():
            raise FileNotFoundError(f"rank 0 resumes from {path}, which this machine can't see: put --output on a file system "
                                    f"that all machines share.")
        content = load_for_resume(path)
    return path, content


def restore(job, content, path, advice=USE_PRETRAINED):
    """Put weights, optimizer, schedule and position of a checkpoint into a job; settings stay those of the config."""
    needed = ("folder", "optimizer_groups", "epoch") if "folder" in content else ("model", "optimizer", "epoch")
    absent = [key for key in needed if key not in content]
    if absent:
        raise ValueError(f"{path} can't be resumed: it has no {', '.join(absent)} (it has {', '.join(list(content)[:8])}). "
                         f"Start from its weights with --pretrained instead of --resume.")
    changed = _changed(job, content)
    _check_learnt(job, content, {key: both for key, both in changed.items() if key in MODELS}, path)  # says it best
    check_fixed(job.config, content, path, (*job.fixed, *without_shape(job)))
    check_same(kept_classes(content), job.classes, path)
    if "folder" in content:
        _read_folder(job, content, advice)
        _restore_average(job, content, path)
        _refuse_nonfinite(job, nonfinite_parts(job), path)
    else:
        _refuse_nonfinite(job, nonfinite_in(content), path)
        load_weights(job.model, content, path, advice)
        _restore_average(job, content, path)
        _load_optimizer(job.updater.optimizer, content["optimizer"], path)
    _check_learnt(job, content, changed, path)  # after what no setting could allow
    job.updater.precision.load_state_dict(content.get("scaler"))
    job.place = _place_in(job, content)
    job.updater.skipped, job.updater.skipped_in_row = content.get("skipped", 0), content.get("skipped_in_row", 0)
    last = job.place.epoch * len(job.loader) + job.place.batches - 1
    job.scheduler.load_state_dict({"last_update": last} if last >= 0 else {})
    if os.path.abspath(Path(path).parent) == os.path.abspath(job.folder):
        job.files = content.get("files")
    job.best = content.get("max_accuracy", 0.0)
    job.best_epoch = content.get("best_epoch", content["epoch"] if job.best else -1)  # official files have no best_epoch
    job.best_average, job.best_average_epoch = content.get("max_accuracy_ema", 0.0), content.get("best_epoch_ema", -1)
    job.started_from = job.started_from or content.get("started_from", "")
    done = f"epoch {job.place.epoch - 1} is done, " if job.place.epoch else ""
    log.info("resumed from %s: %sgoing on with %s", path, done,
             f"epoch {job.place.epoch}" if not job.place.steps else job.place)
    if is_finished(job):
        job.ignored = changed
        return
    _compare_steps(job, content)
    for key, (then, now) in changed.items():
        if settings()[key].learnt == START:
            log.warning("%s=%s is not used: the weights come from %s", key, now, path)
        else:
            log.info("%s was %s in the checkpoint and is %s now: the new value holds", key, then, now)


def is_finished(job):
    """Whether there is nothing left to do."""
    return job.place.epoch >= job.config.TRAIN.EPOCHS and job.place.validated


def _changed(job, content):
    """What this run says otherwise than a checkpoint, of what it reads and what counts for it: {key: (then, now)}."""
    if not isinstance(content.get("config"), str):
        return {}
    same_images = bool(job.images) and content.get("images") == job.images
    found = differences(job.config, content["config"])
    return {key: found[key] for key in keys_of(job.config, job.task)
            if key in found and key not in NOT_RESUMED and not _means_the_same(settings()[key], *found[key], same_images)}


def _means_the_same(setting, then, now, same_images):
    if setting.learnt == IMAGES and same_images or setting.learnt == START and not now:
        return True  # another path to the same images; weights to begin with that a run which goes on need not name
    return setting.kind == PATH and os.path.realpath(then) == os.path.realpath(now)


def _check_learnt(job, content, changed, path):
    """Refuse to go on where what is learnt would change on the way. Raises ValueError."""
    done = not content.get("position") and content.get("validated", True) and content["epoch"] + 1 >= job.config.TRAIN.EPOCHS
    learnt = {key: values for key, values in changed.items() if settings()[key].learnt}
    if not learnt or done or job.config.TRAIN.ALLOW_CHANGES:
        return
    anew = "--pretrained instead of --resume" if job.config.MODEL.RESUME else "--tag <other> for a new run"
    raise ValueError(f"{path} was made with {_listed(learnt)}: what is learnt would change on the way. Use the same, or "
                     f"{anew}, or --opts TRAIN.ALLOW_CHANGES True to go on all the same.")


def _listed(changed, most=4):
    """What changed, in words: DATA.MASK_RATIO=0.6, not 0.75."""
    words = [f"{key}={shown(then)}, not {shown(now)}" for key, (then, now) in changed.items()]
    return "; ".join(words[:most]) + (f"; and {len(words) - most} more" if len(words) > most else "")


def say_finished(job):
    """Log that there is nothing to train, and which settings that leaves without effect."""
    done = f"{job.place.epoch} of {job.config.TRAIN.EPOCHS} epochs are done in {job.folder}"
    if job.ignored:
        log.warning("nothing to train: %s, and they were made with %s. Use --tag <other> for a run with the new settings", done,
                    _listed(job.ignored))
    else:
        log.info("nothing to train: %s", done)


def _restore_average(job, content, path):
    """The average of the weights of a checkpoint, if both it and the run have one; in a job that has its weights."""
    average = job.updater.average
    if average is None:
        if holds_average(content):
            log.warning("the average of the weights that %s holds is not gone on with: TRAIN.EMA_DECAY is 0", path)
    elif not holds_average(content):
        log.info("%s holds no average of the weights: it begins with them", path)
        average.restart()
    elif "folder" in content:
        read_folder(content["folder"], {}, {}, average.tensors())
    else:
        own, saved = average.tensors(), weights_of(content, AVERAGE)
        wrong = [name for name in own if name not in saved or saved[name].shape != own[name].shape]
        if wrong:
            raise ValueError(f"the average of the weights in {path} is of another model: {len(wrong)} tensors are missing or "
                             f"of another shape ({', '.join(wrong[:3])}). Start from its weights with --pretrained.")
        sharding.fill(own, {name: saved[name] for name in own})


def _refuse_nonfinite(job, names, path):
    """Refuse to go on from NaN, found in tensors of these names. Raises ValueError that names the newest good checkpoint."""
    if distributed.any_process(bool(names), job.device):
        good, _ = newest_sound(Path(path).parent)
        advice = f"go on from {good}, the newest good one, with --resume and" if good else "start anew with"
        raise ValueError(f"{path} can't be resumed: {len(names)} of its tensors hold NaN or infinity ({', '.join(names[:3])}"
                         f"{', ...' if len(names) > 3 else ''}). The run that wrote it had diverged: {advice} another --tag.")


def _place_in(job, content):
    """Where a checkpoint stands, in batches of this run."""
    position, validated = content.get("position"), content.get("validated", True)
    if not position:
        place = Place(content["epoch"] + 1, validated=validated)
        then = content.get("lr_scheduler", {}).get("last_update")
        if then is not None and then + 1 != place.epoch * len(job.loader):
            log.info("an epoch has %d iterations now, not %d: the schedule goes on at the start of epoch %d", len(job.loader),
                     (then + 1) // place.epoch, place.epoch)
        return place
    batches, rest = divmod(position["images"], images_of_batch(job.config))
    if rest or batches > len(job.loader):
        batches = min(batches, len(job.loader))
        log.warning("the checkpoint lies %d images into epoch %d, which is no whole number of batches now: going on after %d "
                    "images of it", position["images"], content["epoch"], batches * images_of_batch(job.config))
    meters, rank = position["meters"], distributed.rank()
    if len(meters) != distributed.world_size():  # each of as many as there are now takes the mean
        mean = torch.tensor(meters, dtype=torch.float64).mean(dim=0).tolist()
        meters = [mean] * distributed.world_size()
    return Place(content["epoch"], batches, position["steps"], validated, meters[rank])


def _compare_steps(job, content):
    """Warn where steps have other images than before the interruption: the rate follows their number."""
    then, now = content.get("global_batch"), global_batch(job.config)
    if not then or then == now:
        return
    before, after = math.prod(then.values()), images_per_step(job.config, distributed.world_size())
    rate = job.config.TRAIN.BASE_LR / job.config.TRAIN.LR_SCALE_BATCH
    effect = ("the learning rate stays" if before == after else
              f"learning rates follow, the base rate is {after * rate:.3e} now, not {before * rate:.3e}")
    log.warning("a step has %d images now (%d a batch x %d processes x %d accumulation steps), not %d (%d x %d x %d): %s",
                after, *now.values(), before, *then.values(), effect)


def without_shape(job):
    """Keys of the model of a job that say what its weights mean, and that no shape of them tells."""
    decoder = ("DECODER_NUM_HEADS", "DECODER_NORM_EPS") if job.task == "pretrain" else ()
    sections = {name.upper() for name in (job.config.MODEL.TYPE, job.config.MODEL.METHOD)}
    return [f"MODEL.{section}.{name}" for section in sections for name in ("NUM_HEADS", "QK_SCALE", *decoder)
            if name in job.config.MODEL.get(section, {})]


def check_fixed(config, content, path, keys):
    """Refuse a checkpoint whose config has other values of keys that give its weights their meaning. Raises ValueError."""
    changed = differences(config, content["config"]) if isinstance(content.get("config"), str) else {}
    for key in set(keys) & set(changed):
        then, now = changed[key]
        raise ValueError(f"{path} was made with {key}={then}, not {now}: use the same, or another --tag for a new "
                         f"run, from these weights with --pretrained instead of --resume.")


def _read_folder(job, content, advice):
    """Weights and moments of a folder into the model and optimizer of a job, whole or sharded in whatever way."""
    folder, optimizer = content["folder"], job.updater.optimizer
    named = dict(job.model.named_parameters())
    moments = {name: {moment: torch.zeros_like(named[name]) if shape else torch.zeros(()) for moment, shape in shapes.items()}
               for name, shapes in moments_in(folder).items() if name in named}
    try:
        read_folder(folder, job.model.state_dict(), moments)
    except ValueError as error:
        raise ValueError(f"{error} {misfit_of(job.model, shapes_in(folder))}{advice}") from error
    names = {parameter: name for name, parameter in named.items()}
    if [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups] != [
            group["params"] for group in content["optimizer_groups"]]:
        raise ValueError(f"the optimizer of {folder} does not fit this run: its groups of parameters differ. {advice}")
    numbers = {name: i for i, name in enumerate(name for group in content["optimizer_groups"] for name in group["params"])}
    state = {numbers[name]: of for name, of in moments.items()}
    groups = optimizer.state_dict()["param_groups"]
    saved = [{**group, "params": own["params"]} for group, own in zip(content["optimizer_groups"], groups, strict=True)]
    _load_optimizer(optimizer, {"state": state, "param_groups": saved}, folder)


def _load_optimizer(optimizer, state, path):
    """Moments and step counts from the file; rates, decay and other settings from the present config."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {i: {name: _part_of(value, parameters[i]) for name, value in of.items()} if i < len(parameters) else of
               for i, of in state["state"].items()}
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    groups = state["param_groups"]
    if groups and [key in groups[0] for key in KINDS] != [key in own[0] for key in KINDS]:
        raise ValueError(f"{path} was written by another optimizer than TRAIN.OPTIMIZER.NAME says: its moments mean something "
                         f"else. Use the one it was made with, or start from its weights with --pretrained.")
    if len(groups) == len(own):  # settings go in first: torch places the step counts by them
        groups = [{**group, **settings} for group, settings in zip(groups, own, strict=True)]
    try:
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
    except ValueError as error:
        raise ValueError(f"the optimizer of {path} does not fit this run ({error}). Use the config it was made with, or start "
                         f"from its weights with --pretrained.") from error


def _part_of(value, parameter):
    """What this process holds of a moment: as of its parameter; counters are not divided."""
    divided = isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape == parameter.shape
    return sharding.part_like(value, parameter) if divided else value


def _refuse_overwriting(job, resumed):
    """A run may write over nothing it does not continue: not over later checkpoints, nor beside those of another run."""
    folder = Path(job.folder)
    found = checkpoints(folder)
    other_run = not resumed or Path(resumed).parent != Path(os.path.abspath(folder))
    there = [folder / name for name in KEPT_FILES if other_run and (folder / name).exists()]
    there += [path for place, path in found if other_run or place > (job.place.epoch, job.place.steps)]
    if not there:
        return
    if found and job.config.TRAIN.AUTO_RESUME and not resumed:  # it would have gone on, had it been able to read one
        raise ValueError(f"none of the checkpoints in {folder} can be read ({there[-1].name} is the newest), and starting anew "
                         f"would write over them: move them away, or use another --tag.")
    what = f"continuing from {resumed}" if resumed else "starting anew"
    raise ValueError(f"{folder} already holds {there[-1].name}, and {what} at epoch {job.place.epoch} would write over it or "
                     f"mix two runs. Use another --tag or --output, move the files away, or continue the run with "
                     f"TRAIN.AUTO_RESUME True and without --resume.")
