"""What a computation costs, counted without doing it: parameters, floating point operations, memory.

Inside `no_memory` tensors have a size and a format but no content, so that a training step of a model that fits on no
machine can be run here: with nothing to compute, a large batch takes as long as a small one. Knows nothing of the project.
"""
import math
import weakref
from collections import Counter
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

# what autocast computes in float32 on CUDA, by the list in the documentation of torch.amp; on the CPU it does for few of them
CONVERTED = set("""
    __pow__ __rdiv__ __rpow__ __rtruediv__ acos asin binary_cross_entropy_with_logits cdist cosh cosine_embedding_loss
    cosine_similarity cross_entropy dist erfinv exp expm1 group_norm hinge_embedding_loss kl_div l1_loss layer_norm log log10
    log1p log2 margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss nll_loss pdist poisson_nll_loss pow
    reciprocal renorm rsqrt sinh smooth_l1_loss soft_margin_loss softmin softplus tan triplet_margin_loss""".split())
SUMMED = {"cumprod", "cumsum", "log_softmax", "norm", "prod", "softmax", "sum"}  # these have a float32 result of their own
MATRIX_KINDS = ("conv", "linear", "matmul")  # what torch counts; the rest of forward_costs is mmpretrain's
KINDS = {"convolution": "conv", "addmm": "linear", "mm": "linear", "bmm": "matmul", "baddbmm": "matmul",
         "native_layer_norm": "layer_norm", "native_batch_norm": "batch_norm",
         "_native_batch_norm_legit_no_training": "batch_norm"}
ALIGNMENT = 16  # fused attention pads the rows of its bias to a multiple of so many elements


def num_parameters(parameters):
    return sum(p.numel() for p in parameters)


def num_parameters_of_part(parameters, parts):
    """Parameters that each of `parts` processes has memory for: FSDP2 cuts tensors along the first dimension, rounding up."""
    return sum(-(-p.shape[0] // parts) * p.shape[1:].numel() if p.ndim else 1 for p in parameters)


def num_bytes(tensors):
    """Memory of tensors, each storage once."""
    storages = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())


# ---- tensors without memory ---------------------------------------------------------------------------------------

@contextmanager
def no_memory():
    """Tensors made inside have no content, and what is computed from them has none."""
    with FakeTensorMode():
        yield


def empty_copies(module, dtype=None, device="cpu"):
    """Replace the parameters and buffers of a module, inside `no_memory`, by others of the same size.

    Args:
        module: on the meta device, or any other.
        dtype: of the parameters, None = as they are. Buffers keep theirs.
    Returns: the module.
    """
    for part in module.modules():
        for name, p in list(part.named_parameters(recurse=False)):
            empty = torch.empty(p.shape, dtype=dtype or p.dtype, device=device)
            part.register_parameter(name, nn.Parameter(empty, p.requires_grad))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
    return module


class AsOnCuda(TorchFunctionMode):
    """CPU tensors without content are treated as CUDA would: fused attention, and float32 where autocast has it there.

    CUDA tensors without content would do, but autograd refuses them on machines without a driver.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if function == torch.Tensor.is_cpu.__get__:
            return False
        if function is torch.Tensor.backward:
            with self:  # the backward pass calls modules again where activations are recomputed
                return _backward(*args)
        if function is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        if torch.is_autocast_enabled("cpu"):
            if function is F.normalize:
                return _normalize(*args, **kwargs)
            if name in CONVERTED:
                args, kwargs = tree_map(_to_float32, (args, kwargs))
            if name in SUMMED and _is_half(args[0]):
                kwargs = {"dtype": torch.float32, **kwargs}
        return function(*args, **kwargs)


def _backward(loss):
    """loss.backward(), which itself would suspend the modes."""
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)


def _is_half(value):
    return isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def _to_float32(value):
    return value.float() if _is_half(value) else value


def _normalize(x, p=2.0, dim=1, eps=1e-12, out=None):
    """F.normalize, whose norm is float32 there."""
    return torch.div(x, x.norm(p, dim, keepdim=True, dtype=torch.float32).clamp_min(eps).expand_as(x), out=out)


def _fused_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
    """The kernel that keeps no matrix of scores. Others of CUDA keep the same tensors, but not all take a bias."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value, attn_mask = (t if t is None else t.to(dtype) for t in (query, key, value, attn_mask))
    if attn_mask is not None:
        tokens = attn_mask.shape[-1]
        if tokens % ALIGNMENT:
            attn_mask = F.pad(attn_mask, (0, -tokens % ALIGNMENT))[..., :tokens]
        attn_mask = attn_mask.expand(*query.shape[:-1], tokens)
    for_backward = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, for_backward, dropout_p, is_causal, scale=scale)[0]


# ---- counting -----------------------------------------------------------------------------------------------------

def training_flops(compute_loss):
    """Floating point operations of matrix products, convolutions and attention; a multiply-add is two.

    Args:
        compute_loss: function of nothing -> scalar with a gradient.
    Returns: (forward, forward and backward). What the backward pass computes again, by activation checkpointing or inside
        fused attention, counts.
    """
    with FlopCounterMode(display=False) as counter:
        loss = compute_loss()
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops()


def _layer_norm_cost(shape, *args, out_shape=None, **kwargs):
    return 5 * math.prod(shape)


def _batch_norm_cost(shape, weight_shape, *args, out_shape=None, **kwargs):
    return math.prod(shape) * (1 if weight_shape is None else 2)


def forward_costs(compute):
    """Costs of a forward pass without gradients, by the kind of operator; a multiply-add is one.

    Args:
        compute: function of nothing.
    Returns: {kind: cost} of the kinds that occur, with a total of `sum(costs.values())`: conv, linear, matmul (of two
        activations, as in attention), 5 for each element of a layer_norm, 2 of a batch_norm in evaluation or 1 of one
        without scale. Nothing for softmax, activation functions, sums, products and means.
    Source: the rules of mmpretrain's tools/analysis_tools/get_flops.py, which are those of fvcore.
    """
    aten = torch.ops.aten
    norms = {aten.native_layer_norm: _layer_norm_cost, aten.native_batch_norm: _batch_norm_cost,
             aten._native_batch_norm_legit_no_training: _batch_norm_cost}  # what torch 2.6 makes of it first
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=norms) as counter:
        compute()
    costs = {}
    for operator, count in counter.get_flop_counts()["Global"].items():
        name = str(operator).removeprefix("aten.")
        kind = "matmul" if name.startswith("_scaled_dot_product") else KINDS.get(name, name)
        costs[kind] = costs.get(kind, 0) + (count if operator in norms else count // 2)
    return costs


def training_memory(module, compute_loss):
    """Peak memory in bytes of a forward and backward pass, beside the parameters, their gradients and the buffers.

    It has the activations, copies of the parameters in other formats, and what is needed on the way, such as the gradients
    of activations and of the parameter that is just being computed.

    Args:
        compute_loss: function of nothing -> scalar with a gradient; what it makes, also its inputs, counts.
    """
    with _gradients_dropped(module), LiveMemory([*module.parameters(), *module.buffers()]) as memory:
        compute_loss().backward()
    return memory.peak


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of tensors that were made inside and are still there.

    Args:
        resident: tensors that exist before and do not count.

    Attributes:
        now, peak: bytes. What a kernel takes for itself and returns is not seen.
    """

    def __init__(self, resident=()):
        super().__init__()
        self.now = self.peak = 0
        self.alive = {}  # address of a storage: reference that tells of its end
        for tensor in resident:
            self._add(tensor.untyped_storage(), 0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._add(storage, storage.nbytes())
        return out

    def _add(self, storage, size):
        address = storage._cdata
        if address in self.alive:
            return

        def freed(_):
            del self.alive[address]
            self.now -= size

        self.alive[address] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


@contextmanager
def _gradients_dropped(module):
    """Parameters forget their gradient once it is complete."""
    def drop(parameter):
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(drop) for p in module.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# ---- what a step moves --------------------------------------------------------------------------------------------

NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "is_same_size", "lift_fresh"}


class Traffic(TorchDispatchMode):
    """Counts the kernels that are dispatched inside, what they read and write, and what is kept for the backward pass.

    The counts follow from the program, the number formats and the sizes alone: no machine is fast or busy in them. They are
    of what is dispatched; a library may start several kernels for one, and a compiler one for several.

    Args:
        resident: tensors that are there anyway, as parameters: they do not count as kept.

    Attributes:
        kernels: {name of an operator: how often}, views and allocations left out.
        moved: {name of an operator: bytes of all that it was given and gave}, each tensor once and no more than its storage.
        saved: bytes of all storages that autograd keeps until the backward pass.
    """

    def __init__(self, resident=()):
        super().__init__()
        self.kernels, self.moved, self.saved = Counter(), Counter(), 0
        self._known = {tensor.untyped_storage()._cdata for tensor in resident}
        self._kept = []  # so that no address is used twice
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def __enter__(self):
        self._hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._hooks.__exit__(*error)

    def _keep(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._kept.append(storage)
            self.saved += storage.nbytes()
        return tensor

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given, made = (_tensors_in(tree) for tree in ((args, kwargs), out))
        name = function._schema.name.removeprefix("aten::")
        changes = function._schema.is_mutable
        if name not in NO_KERNEL and (changes or made) and (changes or not _is_view(made, given)):
            self.kernels[name] += 1
            self.moved[name] += sum(_extent(tensor) for tensor in (*given.values(), *made.values()))
        return out


def _tensors_in(tree):
    """{id: tensor}."""
    return {id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}


def _is_view(made, given):
    """Whether all tensors of `made` lie in the memory of tensors of `given`."""
    return {t.untyped_storage()._cdata for t in made.values()} <= {t.untyped_storage()._cdata for t in given.values()}


def _extent(tensor):
    """Bytes of a tensor, of one that repeats itself those that it repeats."""
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())


def step_traffic(module, compute_loss):
    """Traffic of a forward and backward pass.

    Args:
        compute_loss: function of nothing -> scalar with a gradient.
    """
    with Traffic([*module.parameters(), *module.buffers()]) as traffic:
        compute_loss().backward()
    for parameter in module.parameters():
        parameter.grad = None
    return traffic
