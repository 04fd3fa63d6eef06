"""Weights that a diverged run left: NaN and infinite values."""
import torch


def nonfinite(tensors):
    """Names of the tensors that hold NaN or infinite values.

    Args:
        tensors: {name: tensor}; whole numbers and booleans are always finite.
    """
    return [name for name, value in tensors.items() if not _is_finite(value.detach())]


def check_finite(tensors, source):
    """Refuse weights that hold NaN or infinite values.

    Args:
        tensors: {name: tensor}.
        source: the file they are from, for the message.
    Raises: ValueError that names the first of them.
    """
    names = nonfinite(tensors)
    if names:
        raise ValueError(f"{source} holds NaN or infinite values in {len(names)} of {len(tensors)} tensors "
                         f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): it was saved by a run that had "
                         f"diverged. Use an older checkpoint.")


def _is_finite(value):
    value = torch.view_as_real(value) if value.is_complex() else value
    if not value.is_floating_point():
        return True
    if value.element_size() == 1:  # the smallest floats can't be added up
        value = value.float()
    # a sum takes no memory; it is finite only if all are, but of large values it may be infinite as well
    return bool(torch.isfinite(value.sum()) or torch.isfinite(value).all())
