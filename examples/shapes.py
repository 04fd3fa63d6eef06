"""Scenes with discs and bars on noise, with boxes and masks: data for the examples, drawn as they run."""
import numpy as np
import torch
from torchvision.ops import masks_to_boxes

SHAPES = ("background", "disc", "bar")
LEAST_VISIBLE = 30  # pixels: what others hide but for less is no object
LEAST_SIZE = 48  # pixels: smaller images have shapes smaller than that


def draw_scene(rng, size, num_shapes=4):
    """One image with what is in it.

    Args:
        rng: numpy Generator.
        size: pixels per side.
        num_shapes: at most; later ones hide earlier ones.
    Returns: image (3, size, size) float in [0, 1]; dict of boxes (n, 4) float (left, top, right, bottom), labels (n,) int64 in
        SHAPES, masks (n, size, size) uint8, as the detection models of torchvision take it.
    Raises: ValueError if the size leaves no room for shapes.
    """
    if size < LEAST_SIZE:
        raise ValueError(f"--size {size} is too small for the shapes that are drawn: use {LEAST_SIZE} or more.")
    image = rng.uniform(0.2, 0.5, (3, 1, 1)) + rng.normal(0, 0.1, (3, size, size))
    y, x = np.mgrid[:size, :size]
    masks, labels = [], []
    for _ in range(rng.integers(2, num_shapes + 1)):
        label, radius, turn = int(rng.integers(1, len(SHAPES))), rng.uniform(0.08, 0.16) * size, rng.uniform(0, np.pi)
        dx, dy = x - rng.uniform(0.15, 0.85) * size, y - rng.uniform(0.15, 0.85) * size
        along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        disc, bar = along ** 2 + across ** 2 < radius ** 2, (abs(along) < 1.5 * radius) & (abs(across) < radius / 2)
        inside = disc if label == SHAPES.index("disc") else bar
        image = np.where(inside, rng.uniform(0.3, 1, (3, 1, 1)) + rng.normal(0, 0.05, (3, size, size)), image)
        masks = [mask & ~inside for mask in masks] + [inside]
        labels.append(label)
    seen = [i for i, mask in enumerate(masks) if mask.sum() >= LEAST_VISIBLE]
    masks = torch.from_numpy(np.stack([masks[i] for i in seen]).astype(np.uint8))
    boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])  # the far edge of the last pixel
    return (torch.from_numpy(image.clip(0, 1)).float(),
            {"boxes": boxes, "labels": torch.tensor([labels[i] for i in seen]), "masks": masks})


def class_map(target):
    """(size, size) int64, the number in SHAPES of what covers each pixel."""
    return (target["masks"].long() * target["labels"].view(-1, 1, 1)).sum(dim=0)
