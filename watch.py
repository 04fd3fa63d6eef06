"""What is looked at between two steps of a run: is a checkpoint due, was it asked to stop, are its numbers numbers.

A job is an engine.Job. All processes decide alike, in the same step: what one of them knows the others hear a step later
(utils.distributed.Exchange), so that nothing here waits for the device or for another process.
"""
import logging
import math
import os
import shlex
import sys
import time

import torch

from resume import newest_sound, nonfinite_parts
from saving import save
from utils import distributed, stopping
from utils.checkpoint import checkpoints, remove
from utils.devices import Readback
from utils.meters import CollapseWatch

log = logging.getLogger("simmim.watch")

SUSPECT = 2  # steps skipped in a row, with losses that are not finite, after which the weights are not saved


class Watch:
    """The guard of one run, from its first step to its last."""

    def __init__(self, job):
        self.job = job
        self.exchange = distributed.Exchange()
        self.read_skipped = Readback()
        self.collapse = CollapseWatch()
        self.skipped_in_row = 0
        self.saved_at, self.saved, self.path = time.monotonic(), None, None

    def at(self, text, *values):
        """Note what the process is at, for what others say of it if it falls silent."""
        if self.job.heart is not None:
            self.job.heart.at = (text, values)

    # ---- after a step -----------------------------------------------------------------------------------------------

    def step_done(self, epoch, batches, meters):
        """Called after each step of the optimizer, with what was done of the epoch.

        Raises: stopping.Asked; ValueError where the numbers have gone wrong, or too many images can't be read.
        """
        job, place = self.job, self.job.place
        place.batches, place.steps = batches, place.steps + 1
        bad = job.loader.bad
        skipped = self.read_skipped(job.updater.skipped_in_row)
        stop, clock, skipped, news = self.exchange(
            stopping.requested(), self._minutes_are_over(), skipped, bool(bad.met))
        if news:
            self._share_bad_images()
        first = skipped and not self.skipped_in_row
        if skipped >= job.config.TRAIN.NONFINITE_LIMIT or (first and not self._weights_are_finite()):
            raise ValueError(self._diagnosis())
        self.skipped_in_row = skipped
        due = (clock or self._steps_are_over(epoch)) and not self._epoch_is_saved_next(epoch, batches)
        if stop or due:
            place.meters = [meter.state() for meter in meters]
        if stop:
            raise stopping.Asked(stop)
        if due:
            self.save(scheduled=False)
        job.writer.check()

    def _minutes_are_over(self):
        minutes = self.job.config.SAVE_MINUTES
        return bool(minutes) and time.monotonic() - self.saved_at >= 60 * minutes

    def _steps_are_over(self, epoch):
        """Steps are counted over the run, so that the places of checkpoints do not depend on where it was interrupted."""
        config = self.job.config
        each = -(-len(self.job.loader) // max(config.TRAIN.ACCUMULATION_STEPS, 1))
        return bool(config.SAVE_STEPS) and (epoch * each + self.job.place.steps) % config.SAVE_STEPS == 0

    def _epoch_is_saved_next(self, epoch, batches):
        config = self.job.config
        return batches == len(self.job.loader) and (epoch % config.SAVE_FREQ == 0 or epoch == config.TRAIN.EPOCHS - 1)

    def _share_bad_images(self):
        bad, found = self.job.loader.bad, {}
        for of_rank in distributed.from_all(bad.news()):
            found |= of_rank
        try:
            new = bad.add(found)
            if new:
                log.warning("%d training images can't be read so far, others stand in for them (bad_images.txt): %s",
                            len(bad.found), bad.listing(new, 3))
        finally:
            bad.write(self.job.folder)

    # ---- saving and stopping ----------------------------------------------------------------------------------------

    def save(self, scheduled=True):
        """Save where the run is, see saving.save, unless its numbers have gone wrong. Returns the path, or None.

        Raises: ValueError if weights or moments are not finite.
        """
        job, place = self.job, self.job.place
        self.at("the checkpoint of {}", place)
        losses = 0 if job.updater.loss is None or torch.isfinite(job.updater.loss) else int(job.updater.skipped_in_row)
        suspect = distributed.largest_over_processes(torch.tensor(losses, device=job.device)).item()
        if not self._weights_are_finite():
            raise ValueError(self._diagnosis())
        self.saved_at = time.monotonic()
        if suspect >= SUSPECT:
            log.warning("%s is not saved: the loss was NaN or infinite in the last %d steps", place, suspect)
            return None
        here = (place.epoch, place.batches)
        self.path = save(job, scheduled, again=self.saved == here)
        self.saved = here
        return self.path

    def complete(self):
        """Save the end of the run, validated, and remove what was saved within epochs. Raises ValueError if it is no good."""
        if self.save() is None:
            raise ValueError(self._diagnosis())
        self.job.writer.wait()
        if distributed.rank() == 0:
            for _, path in checkpoints(self.job.folder):
                if "_step_" in path.name:
                    remove(path)

    def stop(self, code):
        """Save, unless that was done here, and raise stopping.Stopped."""
        place = self.job.place
        if self.saved != (place.epoch, place.batches):
            self.save(scheduled=False)
        self.job.writer.wait()
        what = f"{self.path} is saved" if self.saved == (place.epoch, place.batches) else "nothing is lost that could be used"
        command = "the same command" if distributed.is_parallel() else shlex.join(["python", *sys.argv])
        raise stopping.Stopped(f"{stopping.CAUSES.get(code, code)}: stopped at {place}, {what}. To go on: {command}", code)

    # ---- numbers ----------------------------------------------------------------------------------------------------

    def _weights_are_finite(self):
        """Whether weights and moments are, on all processes; waits for the device."""
        return not distributed.any_process(bool(nonfinite_parts(self.job)), self.job.device)

    def _diagnosis(self):
        """What is wrong, where, and which checkpoint is good; all processes must call it."""
        job, in_row, place = self.job, int(self.job.updater.skipped_in_row), self.job.place
        epoch, batch = (place.epoch, place.batches - 1) if place.batches else (place.epoch - 1, len(job.loader) - 1)
        loss = math.nan if job.updater.loss is None else float(job.updater.loss)
        told = distributed.from_all((math.isfinite(loss), nonfinite_parts(job), self._samples(epoch, batch)))
        steps = f"weights or moments are not finite after iteration {batch} (epoch {epoch})"
        if in_row:
            steps = (f"the loss or the gradient was NaN or infinite in the last {in_row} steps, up to iteration {batch} (epoch "
                     f"{epoch}); all of them were skipped")
        weights = [f"{names[0]} of rank {rank}" for rank, (_, names, _) in enumerate(told) if names]
        losses = [f"rank {rank}{samples}" for rank, (finite, _, samples) in enumerate(told) if not finite]
        cause = (f"NaN or infinity is in {', '.join(weights)}" if weights else
                 f"the last loss was not finite on {'; '.join(losses)}" if losses else
                 "losses were finite, gradients overflowed")
        path, good = distributed.from_rank0(newest_sound(job.folder) if distributed.rank() == 0 else None)
        which = (f"The newest good checkpoint is {path}: go on from it with --resume {path}, another --tag, and" if good else
                 f"No checkpoint is older than that; {path} was saved amid skipped steps, is finite, but may have diverged: "
                 f"start anew, or try it with --resume {path}; either way with another --tag and" if path else
                 "There is no checkpoint: start anew with another --tag and")
        return f"{steps}. {cause[0].upper()}{cause[1:]}. {which} a lower TRAIN.BASE_LR, or --amp-opt-level O0."

    def _samples(self, epoch, batch):
        """Text that names the first images of a batch of this process, as far as the loader knows files."""
        dataset = getattr(self.job.loader, "dataset", None)
        if not hasattr(dataset, "samples"):
            return ""
        keys = self.job.loader.sampler.keys(epoch, batch)
        first = [f"{key[1]} {os.fsencode(dataset.samples[key[1]][0]).decode(errors='replace')}" for key in keys[:3]]
        return f" (samples {', '.join(first)}{', ...' if len(keys) > 3 else ''})"
