"""MAE beside ViTMAE of transformers, run here, with the same weights; skipped without transformers (requirements-bench.txt)."""
from types import SimpleNamespace

import pytest
import torch

from models import build_model

from .mae_records import (
    noise_to_mask,
    our_name,
    our_names,
    patches_of,
    pretrain_config,
    to_official,
    to_transformers,
    transformers_rules,
)
from .recorded import import_transformers

transformers = import_transformers()

SETTINGS = {"img_size": 48, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "decoder_embed_dim": 16,
            "decoder_depth": 2, "decoder_num_heads": 2, "mask_ratio": 0.75}
SIDE = SETTINGS["img_size"] // SETTINGS["patch_size"]
CLOSE = {"atol": 1e-5, "rtol": 0}


def randomise(model, seed):
    """Every parameter random and of a scale that keeps tokens of order 1, position tables too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim in (2, 4) else 10
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in ** 0.5 + (parameter.ndim == 1) * 0.5)
    return model


@pytest.fixture(scope="module", params=[(norm, way) for norm in (False, True) for way in ("ours to theirs", "theirs to ours")],
                ids=lambda case: f"{'normalised' if case[0] else 'pixels'}, {case[1]}")
def pair(request):
    """Both models with the weights of one of them, after a backward pass on the same images and noise."""
    norm_pix_loss, way = request.param
    rules = transformers_rules(SETTINGS["depth"], SETTINGS["decoder_depth"])
    ours = randomise(build_model(pretrain_config(SETTINGS | {"norm_pix_loss": norm_pix_loss})), seed=1)
    theirs = randomise(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(
        hidden_size=SETTINGS["embed_dim"], num_hidden_layers=SETTINGS["depth"], num_attention_heads=SETTINGS["num_heads"],
        intermediate_size=4 * SETTINGS["embed_dim"], image_size=SETTINGS["img_size"], patch_size=SETTINGS["patch_size"],
        decoder_hidden_size=SETTINGS["decoder_embed_dim"], decoder_num_hidden_layers=SETTINGS["decoder_depth"],
        decoder_num_attention_heads=SETTINGS["decoder_num_heads"], decoder_intermediate_size=4 * SETTINGS["decoder_embed_dim"],
        mask_ratio=SETTINGS["mask_ratio"], norm_pix_loss=norm_pix_loss, layer_norm_eps=1e-6)), seed=2)
    if way == "theirs to ours":
        ours.load_state_dict(our_names(to_official(theirs.state_dict(), rules)), strict=True)
    else:
        own = ours.state_dict()
        official = {name: own[our_name(name)] for name, _, _ in rules}
        theirs.load_state_dict(to_transformers(official, rules), strict=True)

    generator = torch.Generator().manual_seed(3)
    images = torch.randn(4, 3, SETTINGS["img_size"], SETTINGS["img_size"], generator=generator)
    noise = torch.rand(4, SIDE ** 2, generator=generator)
    mask = noise_to_mask(noise, SETTINGS["mask_ratio"], (SIDE, SIDE))
    loss = ours(images, mask)
    loss.backward()
    output = theirs(images, noise=noise)
    output.loss.backward()
    return SimpleNamespace(ours=ours, theirs=theirs, rules=rules, mask=mask, loss=loss.item(), output=output,
                           prediction=patches_of(ours.reconstruct(images, mask).detach(), SETTINGS["patch_size"]))


def test_mask_is_theirs(pair):
    assert torch.equal(pair.mask.flatten(1).float(), pair.output.mask)


def test_loss_is_theirs(pair):
    assert pair.loss == pytest.approx(pair.output.loss.item(), abs=1e-5)


def test_prediction_is_theirs(pair):
    torch.testing.assert_close(pair.prediction, pair.output.logits.detach(), **CLOSE)


def test_gradients_are_theirs(pair):
    """Theirs are converted like weights; the position tables have none on either side."""
    trained = {name: parameter.grad for name, parameter in pair.theirs.named_parameters() if parameter.requires_grad}
    expected = our_names(to_official(trained, [rule for rule in pair.rules if rule[1] in trained]))
    actual = {name: parameter.grad for name, parameter in pair.ours.named_parameters() if parameter.requires_grad}
    assert set(actual) == set(expected)
    assert [name for name in actual if not torch.allclose(actual[name], expected[name], atol=1e-5, rtol=1e-4)] == []


def test_fresh_position_table_of_the_encoder_is_theirs(pair):
    """The decoder's is left at zeros by transformers (4.57), unless it is loaded; ours is that of the official code."""
    ours = build_model(pretrain_config(SETTINGS | {"norm_pix_loss": False})).encoder.pos_embed
    theirs = transformers.ViTMAEForPreTraining(pair.theirs.config).vit.embeddings.position_embeddings
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
