"""An exponential average of a model's weights, kept beside them (TRAIN.EMA_DECAY).

torch's AveragedModel and timm's ModelEmaV3 hold a copy of the model, which a sharded one does not allow, and move on after a
skipped step as well, or wait for the device to know. Here the average is a list of tensors, each divided as its weight is.
"""
from contextlib import contextmanager

import torch

from utils import sharding

CHUNK = 2 ** 26  # values updated at once: what lies between takes so much memory again


class Average:
    """average <- decay * average + (1 - decay) * weight after every step, from the weights that it is made with.

    Buffers are not averaged: those of the model belong to it as well.

    Args:
        model: the plain or sharded module; its trained parameters are averaged, frozen ones are their own average.
        decay: share of the average that stays, 0 < decay < 1.
    Raises: ValueError if a trained parameter has less than 32 bits, in which small steps would be lost.
    """

    def __init__(self, model, decay):
        self.model, self.decay = model, decay
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if any(torch.finfo(parameter.dtype).bits < 32 for parameter in trained):
            raise ValueError(f"TRAIN.EMA_DECAY={decay} needs weights of 32 bits, and apex made them 16: use AMP_OPT_LEVEL O1, "
                             f"or AMP_BACKEND native.")
        self.is_in_place = False  # whether the model has the averaged weights now
        self.of = {parameter: parameter.detach().clone() for parameter in trained}
        self.chunks = list(_chunks(trained))

    @torch.no_grad()
    def restart(self):
        """Begin again with the present weights."""
        for parameter, average in self.of.items():
            average.copy_(parameter)

    @torch.no_grad()
    def update(self, skipped):
        """After a step of the optimizer; `skipped`, a bool tensor, says on the device that there was none."""
        share = (1 - self.decay) * skipped.logical_not().float()
        for chunk in self.chunks:
            averages = [sharding.own_part(self.of[parameter]) for parameter in chunk]
            steps = torch._foreach_sub([sharding.own_part(parameter.detach()) for parameter in chunk], averages)
            torch._foreach_mul_(steps, share)
            torch._foreach_add_(averages, steps)

    @contextmanager
    def in_place(self):
        """Inside, the model has the averaged weights. All processes must enter it; nothing may train meanwhile."""
        self._swap()
        self.is_in_place = True
        try:
            yield
        finally:
            self._swap()
            self.is_in_place = False

    @torch.no_grad()
    def _swap(self):
        sharding.release(self.model)
        for parameter, average in self.of.items():
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def tensors(self, module=None):
        """{name in the state dict of the model, or of a module in it: its average} of what is averaged."""
        sharding.release(self.model)
        state = (module or self.model).state_dict(keep_vars=True)
        return {name: self.of[value] for name, value in state.items() if value in self.of}


def _chunks(parameters):
    """Lists of parameters with at most CHUNK values of this process together, or one of more."""
    chunk, size = [], 0
    for parameter in parameters:
        number = sharding.own_part(parameter.detach()).numel()
        if chunk and size + number > CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk.append(parameter)
        size += number
    if chunk:
        yield chunk
