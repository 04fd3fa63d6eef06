"""The decoder of MAE and MixMIM: its MLP, and one in a file that does not fit."""
import logging

import pytest
import torch

from config import load_config
from models import build_model, load_pretrained
from utils.checkpoint import load_weights, save_checkpoint

from ..helpers import opts_of, perturb, state_of

MAE = {"MODEL.METHOD": "mae", "MODEL.TYPE": "vit", "MODEL.VIT.PATCH_SIZE": 8, "MODEL.VIT.EMBED_DIM": 16, "MODEL.VIT.DEPTH": 1,
       "MODEL.VIT.NUM_HEADS": 2, "MODEL.VIT.K_BIAS": True, "MODEL.VIT.USE_SINCOS_APE": True, "MODEL.VIT.USE_SHARED_RPB": False,
       "MODEL.VIT.INIT_VALUES": None, "DATA.IMG_SIZE": [32, 64], "DATA.MASK_PATCH_SIZE": 8}
CONVMAE = {"MODEL.METHOD": "mae", "MODEL.TYPE": "convmae", "MODEL.CONVMAE.PATCH_SIZE": 8, "MODEL.CONVMAE.DEPTHS": [1, 1, 1],
           "MODEL.CONVMAE.EMBED_DIM": [4, 8, 16], "MODEL.CONVMAE.NUM_HEADS": 2, "DATA.IMG_SIZE": [32, 64],
           "DATA.MASK_PATCH_SIZE": 8}
MIXMIM = {"MODEL.METHOD": "mixmim", "MODEL.TYPE": "mixmim", "MODEL.MIXMIM.PATCH_SIZE": 4, "MODEL.MIXMIM.EMBED_DIM": 8,
          "MODEL.MIXMIM.DEPTHS": [1, 1], "MODEL.MIXMIM.NUM_HEADS": [1, 2], "MODEL.MIXMIM.WINDOW_SIZES": [4, 4],
          "DATA.IMG_SIZE": [32, 64], "DATA.MASK_PATCH_SIZE": 8, "DATA.MASK_SHARED": True}
TINY = {"mae": MAE, "convmae": CONVMAE, "mixmim": MIXMIM}
SECTION = {"mae": "MODEL.MAE", "convmae": "MODEL.MAE", "mixmim": "MODEL.MIXMIM"}
RATIO = {"mae": ("MODEL.VIT.MLP_RATIO", 2.0), "convmae": ("MODEL.CONVMAE.MLP_RATIO", [2.0, 3.0, 5.0]),
         "mixmim": ("MODEL.MIXMIM.MLP_RATIO", 2.0)}


def model_of(kind, settings=None, seed=1, **decoder):
    """A tiny model whose decoder has a width of 8, a block and 2 heads unless told otherwise."""
    decoder = {"EMBED_DIM": 8, "DEPTH": 1, "NUM_HEADS": 2, **decoder}
    torch.manual_seed(seed)
    opts = TINY[kind] | {f"{SECTION[kind]}.DECODER_{key}": value for key, value in decoder.items()} | (settings or {})
    return build_model(load_config(opts=opts_of(opts)))


@pytest.mark.parametrize(("settings", "hidden"), [({}, 16), ({"MLP_RATIO": 3.0}, 24)], ids=["the encoder's", "its own"])
@pytest.mark.parametrize("kind", TINY)
def test_mlp_of_the_decoder_has_the_ratio_of_the_encoder_unless_told(kind, settings, hidden):
    key, ratio = RATIO[kind]
    model = model_of(kind, {key: ratio}, **settings)
    assert model.decoder.blocks[0].mlp.fc1.weight.shape == (hidden, 8)


def test_ratio_that_leaves_no_hidden_channel_is_refused():
    with pytest.raises(ValueError, match=r"MODEL.MAE.DECODER_MLP_RATIO=0.1 .*DECODER_EMBED_DIM=8"):
        model_of("mae", MLP_RATIO=0.1)


OTHERS = [("DEPTH", 2), ("EMBED_DIM", 16), ("MLP_RATIO", 2.0)]


@pytest.mark.parametrize(("key", "value"), OTHERS)
@pytest.mark.parametrize("kind", TINY)
def test_decoder_of_another_size_is_left_whole_and_said_with_the_setting(kind, key, value, tmp_path, caplog):
    source, model = perturb(model_of(kind, **{key: value})), model_of(kind, seed=2)
    save_checkpoint(tmp_path / "x.pth", {"model": source.state_dict()})
    before = state_of(model.decoder)
    with caplog.at_level(logging.WARNING):
        report = load_pretrained(model, tmp_path / "x.pth")
    assert f"set {SECTION[kind]}.DECODER_{key} {value}." in caplog.text and report.misfit in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in model.decoder.state_dict().items())
    assert {f"decoder.{name}" for name in before} <= set(report.missing)
    fitting = model_of(kind, seed=3, **{key: value})
    assert load_pretrained(fitting, tmp_path / "x.pth").misfit == ""
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in fitting.state_dict().items())


@pytest.mark.parametrize(("key", "value"), OTHERS)
def test_checkpoint_of_another_decoder_is_not_resumed_and_the_setting_is_said(key, value):
    content = {"model": model_of("mae", **{key: value}).state_dict()}
    with pytest.raises(ValueError, match=rf"x.pth is of another model.* set MODEL.MAE.DECODER_{key} {value}\."):
        load_weights(model_of("mae"), content, "x.pth")


def test_decoder_of_another_method_is_said(tmp_path, caplog):
    simmim = {"MODEL.METHOD": "simmim"}
    save_checkpoint(tmp_path / "x.pth", {"model": model_of("mae").state_dict()})
    report = load_pretrained(model_of("mae", simmim), tmp_path / "x.pth")
    assert "that of another MODEL.METHOD (decoder.mask_token)" in report.misfit and report.misfit in caplog.text


@pytest.mark.parametrize("kind", TINY)
def test_decoder_comes_along_to_another_image_size(kind, tmp_path):
    source, model = perturb(model_of(kind)), model_of(kind, {"DATA.IMG_SIZE": [64, 64]}, seed=2)
    save_checkpoint(tmp_path / "x.pth", {"model": source.state_dict()})
    report = load_pretrained(model, tmp_path / "x.pth")
    assert report.misfit == "" and "decoder.pos_embed" in report.resized
    assert not any(name.startswith("decoder.") for name in report.missing)
    assert torch.equal(model.decoder.blocks[0].mlp.fc1.weight, source.decoder.blocks[0].mlp.fc1.weight)


def test_file_without_a_decoder_says_nothing_of_one(tmp_path, caplog):
    save_checkpoint(tmp_path / "x.pth", {"model": model_of("mae").encoder.state_dict()})
    assert load_pretrained(model_of("mae", seed=2), tmp_path / "x.pth").misfit == ""
    assert "decoder" not in caplog.text
