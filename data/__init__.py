"""Images, transforms, masks and batches."""
from data.loader import Loaders, build_loader
from data.masks import MaskGenerator

__all__ = ["Loaders", "MaskGenerator", "build_loader"]
