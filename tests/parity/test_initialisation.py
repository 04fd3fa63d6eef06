"""Default initialisation against recorded statistics of each parameter (statistical, no equal numbers)."""

import functools
import math
import re

import pytest
import torch

from config import load_config
from models import build_model

from .recorded import load_json, opts_of

RECORDS = load_json("init/init_stats.json")
SIGMAS = 6
DECIMALS = 6  # of the recorded statistics
ROUNDING = 10.0 ** -DECIMALS

each_case = pytest.mark.parametrize("case", RECORDS)


@functools.cache
def parameters_of(case):
    record = RECORDS[case]
    config = load_config(opts=opts_of(record["config_overrides"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build_model(config, is_pretrain=record["stage"] == "pretrain")
    return {name: parameter.detach().double() for name, parameter in model.named_parameters()}


def sampling_error(case, name):
    """SIGMAS times the sampling error of the difference of two means of n draws each; that of the standard deviation
    is this divided by sqrt(2) for normal draws and less for the bounded distributions that occur here."""
    std, count = RECORDS[case]["params"][name][1], parameters_of(case)[name].numel()
    return SIGMAS * std * math.sqrt(2 / count) + ROUNDING


def random_names(case):
    return [name for name, (_, std, *_) in RECORDS[case]["params"].items() if std > 0]


@each_case
def test_initialised_parameters_are_the_recorded_ones(case):
    assert list(parameters_of(case)) == list(RECORDS[case]["params"])


@each_case
def test_constant_parameters_start_at_the_recorded_value(case):
    wrong = {}
    for name, (mean, std, _, _) in RECORDS[case]["params"].items():
        smallest, largest = (round(value.item(), DECIMALS) for value in parameters_of(case)[name].aminmax())
        if std == 0 and not smallest == largest == mean:
            wrong[name] = (smallest, largest, mean)
    assert wrong == {}


@each_case
def test_mean_of_random_parameters_matches(case):
    means = {name: parameters_of(case)[name].mean().item() for name in random_names(case)}
    expected = {name: RECORDS[case]["params"][name][0] for name in means}
    assert {name: (means[name], expected[name]) for name in means
            if abs(means[name] - expected[name]) > sampling_error(case, name)} == {}


@each_case
def test_standard_deviation_of_random_parameters_matches(case):
    deviations = {name: parameters_of(case)[name].std().item() for name in random_names(case)}
    expected = {name: RECORDS[case]["params"][name][1] for name in deviations}
    assert {name: (deviations[name], expected[name]) for name in deviations
            if abs(deviations[name] - expected[name]) > sampling_error(case, name) / math.sqrt(2)} == {}


def test_vit_pretraining_draws_are_truncated_at_one_deviation():
    """0.02 is both the deviation and the bound; proj and fc2 of block i are then divided by sqrt(2 (i + 1))."""
    outside = {}
    for name in random_names("vit_pretrain"):
        if name.startswith("decoder"):
            continue
        block = re.search(r"blocks\.(\d+)\.(attn\.proj|mlp\.fc2)\.weight", name)
        bound = 0.02 / math.sqrt(2 * (int(block[1]) + 1)) if block else 0.02
        largest = parameters_of("vit_pretrain")[name].abs().max().item()
        if not 0.9 * bound <= largest <= bound * (1 + 1e-6):
            outside[name] = (largest, bound)
    assert outside == {}


@pytest.mark.parametrize("case", ["swin_pretrain", "swin_finetune", "swinv2_pretrain", "vit_finetune"])
def test_other_normal_draws_are_not_truncated_at_one_deviation(case):
    """Of 1000 normal draws about 50 lie beyond two deviations."""
    names = [name for name in random_names(case) if not name.startswith("decoder") and "patch_embed.proj" not in name]
    names = [name for name in names if parameters_of(case)[name].numel() >= 1000]
    assert names
    largest = {name: parameters_of(case)[name].abs().max().item() for name in names}
    assert {name: value for name, value in largest.items() if value < 2 * RECORDS[case]["params"][name][1]} == {}


@pytest.mark.parametrize(("case", "name", "fan_in"), [
    ("swin_pretrain", "encoder.patch_embed.proj.weight", 3 * 4 * 4),
    ("swin_pretrain", "encoder.patch_embed.proj.bias", 3 * 4 * 4),
    ("swin_finetune", "patch_embed.proj.weight", 3 * 4 * 4),
    ("swin_pretrain", "decoder.0.weight", 24 * 8),
    ("swinv2_pretrain", "encoder.patch_embed.proj.weight", 3 * 4 * 4),
    ("swinv2_pretrain", "decoder.0.weight", 24 * 8),
    ("vit_pretrain", "decoder.0.weight", 192),
    ("vit_pretrain", "decoder.0.bias", 192),
])
def test_convolution_left_at_the_default_is_uniform_within_its_bound(case, name, fan_in):
    bound, largest = 1 / math.sqrt(fan_in), parameters_of(case)[name].abs().max().item()
    assert 0.6 * bound <= largest <= bound * (1 + 1e-6)
