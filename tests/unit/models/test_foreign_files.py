"""Checkpoints as other people's programs write them: wrapped, prefixed, with numbers of numpy, of encoders near to ours."""
import logging

import numpy as np
import pytest
import torch

from config import load_config
from models import build_model, load_pretrained
from utils.checkpoint import load_checkpoint

from ..helpers import perturb, state_of, tiny_model

KEYS = ("model", "state_dict", "model_state_dict", "module", "network", "teacher", "student", "model_ema", "ema",
        "state_dict_ema", "params")
PREFIXES = ("model.", "net.", "backbone.", "module.backbone.", "_orig_mod.", "student.encoder_q.", "a.b.c.")


def under(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


def content_of(kind, weights, others):
    """What a file of a kind holds, with other weights where it holds two."""
    how, _, word = kind.partition(" ")
    if how == "key":
        return {word: weights, "epoch": 3}
    if how == "prefix":
        return {"state_dict": under(word, weights)}
    return {
        "alone with a prefix": under("net.", weights), "Lightning": {"state_dict": under("model.", weights), "callbacks": {}},
        "nested": {"checkpoint": {"model": weights}}, "doubly nested": {"checkpoint": {"state_dict": {"model": weights}}},
        "DINO": {"student": under("module.backbone.", others),
                 "teacher": under("backbone.", weights) | {"head.mlp.0.weight": torch.ones(2, 2)}},
        "weights and their average": {"model": weights, "model_ema": others},
        "with an optimizer": {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "model_state_dict": weights},
        "arrays of numpy": {"model": {name: value.numpy() for name, value in weights.items()}},
        "a number of numpy": {"model": weights, "best": np.float64(83.1), "count": np.int32(3), "name": np.str_("x"),
                              "rates": np.arange(3.0), "flag": np.bool_(True), "half": np.float16(1)}}[kind]


MORE = ("alone with a prefix", "Lightning", "nested", "doubly nested", "DINO", "weights and their average", "with an optimizer",
        "arrays of numpy", "a number of numpy")


@pytest.mark.parametrize("kind", [*(f"key {key}" for key in KEYS), *(f"prefix {prefix}" for prefix in PREFIXES), *MORE])
@pytest.mark.parametrize("encoder", ["swin", "vit"])
def test_weights_are_found_wherever_they_stand(encoder, kind, tmp_path):
    source, other = (perturb(tiny_model(encoder, is_pretrain=False), seed) for seed in (1, 2))
    torch.save(content_of(kind, source.state_dict(), other.state_dict()), tmp_path / "x.pth")
    model = tiny_model(encoder, is_pretrain=False, seed=9)
    load_pretrained(model, tmp_path / "x.pth")
    expected = source.state_dict()
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, expected[name])] == []


@pytest.mark.parametrize("key", ["model_ema", "model", ""])
def test_one_of_several_is_chosen_and_said(key, tmp_path, caplog):
    weights = {name: perturb(tiny_model("swin", is_pretrain=False), seed).state_dict()
               for seed, name in enumerate(("model_ema", "model"))}
    torch.save(weights, tmp_path / "x.pth")
    model = tiny_model("swin", is_pretrain=False, seed=9)
    with caplog.at_level(logging.INFO):
        load_pretrained(model, tmp_path / "x.pth", key)
    taken, left = ("model_ema", "model") if key == "model_ema" else ("model", "model_ema")
    assert all(torch.equal(value, weights[taken][name]) for name, value in model.state_dict().items())
    assert f"taken from {taken}; weights are also under {left} (PRETRAINED_KEY" in caplog.text


def test_key_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    torch.save({"model": tiny_model("swin").state_dict(), "ema": {"a": torch.ones(1)}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="PRETRAINED_KEY=teacher is not in the file.*: model, ema"):
        load_pretrained(tiny_model("swin"), tmp_path / "x.pth", "teacher")


@pytest.mark.parametrize("part", ["register_tokens", "reg_token", "blocks.0.mlp.w12.weight", "blocks.0.attn.q_norm.weight"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_encoder_with_a_part_that_ours_lack_is_refused_by_its_name(part, prefix, tmp_path):
    model = tiny_model("vit", is_pretrain=False)
    torch.save({"model": under(prefix, model.state_dict() | {part: torch.ones(1, 4, 16)})}, tmp_path / "x.pth")
    before = state_of(model)
    with pytest.raises(ValueError, match=rf"x.pth holds an encoder with .* \({prefix}{part}\), which none"):
        load_pretrained(model, tmp_path / "x.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("value", [np.array([1, "a"], dtype=object), np.zeros(2, dtype="f4,i4"), np.datetime64("2020-01-01"),
                                   np.array([print], dtype=object)])
def test_objects_and_structures_of_numpy_are_refused(value, tmp_path):
    torch.save({"model": {}, "x": value}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="x.pth"):
        load_checkpoint(tmp_path / "x.pth")


def timm_vit(no_class_position):
    timm = pytest.importorskip("timm.models.vision_transformer")
    return timm.VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5, init_values=0.1,
                                  no_embed_class=no_class_position)


@pytest.mark.parametrize("no_class_position", [False, True], ids=["DINOv2", "DeiT III"])
def test_vit_of_timm_with_layer_scale_computes_the_same(no_class_position, tmp_path):
    theirs = perturb(timm_vit(no_class_position)).eval()
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    vit = {"EMBED_DIM": 24, "DEPTH": 2, "NUM_HEADS": 2, "PATCH_SIZE": 8, "K_BIAS": True, "USE_APE": True,
           "USE_SHARED_RPB": False, "INIT_VALUES": 0.1, "USE_MEAN_POOLING": False}
    settings = {"MODEL.TYPE": "vit", "DATA.IMG_SIZE": 32, "MODEL.NUM_CLASSES": 5,
                **{f"MODEL.VIT.{key}": vit[key] for key in vit}}
    ours = build_model(load_config(None, [word for pair in settings.items() for word in pair]), is_pretrain=False).eval()
    load_pretrained(ours, tmp_path / "x.pth")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-5)
