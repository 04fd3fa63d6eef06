"""The average of the weights, in every method around every encoder and in every classifier."""
import pytest
import torch
from torch.nn import functional as F

from config import with_values
from engine import Updater, build_average
from models.freezing import freeze, train_mode
from optimizer import build_optimizer
from utils.precision import build_precision

from .tiny import BATCH, CLASSES, ENCODER_CASES, METHOD_CASES, build, make_config, make_images, make_mask

CPU, DECAY = torch.device("cpu"), 0.875
ALL = [*ENCODER_CASES, *METHOD_CASES]


@pytest.mark.parametrize(("names", "what"), [
    pytest.param(names, what, id="-".join((*names, name))) for what, name in (("none", "all"), ("1", "frozen"))
    for names in ALL if what == "none" or names[1] == "plain"])
def test_average_equals_one_by_hand_and_is_evaluated_in_place(names, what):
    config = with_values(make_config(*names), TRAIN__EMA_DECAY=DECAY, TRAIN__BASE_LR=1e-2)
    is_pretrain = len(names) == 4
    model = build(config, is_pretrain)
    freeze(model, what)
    train_mode(model)
    updater = Updater(model, build_optimizer(config, model, is_pretrain), build_precision("O0", "native", CPU), 5.0,
                      build_average(config, model))
    images, labels = make_images(config), torch.arange(BATCH) % CLASSES
    inputs = (images, make_mask(config)) if is_pretrain else (images,)
    loss_of = (lambda model: model(*inputs)) if is_pretrain else (lambda model: F.cross_entropy(model(*inputs), labels))
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for _ in range(3):
        updater.update([loss_of])
        for name, value in model.state_dict().items():
            expected[name] = DECAY * expected[name] + (1 - DECAY) * value.double()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with updater.average.in_place(), torch.no_grad():
        averaged, loss = {name: value.clone() for name, value in model.state_dict().items()}, loss_of(model)
        for name, value in averaged.items():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    moved = {name for name in own if not torch.equal(own[name], averaged[name])}
    assert moved <= updater.average.tensors().keys() and len(moved) > len(updater.average.tensors()) / 2
    other = build(config, is_pretrain, seed=9)
    other.load_state_dict({**own, **updater.average.tensors()})
    with torch.no_grad():
        assert torch.equal(loss_of(other.train()), loss)
