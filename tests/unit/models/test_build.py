"""From a config to a model."""
import pytest
import torch

from config import load_config
from data.masks import build_mask_generator
from models import build_model
from models.build import ENCODERS, METHODS, materialize

from ..helpers import TINY, opts_of, tiny_config, tiny_model


def test_unknown_encoder_lists_the_valid_ones():
    valid = ", ".join(sorted(ENCODERS))
    with pytest.raises(ValueError, match=rf"MODEL\.TYPE='swim' is unknown; valid: {valid}\. Did you mean 'swin'\?"):
        build_model(load_config(opts=["MODEL.TYPE", "swim"]))


def test_unknown_method_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"MODEL\.METHOD='simmin' is unknown; valid: .*simmim"):
        build_model(load_config(opts=opts_of(TINY["vit"] | {"MODEL.METHOD": "simmin"})))
    assert "simmim" in METHODS


def test_mask_unit_that_does_not_fit_is_refused_where_masks_are_drawn_only():
    """A pre-training model may be built for its features, or its speed."""
    config = load_config(opts=opts_of(TINY["vit"] | {"DATA.IMG_SIZE": [40, 72], "DATA.MASK_PATCH_SIZE": 32}))
    with pytest.raises(ValueError, match=r"DATA\.MASK_PATCH_SIZE=32"):
        build_mask_generator(config)
    assert build_model(config).encoder.grid == (5, 9)
    assert build_model(config, is_pretrain=False).head.out_features == 5


@pytest.mark.parametrize("encoder", TINY)
def test_building_depends_on_the_seed_alone(encoder):
    one, same, other = (tiny_model(encoder, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("encoder", TINY)
def test_settings_of_the_config_reach_the_encoder(encoder):
    config = tiny_config(encoder, {"MODEL.DROP_PATH_RATE": 0.3, "MODEL.DROP_RATE": 0.2, "TRAIN.USE_CHECKPOINT": True})
    model = build_model(config).encoder
    rates = [module.rate for module in model.modules() if type(module).__name__ == "DropPath"]
    assert rates[0] == 0.0 and rates[-1] == pytest.approx(0.3) and rates == sorted(rates)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.2}
    assert model.use_checkpoint


@pytest.mark.parametrize("is_pretrain", [True, False])
@pytest.mark.parametrize("encoder", TINY)
def test_model_from_the_meta_device_gets_the_weights_of_an_ordinary_one(encoder, is_pretrain):
    expected = tiny_model(encoder, is_pretrain=is_pretrain).state_dict()
    with torch.device("meta"):
        model = build_model(tiny_config(encoder), is_pretrain)
    assert all(parameter.is_meta for parameter in model.parameters())
    torch.manual_seed(1)
    finished = []
    actual = materialize(model, finished.append).state_dict()
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert finished[-1] is model and set(finished) == set(model.modules())


@pytest.mark.parametrize("encoder", TINY)
def test_units_hold_most_parameters_and_are_modules_of_the_model(encoder):
    model = tiny_model(encoder)
    units, modules = model.units(), list(model.encoder.modules())
    assert all(any(unit is module for module in modules) for unit in units)
    held = sum(parameter.numel() for unit in units for parameter in unit.parameters())
    assert held > 0.7 * sum(parameter.numel() for parameter in model.encoder.parameters())


@pytest.mark.parametrize("method, part, kind, owner", [
    ("simmim", "encoder", r"VisionTransformer \(models/encoders/vit\.py\)",
     r"SimMIM\.init_module \(models/methods/simmim\.py\)"),
    ("mae", "decoder", r"\w+ \([\w/]+\.py\)", r"MAE\.init_module \(models/methods/mae\.py\)")])
def test_parameter_that_is_not_initialised_is_named_with_its_file(method, part, kind, owner):
    with torch.device("meta"):
        changes = {"MODEL.METHOD": method, "MODEL.VIT.USE_SHARED_RPB": False}
        model = build_model(load_config(opts=opts_of(TINY["vit"] | changes)))
        getattr(model, part).forgotten = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=rf"{part}\.forgotten of a {kind} has no initial value: fill it in {owner}"):
        materialize(model)


@pytest.mark.parametrize("layer", [lambda: torch.nn.GroupNorm(2, 4), lambda: torch.nn.Embedding(3, 4),
                                   lambda: torch.nn.ConvTranspose2d(3, 4, 2), lambda: torch.nn.MultiheadAttention(4, 2)])
def test_layer_of_torch_begins_at_its_own_default_where_it_is_left_out(layer):
    with torch.device("meta"):
        model = build_model(tiny_config("vit"))
        model.encoder.added = layer()
    torch.manual_seed(3)
    expected = {name: value.std() for name, value in layer().state_dict().items()}
    for name, value in materialize(model).encoder.added.state_dict().items():
        assert torch.isfinite(value).all() and (value.std() > 0) == (expected[name] > 0)


def test_value_that_was_given_stays_where_the_rest_of_a_layer_begins_at_its_default():
    with torch.device("meta"):
        model = build_model(tiny_config("vit"))
        model.encoder.added = torch.nn.ConvTranspose2d(3, 4, 2)
    given = model.init_module

    def init_module(name, module):
        given(name, module)
        if name == "encoder.added":
            torch.nn.init.constant_(module.bias, 7.0)

    model.init_module = init_module
    added = materialize(model).encoder.added
    assert torch.equal(added.bias, torch.full((4,), 7.0)) and torch.isfinite(added.weight).all() and added.weight.std() > 0


def test_buffer_without_values_is_named():
    with torch.device("meta"):
        model = build_model(tiny_config("vit"))
        model.encoder.blocks[0].norm1 = torch.nn.BatchNorm2d(16, affine=False)
    with pytest.raises(ValueError, match=r"buffer encoder\.blocks\.0\.norm1\.running_mean of a BatchNorm2d in SimMIM has no"):
        materialize(model)
