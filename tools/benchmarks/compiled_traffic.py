"""What the units of a model move once torch.compile has fused their kernels, as Inductor counts it."""
from contextlib import contextmanager
from unittest.mock import patch

import torch

from models import build_model
from models.compiling import compile_units
from models.freezing import train_mode
from planning.costs import training_loss
from utils.costs import empty_copies, no_memory, step_traffic


def compiled_bytes(config):
    """Bytes that a forward and backward pass with TRAIN.COMPILE moves on the CPU.

    What is around the units is counted as it is dispatched. Compiling takes minutes for a deep model; nothing is kept of it.

    Args:
        config: of pre-training.
    """
    model = build_model(config)
    train_mode(model)
    calls = Calls()
    compile_units(model, backend=calls.backend)
    with calls.counted():
        training_loss(config, model, is_pretrain=True)().backward()
    return calls.moved + around_units(config)


class Calls:
    """Counts what the graphs that it compiles move whenever they are called.

    Attributes:
        moved: bytes.
    """

    def __init__(self):
        from torch._inductor import compile_fx, config, metrics  # here: it takes seconds

        self.compiler, self.config, self.metrics = compile_fx, config, metrics
        self.moved = 0

    @contextmanager
    def counted(self):
        """While this lasts, Inductor counts (it does where its log of metrics is on) and takes nothing from its caches."""
        with patch.object(self.compiler, "inductor_metrics_log"), self.config.patch(force_disable_caches=True):
            yield

    def backend(self, graph, inputs):
        return self.compiler.compile_fx(graph, inputs, inner_compile=self._compile)

    def _compile(self, graph, inputs, **options):
        before = self.metrics.num_bytes_accessed
        compiled = self.compiler.compile_fx_inner(graph, inputs, **options)
        size = self.metrics.num_bytes_accessed - before

        def call(given):
            self.moved += size
            return compiled(given)

        call._boxed_call = True  # takes its inputs as one list
        return call


class _Nothing(torch.autograd.Function):
    """In the place of a unit: a result and gradients without content, which no kernel makes."""

    @staticmethod
    def forward(ctx, shape, dtype, *given):
        ctx.given = [(tensor.shape, tensor.dtype) if isinstance(tensor, torch.Tensor) and tensor.requires_grad else None
                     for tensor in given]
        return torch.empty(shape, dtype=dtype)

    @staticmethod
    def backward(ctx, gradient):
        return None, None, *(like and torch.empty(like[0], dtype=like[1]) for like in ctx.given)


def around_units(config):
    """Bytes that a step of pre-training moves beside its units, as dispatched."""
    with torch.device("meta"):
        model = build_model(config)
    with no_memory():
        train_mode(empty_copies(model))
        compute, results = training_loss(config, model, is_pretrain=True), {}
        hooks = [unit.register_forward_hook(lambda unit, _, out: results.update({unit: (out.shape, out.dtype)}))
                 for unit in model.units()]
        compute()
        for hook in hooks:
            hook.remove()
        for unit, like in results.items():
            unit.forward = lambda *given, like=like: _Nothing.apply(*like, *given)
        return sum(step_traffic(model, compute).moved.values())
