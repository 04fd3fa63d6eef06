"""What a job can't do with settings that are fine for others: refused before anything is read or built.

A value that makes no sense by itself is refused by its Setting, and what an encoder can't be by the encoder, whoever loads the
config. Here stands what is wrong for one job alone: a warm-up longer than the run is nothing to `--eval`. Masks are looked at
by whatever draws some (data/masks.py).
"""
import math

from data.loader import check_finetuning
from data.masks import build_mask_generator
from models.probe import check_probing

ACCEPTABLE_DECAY = 1.0  # of a weight in one step: all of it
ACCEPTABLE_RATE = 1.0  # of Adam, whose steps have about the length of the rate in each weight, and weights begin around 0.02


def check_job(config, job):
    """Refuse what a program can't do with its settings. Raises ValueError.

    Args:
        config: from load_config.
        job: a name in utils.settings.JOBS.
    """
    if config.EVAL_MODE and config.THROUGHPUT_MODE:
        raise ValueError("--eval and --throughput (EVAL_MODE and THROUGHPUT_MODE) are both asked for: leave one out.")
    if job == "probe":
        check_probing(config)
    if config.THROUGHPUT_MODE:
        return
    trains = not config.EVAL_MODE and not (job == "probe" and config.PROBE.KNN)
    if job == "pretrain":
        build_mask_generator(config)  # the held-out loss has masks, too
    if job == "finetune" and trains:
        check_finetuning(config)
    if trains:
        check_training(config)


def check_training(config):
    """Refuse lengths and rates with which no training goes as it is said. Raises ValueError."""
    train = config.TRAIN
    if train.START_EPOCH >= train.EPOCHS:
        raise ValueError(f"TRAIN.START_EPOCH={train.START_EPOCH} is not below TRAIN.EPOCHS={train.EPOCHS}: nothing would be "
                         f"trained. Epochs count from 0: use at most {train.EPOCHS - 1}.")
    if train.WARMUP_EPOCHS > train.EPOCHS:
        raise ValueError(f"TRAIN.WARMUP_EPOCHS={train.WARMUP_EPOCHS} is longer than TRAIN.EPOCHS={train.EPOCHS}: the learning "
                         f"rate would never reach TRAIN.BASE_LR. Use e.g. --opts TRAIN.WARMUP_EPOCHS {train.EPOCHS // 10}.")
    if config.SAVE_KEEP_EVERY and not config.SAVE_KEEP:
        raise ValueError(f"SAVE_KEEP_EVERY={config.SAVE_KEEP_EVERY} chooses among checkpoints, and SAVE_KEEP=0 keeps all: set "
                         f"SAVE_KEEP, e.g. to 1, or leave SAVE_KEEP_EVERY at 0.")
    {"multistep": _check_milestones, "step": _check_decay}.get(train.LR_SCHEDULER.NAME, lambda train: None)(train)
    _check_rates(train)


def _check_milestones(train):
    steps, key = train.LR_SCHEDULER.MULTISTEPS, "TRAIN.LR_SCHEDULER.MULTISTEPS"
    if not steps or steps != sorted(set(steps)):
        raise ValueError(f"{key}={steps}: a multistep schedule needs rising epochs, e.g. [{max(train.EPOCHS * 7 // 8, 1)}].")
    if train.WARMUP_EPOCHS > steps[0]:
        raise ValueError(f"TRAIN.WARMUP_EPOCHS={train.WARMUP_EPOCHS} is longer than the first of {key}={steps}: use at most "
                         f"{steps[0]}.")
    if steps[-1] >= train.EPOCHS:
        raise ValueError(f"{key}={steps} goes on to the end of the run or beyond it (TRAIN.EPOCHS={train.EPOCHS}): that decay "
                         f"would never come. Use epochs below {train.EPOCHS}, or --opts TRAIN.LR_SCHEDULER.NAME step "
                         f"TRAIN.LR_SCHEDULER.DECAY_RATE 1 for a rate that stays.")


def _check_decay(train):
    epochs, rate = train.LR_SCHEDULER.DECAY_EPOCHS, train.LR_SCHEDULER.DECAY_RATE
    if rate == 1:
        return  # a rate that stays
    if train.WARMUP_EPOCHS > epochs:
        raise ValueError(f"TRAIN.WARMUP_EPOCHS={train.WARMUP_EPOCHS} is longer than TRAIN.LR_SCHEDULER.DECAY_EPOCHS={epochs}, "
                         f"which counts from epoch 0: the rate would jump down where the warm-up ends. Use at most {epochs}.")
    if epochs >= train.EPOCHS:
        raise ValueError(f"TRAIN.LR_SCHEDULER.DECAY_EPOCHS={epochs} is not below TRAIN.EPOCHS={train.EPOCHS}: the rate would "
                         f"never decay. Use fewer epochs, or TRAIN.LR_SCHEDULER.DECAY_RATE 1 for a rate that stays.")


def _check_rates(train):
    """Rates that go the wrong way: up to their minimum, or down in the warm-up. All three at 0 train nothing on purpose."""
    falls = train.LR_SCHEDULER.NAME == "cosine"
    for key, counts, what in (("MIN_LR", falls, "rise where it is to fall"),
                              ("WARMUP_LR", train.WARMUP_EPOCHS > 0, "fall where it is to rise")):
        if counts and train[key] > train.BASE_LR:
            raise ValueError(f"TRAIN.{key}={train[key]:g} is above TRAIN.BASE_LR={train.BASE_LR:g}: the rate would {what}. "
                             f"Lower it, e.g. --opts TRAIN.{key} 0, or raise TRAIN.BASE_LR.")


def check_steps(config, scaled, num_batches):
    """Refuse steps that are not what the rates are scaled for, once the data are known. Raises ValueError.

    Args:
        config: from load_config.
        scaled: from scaled_config: rates of a step.
        num_batches: micro-batches of an epoch on this process, from the loader.
    """
    steps, train = config.TRAIN.ACCUMULATION_STEPS, scaled.TRAIN
    if steps > num_batches:
        raise ValueError(f"TRAIN.ACCUMULATION_STEPS={steps} is more than the {num_batches} batches of an epoch: no step would "
                         f"have the images that learning rates are scaled for. Use at most {num_batches} "
                         f"(--accumulation-steps).")
    if train.OPTIMIZER.NAME in ("adamw", "fused_adam") and train.BASE_LR >= ACCEPTABLE_RATE:
        raise ValueError(f"TRAIN.BASE_LR={config.TRAIN.BASE_LR:g} is {train.BASE_LR:g} for this batch: {train.OPTIMIZER.NAME} "
                         f"would move every weight by as much in each step, and weights begin around 0.02. Use e.g. 5e-4.")
    decay = train.BASE_LR * train.WEIGHT_DECAY
    if train.OPTIMIZER.NAME in ("adamw", "sgd") and decay >= ACCEPTABLE_DECAY:
        raise ValueError(f"TRAIN.WEIGHT_DECAY={train.WEIGHT_DECAY:g} with a learning rate of {train.BASE_LR:g} (TRAIN.BASE_LR="
                         f"{config.TRAIN.BASE_LR:g}, scaled by the batch) takes {100 * decay:.0f} % of each weight in a step. "
                         f"Use a smaller one, e.g. 0.05.")


def last_step(steps, num_batches):
    """Micro-batches of the last step of an epoch, which makes do with what is left."""
    return num_batches - (math.ceil(num_batches / steps) - 1) * steps
