"""Encoders, pre-training methods, weights of other projects. `build_model` makes a model, `load_pretrained` fills it."""
import importlib

_HOMES = {"build_model": "models.build", "load_pretrained": "models.weights.pretrained"}

__all__ = ["build_model", "load_pretrained"]


def __getattr__(name):
    """Import on first use: whoever needs one file of a room does not wait for all others."""
    if name not in _HOMES:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
