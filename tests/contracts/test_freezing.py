"""What TRAIN.FREEZE names stays as it is to the bit, in every method and every classifier; the rest trains."""
import pytest
import torch
from torch.nn import functional as F

from config import load_config, with_values
from engine import Updater
from models.freezing import freeze, train_mode
from models.layers import DropPath
from optimizer import build_optimizer
from utils.precision import build_precision

from .tiny import BATCH, CLASSES, ENCODER_CASES, METHOD_CASES, build, make_config, make_images, make_mask

CPU, DRAWING = torch.device("cpu"), (torch.nn.Dropout, DropPath)
# every encoder as a classifier, every method around every encoder; with dropout and drop path
ALL = [*ENCODER_CASES, *METHOD_CASES]


def make(names, **values):
    """Config and model of a case of CASES, or of ENCODER_CASES: a classifier; in the mode that training has."""
    config = with_values(make_config(*names), MODEL__DROP_PATH_RATE=0.5, MODEL__DROP_RATE=0.5, **values)
    return config, build(config, is_pretrain=len(names) == 4)


def train(config, model, what, steps=2):
    """Freeze and train; returns the last loss."""
    is_pretrain = hasattr(model, "encoder")
    freeze(model, what)
    train_mode(model)
    updater = Updater(model, build_optimizer(config, model, is_pretrain), build_precision("O0", "native", CPU), clip=5.0)
    images, labels = make_images(config), torch.arange(BATCH) % CLASSES
    inputs = (images, make_mask(config)) if is_pretrain else (images,)
    for step in range(steps):
        torch.manual_seed(step)
        loss, _ = updater.update([lambda model: model(*inputs) if is_pretrain else F.cross_entropy(model(*inputs), labels)])
    return loss


def parameters_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model, before):
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def of_encoder(model):
    """{name: name in the encoder} of the parameters of a model that belong to its encoder, a head aside."""
    prefix = "encoder." if hasattr(model, "encoder") else ""
    return {name: name.removeprefix(prefix) for name, _ in model.named_parameters()
            if name.startswith(prefix) and not name.startswith("head.")}


@pytest.mark.parametrize(("what", "checkpointing"), [("encoder", False), ("1", True)], ids=["encoder", "1-recomputed"])
@pytest.mark.parametrize("names", ALL, ids="-".join)
def test_frozen_weights_stay_to_the_bit_and_the_others_train(names, what, checkpointing):
    config, model = make(names, TRAIN__USE_CHECKPOINT=checkpointing, TRAIN__BASE_LR=1e-2, TRAIN__LAYER_DECAY=0.9)
    encoder = getattr(model, "encoder", model)
    frozen = {name for name, own in of_encoder(model).items() if what == "encoder" or encoder.layer_id(own) <= 1}
    frozen |= {name for name, parameter in model.named_parameters() if not parameter.requires_grad}  # sine-cosine tables
    before = parameters_of(model)
    assert train(config, model, what).isfinite()
    assert changed(model, before) == before.keys() - frozen
    assert any(name in frozen for name in of_encoder(model)) and len(frozen) < len(before)


@pytest.mark.parametrize("what, layers", [("none", -1), ("1", 1), ("encoder", 99)], ids=["none", "1", "encoder"])
@pytest.mark.parametrize("names", ALL, ids="-".join)
def test_frozen_layers_draw_nothing_in_training_and_the_others_do(names, what, layers):
    """Neither dropout nor drop path; of a whole encoder also where they belong to no block."""
    _, model = make(names)
    freeze(model, what)
    train_mode(model)
    encoder = getattr(model, "encoder", model)
    blocks = tuple(f"{name}." for name, module in encoder.named_modules() if module in encoder.units())
    training = {name: module.training for name, module in encoder.named_modules()
                if isinstance(module, DRAWING) and (what != "1" or name.startswith(blocks))}
    assert training == {name: encoder.layer_id(f"{name}.weight") > layers for name in training} != {}
    assert model.training and (hasattr(model, "encoder") or model.head.training)


@pytest.mark.parametrize("names", ENCODER_CASES, ids="-".join)
def test_frozen_classifier_trains_its_head_alone(names):
    config, model = make(names)
    before = parameters_of(model)
    train(config, model, "encoder")
    assert changed(model, before) == {"head.weight", "head.bias"}


def test_parts_of_names_go_from_dot_to_dot():
    _, model = make(("vit", "plain"))
    freeze(model, "blocks.1, patch_embed,norm1")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in frozen if name.startswith(("blocks.1.", "patch_embed.")) or ".norm1." in name}
    assert {"blocks.0.norm1.weight", "blocks.1.mlp.fc1.weight", "patch_embed.proj.bias"} <= frozen


def test_frozen_batch_norm_keeps_its_statistics():
    """Encoders have none, but a head of one's own may."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4, affine=False),
                                torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    model.requires_grad_(False)
    model[3:].requires_grad_(True)
    train_mode(model)
    model(torch.randn(5, 3))
    assert [model[i].num_batches_tracked.item() for i in (1, 2, 4)] == [0, 0, 1]


def fails(what, match, names=("vit", "plain")):
    with pytest.raises(ValueError, match=match):
        freeze(make(names)[1], what)


@pytest.mark.parametrize(("what", "match"), [
    ("patch_embd", r"no parameter has 'patch_embd' in its name.*the closest: patch_embed"),
    ("encoder.blocks.0", r"no parameter has 'encoder\.blocks\.0'.*closest"), ("layers.0", "no parameter has 'layers.0'"),
    ("block", "no parameter has 'block' in its name.*blocks"), ("encoder,", "no parameter has '' in its name"),
    ("0", "TRAIN.FREEZE=0: the encoder has 3 blocks"), ("4", "TRAIN.FREEZE=4: the encoder has 3 blocks, so the first 1 to 3"),
    ("none,head", "no parameter has 'none'"), ("encoder,head", "TRAIN.FREEZE=encoder,head leaves nothing to train")])
def test_what_names_nothing_or_leaves_nothing_is_refused(what, match):
    fails(what, match)


def test_everything_of_a_method_is_refused():
    fails("encoder,decoder", "leaves nothing to train", ("vit", "plain", "simmim", "pixels"))


def test_empty_setting_is_refused():
    with pytest.raises(ValueError, match=r"TRAIN\.FREEZE=' ' is empty: none trains everything"):
        load_config(opts=["TRAIN.FREEZE", " "])
