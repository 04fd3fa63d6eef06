"""Outputs, losses and every gradient of tiny models, with every parameter away from its special value."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from config import load_config
from models import build_model

from .recorded import case_names, load_json, load_npz, opts_of, tensors, worst_relative_error


@dataclass
class Tolerance:
    output: float  # of the tensor's maximum
    loss: float  # relative
    gradient: float  # of the tensor's maximum


TOLERANCES = {
    "swin": Tolerance(output=2e-5, loss=2e-6, gradient=1e-4),
    "swinv2": Tolerance(output=1e-4, loss=1e-5, gradient=2e-3),  # 1 / |q| of tiny heads amplifies rounding
    "vit": Tolerance(output=2e-5, loss=2e-6, gradient=1e-4),
}
NOISE = 1e-6  # gradients below this share of the largest one are rounding noise (e.g. the bias of the keys)

CASES = case_names("fwd_bwd")
PRETRAIN = [name for name in CASES if name.startswith("pt_")]
FINETUNE = [name for name in CASES if name.startswith("ft_")]


def load_case(name):
    record, arrays = load_json(f"fwd_bwd/{name}.json"), load_npz(f"fwd_bwd/{name}.npz")
    model = build_model(load_config(opts=opts_of(record["config_overrides"])), is_pretrain=name.startswith("pt_"))
    built = {name: value.clone() for name, value in model.state_dict().items()}
    state = tensors(arrays, "state")
    model.load_state_dict(state, strict=True)
    return SimpleNamespace(record=record, tolerance=TOLERANCES[record["config_overrides"]["MODEL.TYPE"]],
                           model=model.eval(), built=built, state=state,
                           inputs=tensors(arrays, "in"), out=tensors(arrays, "out"),
                           grad=tensors(arrays, "grad"), grad_every8=tensors(arrays, "grad_every8"))


@pytest.fixture(scope="module", params=PRETRAIN)
def pretrain(request):
    case = load_case(request.param)
    images, mask = case.inputs["x"], case.inputs["mask"]
    case.loss = case.model(images, mask)
    case.loss.backward()
    with torch.no_grad():
        case.encoded = case.model.encoder(images, mask)
        case.reconstructed = case.model.reconstruct(images, mask)
    return case


@pytest.fixture(scope="module", params=FINETUNE)
def finetune(request):
    case = load_case(request.param)
    case.logits = case.model(case.inputs["x"])
    case.loss = F.cross_entropy(case.logits, case.inputs["labels"])
    case.loss.backward()
    with torch.no_grad():
        case.features = case.model.extract_feat(case.inputs["x"])
    return case


def gradient_errors(case):
    """{name: error} of the parameters whose gradient leaves its tolerance."""
    largest = max(case.record["grad_max_abs_float64"].values())
    errors = {}
    for name, parameter in case.model.named_parameters():
        if name in case.record["params_without_grad"]:
            continue
        sampled = name in case.grad_every8
        expected = case.grad_every8[name] if sampled else case.grad[name]
        actual = parameter.grad[::8] if sampled else parameter.grad
        scale = case.record["grad_max_abs_float64"][name]
        if scale < NOISE * largest:
            scale, tolerance = 1.0, NOISE
        else:
            tolerance = case.tolerance.gradient
        if not (error := worst_relative_error(actual, expected, scale=scale)) <= tolerance:  # NaN is an error
            errors[name] = error
    return errors


def wrong_buffers(case):
    """Names of the buffers that the new model filled with other values than the recorded ones."""
    parameters = dict(case.model.named_parameters()).keys()
    assert case.built.keys() == case.state.keys()
    return [name for name in case.state.keys() - parameters if not torch.equal(case.built[name], case.state[name])]


def without_gradient(case):
    return {name for name, parameter in case.model.named_parameters() if parameter.grad is None}


def test_pretraining_model_is_built_with_the_recorded_buffers(pretrain):
    """Window masks and position indices: loading the state overwrites them, so the outputs below do not test them."""
    assert wrong_buffers(pretrain) == []


def test_classification_model_is_built_with_the_recorded_buffers(finetune):
    assert wrong_buffers(finetune) == []


def test_encoder_output_matches_the_record(pretrain):
    assert worst_relative_error(pretrain.encoded, pretrain.out["z"]) <= pretrain.tolerance.output


def test_reconstruction_matches_the_record(pretrain):
    assert worst_relative_error(pretrain.reconstructed[-1:], pretrain.out["rec_last"]) <= pretrain.tolerance.output


def test_pretraining_loss_matches_the_record(pretrain):
    assert pretrain.loss.item() == pytest.approx(pretrain.out["loss"].item(), rel=pretrain.tolerance.loss)


def test_pretraining_gradients_match_the_record(pretrain):
    assert gradient_errors(pretrain) == {}


def test_pretraining_leaves_only_the_recorded_parameters_without_gradient(pretrain):
    assert without_gradient(pretrain) == set(pretrain.record["params_without_grad"])


def test_mask_of_booleans_gives_the_same_loss(pretrain):
    with torch.no_grad():
        loss = pretrain.model(pretrain.inputs["x"], pretrain.inputs["mask"].bool())
    assert loss.item() == pytest.approx(pretrain.out["loss"].item(), rel=pretrain.tolerance.loss)


def test_pooled_features_match_the_record(finetune):
    assert worst_relative_error(finetune.features[-1], finetune.out["features"]) <= finetune.tolerance.output


def test_logits_match_the_record(finetune):
    assert worst_relative_error(finetune.logits, finetune.out["logits"]) <= finetune.tolerance.output


def test_cross_entropy_matches_the_record(finetune):
    assert finetune.loss.item() == pytest.approx(finetune.out["loss_ce"].item(), rel=finetune.tolerance.loss)


def test_label_smoothing_loss_matches_the_record(finetune):
    loss = F.cross_entropy(finetune.logits.detach(), finetune.inputs["labels"], label_smoothing=0.1)
    assert loss.item() == pytest.approx(finetune.out["loss_label_smoothing_0.1"].item(), rel=finetune.tolerance.loss)


def test_soft_target_loss_matches_the_record(finetune):
    loss = F.cross_entropy(finetune.logits.detach(), finetune.inputs["soft_targets"])
    assert loss.item() == pytest.approx(finetune.out["loss_soft_target"].item(), rel=finetune.tolerance.loss)


def test_classification_gradients_match_the_record(finetune):
    assert gradient_errors(finetune) == {}


def test_classification_leaves_only_the_recorded_parameters_without_gradient(finetune):
    assert without_gradient(finetune) == set(finetune.record["params_without_grad"])
