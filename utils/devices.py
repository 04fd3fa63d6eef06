"""What differs between kinds of devices."""
import torch
from torch.utils._pytree import tree_map


def packed(loader):
    """Batches of a loader, or of any other iterable, in the form in which they go to the device fastest; for `to_device`."""
    return loader.packed() if hasattr(loader, "packed") else loader


def to_device(batch, device):
    """Tensors of a batch on the device, what is packed as the tensors that it stands for; tuples stay tuples of their kind."""
    # on CUDA the batch is pinned and waits for the copy; elsewhere its memory may be reused while it is still read
    return list(tree_map(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"), tuple(batch)))


def wait_for(device):
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Readback:
    """A whole number on the device as it was a step or two ago: reading it never waits for the device."""

    def __init__(self):
        self.value = 0
        self.copy = self.arrived = None

    def __call__(self, number):
        if not isinstance(number, torch.Tensor) or number.device.type == "cpu":
            self.value = int(number)
        elif number.device.type == "cuda":
            if self.arrived is not None and self.arrived.query():
                self.value, self.arrived = int(self.copy), None
            if self.arrived is None:
                if self.copy is None:
                    self.copy = torch.empty((), dtype=number.dtype, pin_memory=True)
                self.copy.copy_(number, non_blocking=True)
                self.arrived = torch.cuda.Event()
                self.arrived.record()
        return self.value  # on other devices that of the last line of the log, see `know`

    def know(self, value):
        """Take over a value that was read where the run waits for the device anyhow."""
        self.value = max(value, 0)
