"""What every target is: images in, what the prediction is compared with out."""
import torch
from torch.nn import functional as F


class Target:
    """Base of all targets, a value or a class at each position of an image.

    `target(images)` gives what the prediction is compared with; `target.denormalize(prediction, images)` makes a picture of a
    prediction, for viewing only. Nothing of a target is trained or saved.

    Attributes:
        cell: side of a position in pixels.
        classes: of each position, for each of its values; 0 = a regression.
        of_pixels: whether a picture of it shows the image, not colours that stand for something else.
    """

    cell = 1
    classes = 0
    of_pixels = True

    def width(self, in_chans):
        """Channels of a prediction for images of `in_chans` channels."""
        return in_chans

    def __call__(self, images):
        """(B, C, H, W) normalised images -> (B, D, H/cell, W/cell) float, or with classes int64. No gradient."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__")

    def likeliest(self, prediction):
        """A prediction (B, width, h, w) in the form of the target, (B, D, h, w): classes of the highest scores."""
        if not self.classes:
            return prediction
        return prediction.unflatten(1, (-1, self.classes)).argmax(dim=2)

    def view(self, values, images):
        """What the target or a prediction in its form looks like.

        Args:
            values: (B, D, H/cell, W/cell).
            images: (B, C, H, W), whose statistics a prediction may need.
        Returns: (B, C, H, W) on the scale of the images.
        """
        return values

    def denormalize(self, prediction, images):
        """As `view`, of a prediction."""
        return self.view(self.likeliest(prediction), images)


class Constants:
    """Tensors made once for each device they are needed on: a copy in every step would wait for it.

    Args:
        values: of each, nested lists of floats.
    """

    def __init__(self, *values):
        self._values, self._on = values, {}

    def on(self, device):
        if device not in self._on:
            self._on[device] = tuple(torch.tensor(values, dtype=torch.float32, device=device) for values in self._values)
        return self._on[device]


class Frozen:
    """A module that a target asks, which is no part of the model: not trained, not saved, made when it is first needed.

    Args:
        make: gives the module, with or without weights.
        weights: gives its state dict; None where `make` has filled it.
    """

    def __init__(self, make, weights=None):
        self._make, self._weights, self._module = make, weights, None

    def on(self, images):
        """The module, on the device of images, which may be without content (utils/costs.py)."""
        if self._module is None:
            with images.device:
                self._module = self._make().eval().requires_grad_(False)
            if self._weights is not None and type(images) is torch.Tensor:
                self._module.load_state_dict(self._weights())
        return self._module


def enlarged(picture, size):
    """(B, C, h, w) -> (B, C, H, W), each value as a square."""
    return picture if tuple(picture.shape[-2:]) == tuple(size) else F.interpolate(picture, tuple(size), mode="nearest")


def as_channels(colours, channels):
    """Colours (B, 3, h, w) for images of another number of channels: their mean in each."""
    return colours if channels == 3 else colours.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
