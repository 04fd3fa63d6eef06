"""Counted costs against measured ones: real tensors, real gradients, the profiler's allocations, sums by hand."""
from functools import cache
from itertools import accumulate
from unittest import mock

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore

from models import build_model
from tests.unit.helpers import HEIGHT, PATCH, TINY, WIDTH, random_images, random_mask, tiny_config, tiny_model
from utils.costs import (
    AsOnCuda,
    LiveMemory,
    empty_copies,
    forward_costs,
    no_memory,
    num_bytes,
    num_parameters,
    num_parameters_of_part,
    training_flops,
    training_memory,
)

BATCH = 6
CHECKPOINT = {"TRAIN.USE_CHECKPOINT": True}


def model_without_memory(encoder, overrides=None, dtype=None):
    """Inside no_memory."""
    with torch.device("meta"):
        model = build_model(tiny_config(encoder, overrides))
    return empty_copies(model, dtype).train()


def loss_without_memory(encoder, model, device="cpu", mixed=False, batch=BATCH):
    def compute():
        images = torch.empty(batch, 3, HEIGHT, WIDTH, device=device)
        mask = torch.empty(batch, HEIGHT // PATCH[encoder], WIDTH // PATCH[encoder], dtype=torch.bool, device=device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            return model(images, mask)
    return compute


def count(encoder, overrides=None, dtype=None):
    """(forward FLOPs, training FLOPs, training bytes) as on CUDA."""
    with no_memory(), AsOnCuda():
        model = model_without_memory(encoder, overrides, dtype)
        compute_loss = loss_without_memory(encoder, model, mixed=True)
        return *training_flops(compute_loss), training_memory(model, compute_loss)


@cache
def plain_count(encoder):
    return count(encoder)


def saved_bytes(compute_loss, model):
    """Bytes that a forward pass saves for the backward pass, beside parameters and buffers."""
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = compute_loss()
    resident = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    own = [tensor for tensor in saved if tensor.untyped_storage()._cdata not in resident]
    return num_bytes([*own, loss])


# ---- parameters ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("encoder", TINY)
def test_bytes_of_a_model_are_those_of_its_tensors(encoder):
    model = tiny_model(encoder)
    with no_memory():
        copy = model_without_memory(encoder)
        assert num_bytes(copy.parameters()) == num_bytes(model.parameters()) == 4 * num_parameters(model.parameters())
        assert num_bytes(copy.buffers()) == sum(buffer.nbytes for buffer in model.buffers())


def test_bytes_of_views_count_once():
    tensor = torch.zeros(3, 5)
    assert num_bytes([tensor, tensor.t(), tensor[1:], torch.zeros(2, dtype=torch.bfloat16)]) == 3 * 5 * 4 + 2 * 2


@pytest.mark.parametrize("encoder", TINY)
def test_part_of_a_process_is_what_sharding_gives_it(encoder):
    model, parts = tiny_model(encoder), 3
    expected = num_parameters_of_part(list(model.parameters()), parts)
    dist.init_process_group("fake", rank=0, world_size=parts, store=FakeStore())
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (parts,)))
        assert expected == sum(parameter.to_local().numel() for parameter in model.parameters())
    finally:
        dist.destroy_process_group()


# ---- operations ---------------------------------------------------------------------------------------------------

def test_flops_of_a_vit_agree_with_the_sum_by_hand():
    width, hidden, depth, patches = 16, 4 * 16, 3, (HEIGHT // 8) * (WIDTH // 8)
    tokens, pixels = patches + 1, 3 * 8 * 8
    embedding, decoder = patches * pixels * width, patches * width * pixels
    linear = tokens * width * (3 * width + width + 2 * hidden)
    attention = 2 * tokens * tokens * width  # scores, and the sum of the values
    forward, training, _ = plain_count("vit")
    assert forward == 2 * BATCH * (embedding + depth * (linear + attention) + decoder)
    # backward: twice of everything, but no gradient of the image, and fused attention computes the scores again
    again = 2 * embedding + 3 * (depth * linear + decoder) + depth * (attention + 2.5 * attention)
    assert training == 2 * BATCH * again


@pytest.mark.parametrize("encoder", TINY)
def test_training_is_about_three_times_forward(encoder):
    forward, training, _ = plain_count(encoder)
    assert 2.8 < training / forward < 3.2


@pytest.mark.parametrize("encoder", TINY)
def test_flops_of_real_tensors_are_the_same_but_for_recomputed_scores(encoder):
    model, images, mask = tiny_model(encoder).train(), random_images(BATCH), random_mask(encoder, BATCH)
    forward, training = training_flops(lambda: model(images, mask))
    counted_forward, counted_training, _ = plain_count(encoder)
    assert forward == counted_forward and training < counted_training < 1.1 * training


# ---- memory -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("overrides", [{}, CHECKPOINT, {"MODEL.DROP_PATH_RATE": 0.3}], ids=["plain", "checkpoint", "drop_path"])
@pytest.mark.parametrize("encoder", TINY)
def test_memory_after_forward_is_what_a_real_run_saves(encoder, overrides):
    model, images, mask = tiny_model(encoder, overrides).train(), random_images(BATCH), random_mask(encoder, BATCH)
    expected = saved_bytes(lambda: model(images.clone(), mask.clone()), model)
    with no_memory():
        model = model_without_memory(encoder, overrides)
        with LiveMemory([*model.parameters(), *model.buffers()]) as memory:
            loss = loss_without_memory(encoder, model)()
        assert memory.now == pytest.approx(expected, rel=0.005)
        del loss
    assert memory.now == 0


@pytest.mark.parametrize("overrides", [{}, CHECKPOINT], ids=["plain", "checkpoint"])
@pytest.mark.parametrize("encoder", TINY)
def test_peak_is_what_the_profiler_sees_of_a_real_step(encoder, overrides):
    model, images, mask = tiny_model(encoder, overrides).train(), random_images(BATCH), random_mask(encoder, BATCH)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    with torch.profiler.profile(profile_memory=True) as profiler:
        model(images.clone(), mask.clone()).backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    measured = max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    with no_memory():
        model = model_without_memory(encoder, overrides)
        # checkpointing keeps states of random generators, which are no tensors of the model
        assert training_memory(model, loss_without_memory(encoder, model)) == pytest.approx(measured, rel=0.03)


@pytest.mark.skipif(torch.__version__.startswith("2.6") and not torch.cuda.is_available(),
                    reason="this torch asks the CUDA driver for convolutions of tensors without content")
@pytest.mark.parametrize("encoder", TINY)
def test_mixed_precision_saves_what_autocast_of_cuda_saves(encoder):
    """Forward alone works with CUDA tensors without content, also on machines without CUDA."""
    with no_memory(), mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False), \
            mock.patch("torch.cuda.is_bf16_supported", return_value=True):
        model = model_without_memory(encoder)
        with AsOnCuda():
            actual = saved_bytes(loss_without_memory(encoder, model, mixed=True), model)
            model = empty_copies(model, device="cuda")
            expected = saved_bytes(loss_without_memory(encoder, model, "cuda", mixed=True), model)
    assert actual == expected


@pytest.mark.parametrize("encoder", TINY)
def test_checkpointing_lowers_memory_and_raises_flops(encoder):
    forward, training, memory = plain_count(encoder)
    same_forward, more_training, less_memory = count(encoder, CHECKPOINT)
    assert less_memory < 0.75 * memory and same_forward == forward and more_training - training > 0.5 * forward


@pytest.mark.parametrize("encoder", TINY)
def test_parameters_in_the_format_that_is_multiplied_in_need_no_copies(encoder):
    *flops, memory = plain_count(encoder)
    *same_flops, less_memory = count(encoder, dtype=torch.bfloat16)
    copies = 2 * num_parameters(parameter for parameter in tiny_model(encoder).parameters() if parameter.ndim > 1)
    assert flops == same_flops and memory - less_memory > 0.5 * copies  # not all are there at the peak


@pytest.mark.parametrize("encoder", TINY)
def test_memory_grows_linearly_with_the_batch(encoder):
    with no_memory(), AsOnCuda():
        model = model_without_memory(encoder)
        memory = [training_memory(model, loss_without_memory(encoder, model, mixed=True, batch=batch))
                  for batch in (32, 64, 96)]
    assert memory[2] - memory[1] == pytest.approx(memory[1] - memory[0], rel=0.02)


# ---- operators ----------------------------------------------------------------------------------------------------

def test_forward_costs_follow_the_rules_of_each_operator():
    batch, channels, height, width, classes = 2, 3, 8, 12, 5

    def compute(convolution, norm, plain, affine, head, no_bias):
        x = norm(convolution(torch.randn(batch, channels, height, width)).flatten(2).transpose(1, 2))  # (2, 6, 7)
        attended = torch.softmax(x @ x.transpose(1, 2), dim=-1) @ x
        attended = F.gelu(F.scaled_dot_product_attention(*[attended.unsqueeze(1)] * 3)).squeeze(1)
        return head(affine(plain(attended.mean(dim=1)))) + no_bias(x).sum()

    with no_memory(), AsOnCuda():  # torch 2.6 does not count the CPU's fused attention
        layers = (nn.Conv2d(channels, 7, 4, stride=4), nn.LayerNorm(7), nn.BatchNorm1d(7, affine=False).eval(),
                  nn.BatchNorm1d(7).eval(), nn.Linear(7, classes), nn.Linear(7, classes, bias=False))
        costs = forward_costs(lambda: compute(*layers))
    tokens, patch = batch * 6, 4 * 4 * channels
    attention = 2 * batch * 6 * 6 * 7
    assert costs == {
        "conv": tokens * patch * 7, "layer_norm": 5 * tokens * 7, "matmul": 2 * attention,
        "batch_norm": 3 * batch * 7, "linear": batch * 7 * classes + tokens * 7 * classes}


def test_forward_costs_leave_no_gradient_behind():
    layer = nn.Linear(3, 2)
    assert forward_costs(lambda: layer(torch.randn(4, 3)).sum()) == {"linear": 24} and layer.weight.grad is None
