"""Averages that stay on the device until they are printed."""
import math
import statistics
import sys
from collections import deque

import torch


class Meter:
    """Average of the finite ones of scalar tensors, accumulated without synchronising with the device."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.total, self.count = 0.0, 0

    def add(self, value):
        value = torch.as_tensor(value).detach()
        finite = torch.isfinite(value)
        self.total = self.total + torch.where(finite, value, 0.0)
        self.count = self.count + finite.to(value.dtype)

    def state(self):
        """[total, count] as numbers, for a checkpoint; waits for the device."""
        return [float(self.total), float(self.count)]

    def load(self, state):
        """Go on from what `state` gave."""
        self.total, self.count = state

    def mean(self):
        """Average since the last reset, a tensor; NaN if no finite value was added."""
        if isinstance(self.count, torch.Tensor):
            return torch.as_tensor(self.total / self.count)
        return torch.tensor(self.total / self.count if self.count else math.nan)


class CollapseWatch:
    """Notices a loss that jumps up while the gradient fades: the model has begun to ignore its input.

    Seen in public runs as a loss of 0.25 that becomes 0.50 while the gradient norm falls from 1.4 to 0.0025, long before the
    first NaN (SimMIM issue 15).
    """

    LINES, LOSS, NORM = 20, 1.5, 0.1  # lines to compare with; a jump by half, a norm of a tenth

    def __init__(self):
        self.lines, self.said = deque(maxlen=self.LINES), False

    def add(self, loss, norm):
        """A line of the log: returns a warning, once, or None."""
        text = None
        if len(self.lines) == self.LINES and not self.said:
            usual, usual_norm = (statistics.median(values) for values in zip(*self.lines, strict=True))
            if loss > self.LOSS * usual and norm < self.NORM * usual_norm:
                self.said = True
                text = (f"the loss has jumped from {usual:.4f} to {loss:.4f} while the gradient norm fell from "
                        f"{usual_norm:.2g} to {norm:.2g}: training may have collapsed. Look at the reconstructions; go on from "
                        f"an older checkpoint with a lower TRAIN.BASE_LR, or with --amp-opt-level O0.")
        if math.isfinite(loss) and math.isfinite(norm):
            self.lines.append((loss, norm))
        return text


def peak_memory_mb(device):
    """Peak memory in MB: allocated on a GPU, resident of this process elsewhere; NaN where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** 20 if sys.platform == "darwin" else peak / 2 ** 10  # macOS counts bytes, Linux KB
