"""State-dict names, shapes and order of the official models and of the paper's large ones, built on the meta device."""

import functools

import pytest
import torch

from config import load_config
from models import build_model

from .recorded import case_names, load_json, opts_of, recipe_path

CASES = case_names("keys")
NUM_PARAMETERS = {entry["name"]: entry["num_params"] for entry in load_json("keys/_summary.json")}

# no official file describes these: sizes of the SwinV2 paper, everything else as the SwinV2-B recipes
PAPER_SIZES = {
    "huge": {"EMBED_DIM": 352, "DEPTHS": [2, 2, 18, 2], "NUM_HEADS": [11, 22, 44, 88]},
    "giant": {"EMBED_DIM": 512, "DEPTHS": [2, 2, 42, 4], "NUM_HEADS": [16, 32, 64, 128]},
}


def config_of(name):
    """paper__swinv2_huge_pretrain_img192_window12 is simmim_pretrain__swinv2_base__img192_window12__800ep in another size."""
    if not name.startswith("paper__"):
        return load_config(recipe_path(name))
    size, stage, image, window = name.removeprefix("paper__swinv2_").split("_")
    sizes = {f"MODEL.SWINV2.{key}": value for key, value in PAPER_SIZES[size].items()}
    return load_config(recipe_path(f"simmim_{stage}__swinv2_base__{image}_{window}__800ep"), opts_of(sizes))


@functools.cache
def model_of(name):
    with torch.device("meta"):
        return build_model(config_of(name), is_pretrain="pretrain" in name)


def shapes_of(name):
    """(parameters, buffers of the state dict) as {name: shape}, in module order."""
    model = model_of(name)
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
def test_buffers_come_in_the_official_order(name):
    assert list(shapes_of(name)[1]) == list(load_json(f"keys/{name}.json")["buffers"])


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_number_of_parameters_is_the_published_one(name):
    assert sum(parameter.numel() for parameter in model_of(name).parameters()) == NUM_PARAMETERS[name]


def test_every_recorded_model_has_its_number_of_parameters_and_its_names():
    assert sorted(NUM_PARAMETERS) == CASES
