"""State-dict names, shapes and order of the nine official models, built on the meta device."""

import functools

import pytest
import torch

from config import load_config
from models import build_model

from .recorded import case_names, load_json, recipe_path

CASES = case_names("keys")


@functools.cache
def shapes_of(name):
    """(parameters, buffers of the state dict) as {name: shape}, in module order."""
    with torch.device("meta"):
        model = build_model(load_config(recipe_path(name)), is_pretrain=name.startswith("simmim_pretrain"))
    parameters = {key: list(parameter.shape) for key, parameter in model.named_parameters()}
    buffers = {key: list(value.shape) for key, value in model.state_dict().items() if key not in parameters}
    return parameters, buffers


@pytest.mark.parametrize("name", CASES)
def test_parameters_have_the_official_names_and_shapes(name):
    assert shapes_of(name)[0] == load_json(f"keys/{name}.json")["params"]


@pytest.mark.parametrize("name", CASES)
def test_parameters_come_in_the_official_order(name):
    """Optimizer states are stored by position, so an official training checkpoint needs the same order."""
    assert list(shapes_of(name)[0]) == list(load_json(f"keys/{name}.json")["params"])


@pytest.mark.parametrize("name", CASES)
def test_state_dict_has_the_official_buffers(name):
    assert shapes_of(name)[1] == load_json(f"keys/{name}.json")["buffers"]


@pytest.mark.parametrize("name", CASES)
def test_number_of_parameters_is_the_published_one(name):
    with torch.device("meta"):
        model = build_model(load_config(recipe_path(name)), is_pretrain=name.startswith("simmim_pretrain"))
    assert sum(parameter.numel() for parameter in model.parameters()) == load_json(f"keys/{name}.json")["num_params"]
