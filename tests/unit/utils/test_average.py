"""The average of the weights: what it is, what a skipped step does to it, and how a model has it for a while."""
import pytest
import torch
from torch import nn

from utils import average
from utils.average import Average

DECAY, NO, YES = 0.75, torch.tensor(False), torch.tensor(True)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@torch.no_grad()
def step(model):
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("chunk", [1, 2 ** 26])
def test_average_is_that_of_all_steps_but_skipped_ones(model, chunk, monkeypatch):
    monkeypatch.setattr(average, "CHUNK", chunk)
    kept = Average(model, DECAY)
    expected = {name: value.double() for name, value in weights(model).items()}
    for skipped in (NO, NO, YES, NO):
        step(model)
        kept.update(skipped)
        if not skipped:
            expected = {name: DECAY * expected[name] + (1 - DECAY) * value.double() for name, value in weights(model).items()}
    assert kept.tensors().keys() == expected.keys()
    for name, value in kept.tensors().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_skipped_step_leaves_the_average_as_it_is_to_the_bit(model):
    kept = Average(model, DECAY)
    step(model)
    kept.update(NO)
    before = {name: value.clone() for name, value in kept.tensors().items()}
    step(model)
    kept.update(YES)
    assert all(torch.equal(value, before[name]) for name, value in kept.tensors().items())


def test_model_has_the_average_inside_and_its_own_weights_after_even_where_it_fails(model):
    kept = Average(model, DECAY)
    step(model)
    kept.update(NO)
    own, averaged = weights(model), {name: value.clone() for name, value in kept.tensors().items()}
    with pytest.raises(KeyError), kept.in_place():
        assert all(torch.equal(value, averaged[name]) for name, value in weights(model).items())
        raise KeyError
    assert all(torch.equal(value, own[name]) for name, value in weights(model).items())
    assert all(torch.equal(value, averaged[name]) for name, value in kept.tensors().items())


def test_frozen_parameters_and_buffers_are_not_averaged(model):
    model[0].requires_grad_(False)
    assert Average(model, DECAY).tensors().keys() == {"1.weight", "1.bias", "2.weight", "2.bias"}
    assert Average(model, DECAY).tensors(model[2]).keys() == {"weight", "bias"}


def test_average_begins_again_with_the_present_weights(model):
    kept = Average(model, DECAY)
    step(model)
    kept.restart()
    assert all(torch.equal(value, kept.tensors()[name]) for name, value in weights(model).items())


def test_weights_of_16_bits_are_refused(model):
    with pytest.raises(ValueError, match=r"TRAIN\.EMA_DECAY=0\.75 needs weights of 32 bits"):
        Average(model.bfloat16(), DECAY)
