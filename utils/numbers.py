"""Numbers that are none."""
import torch


def nonfinite(tensors):
    """Names of the floating tensors that hold NaN or infinity: {name: tensor} -> list."""
    floating = {name: tensor for name, tensor in tensors.items()
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()}
    if not floating:
        return []
    good = torch.stack([torch.isfinite(tensor).all().cpu() for tensor in floating.values()])
    return [name for name, fine in zip(floating, good.tolist(), strict=True) if not fine]
