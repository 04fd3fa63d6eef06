"""What is seen of a picture."""
from dataclasses import dataclass

from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import crop, get_image_size, resize


@dataclass(frozen=True)
class View:
    """A part of a picture, and the size it is brought to.

    Attributes:
        top, left, height, width: in pixels of the picture.
        size: (height, width).
        interpolation: torchvision's InterpolationMode.
    """
    top: int
    left: int
    height: int
    width: int
    size: tuple
    interpolation: InterpolationMode

    def of(self, picture):
        """What it shows of a whole picture, a PIL image or a tensor (C, H, W)."""
        if get_image_size(picture) != [self.width, self.height]:
            picture = crop(picture, self.top, self.left, self.height, self.width)
        return resize(picture, list(self.size), self.interpolation)
