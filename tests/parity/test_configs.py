"""Defaults and official recipes against the configuration trees of microsoft/SimMIM and microsoft/Swin-Transformer."""

import pytest

from config import load_config

from .recorded import OTHER_REPOSITORY, case_names, load_json, recipe_path

ABSENT = object()

# microsoft/Swin-Transformer has a tree of its own: other models, kernels, switches of apex, reading from zip files
NOT_HERE = ("AMP_ENABLE", "ENABLE_AMP", "DATA.CACHE_MODE", "DATA.ZIP_MODE", "FUSED_LAYERNORM", "FUSED_WINDOW_PROCESS",
            "MODEL.PRETRAINED", "MODEL.SWIN_MLP.", "MODEL.SWIN_MOE.", "TEST.SEQUENTIAL", "TEST.SHUFFLE", "TRAIN.MOE.")
OTHER_DEFAULTS = {  # {key: (here and in microsoft/SimMIM, there)}; the recipes may set them
    "TRAIN.ACCUMULATION_STEPS": (0, 1),  # the same thing
    "TRAIN.LR_SCHEDULER.WARMUP_PREFIX": (False, True),
}


def value_at(config, key):
    for part in key.split("."):
        config = getattr(config, part, ABSENT)
    return list(config) if isinstance(config, tuple) else config


def differences(config, expected):
    found = {key: value_at(config, key) for key in expected}
    return {key: (found[key], expected[key]) for key in expected if found[key] != expected[key]}


def test_default_config_equals_the_official_tree():
    assert differences(load_config(), load_json("config_defaults.json")) == {}


def shared(expected):
    """The keys of the other repository's tree that are in this one as well."""
    return {key: value for key, value in expected.items() if not key.startswith(NOT_HERE)}


def test_default_config_equals_the_tree_of_the_other_repository_but_for_two_values():
    expected = shared(load_json("config_defaults_swin_transformer_repo.json"))
    assert differences(load_config(), expected) == OTHER_DEFAULTS


def test_keys_of_the_other_repository_that_are_left_out_are_unknown_here():
    everything = load_json("config_defaults_swin_transformer_repo.json")
    left_out = everything.keys() - shared(everything).keys()
    assert {key for key in left_out if value_at(load_config(), key) is not ABSENT} == set()


@pytest.mark.parametrize("name", case_names("configs"))
def test_official_recipe_merges_to_the_recorded_values(name):
    expected = load_json(f"configs/{name}.json")
    expected.pop("BASE")
    if name.startswith(OTHER_REPOSITORY):
        expected = shared(expected) | {"TRAIN.ACCUMULATION_STEPS": 0}  # there 1, the same thing
    assert differences(load_config(recipe_path(name)), expected) == {}
