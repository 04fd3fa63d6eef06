"""What differs between kinds of devices."""
import torch


def to_device(batch, device):
    """Tensors of a batch on the device."""
    # on CUDA the batch is pinned and waits for the copy; elsewhere its memory may be reused while it is still read
    return [tensor.to(device, non_blocking=device.type == "cuda") for tensor in batch]


def wait_for(device):
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
