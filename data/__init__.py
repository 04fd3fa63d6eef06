"""Images, transforms, masks and batches."""
import importlib

_HOMES = {"Loaders": "data.loader", "MaskGenerator": "data.masks", "build_loader": "data.loader"}

__all__ = ["Loaders", "MaskGenerator", "build_loader"]


def __getattr__(name):
    """Import on first use: whoever needs a transform alone does not wait for loaders and augmentation."""
    if name not in _HOMES:
        raise AttributeError(f"module 'data' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
