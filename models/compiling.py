"""Blocks run by torch.compile (TRAIN.COMPILE)."""
import inspect
from types import MethodType

import torch

from models.encoders.packing import Packing

GRAPHS = 256  # of one kind of block: stages, shifts, rates of drop path and frozen parts have their own; PyTorch's limit is 8


def compile_units(model, backend="inductor"):
    """Let torch.compile run the units of a model in training; evaluation, and what is around the units, stays as it is.

    Blocks of equal shapes share a graph, so that a deep model compiles in the time of a few blocks. A block is compiled as a
    whole or not at all (an error), for the shapes that it sees; only those of a packing, which follow from the masks of a
    batch, are open. Weights, their names, and hooks on the blocks, such as those that shard them, know nothing of it. Random
    draws are those of a model that is not compiled.

    Args:
        model: a method or an encoder, whole or sharded, see `Encoder.units`; on its device.
        backend: of torch.compile.
    Returns: the model.
    Raises: ValueError where there is no C++ compiler.
    """
    if backend == "inductor":
        _check_compiler()
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"  # before torch 2.7
    setattr(torch._dynamo.config, limit, max(GRAPHS, getattr(torch._dynamo.config, limit)))
    # torch 2.6 makes rates of drop path open once they differ, and takes what it knows of sizes for what it knows of rates
    torch._dynamo.config.specialize_float = True
    options = {"options": {"fallback_random": True}} if backend == "inductor" else {}
    compiled = {}
    for unit in model.units():
        plain = inspect.unwrap(type(unit).forward)
        if plain not in compiled:
            compiled[plain] = torch.compile(plain, backend=backend, fullgraph=True, dynamic=False, **options)
        unit.forward = MethodType(_in_training(compiled[plain], type(unit).forward), unit)
    return model


def _in_training(compiled, plain):
    """A `forward` that is compiled where gradients are wanted of a module in training."""
    def forward(unit, *args):
        if not (unit.training and torch.is_grad_enabled()):
            return plain(unit, *args)
        for packing in args:
            if isinstance(packing, Packing):  # of other sizes in nearly every batch, each of which would be compiled anew
                for tensor in packing:
                    torch._dynamo.maybe_mark_dynamic(tensor, list(range(tensor.ndim)))
        return compiled(unit, *args)
    return forward


def _check_compiler():
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError("TRAIN.COMPILE True needs a C++ compiler, on GPUs as well, and there is none here. Install g++ (or "
                         "name one in the variable CXX), or leave TRAIN.COMPILE False.") from error
