"""MAE's optimizer steps, learning rates and layer decay."""
from types import SimpleNamespace

import pytest
import torch

from config import load_config
from lr_scheduler import build_scheduler
from models import build_model
from optimizer import build_optimizer

from .mae_records import (
    MAE_VIT,
    load_mim,
    load_mim_json,
    noise_to_mask,
    our_name,
    our_names,
    part,
    pretrain_config,
    pretrain_model,
)
from .recorded import names_of_groups, opts_of
from .test_traces import engine_step, without_key_bias

SCHEDULE = {"TRAIN.LR_SCHEDULER.LAG": False, "TRAIN.LR_SCHEDULER.WARMUP_PREFIX": True, "TRAIN.WARMUP_LR": 0.0}
RATES = load_mim_json("mae_lr_schedule")
GROUPS = load_mim_json("mae_layer_decay_vitb")
STEPS_PER_EPOCH = 1000  # all recorded fractions of an epoch are whole steps then


# ---- trace --------------------------------------------------------------------------------------------------------

def plain_step(model, optimizer, clip, compute_loss):
    """What a textbook would write."""
    optimizer.zero_grad()
    loss = compute_loss(model)
    loss.backward()
    optimizer.step()
    return loss, None


@pytest.fixture(scope="module", params=[plain_step, engine_step], ids=lambda step: step.__name__)
def trace(request):
    """The recorded run repeated: what was measured at each step and the model afterwards."""
    record, tensors = load_mim("mae_pretrain_train_trace")
    model = pretrain_model(record, part(tensors, "state")).train()
    config = pretrain_config(record, **SCHEDULE, **{
        "TRAIN.BASE_LR": record["lr"], "TRAIN.MIN_LR": 0.0, "TRAIN.EPOCHS": record["epochs"],
        "TRAIN.WARMUP_EPOCHS": record["warmup_epochs"], "TRAIN.WEIGHT_DECAY": record["weight_decay"],
        "TRAIN.OPTIMIZER.BETAS": record["betas"], "TRAIN.OPTIMIZER.EPS": record["eps"], "TRAIN.CLIP_GRAD": None})
    optimizer = build_optimizer(config, model)
    scheduler = build_scheduler(config, optimizer, record["steps_per_epoch"])
    side, losses, rates = record["img_size"] // record["patch_size"], [], []
    for t in range(record["steps"]):
        images, mask = tensors["in/images"][t], noise_to_mask(tensors["in/noise"][t], record["mask_ratio"], (side, side))
        rates.append([group["lr"] for group in optimizer.param_groups])
        loss, _ = request.param(model, optimizer, config.TRAIN.CLIP_GRAD, lambda model, x=images, m=mask: model(x, m))
        losses.append(loss.item())
        scheduler.step_update(t)
    return SimpleNamespace(tensors=tensors, record=record, model=model, optimizer=optimizer, losses=losses, rates=rates)


def test_trace_loss_matches_at_each_step(trace):
    assert trace.losses == pytest.approx(trace.tensors["out/loss"].tolist(), abs=1e-5, rel=0)


def test_trace_learning_rate_matches_at_each_step(trace):
    """The record is in single precision."""
    assert [rates[0] for rates in trace.rates] == pytest.approx(trace.tensors["out/lr"].tolist(), rel=1e-7, abs=0)
    assert all(len(set(rates)) == 1 for rates in trace.rates)


def test_trace_final_weights_match(trace):
    """AdamW moves what has no gradient (the bias of the key) by rounding noise, so that is left out."""
    actual, wrong, checked = trace.model.state_dict(), {}, set()
    for prefix, step in (("final_state", 1), ("final_state_every8", 8)):
        for name, expected in our_names(part(trace.tensors, prefix)).items():
            checked.add(name)
            difference = without_key_bias(name, actual[name][::step]) - without_key_bias(name, expected)
            if difference.abs().max() > 1e-5:
                wrong[name] = difference.abs().max().item()
    assert checked == set(actual)
    assert wrong == {}


def test_trace_decays_tokens_and_matrices_and_leaves_tables_out(trace):
    decay, no_decay = names_of_groups(trace.model, trace.optimizer)
    assert [group["weight_decay"] for group in trace.optimizer.param_groups] == [trace.record["weight_decay"], 0.0]
    assert {our_name("cls_token"), our_name("mask_token")} <= set(decay)
    parameters = dict(trace.model.named_parameters())
    assert all(parameters[name].ndim > 1 and not name.endswith(".bias") for name in decay)
    assert all(parameters[name].ndim == 1 for name in no_decay)
    assert {*parameters} - {*decay, *no_decay} == {"encoder.pos_embed", "decoder.pos_embed"}


# ---- learning rates -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", RATES)
def test_learning_rates_match_at_fractions_of_an_epoch(name):
    """Also of a group with a smaller lr_scale, which scales the minimum, too."""
    record = RATES[name]
    config = load_config(opts=opts_of(SCHEDULE | {
        "TRAIN.LR_SCHEDULER.SCALE_ALL": True, "TRAIN.EPOCHS": record["epochs"], "TRAIN.MIN_LR": record["min_lr"],
        "TRAIN.WARMUP_EPOCHS": record["warmup_epochs"]}))
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": record["lr"] * scale,
                                  "lr_scale": scale} for scale in (1.0, 0.25)])
    scheduler = build_scheduler(config, optimizer, STEPS_PER_EPOCH)
    for epoch, *expected in record["rows"]:
        t = round(epoch * STEPS_PER_EPOCH)
        assert t == pytest.approx(epoch * STEPS_PER_EPOCH, abs=1e-6)
        if t > 0:
            scheduler.step_update(t - 1)  # sets the rate of the step after it
        # where the cosine is near its end, 1 + cos(...) cancels: absolute in the peak
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            expected, rel=1e-12, abs=1e-15 * record["lr"]), epoch


# ---- layer decay --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def finetune_groups():
    """Optimizer groups of ViT-B in fine-tuning with mean pooling, and their parameter names."""
    config = load_config(opts=opts_of(MAE_VIT | {
        "MODEL.VIT.USE_MEAN_POOLING": GROUPS["model"]["global_pool"], "MODEL.NUM_CLASSES": GROUPS["model"]["num_classes"],
        "TRAIN.LAYER_DECAY": GROUPS["layer_decay"], "TRAIN.WEIGHT_DECAY": GROUPS["weight_decay"]}))
    with torch.device("meta"):
        model = build_model(config, is_pretrain=False)
    optimizer = build_optimizer(config, model, is_pretrain=False)
    return list(zip(optimizer.param_groups, names_of_groups(model, optimizer), strict=True))


def test_layer_decay_groups_hold_the_recorded_parameters(finetune_groups):
    assert [names for _, names in finetune_groups] == [group["params"] for group in GROUPS["groups"]]


@pytest.mark.parametrize("key", ["lr_scale", "weight_decay"])
def test_layer_decay_groups_have_the_recorded_values(finetune_groups, key):
    assert [group[key] for group, _ in finetune_groups] == pytest.approx([group[key] for group in GROUPS["groups"]],
                                                                         rel=1e-12, abs=0)
