"""Optimizer groups of the official recipes: weight decay, layer decay, names and order."""

import functools

import pytest
import torch

from config import load_config
from models import build_model
from optimizer import build_optimizer

from .recorded import case_names, load_json, names_of_groups, recipe_path

PRETRAIN = case_names("param_groups", "*simmim_pretrain*.json")
FINETUNE = case_names("param_groups", "*simmim_finetune*.json")


@functools.cache
def groups_of(name):
    """[(group, parameter names)] in optimizer order; the model has shapes but no memory."""
    is_pretrain = name in PRETRAIN
    config = load_config(recipe_path(name))
    with torch.device("meta"):
        model = build_model(config, is_pretrain=is_pretrain)
    optimizer = build_optimizer(config, model, is_pretrain=is_pretrain)
    return list(zip(optimizer.param_groups, names_of_groups(model, optimizer), strict=True))


def per_parameter(name, key):
    """{parameter: group[key]}; a parameter in two groups would be updated twice, so it fails here."""
    pairs = [(parameter, group[key]) for group, parameters in groups_of(name) for parameter in parameters]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_weight_decay_matches_for_each_parameter(name):
    assert per_parameter(name, "weight_decay") == load_json(f"param_groups/{name}.json")


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_groups_share_the_base_learning_rate(name):
    base_lr = load_config(recipe_path(name)).TRAIN.BASE_LR
    assert set(per_parameter(name, "lr").values()) == {base_lr}


@pytest.mark.parametrize("name", FINETUNE)
def test_finetuning_groups_come_in_the_recorded_order(name):
    expected = load_json(f"param_groups/{name}.json")["groups_in_optimizer_order"]
    assert [(group["group_name"], group["weight_decay"], len(names)) for group, names in groups_of(name)] == [
        (group["group_name"], group["weight_decay"], group["num_tensors"]) for group in expected]


@pytest.mark.parametrize("name", FINETUNE)
def test_finetuning_group_learning_rate_is_base_times_layer_scale(name):
    expected = load_json(f"param_groups/{name}.json")["groups_in_optimizer_order"]
    assert [group["lr"] for group, _ in groups_of(name)] == pytest.approx([group["lr"] for group in expected],
                                                                          rel=1e-12, abs=0)
    assert [group["lr_scale"] for group, _ in groups_of(name)] == pytest.approx(
        [group["lr_scale"] for group in expected], rel=1e-12, abs=0)


@pytest.mark.parametrize("name", FINETUNE)
def test_finetuning_layer_scale_matches_for_each_parameter(name):
    expected = load_json(f"param_groups/{name}.json")["params"]
    assert per_parameter(name, "lr_scale") == pytest.approx(
        {parameter: record["lr_scale"] for parameter, record in expected.items()}, rel=1e-12, abs=0)


@pytest.mark.parametrize("name", FINETUNE)
def test_finetuning_weight_decay_matches_for_each_parameter(name):
    expected = load_json(f"param_groups/{name}.json")["params"]
    assert per_parameter(name, "weight_decay") == {
        parameter: record["weight_decay"] for parameter, record in expected.items()}
