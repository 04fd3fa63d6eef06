"""Matrix products and what surrounds them, in few kernels and with little kept for the backward pass.

Plain PyTorch code under autocast casts every weight in a kernel of its own, keeps activations before and after GELU, and moves
in fp32 what is cast afterwards anyhow. The functions here compute the same without that. What torch.compile traces is the plain
code beside them: it fuses kernels, and decides what to keep, itself.
"""
from functools import wraps

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def product_dtype(tensor):
    """Number format in which a product with this tensor is computed: autocast's where it is on, else the tensor's own."""
    return torch.get_autocast_dtype(tensor.device.type) if _is_mixed(tensor) else tensor.dtype


def _eager():
    """Whether gradients are wanted, and no compiler or tracer writes down the operations: a backward pass by hand is used."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def _is_mixed(tensor):
    """Whether autocast decides about operations on this tensor."""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


# ---- weights ------------------------------------------------------------------------------------------------------

class _Cast(torch.autograd.Function):
    """(dtype, tensors) -> tensors of that format, all in one kernel; their gradients go back in another one."""

    @staticmethod
    def forward(ctx, dtype, *tensors):
        ctx.set_materialize_grads(False)
        ctx.formats = [tensor.dtype for tensor in tensors]
        cast = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        torch._foreach_copy_(cast, list(tensors))
        return tuple(cast)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        there = [gradient for gradient in gradients if gradient is not None]
        formats = [form for form, gradient in zip(ctx.formats, gradients, strict=True) if gradient is not None]
        cast = [torch.empty_like(gradient, dtype=form) for form, gradient in zip(formats, there, strict=True)]
        if there:
            torch._foreach_copy_(cast, there)
        cast = iter(cast)
        return None, *(None if gradient is None else next(cast) for gradient in gradients)


def casts_together(forward):
    """Decorator of the `forward` of a block: while it runs, linear layers have weights and biases in the format of autocast,
    but for those of `PreciseLinear`.

    They are cast in one kernel, and so are their gradients, which arrive at the parameters themselves. Nothing happens without
    autocast or gradients, where a compiler traces, and to parameters that have the format already, as sharded ones do.
    """
    @wraps(forward)
    def with_cast_weights(block, *args):
        if not _eager():
            return forward(block, *args)
        first = next(block.parameters())
        if not _is_mixed(first):
            return forward(block, *args)
        dtype = product_dtype(first)
        layers = [layer for layer in block.modules() if isinstance(layer, nn.Linear | PointwiseConv)
                  and not isinstance(layer, PreciseLinear)]
        owners = [(layer, name, parameter) for layer in layers for name, parameter in layer.named_parameters(recurse=False)
                  if parameter.requires_grad and parameter.dtype != dtype]
        cast_ones = _Cast.apply(dtype, *(parameter for _, _, parameter in owners)) if owners else ()
        try:
            for (layer, name, _), cast in zip(owners, cast_ones, strict=True):
                layer._parameters[name] = cast
            return forward(block, *args)
        finally:
            for layer, name, parameter in owners:
                layer._parameters[name] = parameter
    return with_cast_weights


class PreciseLinear(nn.Linear):
    """A linear layer that is called outside of autocast, in the format of its own parameters."""


class PointwiseConv(nn.Conv2d):
    """A linear layer (..., in_dim) -> (..., out_dim) whose weight is stored as that of a 1x1 convolution."""

    def __init__(self, in_dim, out_dim):
        super().__init__(in_dim, out_dim, kernel_size=1)

    def forward(self, x):
        return F.linear(x, self.weight.flatten(1), self.bias)


# ---- GELU ---------------------------------------------------------------------------------------------------------

class _GeluLinear(torch.autograd.Function):
    """linear(gelu(x)) that keeps x alone: GELU is computed again in the backward pass."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.bias_format = None if bias is None else bias.dtype
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        rows, dx, dweight, dbias = gradient.flatten(0, -2), None, None, None
        if ctx.needs_input_grad[0]:
            dx = torch.ops.aten.gelu_backward((rows @ weight).view_as(x), x)
        if ctx.needs_input_grad[1]:
            dweight = rows.mT @ F.gelu(x).flatten(0, -2)
        if ctx.bias_format is not None and ctx.needs_input_grad[2]:
            dbias = rows.sum(0, dtype=ctx.bias_format)
        return dx, dweight, dbias


def gelu_linear(x, weight, bias):
    """linear(gelu(x)), in less memory where training is in mixed precision.

    Args:
        x: (..., n) float.
        weight, bias: (m, n), (m,) or None; under autocast in any format.
    Returns: (..., m).
    """
    if not (_eager() and _is_mixed(x)):
        return F.linear(F.gelu(x), weight, bias)
    dtype = product_dtype(x)
    return _GeluLinear.apply(*(tensor if tensor is None else tensor.to(dtype) for tensor in (x, weight, bias)))


# ---- layer scale --------------------------------------------------------------------------------------------------

class _AddScaled(torch.autograd.Function):
    """x + gamma * keep * branch, in one kernel and with the branch kept in its own format."""

    @staticmethod
    def forward(ctx, x, branch, gamma, keep):
        scale = gamma if keep is None else gamma * keep
        ctx.save_for_backward(branch, scale, keep)
        return torch.addcmul(x, branch, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        branch, scale, keep = ctx.saved_tensors
        dbranch, dgamma = torch.mul(gradient, scale, out=torch.empty_like(branch)), None
        if ctx.needs_input_grad[2]:
            products = gradient * branch
            dgamma = (products.flatten(0, -2).sum(0) if keep is None else
                      (keep.view(1, -1) @ products.flatten(1, -2).sum(1)).view(-1))  # sums of images (B, C), weighed
        return gradient, dbranch, dgamma, None


def add_scaled(x, branch, gamma, keep=None):
    """x + gamma * branch, the branch also scaled image by image.

    Args:
        x: (B, ..., C) float.
        branch: of that shape, in any format.
        gamma: (C,) parameter.
        keep: (B, 1, ...) float without gradient, or None.
    """
    if _eager() and _is_mixed(x):
        return _AddScaled.apply(x, branch, gamma, keep)
    branch = gamma * branch
    return x + (branch if keep is None else branch * keep)


# ---- attention ----------------------------------------------------------------------------------------------------

class _BiasedAttention(torch.autograd.Function):
    """softmax(scale * q k' + bias) v with a gradient for the bias, for devices where no fused kernel has one.

    The scores are kept once, after the softmax, and the gradients of the three are written where they are wanted.
    """

    @staticmethod
    def forward(ctx, qkv, bias, scale):
        """qkv (3, B, W, heads, N, d), bias (W or 1, heads, N, N), any strides -> (B, W, heads, N, d)."""
        shape = qkv.shape[1:]
        q, k, v = qkv = qkv.contiguous().flatten(1, 3)
        scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=scale).unflatten(0, shape[:3])
        weights = torch.softmax(scores.add_(bias), dim=-1, dtype=scores.dtype)
        ctx.save_for_backward(qkv, weights)
        ctx.bias, ctx.scale = (bias.shape, bias.dtype), scale
        return torch.bmm(weights.flatten(0, 2), v).view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        qkv, weights = ctx.saved_tensors
        q, k, v = qkv
        gradient, flat = gradient.contiguous().flatten(0, 2), weights.flatten(0, 2)
        dqkv = torch.empty_like(qkv)
        torch.bmm(flat.mT, gradient, out=dqkv[2])
        dscores = torch._softmax_backward_data(torch.bmm(gradient, v.mT), flat, -1, flat.dtype)
        shape, dtype = ctx.bias
        dims = (0,) if shape[0] == weights.shape[1] else (0, 1)
        dbias = dscores.view_as(weights).sum(dims, dtype=dtype).view(shape) if ctx.needs_input_grad[1] else None
        torch.baddbmm(dqkv[0], dscores, k, beta=0, alpha=ctx.scale, out=dqkv[0])
        torch.baddbmm(dqkv[1], dscores.mT, q, beta=0, alpha=ctx.scale, out=dqkv[1])
        return dqkv.unflatten(1, weights.shape[:3]), dbias, None


def attention(qkv, bias=None, scale=None):
    """Multi-head attention within windows.

    Args:
        qkv: (3, B, W, heads, N, d): query, key and value; W windows of N tokens. Any strides.
        bias: (W or 1, heads, N, N) float, added to the scores; or None.
        scale: of the scores, None = 1 / sqrt(d).
    Returns: (B, W, N, heads * d).
    """
    _, batch, windows, heads, tokens, width = qkv.shape
    scale = width ** -0.5 if scale is None else scale
    qkv = qkv.to(product_dtype(qkv))
    if bias is not None and bias.requires_grad and qkv.is_cpu and _eager():
        x = _BiasedAttention.apply(qkv, bias, scale)
    else:
        # windows of different biases stand beside the heads, so that a bias need not be copied for every image
        first = 1 if bias is not None and bias.shape[0] > 1 else 0
        bias = None if bias is None else bias.flatten(0, 1).to(qkv.dtype).unsqueeze(0)
        q, k, v = (part.flatten(first, first + 1) for part in qkv.unbind(0))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).view(batch, windows, heads, tokens, width)
    return x.transpose(2, 3).reshape(batch, windows, tokens, heads * width)


def attention_weights(qkv, bias=None, scale=None):
    """How much each token takes of each in `attention`, with the same arguments: (B, W, heads, N, N), rows that add up to 1."""
    q, k, _ = qkv.unbind(0)
    scores = q @ k.mT * (qkv.shape[-1] ** -0.5 if scale is None else scale)
    return torch.softmax(scores.float() if bias is None else scores.float() + bias, dim=-1)


# ---- order --------------------------------------------------------------------------------------------------------

class _Reorder(torch.autograd.Function):
    """x[:, order] whose gradient is gradient[:, inverse]: autograd alone would add it up row by row."""

    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.save_for_backward(order, inverse)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx, gradient):
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(gradient, inverse, order), None, None


def reorder(x, order, inverse):
    """Tokens in another order.

    Args:
        x: (B, L, C).
        order: (L,) int64, a permutation: token i of the result was token order[i].
        inverse: (L,) int64, the permutation that undoes it.
    Returns: (B, L, C).
    """
    if torch.jit.is_tracing():  # which keeps no functions of ours
        return x.index_select(1, order)
    return _Reorder.apply(x, order, inverse)
