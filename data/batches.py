"""Images on their way from a loader process to a model: a byte a value, made floats on the device."""
from typing import NamedTuple

import torch


class Erased(NamedTuple):
    """An image, or a batch of them, with boxes of random values that are put in when it is normalised.

    Attributes:
        pixels: (C, H, W) or (B, C, H, W).
        boxes: (n, 6) int64: image of the batch, top, left, height, width, number of values.
        values: (m,) float32, those of all boxes, in their order; a number for each channel, or for each pixel as well.
    """
    pixels: torch.Tensor
    boxes: torch.Tensor
    values: torch.Tensor


class Normalisation:
    """From pixels to what a model sees: (shares of white - mean) / std, in one step with the cast.

    Args:
        mean, std: per channel, of shares of white.
    """

    def __init__(self, mean, std):
        self.mean, self.std = tuple(mean), tuple(std)
        self.factors = {}

    def __call__(self, image):
        """(..., C, H, W) uint8, or floats from 0 to 1, or Erased -> float32 on the same device."""
        if isinstance(image, Erased):
            return _with_boxes(self(image.pixels), image.boxes, image.values)
        scale, shift = self._on(image.device, 1 if image.is_floating_point() else 255)
        planes = torch.empty(image.shape, dtype=torch.float32, device=image.device)  # whatever the order in memory was
        return torch.addcmul(shift, image, scale, out=planes)

    def _on(self, device, white):
        key = device, white
        if key not in self.factors:
            mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (self.mean, self.std))
            self.factors[key] = [(values).float().to(device) for values in (1 / (white * std), -mean / std)]
        return self.factors[key]

    def __getstate__(self):
        return self.__dict__ | {"factors": {}}  # loader processes need none

    def __repr__(self):
        return f"Normalisation(mean={self.mean}, std={self.std})"


def _with_boxes(images, boxes, values):
    """Images (C, H, W) or (B, C, H, W) with the values in the boxes; changes them."""
    batch, start = images if images.ndim == 4 else images.unsqueeze(0), 0
    values = values.to(images.device, non_blocking=images.is_cuda)
    for image, top, left, height, width, number in boxes.tolist():
        part = values[start:start + number].view(images.shape[-3], *((1, 1) if number == images.shape[-3] else (height, width)))
        batch[image, :, top:top + height, left:left + width] = part
        start += number
    return images


class Images:
    """Images of a batch as a loader process has sent them, in the place of a tensor: `to` makes them one.

    Args:
        content: (B, C, H, W) uint8 or float, or Erased.
        normalise: Normalisation.
    """

    def __init__(self, content, normalise):
        self.content, self.normalise = content, normalise

    @property
    def pixels(self):
        """(B, C, H, W)."""
        return self.content.pixels if isinstance(self.content, Erased) else self.content

    @property
    def shape(self):
        return self.pixels.shape

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, rows):
        """Some of them: a list of positions."""
        if not isinstance(self.content, Erased):
            return Images(self.content[rows], self.normalise)
        items = split(self.content)
        return Images(joined([items[row] for row in rows]), self.normalise)

    def to(self, device, non_blocking=False):
        """(B, C, H, W) float32, normalised, on a device."""
        pixels = self.pixels.to(device, non_blocking=non_blocking)
        return self.normalise(self.content._replace(pixels=pixels) if isinstance(self.content, Erased) else pixels)


def joined(images):
    """A batch of images: (C, H, W) tensors, or where any has boxes, Erased."""
    pixels = _stacked([image.pixels if isinstance(image, Erased) else image for image in images])
    boxed = [(i, image) for i, image in enumerate(images) if isinstance(image, Erased)]
    if not boxed:
        return pixels
    boxes = torch.cat([image.boxes.index_fill(1, torch.tensor(0), i) for i, image in boxed])
    return Erased(pixels, boxes, torch.cat([image.values for _, image in boxed]))


def _stacked(images):
    """(B, C, H, W) of (C, H, W), in their order of memory: sorting colours into planes would take as long as resizing them."""
    collate = torch.utils.data.default_collate
    if all(isinstance(image, torch.Tensor) and image.ndim == 3 and image.stride(0) == 1 for image in images):
        return collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return collate(images)


def split(batch):
    """The images of an Erased batch, each Erased."""
    lengths = batch.boxes[:, 5].tolist()
    values, owners = batch.values.split(lengths), batch.boxes[:, 0]
    found = []
    for i, pixels in enumerate(batch.pixels):
        own = (owners == i).nonzero().flatten().tolist()
        found.append(Erased(pixels, batch.boxes[own], torch.cat([batch.values[:0], *(values[j] for j in own)])))
    return found
