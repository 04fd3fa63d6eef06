"""Products with a backward pass of their own: the same as plain PyTorch, in fewer kernels and with less kept."""
import inspect

import pytest
import torch
from torch.autograd import gradcheck

from models import products
from models.encoders.vit import Block
from models.products import _AddScaled, _BiasedAttention, _Cast, _GeluLinear, _Reorder, add_scaled, attention, gelu_linear
from tools.benchmarks.traffic import counts

from ...contracts.tiny import build, make_config


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


KEEP = torch.tensor([0.0, 2.0], dtype=torch.float64).view(2, 1, 1)


@pytest.mark.parametrize(("function", "arguments"), [
    (_GeluLinear, (random(2, 3, 4), random(5, 4), random(5))),
    (_GeluLinear, (random(3, 4), random(5, 4), None)),
    (_AddScaled, (random(2, 3, 4), random(2, 3, 4, seed=1), random(4), None)),
    (_AddScaled, (random(2, 3, 4), random(2, 3, 4, seed=1), random(4), KEEP)),
    (_BiasedAttention, (random(3, 2, 2, 1, 3, 4), random(2, 1, 3, 3), 0.7)),
    (_BiasedAttention, (random(3, 2, 2, 3, 3, 4), random(1, 3, 3, 3), 0.7)),
    (_Reorder, (random(2, 4, 3), torch.tensor([2, 0, 3, 1]), torch.tensor([1, 3, 0, 2]))),
    (_Cast, (torch.float64, random(2, 3), random(3)))])
def test_gradient_is_that_of_finite_differences(function, arguments):
    assert gradcheck(function.apply, arguments)


@pytest.mark.parametrize("windows_of_bias", [1, 4])
def test_attention_by_hand_equals_the_function_of_pytorch(windows_of_bias):
    qkv, bias = random(3, 2, 4, 3, 5, 8), random(windows_of_bias, 3, 5, 5)
    by_hand = attention(qkv, bias)
    plain = attention(qkv, bias.detach())
    torch.testing.assert_close(by_hand, plain)


def with_and_without(monkeypatch, compute, *tensors):
    """(output, gradients) of a function under autocast, with the backward passes by hand and with those of PyTorch."""
    for eager in (True, False):
        monkeypatch.setattr(products, "_eager", lambda eager=eager: eager)
        with torch.autocast("cpu", torch.bfloat16):
            out = compute(*tensors)
        yield out, torch.autograd.grad(out.float().square().sum(), tensors)


@pytest.mark.parametrize("case", ["gelu", "scaled"])
def test_under_autocast_values_are_those_of_the_plain_code_within_the_rounding(case, monkeypatch):
    if case == "gelu":
        pair = with_and_without(monkeypatch, gelu_linear, *(random(*shape, dtype=torch.float32)
                                                            for shape in ((4, 6, 8), (5, 8), (5,))))
    else:
        pair = with_and_without(monkeypatch, add_scaled, random(4, 6, 8, dtype=torch.float32),
                                random(4, 6, 8, dtype=torch.float32, seed=1), random(8, dtype=torch.float32))
    (out, gradients), (expected, expected_gradients) = pair
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, atol=0.02, rtol=0.02)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, atol=0.02 * other.abs().max().item(), rtol=0)


def test_weights_cast_together_give_the_values_of_weights_cast_one_by_one():
    block, x = Block(16, 2, key_bias=True), random(2, 5, 16, dtype=torch.float32)
    block.mlp.fc1.weight.requires_grad_(False)  # frozen
    results = []
    for forward in (Block.forward, inspect.unwrap(Block.forward)):
        with torch.autocast("cpu", torch.bfloat16):
            out = forward(block, x)
        trained = [p for p in block.parameters() if p.requires_grad]
        results.append((out, *torch.autograd.grad(out.square().sum(), trained)))
        assert all(isinstance(p, torch.nn.Parameter) and p.dtype == torch.float32 for p in block.parameters())
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("encoder", "variant", "method"), [("swin", "plain", "simmim"), ("vit", "plain", "simmim"),
                                                            ("vit", "mae", "mae")])
@pytest.mark.parametrize("as_on", ["cpu", "cuda"])
def test_step_in_bfloat16_takes_fewer_kernels_and_keeps_less_than_plain_code(encoder, variant, method, as_on, monkeypatch):
    config = make_config(encoder, variant, method)
    ours = counts(config, build(config, is_pretrain=True), as_on)
    monkeypatch.setattr(products, "_eager", lambda: False)
    plain = counts(config, build(config, is_pretrain=True), as_on)
    assert ours["kernels"] < 0.85 * plain["kernels"] and ours["saved_mib"] < plain["saved_mib"]
