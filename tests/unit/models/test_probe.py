"""Heads on a frozen encoder, and the layers they see."""
import pytest
import torch
from torch import nn

from config import load_config
from models.probe import SharedBatchNorm, build_probe, probed_layers
from tests.contracts.tiny import make_config, make_images

VIT_OPTS = ["MODEL.TYPE", "vit", "MODEL.VIT.PATCH_SIZE", 8, "MODEL.VIT.EMBED_DIM", 16, "MODEL.VIT.DEPTH", 3,
            "MODEL.VIT.NUM_HEADS", 2, "DATA.IMG_SIZE", 32]


def vit_probe(*opts, classes=5):
    return build_probe(load_config(opts=[*VIT_OPTS, *opts]), classes)


# ---- layers -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("layer", "expected"), [("last", ["last"]), (1, [1]), (8, [8]), (-1, [12]), (-12, [1])])
def test_layer_is_counted_from_one_or_from_the_end(layer, expected):
    assert probed_layers(load_config(opts=["PROBE.LAYER", layer]).PROBE, 12) == expected


@pytest.mark.parametrize("layer", [0, 13, -13])
def test_layer_that_does_not_exist_is_refused(layer):
    with pytest.raises(ValueError, match=rf"PROBE\.LAYER={layer} .*1 to 12"):
        probed_layers(load_config(opts=["PROBE.LAYER", layer]).PROBE, 12)


def test_sweep_has_every_layer():
    assert probed_layers(load_config(opts=["PROBE.SWEEP", True]).PROBE, 3) == [1, 2, 3, "last"]


@pytest.mark.parametrize("feature", ["mean", "cls"])
def test_layers_of_a_vit_are_the_outputs_of_its_blocks(feature):
    encoder, images = vit_probe().encoder.eval(), torch.randn(2, 3, 32, 32)

    def pool(tokens):
        return tokens[:, 0] if feature == "cls" else tokens[:, 1:].mean(dim=1)

    with torch.no_grad():
        tokens, cls_token, grid = encoder._embed(images)
        x, expected = torch.cat([cls_token, tokens], dim=1), []
        for block in encoder.blocks:
            x = block(x, grid, encoder.rel_pos_bias.bias(grid))
            expected.append(pool(x))
        expected.append(pool(encoder.norm(x)))
        found = encoder.forward_layers(images, ["last", 3, 1, 2], feature)
    for one, other in zip(found, [expected[3], expected[2], expected[0], expected[1]], strict=True):
        assert torch.equal(one, other)


def test_layers_of_a_swin_are_the_means_of_its_maps():
    encoder = build_probe(make_config("swin", "plain"), 5).encoder.eval()
    images = make_images(make_config("swin", "plain"))
    with torch.no_grad():
        x, expected = encoder.pos_drop(encoder.patch_embed(images)), []
        for stage in encoder.layers:
            for block in stage.blocks:
                x = block(x)
                expected.append(x.mean(dim=(1, 2)))
            x = stage.downsample(x) if hasattr(stage, "downsample") else x
        expected.append(encoder.norm(x).mean(dim=(1, 2)))
        found = encoder.forward_layers(images, [1, 2, 3, 4, "last"])
    assert [feature.shape[1] for feature in found] == [8, 8, 16, 16, 16]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_last_layer_is_what_the_head_of_a_classifier_sees():
    encoder, images = vit_probe("MODEL.VIT.USE_MEAN_POOLING", True).encoder.eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(encoder.forward_layers(images, ["last"])[0], encoder.forward_pooled(images))


def test_class_token_is_refused_when_there_is_none():
    with pytest.raises(ValueError, match=r"PROBE\.FEATURE cls"):
        build_probe(make_config("swin", "plain").clone(), 5).encoder.forward_layers(torch.zeros(1, 3, 32, 64), [1], "cls")


# ---- heads --------------------------------------------------------------------------------------------------------

def test_only_the_head_learns_and_the_encoder_stays_in_evaluation():
    probe = vit_probe()
    assert {name for name, p in probe.named_parameters() if p.requires_grad} == {"head.1.weight", "head.1.bias"}
    probe.train()
    assert probe.head.training and not any(module.training for module in probe.encoder.modules())


def test_images_and_their_features_give_the_same_logits():
    probe, images = vit_probe("PROBE.SWEEP", True).eval(), torch.randn(2, 3, 32, 32)
    for one, other in zip(probe(images), probe(*probe.features(images)), strict=True):
        assert torch.equal(one, other)


def test_heads_of_a_sweep_are_named_by_their_layer():
    probe = vit_probe("PROBE.SWEEP", True)
    assert {name for name, p in probe.named_parameters() if p.requires_grad} == {
        f"head.{layer}.1.{kind}" for layer in (1, 2, 3, "last") for kind in ("weight", "bias")}


def test_head_has_no_batch_norm_when_it_is_off():
    assert {name for name in vit_probe("PROBE.BATCH_NORM", False).state_dict() if name.startswith("head")} == {
        "head.1.weight", "head.1.bias"}


@pytest.mark.parametrize("processes", [1, 2])
def test_batch_norm_is_that_of_torch_over_all_processes(monkeypatch, processes):
    """With equal batches on two processes, sums are twice those of one."""
    ours, theirs = SharedBatchNorm(4), nn.BatchNorm1d(4, affine=False, eps=1e-6)
    if processes == 2:
        monkeypatch.setattr("utils.distributed.is_parallel", lambda: True)
        monkeypatch.setattr("utils.distributed.world_size", lambda: 2)
        monkeypatch.setattr("utils.distributed.sum_over_processes", lambda tensor: 2 * tensor)
    for step in range(3):
        batch = torch.randn(6, 4) * 3 + step
        expected = theirs(torch.cat([batch] * processes))[:6]
        torch.testing.assert_close(ours(batch), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(batch), theirs.eval()(batch))
