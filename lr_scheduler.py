"""The learning rate as a function of the iteration.

Iterations are micro-batches, counted from 0 over the whole run. The rate is set after the optimizer step: as in the
official SimMIM to the value of the iteration just finished, so that the first two steps share one value; or, as in MAE, to
that of the next.
"""
import bisect
import math
from dataclasses import dataclass, replace

from utils.registry import pick


@dataclass(frozen=True)
class Schedule:
    """Lengths in iterations and constants of one run's schedule.

    Attributes:
        total: iterations of the run.
        warmup: iterations of the linear warm-up, counted from 0.
        warmup_lr: rate at iteration 0, the same for every group unless `scale_all`.
        min_lr: last rate of the cosine, the same for every group unless `scale_all`.
        lag: whether the rate of a step is the value of the iteration before it.
        scale_all: whether `lr_scale` of a group scales `warmup_lr` and `min_lr` as well as the peak.
        warmup_prefix: the cosine starts after the warm-up instead of at iteration 0.
        decay: step: iterations between decays.
        decay_rate, gamma: step, multistep: factors.
        milestones: multistep: iterations, rising.
    """
    total: int
    warmup: int
    warmup_lr: float
    min_lr: float
    warmup_prefix: bool
    decay: int
    decay_rate: float
    gamma: float
    milestones: tuple
    lag: bool = True
    scale_all: bool = False

    def of_group(self, group):
        """The schedule of a parameter group."""
        scale = group.get("lr_scale", 1.0) if self.scale_all else 1.0
        return replace(self, warmup_lr=self.warmup_lr * scale, min_lr=self.min_lr * scale)


def cosine(t, peak, s):
    start = s.warmup if s.warmup_prefix else 0
    if t - start >= s.total - start:
        return s.min_lr
    return s.min_lr + 0.5 * (peak - s.min_lr) * (1 + math.cos(math.pi * (t - start) / (s.total - start)))


def linear(t, peak, s):
    """Falls to 1 % of the peak; MIN_LR plays no part (official)."""
    last = 0.01 * peak
    return peak - (peak - last) * ((t - s.warmup) / max(s.total - s.warmup, 1))


def step(t, peak, s):
    return peak * s.decay_rate ** (t // s.decay)


def multistep(t, peak, s):
    return peak * s.gamma ** bisect.bisect_right(s.milestones, t)


SCHEDULES = {"cosine": cosine, "linear": linear, "step": step, "multistep": multistep}


class Scheduler:
    """Sets the rate of every group from the iteration. A group's peak is its rate when this object is made.

    Rates are written into the groups' `lr`; an `lr_scale` entry is left alone (the peak already contains it).
    """

    def __init__(self, optimizer, curve, schedule):
        self.optimizer = optimizer
        self.curve = curve
        self.schedule = schedule
        self.peaks = [(group["lr"], schedule.of_group(group)) for group in optimizer.param_groups]
        self.last_update = None
        if not schedule.lag:
            self._set(0)
        elif schedule.warmup:
            for group, (_, own) in zip(optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = own.warmup_lr

    def value(self, t, peak, schedule=None):
        """Rate that belongs to iteration `t` for a group with this peak (and schedule, where it has its own)."""
        s = schedule or self.schedule
        if t < s.warmup:
            return s.warmup_lr + t * ((peak - s.warmup_lr) / s.warmup)
        return self.curve(t, peak, s)

    def step_update(self, t):
        """Call after the optimizer step, with the index of the iteration just finished."""
        self.last_update = t
        self._set(t if self.schedule.lag else t + 1)

    def _set(self, t):
        for group, (peak, schedule) in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = self.value(t, peak, schedule)

    def state_dict(self):
        return {"last_update": self.last_update}

    def load_state_dict(self, state):
        """Continue after `last_update`; the curve and the peaks stay those of the present config."""
        if state.get("last_update") is not None:
            self.step_update(state["last_update"])


def build_scheduler(config, optimizer, n_iter_per_epoch):
    """Scheduler of a run; leaves every group at the rate of the first step.

    Args:
        config: TRAIN.WARMUP_LR and MIN_LR are used as given, like BASE_LR in the optimizer's groups.
        optimizer: its groups' `lr` are the peaks.
        n_iter_per_epoch: micro-batches of one epoch on one process.
    """
    train, settings = config.TRAIN, config.TRAIN.LR_SCHEDULER
    curve = pick(SCHEDULES, settings.NAME, "TRAIN.LR_SCHEDULER.NAME")
    return Scheduler(optimizer, curve, Schedule(
        total=train.EPOCHS * n_iter_per_epoch, warmup=train.WARMUP_EPOCHS * n_iter_per_epoch,
        warmup_lr=train.WARMUP_LR, min_lr=train.MIN_LR, warmup_prefix=settings.WARMUP_PREFIX,
        lag=settings.LAG, scale_all=settings.SCALE_ALL,
        decay=settings.DECAY_EPOCHS * n_iter_per_epoch, decay_rate=settings.DECAY_RATE, gamma=settings.GAMMA,
        milestones=tuple(epoch * n_iter_per_epoch for epoch in settings.MULTISTEPS)))
