"""Encoders, pre-training methods and targets; `build_model` makes them from a config."""
from models.build import build_model

__all__ = ["build_model"]
