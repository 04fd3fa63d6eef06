"""24 optimizer steps of real training: model, optimizer groups, schedule and clipping together."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from config import load_config
from engine import Updater
from lr_scheduler import build_scheduler
from models import build_model
from optimizer import build_optimizer
from utils.precision import NativePrecision

from .recorded import case_names, load_json, load_npz, names_of_groups, opts_of, tensors

LOSS_TOLERANCE = 5e-5  # absolute
GRAD_NORM_TOLERANCE = 1e-3  # relative
LR_TOLERANCE = 1e-12  # relative


def recorded_overrides(record):
    """The recorded configuration with its learning rates after batch-size scaling, as the builders expect them."""
    return record["config_overrides"] | {
        "TRAIN.BASE_LR": record["scaled_base_lr"],
        "TRAIN.WARMUP_LR": record["scaled_warmup_lr"],
        "TRAIN.MIN_LR": record["scaled_min_lr"],
    }


def loss_of(model, batch, patch_size, is_pretrain):
    if is_pretrain:
        return model(batch["images"], batch[f"mask_patch{patch_size}"].long())
    return F.cross_entropy(model(batch["images"]), batch["soft_targets"])


def plain_step(model, optimizer, clip, compute_loss):
    """What a textbook would write."""
    optimizer.zero_grad()
    loss = compute_loss(model)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss, norm


def engine_step(model, optimizer, clip, compute_loss):
    """The update path of the training loop."""
    return Updater(model, optimizer, NativePrecision(torch.device("cpu"), None), clip).update([compute_loss])


@pytest.fixture(scope="module", params=[(case, step) for case in case_names("trace") for step in (plain_step, engine_step)],
                ids=lambda case_and_step: f"{case_and_step[0]}-{case_and_step[1].__name__}")
def run(request):
    """One recorded run repeated; holds what was measured at each step and the model afterwards."""
    case, step = request.param
    record, arrays = load_json(f"trace/{case}.json"), load_npz(f"trace/{case}.npz")
    data = {name: torch.from_numpy(array) for name, array in load_npz("trace/data.npz").items()}
    num_batches = len(data["images"])
    is_pretrain = record["stage"] == "pretrain"
    config = load_config(opts=opts_of(recorded_overrides(record)))
    patch_size = config.MODEL.VIT.PATCH_SIZE if config.MODEL.TYPE == "vit" else config.MODEL.SWIN.PATCH_SIZE

    model = build_model(config, is_pretrain=is_pretrain)
    model.load_state_dict(tensors(arrays, "init"), strict=True)
    model.train()
    optimizer = build_optimizer(config, model, is_pretrain=is_pretrain)
    scheduler = build_scheduler(config, optimizer, num_batches)

    losses, norms, rates = [], [], []
    for t in range(record["steps"]):
        batch = {name: array[t % num_batches] for name, array in data.items()}
        rates.append([group["lr"] for group in optimizer.param_groups])
        loss, norm = step(model, optimizer, config.TRAIN.CLIP_GRAD,
                          lambda model, batch=batch: loss_of(model, batch, patch_size, is_pretrain))
        losses.append(loss.item())
        norms.append(norm.item())
        scheduler.step_update(t)
    return SimpleNamespace(record=record, model=model, optimizer=optimizer, losses=losses, norms=norms, rates=rates,
                           final=tensors(arrays, "final"), final_every8=tensors(arrays, "final_every8"))


def without_key_bias(name, tensor):
    """Drop the key third of a fused qkv bias: its true gradient is zero, AdamW turns rounding noise into moves."""
    if not name.endswith("attn.qkv.bias"):
        return tensor
    third = len(tensor) // 3
    return torch.cat([tensor[:third], tensor[2 * third:]])


def test_trace_loss_matches_at_each_step(run):
    assert run.losses == pytest.approx(run.record["loss_per_micro_batch_as_logged"], abs=LOSS_TOLERANCE, rel=0)


def test_trace_gradient_norm_matches_at_each_step(run):
    expected = run.record["grad_norm_before_clip_per_micro_batch"]
    assert run.norms == pytest.approx(expected, rel=GRAD_NORM_TOLERANCE)


def test_trace_optimizer_groups_are_the_recorded_ones(run):
    expected = run.record["param_groups"]
    assert names_of_groups(run.model, run.optimizer) == [group["params"] for group in expected]
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [
        group["weight_decay"] for group in expected]


def test_trace_learning_rate_of_each_group_matches_at_each_step(run):
    expected = run.record["lr_at_optimizer_step_per_group"]
    for actual_rates, expected_rates in zip(run.rates, expected, strict=True):
        assert actual_rates == pytest.approx(expected_rates, rel=LR_TOLERANCE, abs=0)


def test_trace_final_weights_match_within_their_sensitivity(run):
    errors = {}
    for name, parameter in run.model.named_parameters():
        sampled = name in run.final_every8
        expected = run.final_every8[name] if sampled else run.final[name]
        actual = parameter.detach()[::8] if sampled else parameter.detach()
        assert actual.shape == expected.shape
        sensitivity = run.record["final_weight_sensitivity"][name]
        tolerance = 20 * max(sensitivity["vs_float64"], sensitivity["input_jitter_1e-6"]) + 1e-5
        error = (without_key_bias(name, actual) - without_key_bias(name, expected)).abs().max().item()
        if error > tolerance:
            errors[name] = (error, tolerance)
    assert errors == {}
