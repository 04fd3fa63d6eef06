"""From a config to a model."""
import pytest
import torch

from config import load_config
from models import build_model
from models.build import ENCODERS, METHODS

from ..helpers import TINY, opts_of, tiny_config, tiny_model


def test_unknown_encoder_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"MODEL\.TYPE='swim' is unknown; valid: swin, vit\. Did you mean 'swin'\?"):
        build_model(load_config(opts=["MODEL.TYPE", "swim"]))
    assert set(ENCODERS) == {"swin", "vit"}


def test_unknown_method_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"MODEL\.METHOD='simmin' is unknown; valid: .*simmim"):
        build_model(load_config(opts=opts_of(TINY["vit"] | {"MODEL.METHOD": "simmin"})))
    assert "simmim" in METHODS


def test_mask_unit_that_does_not_fit_is_refused_in_pretraining_only():
    config = load_config(opts=opts_of(TINY["vit"] | {"DATA.IMG_SIZE": [40, 72], "DATA.MASK_PATCH_SIZE": 32}))
    with pytest.raises(ValueError, match=r"DATA\.MASK_PATCH_SIZE=32"):
        build_model(config)
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
