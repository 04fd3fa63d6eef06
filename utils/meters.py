"""Averages that stay on the device until they are printed."""
import resource
import sys

import torch


class Meter:
    """Sum and count of a scalar tensor, accumulated without synchronising with the device."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.total, self.count = 0.0, 0

    def add(self, value):
        self.total = self.total + (value.detach() if isinstance(value, torch.Tensor) else value)
        self.count += 1

    def mean(self):
        """Average since the last reset, as a tensor or number; 0 if nothing was added."""
        return self.total / max(self.count, 1)


def peak_memory_mb(device):
    """Peak memory in MB: allocated on a GPU, resident of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** 20 if sys.platform == "darwin" else peak / 2 ** 10  # macOS counts bytes, Linux KB
