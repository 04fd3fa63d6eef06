"""24 optimizer steps of real training: model, optimizer groups, schedule and clipping together."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from config import encoder_config, load_config
from engine import Updater
from lr_scheduler import build_scheduler
from models import build_model
from optimizer import build_optimizer
from utils.precision import NativePrecision

from .recorded import case_names, load_json, load_npz, names_of_groups, opts_of, tensors


@dataclass
class Tolerance:
    loss: float  # absolute
    grad_norm: float  # relative


TOLERANCE = Tolerance(loss=5e-5, grad_norm=1e-3)
SECOND_HALF = {"swinv2": Tolerance(loss=2e-3, grad_norm=2e-2)}  # where rounding grows along the trajectory
LR_TOLERANCE = 1e-12  # relative
ROUNDING = 2.0 ** -17  # relative, of the recorded final weights


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
    patch_size = encoder_config(config).PATCH_SIZE

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


def halves(run, actual, key):
    """(steps so far, recorded, tolerance) of the first and of the second half of a run."""
    middle, expected = run.record["steps"] // 2, run.record[key]
    assert len(actual) == len(expected) == 2 * middle
    second = SECOND_HALF.get(run.record["config_overrides"]["MODEL.TYPE"], TOLERANCE)
    return (actual[:middle], expected[:middle], TOLERANCE), (actual[middle:], expected[middle:], second)


def test_trace_loss_matches_at_each_step(run):
    for actual, expected, tolerance in halves(run, run.losses, "loss_per_micro_batch_as_logged"):
        assert actual == pytest.approx(expected, abs=tolerance.loss, rel=0)


def test_trace_gradient_norm_matches_at_each_step(run):
    for actual, expected, tolerance in halves(run, run.norms, "grad_norm_before_clip_per_micro_batch"):
        assert actual == pytest.approx(expected, rel=tolerance.grad_norm)


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
        actual, expected = without_key_bias(name, actual), without_key_bias(name, expected)
        if not torch.allclose(actual, expected, atol=tolerance, rtol=ROUNDING):
            errors[name] = ((actual - expected).abs().max().item(), tolerance)
    assert errors == {}
