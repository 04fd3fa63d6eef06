"""What is particular to ConvMAE: masked convolutions, fused stages, any grid, layer ids, refusals."""
import re

import pytest
import torch

from config import load_config
from models import build_model, load_pretrained
from models.encoders.convmae import ConvBlock, ConvViT, PointwiseConv

from ..helpers import opts_of, perturb, random_images

TINY = {"MODEL.TYPE": "convmae", "MODEL.METHOD": "mae", "MODEL.CONVMAE.EMBED_DIM": [4, 8, 16],
        "MODEL.CONVMAE.DEPTHS": [1, 2, 3], "MODEL.CONVMAE.NUM_HEADS": 2, "MODEL.DROP_PATH_RATE": 0.0,
        "DATA.IMG_SIZE": [64, 96], "DATA.MASK_PATCH_SIZE": 16,
        "MODEL.MAE.DECODER_EMBED_DIM": 16, "MODEL.MAE.DECODER_DEPTH": 1, "MODEL.MAE.DECODER_NUM_HEADS": 2,
        "MODEL.NUM_CLASSES": 5}


def tiny(overrides=None, is_pretrain=True):
    torch.manual_seed(1)
    return perturb(build_model(load_config(opts=opts_of(TINY | (overrides or {}))), is_pretrain)).eval()


def half_mask(batch, rows, cols, seed=3):
    order = torch.rand(batch, rows * cols, generator=torch.Generator().manual_seed(seed)).argsort(dim=1).argsort(dim=1)
    return (order < rows * cols // 2).view(batch, rows, cols)


def visible_ids(mask):
    return torch.stack([row.logical_not().nonzero().squeeze(1) for row in mask.flatten(1)])


# ---- masked convolutions ------------------------------------------------------------------------------------------

@torch.no_grad()
def test_convolution_lets_nothing_hidden_through():
    """Not even values that no sum with zero would survive."""
    torch.manual_seed(0)
    block, mask = perturb(ConvBlock(5)), half_mask(2, 6, 9)
    x = torch.randn(2, 6, 9, 5)
    other = torch.where(mask.unsqueeze(-1), torch.nan, x)
    out, out_other = block(x, mask), block(other, mask)
    assert torch.equal(out[~mask], out_other[~mask])
    assert not torch.equal(block(x)[~mask], out[~mask])


@torch.no_grad()
def test_hidden_pixels_do_not_reach_the_fused_stages():
    """Cells of the fine maps under a visible patch stay, bit for bit, under other content of the hidden ones."""
    encoder, images, mask = tiny().encoder, random_images(2, 3, 64, 96), half_mask(2, 4, 6)
    hidden = mask.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2).unsqueeze(1)
    other = torch.where(hidden, torch.full_like(images, 9.0), images)
    for scale, one, two in zip((4, 2), encoder._convolve(images, mask), encoder._convolve(other, mask), strict=True):
        visible = ~mask.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
        assert torch.equal(one[visible], two[visible]) and not torch.equal(one, two)
    assert not torch.equal(encoder._convolve(images)[0], encoder._convolve(other)[0])


@torch.no_grad()
def test_first_stages_are_added_to_the_visible_tokens_of_pretraining_only():
    encoder, images = tiny().encoder, random_images(2, 3, 64, 96)
    mask = torch.zeros(2, 4, 6, dtype=torch.bool)

    def outputs():
        return encoder.forward_visible(images, mask, visible_ids(mask)), encoder(images).flatten(2).transpose(1, 2)

    fused, plain = outputs()
    assert (fused - plain).abs().max() > 0.1
    for decode in (encoder.stage1_output_decode, encoder.stage2_output_decode):
        torch.nn.init.zeros_(decode.weight)
        torch.nn.init.zeros_(decode.bias)
        assert not torch.equal(outputs()[0], fused)
        assert torch.equal(outputs()[1], plain)
    torch.testing.assert_close(*outputs())


@torch.no_grad()
def test_pointwise_convolution_is_the_convolution_of_its_weight():
    torch.manual_seed(0)
    layer, x = PointwiseConv(5, 7), torch.randn(2, 3, 4, 5)
    expected = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)


# ---- sizes --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("rows", "cols"), [(2, 3), (5, 3), (1, 7)])
def test_model_trains_on_images_of_another_size(rows, cols):
    model = tiny()
    images, mask = random_images(2, 3, rows * 16, cols * 16), half_mask(2, rows, cols)
    loss = model(images, mask)
    loss.backward()
    assert loss.isfinite() and model.reconstruct(images, mask).shape == images.shape
    assert model(images)[-1].shape == (2, 16, rows, cols)


def test_patches_of_eight_pixels_work():
    model = tiny({"MODEL.CONVMAE.PATCH_SIZE": 8, "DATA.MASK_PATCH_SIZE": 8})
    images, mask = random_images(2, 3, 64, 96), half_mask(2, 8, 12)
    assert model(images, mask).isfinite() and model(images)[-1].shape == (2, 16, 8, 12)


@torch.no_grad()
def test_feature_map_lies_as_the_image_does():
    """Without attention, a changed patch changes what lies in reach of the convolutions: 8 pixels in the first stage, 32 in the
    second."""
    encoder = tiny({"DATA.IMG_SIZE": [64, 160]}).encoder
    for block in encoder.blocks3:
        block.attn.proj.weight.zero_()
    images = random_images(1, 3, 64, 160)
    other = images.clone()
    other[:, :, :16, 128:144] += 1.0  # row 0, column 8 of the 4x10 grid
    changed = (encoder(images) - encoder(other)).abs().amax(dim=1)[0]
    assert changed[:, :5].max() == 0 and changed[0, 5:].min() > 0


@torch.no_grad()
def test_position_table_of_a_square_checkpoint_moves_to_a_wide_model():
    square, wide = tiny({"DATA.IMG_SIZE": 64}, is_pretrain=False), tiny(is_pretrain=False)
    state, resized = wide.resize_state_dict(square.state_dict())
    assert resized == ["pos_embed"] and state["pos_embed"].shape == (1, 24, 16)
    wide.load_state_dict(state)
    images = random_images(2, 3, 64, 96)
    torch.testing.assert_close(wide(images), square(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["ours", "official"])
def test_pretraining_checkpoint_starts_a_classifier_of_other_size_and_channels(layout, tmp_path):
    """Of the pre-training, what is fused and normalised last has no place there; official files have no prefixes."""
    source = tiny()
    state = source.state_dict()
    if layout == "official":
        state = {name.removeprefix("encoder.").replace("decoder.mask", "mask").replace("decoder.", "decoder_"): value
                 for name, value in state.items()}
    torch.save({"model": state}, tmp_path / "pretrained.pth")
    model = tiny({"DATA.IMG_SIZE": [64, 128], "MODEL.CONVMAE.IN_CHANS": 1}, is_pretrain=False)
    report = load_pretrained(model, tmp_path / "pretrained.pth")
    assert set(report.missing) == {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}
    assert set(report.resized) == {"pos_embed", "patch_embed1.proj.weight"}
    assert {name.partition(".")[0] for name in report.unexpected} == {"norm", "stage1_output_decode", "stage2_output_decode"}
    assert torch.equal(model.blocks1[0].attn.weight, source.encoder.blocks1[0].attn.weight)


@pytest.mark.parametrize(("key", "value", "there", "here"), [
    ("EMBED_DIM", [4, 8, 32], "[4, 8, 16]", "[4, 8, 32]"), ("DEPTHS", [1, 2, 2], "[1, 2, 3]", "[1, 2, 2]"),
    ("PATCH_SIZE", 8, 16, 8)])
def test_checkpoint_of_another_convmae_is_refused_with_what_differs(key, value, there, here, tmp_path):
    torch.save({"model": tiny().state_dict()}, tmp_path / "pretrained.pth")
    model = tiny({f"MODEL.CONVMAE.{key}": value}, is_pretrain=False)
    with pytest.raises(ValueError, match=re.escape(f"MODEL.CONVMAE.{key} is {there} in the file and {here} here")):
        load_pretrained(model, tmp_path / "pretrained.pth")


# ---- parts --------------------------------------------------------------------------------------------------------

def test_position_table_learns_in_classification_only():
    assert not tiny().encoder.pos_embed.requires_grad and tiny(is_pretrain=False).pos_embed.requires_grad


def test_convolutions_learn_as_slowly_as_the_embedding():
    model = tiny(is_pretrain=False)
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert {layer for name, layer in ids.items() if name.startswith(("patch_embed", "blocks1", "blocks2", "pos_embed"))} == {0}
    assert [ids[f"blocks3.{i}.attn.qkv.weight"] for i in range(3)] == [1, 2, 3]
    assert ids["head.weight"] == ids["fc_norm.weight"] == model.num_layers + 1 == 4


def test_drop_path_rises_over_the_blocks_of_all_stages():
    model = tiny({"MODEL.DROP_PATH_RATE": 0.5})
    rates = [block.drop_path.rate for block in model.encoder.units()]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_dropped_activations_are_recomputed_alike():
    images, mask = random_images(2, 3, 64, 96), half_mask(2, 4, 6)
    gradients = []
    for use_checkpoint in (False, True):
        model = tiny({"TRAIN.USE_CHECKPOINT": use_checkpoint})
        model(images, mask).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_initial_weights_are_those_of_the_official_rules():
    torch.manual_seed(0)
    model = ConvViT(img_size=(64, 96), embed_dim=(32, 64, 128), depths=(1, 1, 1), num_heads=4)
    largest = {name: p.abs().max().item() for name, p in model.named_parameters()}
    assert largest["patch_embed3.proj.weight"] == pytest.approx((6 / (128 + 64 * 4)) ** 0.5, rel=0.01)  # Xavier, as one matrix
    assert largest["patch_embed2.proj.weight"] == pytest.approx((1 / (32 * 4)) ** 0.5, rel=0.01)        # PyTorch's default
    assert largest["patch_embed4.weight"] == pytest.approx((6 / 256) ** 0.5, rel=0.01)
    assert not model.patch_embed4.bias.any()
    head = ConvViT(img_size=(64, 96), num_classes=50, embed_dim=(32, 64, 128), depths=(1, 1, 1), num_heads=4).head
    assert head.weight.std().item() == pytest.approx(2e-5, rel=0.05)


@torch.no_grad()
def test_probed_feature_is_the_normalised_mean_of_the_tokens():
    encoder, images = tiny().encoder, random_images(2, 3, 64, 96)
    last, third = encoder.forward_layers(images, ["last", len(encoder.units())])
    expected = (third - third.mean(dim=1, keepdim=True)) / third.std(dim=1, unbiased=False, keepdim=True)
    torch.testing.assert_close(last, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="no class token"):
        encoder.forward_layers(images, ["last"], feature="cls")


# ---- refusals -----------------------------------------------------------------------------------------------------

def test_simmim_is_refused_because_there_is_no_mask_token():
    with pytest.raises(ValueError, match=r"convmae has no mask token.*MODEL\.METHOD simmim.*Use MODEL\.METHOD mae"):
        tiny({"MODEL.METHOD": "simmim"})


def test_feature_map_of_masked_images_is_refused():
    with pytest.raises(ValueError, match="has no mask token"):
        tiny().encoder(random_images(1, 3, 64, 96), half_mask(1, 4, 6))


def test_image_between_two_patches_is_refused_with_its_size_in_pixels():
    """Also where the first, finer, embedding would take it."""
    with pytest.raises(ValueError, match="64x88 pixels are not a whole number of patches of 16"):
        tiny()(random_images(1, 3, 64, 88))


@pytest.mark.parametrize(("overrides", "message"), [
    ({"DEPTHS": [2, 2]}, r"MODEL\.CONVMAE\.DEPTHS=\[2, 2\] must have three values"),
    ({"DEPTHS": [0, 2, 3]}, r"MODEL\.CONVMAE\.DEPTHS=\[0, 2, 3\].* at least 1"),
    ({"EMBED_DIM": [4, 8, 16, 32]}, r"MODEL\.CONVMAE\.EMBED_DIM=.*three values"),
    ({"MLP_RATIO": [4.0]}, r"MODEL\.CONVMAE\.MLP_RATIO=\[4\.0\].*three values"),
    ({"PATCH_SIZE": 18}, r"MODEL\.CONVMAE\.PATCH_SIZE=18 must be a multiple of 4.* Use 20\."),
    ({"PATCH_SIZE": 20}, r"MODEL\.CONVMAE\.PATCH_SIZE=20 does not divide DATA\.IMG_SIZE=\[64, 96\]"),
    ({"EMBED_DIM": [4, 8, 18]}, r"EMBED_DIM=\[4, 8, 18\].*multiple of 4.* Use 20 there"),
    ({"NUM_HEADS": 3}, r"MODEL\.CONVMAE\.NUM_HEADS=3 does not divide the 16 channels.* Use e\.g\. 2 heads"),
    ({"NUM_HEADS": 0}, r"MODEL\.CONVMAE\.NUM_HEADS=0 is out of range"),
])
def test_setting_that_does_not_work_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(opts=opts_of(TINY | {f"MODEL.CONVMAE.{key}": value for key, value in overrides.items()}))
