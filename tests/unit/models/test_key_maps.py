"""MAE under the names of other projects: every mapping in both directions, and through load_pretrained."""
import argparse

import pytest
import torch

from config import load_config
from models import build_model
from models.position import resize_position_embedding, sincos_table
from models.weights.key_maps import MAE_MMPRETRAIN, MAE_OFFICIAL, MAE_TRANSFORMERS
from models.weights.pretrained import encoder_type, load_pretrained
from models.weights.renaming import MERGED, KeyMap

from ..helpers import opts_of

VIT = {"MODEL.TYPE": "vit", "MODEL.VIT.PATCH_SIZE": 8, "MODEL.VIT.EMBED_DIM": 16, "MODEL.VIT.DEPTH": 2,
       "MODEL.VIT.NUM_HEADS": 2, "MODEL.VIT.K_BIAS": True, "MODEL.VIT.USE_SINCOS_APE": True, "MODEL.VIT.USE_SHARED_RPB": False,
       "MODEL.VIT.INIT_VALUES": None, "MODEL.NUM_CLASSES": 5, "DATA.IMG_SIZE": [32, 64], "DATA.MASK_PATCH_SIZE": 8}
MAE = VIT | {"MODEL.METHOD": "mae", "MODEL.MAE.DECODER_EMBED_DIM": 8, "MODEL.MAE.DECODER_DEPTH": 2,
             "MODEL.MAE.DECODER_NUM_HEADS": 2}
MAPS = {"MAE": MAE_OFFICIAL, "transformers' ViTMAE": MAE_TRANSFORMERS, "mmpretrain's MAE": MAE_MMPRETRAIN}
each_map = pytest.mark.parametrize("name", MAPS)


def model_of(settings, is_pretrain, seed=1):
    torch.manual_seed(seed)
    model = build_model(load_config(opts=opts_of(settings)), is_pretrain)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    return model


def assert_equal(one, other, but=()):
    assert one.keys() == other.keys()
    assert [name for name in one if name not in but and not torch.equal(one[name], other[name])] == []


@each_map
def test_names_go_there_and_back(name):
    weights = model_of(MAE, True).state_dict()
    there = MAPS[name].to_theirs(weights)
    assert not any(key.startswith("encoder.blocks") for key in there) and len(there) >= len(weights)
    assert_equal(MAPS[name].to_ours(there), weights)


@each_map
def test_pretraining_model_continues_from_it_whole(name, tmp_path):
    source, model = model_of(MAE, True), model_of(MAE, True, seed=2)
    content = {"model": MAPS[name].to_theirs(source.state_dict()), "args": argparse.Namespace(blr=1.5e-4)}
    torch.save(content, tmp_path / "file.pth")
    report = load_pretrained(model, tmp_path / "file.pth")
    assert report.source == name and report.missing == report.unexpected == []
    assert_equal(model.state_dict(), source.state_dict())


@each_map
@pytest.mark.parametrize("with_decoder", [True, False])
def test_classifier_starts_from_its_encoder(name, with_decoder, tmp_path):
    source, model = model_of(MAE, True), model_of(VIT, False, seed=2)
    weights = source.state_dict()
    if not with_decoder:
        weights = {key: value for key, value in weights.items() if key.startswith("encoder.")}
    torch.save({"model": MAPS[name].to_theirs(weights)}, tmp_path / "file.pth")
    report = load_pretrained(model, tmp_path / "file.pth")
    assert set(report.missing) == {"head.weight", "head.bias"} and report.resized == []
    assert_equal({key: value for key, value in model.state_dict().items() if not key.startswith("head.")},
                 source.encoder.state_dict())


def test_bare_encoder_of_transformers_loads(tmp_path):
    source, model = model_of(MAE, True), model_of(VIT, False, seed=2)
    weights = MAE_TRANSFORMERS.to_theirs({f"encoder.{key}": value for key, value in source.encoder.state_dict().items()})
    torch.save({key.removeprefix("vit."): value for key, value in weights.items()}, tmp_path / "file.pth")
    assert set(load_pretrained(model, tmp_path / "file.pth").missing) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("mean_pooling", [True, False])
def test_finetuned_official_model_loads_with_its_head(mean_pooling, tmp_path):
    settings = VIT | {"MODEL.VIT.USE_MEAN_POOLING": mean_pooling}
    source, model = model_of(settings, False), model_of(settings, False, seed=2)
    torch.save({"model": source.state_dict()}, tmp_path / "file.pth")  # official names are ours
    assert load_pretrained(model, tmp_path / "file.pth").missing == []
    assert_equal(model.state_dict(), source.state_dict())


def test_position_table_is_resized_to_another_image(tmp_path):
    source, model = model_of(MAE, True), model_of(VIT | {"DATA.IMG_SIZE": [48, 96]}, False, seed=2)
    torch.save({"model": MAE_OFFICIAL.to_theirs(source.state_dict())}, tmp_path / "file.pth")
    assert load_pretrained(model, tmp_path / "file.pth").resized == ["pos_embed"]


def test_mae_in_a_vit_without_key_bias_says_what_differs(tmp_path):
    torch.save({"model": MAE_OFFICIAL.to_theirs(model_of(MAE, True).state_dict())}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"MODEL\.VIT\.K_BIAS is True in the file and False here"):
        load_pretrained(model_of(VIT | {"MODEL.VIT.K_BIAS": False}, False), tmp_path / "file.pth")


def test_weights_without_counterpart_are_an_error():
    with pytest.raises(ValueError, match=r"1 weights have no counterpart there, for example encoder\.rel_pos_bias\.table"):
        MAE_TRANSFORMERS.to_theirs({"encoder.rel_pos_bias.table": torch.ones(1), "encoder.norm.weight": torch.ones(1)})


def test_a_part_of_a_fused_weight_alone_keeps_its_name():
    fused = KeyMap((("a.qkv.{p}", ("x.q.{p}", "x.k.{p}")),))
    assert fused.to_ours({"x.q.weight": torch.ones(1)}).keys() == {"x.q.weight"}
    assert torch.equal(fused.to_ours({"x.k.bias": torch.zeros(1), "x.q.bias": torch.ones(1)})["a.qkv.bias"],
                       torch.tensor([1.0, 0.0]))


def test_weights_of_nothing_there_are_dropped_and_named():
    some = KeyMap((("a.{*}.index", None), ("a.{*}", "{*}")))
    weights = {"a.x.index": torch.ones(1), "a.x.weight": torch.zeros(1)}
    assert some.to_theirs(weights).keys() == {"x.weight"} and some.dropped(weights) == ["a.x.index"]


def test_number_after_goes_there_and_back():
    shifted = KeyMap((("a.{i}.b.{i+1}", "{i+1}.b.{i}"),))
    weights = {"a.9.b.1": torch.ones(1)}
    assert shifted.to_theirs(weights).keys() == {"10.b.0"} and shifted.to_ours({"10.b.0": torch.ones(1)}).keys() == {"a.9.b.1"}
    assert shifted.to_ours({"0.b.0": torch.ones(1)}).keys() == {"0.b.0"}  # comes after no number


def test_encoder_alone_has_no_prefix_there():
    some = KeyMap((("encoder.{*}", "vit.{*}"), ("decoder.{*}", "decoder.{*}")), "vit.")
    alone = {"encoder.x": torch.ones(1)}
    assert some.to_theirs(alone).keys() == {"x"}
    assert some.to_theirs(alone | {"decoder.y": torch.ones(1)}).keys() == {"vit.x", "decoder.y"}
    assert some.to_ours({"x": torch.ones(1)}).keys() == some.to_ours({"vit.x": torch.ones(1)}).keys() == {"encoder.x"}


@torch.no_grad()
def test_merging_in_the_order_of_unfold_gives_what_ours_gives():
    """mmpretrain's merging: nn.Unfold of 2x2, then norm and reduction."""
    merging = model_of(SWIN, False).layers[0].downsample
    rule = KeyMap((("{*}", "{*}", MERGED),))
    there = rule.to_theirs(merging.state_dict())
    x = torch.randn(2, 4, 6, 8)
    unfolded = torch.nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)  # (B, 2*3, 4C)
    normed = torch.nn.functional.layer_norm(unfolded, (32,), there["norm.weight"], there["norm.bias"])
    torch.testing.assert_close(normed @ there["reduction.weight"].T, merging(x).flatten(1, 2), atol=1e-5, rtol=0)
    assert_equal(rule.to_ours(there), merging.state_dict())


# ---- MixMIM has the names of a Swin -------------------------------------------------------------------------------

SWIN = {"MODEL.TYPE": "swin", "MODEL.SWIN.PATCH_SIZE": 4, "MODEL.SWIN.EMBED_DIM": 8, "MODEL.SWIN.DEPTHS": [2, 1],
        "MODEL.SWIN.NUM_HEADS": [1, 2], "MODEL.SWIN.WINDOW_SIZE": 4, "MODEL.SWIN.APE": True, "MODEL.NUM_CLASSES": 5,
        "DATA.IMG_SIZE": [32, 64], "DATA.MASK_PATCH_SIZE": 8}


def as_mixmim(swin, table):
    """The state of a Swin with another position table and without what a MixMIM has not."""
    return {name: value for name, value in swin.state_dict().items() if not name.endswith("attn_mask")} | {
        "absolute_pos_embed": table}


@pytest.mark.parametrize("grid", [(8, 16), (4, 8), (5, 11), (14, 27), (24, 48)])
def test_mixmim_is_told_by_its_fixed_table_also_when_that_was_resized(grid):
    table = resize_position_embedding(sincos_table((8, 16), 32), (8, 16), grid)
    assert encoder_type(as_mixmim(model_of(SWIN, False), table)) == "mixmim"


def test_swin_with_a_learned_table_is_a_swin():
    assert encoder_type(model_of(SWIN, False).state_dict()) == "swin"


def test_mixmim_in_a_swin_is_refused(tmp_path):
    source, model = model_of(SWIN, False), model_of(SWIN, False, seed=2)
    torch.save(as_mixmim(source, sincos_table((8, 16), 8)), tmp_path / "file.pth")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="The file holds a mixmim, the model is a swin: use MODEL.TYPE mixmim"):
        load_pretrained(model, tmp_path / "file.pth")
    assert_equal(model.state_dict(), before)


def test_swin_with_a_learned_table_loads_into_a_swin(tmp_path):
    source, model = model_of(SWIN, False), model_of(SWIN, False, seed=2)
    torch.save(source.state_dict(), tmp_path / "file.pth")
    assert load_pretrained(model, tmp_path / "file.pth").source == "Swin encoder or classifier"
    assert_equal(model.state_dict(), source.state_dict())
