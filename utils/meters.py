"""Averages that stay on the device until they are printed."""
import math
import sys

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

    def mean(self):
        """Average since the last reset, a tensor; NaN if no finite value was added."""
        return torch.as_tensor(self.total / self.count if isinstance(self.count, torch.Tensor) else math.nan)


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
