"""What settings are chosen by: facts about images, the machine, and what a step costs on it."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Images:
    """What was found in a folder.

    Attributes:
        number: images that pre-training reads.
        looked_at: of them, evenly spread, that all below is of.
        short_side: of an image, the median, pixels.
        channels: that an encoder needs to see all there is in them: 1 = grey, 3, or as of arrays.
        bad: share that can't be read.
        transparent: share that shows a background.
        light: mean brightness of what is drawn on transparency, 0 (black) to 1.
        turned: share that lie on a side, as their EXIF says.
        peak: the largest value in grey images of 16 bits; 0 = there are none.
        read_seconds: to read one, on one core.
        moments: (mean, standard deviation) of each channel, where they are neither grey nor colours.
        classes: folders of classes; 0 = none.
        labelled: training images in them.
        has_validation: whether there are validation images beside them.
    """
    number: int
    looked_at: int = 1
    short_side: int = 224
    channels: int = 3
    bad: float = 0.0
    transparent: float = 0.0
    light: float = 0.5
    turned: float = 0.0
    peak: int = 0
    read_seconds: float = 0.005
    moments: tuple = ()
    classes: int = 0
    labelled: int = 0
    has_validation: bool = False


@dataclass(frozen=True)
class Machine:
    """What trains.

    Attributes:
        kind: cpu, cuda or mps.
        name: of the device.
        memory: bytes of each device, or those free for a process on a CPU.
        cores: of this machine.
        processes: that train together, all of them, with a device each.
        local: those of them on this machine.
    """
    kind: str = "cpu"
    name: str = "CPU"
    memory: int = 8 * 2 ** 30
    cores: int = 2
    processes: int = 1
    local: int = 1


@dataclass(frozen=True)
class Cost:
    """What training takes of one device.

    Attributes:
        seconds: of an image, forward and backward.
        fixed: bytes of weights, gradients and moments.
        activations: bytes an image.
    """
    seconds: float
    fixed: float = 0.0
    activations: float = 0.0
