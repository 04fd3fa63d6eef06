"""Defaults and official recipes against the configuration tree of microsoft/SimMIM."""

import pytest

from config import load_config

from .recorded import case_names, load_json, recipe_path

ABSENT = object()


def value_at(config, key):
    for part in key.split("."):
        config = getattr(config, part, ABSENT)
    return list(config) if isinstance(config, tuple) else config


def differences(config, expected):
    found = {key: value_at(config, key) for key in expected}
    return {key: (found[key], expected[key]) for key in expected if found[key] != expected[key]}


def test_default_config_equals_the_official_tree():
    assert differences(load_config(), load_json("config_defaults.json")) == {}


@pytest.mark.parametrize("name", case_names("configs"))
def test_official_recipe_merges_to_the_recorded_values(name):
    expected = load_json(f"configs/{name}.json")
    expected.pop("BASE")
    assert differences(load_config(recipe_path(name)), expected) == {}
