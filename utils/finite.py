"""Numbers that are no weights: NaN and infinite values, which a diverged run leaves, and codes instead of values."""
import torch

WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def nonfinite(tensors):
    """Names of the tensors that hold NaN or infinite values.

    Args:
        tensors: {name: tensor}; whole numbers and booleans are always finite.
    """
    return [name for name, value in tensors.items() if not _is_finite(value.detach())]


def check_finite(tensors, source):
    """Refuse weights that hold NaN or infinite values, or codes that mean values only together with a scale elsewhere.

    Args:
        tensors: {name: tensor}.
        source: the file they are from, for the message.
    Raises: ValueError that names the first of them.
    """
    codes = [name for name, value in tensors.items() if _is_code(name, value)]
    if codes:
        raise ValueError(f"{source} holds weights as {str(tensors[codes[0]].dtype).removeprefix('torch.')} in {len(codes)} of "
                         f"{len(tensors)} tensors ({', '.join(codes[:3])}{', ...' if len(codes) > 3 else ''}), as quantised "
                         f"models are saved: without their scales they mean nothing. Use the file that was quantised, in "
                         f"float32, float16 or bfloat16.")
    names = nonfinite(tensors)
    if names:
        raise ValueError(f"{source} holds NaN or infinite values in {len(names)} of {len(tensors)} tensors "
                         f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): it was saved by a run that had "
                         f"diverged. Use an older checkpoint.")


def _is_code(name, value):
    """Whether what is called a weight or bias is no real number; counters and indices have other names."""
    return name.endswith(("weight", "bias")) and value.dtype not in WEIGHT_TYPES


def _is_finite(value):
    value = torch.view_as_real(value) if value.is_complex() else value
    if not value.is_floating_point():
        return True
    if value.element_size() == 1:  # the smallest floats can't be added up
        value = value.float()
    # a sum takes no memory; it is finite only if all are, but of large values it may be infinite as well
    return bool(torch.isfinite(value.sum()) or torch.isfinite(value).all())
