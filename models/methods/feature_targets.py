"""Targets of several pixels at once: histograms of gradients, features of another encoder."""
import math
from functools import cache
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from models.encoders import ENCODERS
from models.encoders.checks import image_size
from models.methods.target import Frozen, Target, as_channels, enlarged
from utils.checkpoint import load_for_resume, weights_in
from utils.kept import read_kept
from utils.registry import pick
from utils.statistics import channel_statistics
from utils.yaml_files import nested


class HogTarget(Target):
    """Histograms of oriented gradients, for each channel. They are shown by the direction of their strongest edges.

    Gradients are differences of both neighbours, without sign; each pixel adds its length to the bin of its direction, and the
    histogram of a cell has length 1.
    Source: MaskFeat (arXiv 2112.09133), section 3.2.
    """

    bins, cell, of_pixels = 9, 8, False

    def width(self, in_chans):
        return in_chans * self.bins

    @torch.no_grad()
    def __call__(self, images):
        batch, channels, height, width = images.shape
        with torch.autocast(images.device.type, enabled=False):
            padded = F.pad(images.float(), (1, 1, 1, 1), mode="replicate")
            across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
            down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
            angle = torch.atan2(down, across) % math.pi / math.pi * self.bins
            bins = angle.floor().long() % self.bins                            # rounding may give pi itself
            length = (across.square() + down.square()).sqrt()
            histogram = images.new_zeros((batch, channels, self.bins, height, width), dtype=torch.float32)
            histogram.scatter_(2, bins.unsqueeze(2), length.unsqueeze(2))
            histogram = F.avg_pool2d(histogram.flatten(0, 2).unsqueeze(1), self.cell)
            histogram = histogram.view(batch, channels, self.bins, height // self.cell, width // self.cell)
            return F.normalize(histogram, dim=2).flatten(1, 2)

    def view(self, values, images):
        """Hue as the direction, brightness as how much of the edges goes there."""
        histogram = values.float().unflatten(1, (-1, self.bins)).mean(dim=1).clamp(min=0)
        turn = torch.arange(self.bins, device=values.device) / self.bins * 2 * math.pi
        colours = torch.stack([(histogram * (0.5 + 0.5 * (turn - shift).cos()).view(1, -1, 1, 1)).sum(dim=1)
                               for shift in (0, 2 * math.pi / 3, 4 * math.pi / 3)], dim=1)
        return enlarged(as_channels(colours * 2 - 2, images.shape[1]), images.shape[2:])


class FeatureTarget(Target):
    """The map of a frozen encoder, normalised at each position. It is shown by the three directions in which it varies most.

    Args:
        path: of a checkpoint of this repository, of pre-training or fine-tuning.
        channels, mean, std: of the images, which the encoder must have been trained with.
    Raises: ValueError, FileNotFoundError.
    """

    of_pixels = False

    def __init__(self, path, channels, mean, std):
        if not path:
            raise ValueError("MODEL.SIMMIM.TARGET features needs MODEL.SIMMIM.TEACHER: a checkpoint of this repository.")
        with torch.device("meta"):
            teacher, statistics = plain_encoder(path)
        if teacher.in_chans != channels or statistics != (list(mean), list(std)):
            raise ValueError(f"MODEL.SIMMIM.TEACHER={path} was trained on images of {teacher.in_chans} channels with mean and "
                             f"deviation {statistics}; here they have {channels} channels and {(list(mean), list(std))}. Use "
                             f"the same DATA.MEAN and DATA.STD, or another teacher.")
        self.cell, self._width = teacher.stride, teacher.num_features
        self._teacher = Frozen(lambda: plain_encoder(path)[0], lambda: encoder_weights(path))

    def width(self, in_chans):
        return self._width

    @torch.no_grad()
    def __call__(self, images):
        with torch.autocast(images.device.type, enabled=False):
            features = self._teacher.on(images).forward_map(images.float())
            return F.layer_norm(features.movedim(1, -1), (self._width,)).movedim(-1, 1)

    def view(self, values, images):
        flat = values.float().movedim(1, -1).flatten(0, 2)
        flat = flat - flat.mean(dim=0)
        _, _, directions = torch.pca_lowrank(flat, q=3, center=False)
        colours = flat @ directions
        colours = colours / colours.std(dim=0).clamp(min=1e-6)
        colours = colours.view(len(values), *values.shape[2:], 3).movedim(-1, 1)
        return enlarged(as_channels(colours, images.shape[1]), images.shape[2:])


def teacher_cell(path):
    """Pixels per side of a cell of the map of a teacher. Raises: as plain_encoder."""
    with torch.device("meta"):
        return plain_encoder(path)[0].stride


def plain_encoder(path):
    """The encoder that a checkpoint says it is of, without weights, and the (mean, std) of its images.

    Raises: ValueError where it does not keep its settings, or is in parts.
    """
    settings = _settings_of(str(path))
    config = _tree(nested(settings))
    encoder = pick(ENCODERS, config.MODEL.TYPE, "MODEL.TYPE").build(config, image_size(config), 0, False)
    return encoder, channel_statistics(encoder.in_chans, config.DATA.MEAN, config.DATA.STD)


def encoder_weights(path):
    """{name: tensor} of the encoder in a checkpoint of this repository, as `plain_encoder` has them. Raises: ValueError."""
    weights = {name.removeprefix("encoder."): value for name, value in weights_in(load_for_resume(path), path).items()}
    with torch.device("meta"):
        own = plain_encoder(path)[0].state_dict()
    missing = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    if missing:
        raise ValueError(f"MODEL.SIMMIM.TEACHER={path} lacks {len(missing)} weights of its encoder, the first {missing[0]}.")
    return {name: weights[name] for name in own}


@cache
def _settings_of(path):
    settings = read_kept(path).settings
    if not {"MODEL.TYPE", "DATA.MEAN", "DATA.IMG_SIZE"} <= settings.keys():
        raise ValueError(f"MODEL.SIMMIM.TEACHER={path} does not keep its settings: use a checkpoint of this repository.")
    if "folder" in load_for_resume(path):
        raise ValueError(f"MODEL.SIMMIM.TEACHER={path} is a checkpoint in parts: make it one file with tools/consolidate.py.")
    return settings


def _tree(node):
    """A nested dict as a tree that is read like a config."""
    return SimpleNamespace(**{key: _tree(value) if isinstance(value, dict) else value for key, value in node.items()})
