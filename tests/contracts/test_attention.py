"""Where every encoder's tokens look: weights that its attention really uses, in the places they belong to."""
import re

import pytest
import torch

import inference
from models.products import attention, attention_weights
from tests.unit.test_inference import photographs, saved

from .tiny import BATCH, ENCODER_CASES, HEIGHT, WIDTH, build, make_config, make_images

HEADS = {"convmae": {4: 2, 5: 2, 6: 2}, "mixmim": {2: 1, 3: 2}, "swin": {2: 1, 3: 2}, "swinv2": {2: 1, 3: 2},
         "vit": {1: 2, 3: 2}}  # of blocks of the tiny encoders


@pytest.fixture(scope="module", params=ENCODER_CASES, ids="-".join)
def case(request):
    config = make_config(*request.param)
    return request.param[0], build(config, is_pretrain=True).encoder, make_images(config)


def grid_of(encoder, layer):
    """(h, w) of a block's map: ViTs and ConvMAE's last stage keep theirs, others halve it once in their two stages."""
    side = encoder.stride if layer > 2 or encoder.num_prefix_tokens else encoder.patch_size
    return HEIGHT // side, WIDTH // side


@torch.no_grad()
def test_maps_of_all_tokens_are_shares_on_the_grid_of_the_block(case):
    name, encoder, images = case
    for layer, heads in HEADS.get(name, {}).items():
        grid = grid_of(encoder, layer)
        maps = encoder.attention_maps(images, layer)
        assert maps.shape == (BATCH, heads, *grid, *grid) and maps.dtype == torch.float32
        total = maps.sum(dim=(-2, -1))
        if encoder.num_prefix_tokens:  # the class token takes a part
            assert (total < 1).all() and (total > 0).all()
        else:
            torch.testing.assert_close(total, torch.ones_like(total))


@torch.no_grad()
def test_map_of_a_token_is_its_part_of_all(case):
    name, encoder, images = case
    for layer in HEADS.get(name, {}):
        row, column = (side - 1 for side in grid_of(encoder, layer))
        alone = encoder.attention_maps(images, layer, (row, 1))
        torch.testing.assert_close(alone, encoder.attention_maps(images, layer)[:, :, row, 1])
        assert not torch.allclose(alone, encoder.attention_maps(images, layer, (0, column)))
        torch.testing.assert_close(encoder.attention_maps(images, layer, (0.0, 1.0)),
                                   encoder.attention_maps(images, layer, (0, column)))


@pytest.mark.parametrize("bias", [False, True])
def test_weights_are_what_attention_weighs_by(bias):
    """With a value for each token that is its number as a one-hot row, attention gives its weights."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 2, 4, 3, 5, 5, generator=generator)  # B=2, W=4, heads=3, N=d=5
    qkv[2] = torch.eye(5)
    bias = torch.randn(4, 3, 5, 5, generator=generator) if bias else None
    given = attention(qkv, bias, 0.7).view(2, 4, 5, 3, 5).transpose(2, 3)
    torch.testing.assert_close(attention_weights(qkv, bias, 0.7), given)


@pytest.mark.parametrize("name", ["swin", "swinv2", "vit", "mixmim", "convmae"])
@torch.no_grad()
def test_weights_of_a_module_give_its_output(name):
    """Its values weighed by them, projected, are what the block's attention gave."""
    encoder, layer = build(make_config(name, "plain"), is_pretrain=True).encoder, next(reversed(HEADS[name]))
    module, seen = encoder.probed_blocks()[layer - 1].attn, []
    hook = module.register_forward_hook(lambda module, args, output: seen.append((args, output)))
    encoder.attention_maps(make_images(make_config(name, "plain")), layer)
    hook.remove()
    ((args, output),) = seen
    qkv = module.project(args[0]) if hasattr(module, "project") else module._operands(*args)[0]
    mixed = (module.weights(*args) @ qkv[2]).transpose(2, 3).flatten(3)
    torch.testing.assert_close(module.proj(mixed).view(output.shape), output)


@torch.no_grad()
def test_tokens_of_a_shifted_window_see_what_lay_together_in_the_image():
    """Windows of 4 on 8 x 16 tokens, moved by 2: a corner of 2 x 2 alone, whole windows in the middle."""
    config = make_config("swin", "plain")
    maps = build(config, is_pretrain=True).encoder.attention_maps(make_images(config), 2)
    seen = maps[0, 0] > 1e-12
    expected = torch.zeros(8, 16, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(seen[0, 1], expected)
    expected = torch.zeros(8, 16, dtype=torch.bool)
    expected[2:6, 6:10] = True
    assert torch.equal(seen[2, 9], expected) and torch.equal(seen[5, 6], expected)


@torch.no_grad()
def test_image_that_windows_do_not_divide_has_maps_of_its_own_size():
    config = make_config("swin", "plain")
    encoder = build(config, is_pretrain=True).encoder
    maps = encoder.attention_maps(make_images(config, size=(40, 72)), 2)
    assert maps.shape[2:] == (10, 18, 10, 18)
    torch.testing.assert_close(maps.sum(dim=(-2, -1)), torch.ones(BATCH, 1, 10, 18))


@torch.no_grad()
def test_class_token_of_a_vit_looks_at_the_patches():
    config = make_config("vit", "mae")
    encoder = build(config, is_pretrain=True).encoder
    shares = encoder.attention_maps(make_images(config), 2, "cls")
    assert shares.shape == (BATCH, 2, 4, 8) and (shares.sum(dim=(-2, -1)) < 1).all()


@pytest.mark.parametrize(("name", "layer", "token", "message"), [
    ("convmae", 1, None, "block 1 has no attention; blocks 4, 5, 6 of this ConvViT have"),
    ("swin", 1, "cls", "SwinTransformer has no class token"), ("vit", 1, "class", r"use \(row, column\), or cls"),
    ("swin", 1, (8, 0), r"token=\(8, 0\) is outside of the 8 x 16 tokens"), ("vit", 1, (0, -1), "outside of the 4 x 8 tokens"),
    ("vit", 1, (0.0, -0.2), "outside of the 4 x 8 tokens")])
def test_token_or_block_without_attention_is_refused(name, layer, token, message):
    config = make_config(name, "plain")
    with pytest.raises(ValueError, match=message):
        build(config, is_pretrain=True).encoder.attention_maps(make_images(config), layer, token)


# ---- from a picture -----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = make_config("vit", "plain")
    return inference.get_model(config, saved(build(config, is_pretrain=True), tmp_path_factory.mktemp("vit")), task="pretrain")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("photographs"))


def test_picture_is_looked_at_as_its_features_are(model, paths):
    batch = inference.get_transform(model)(paths[0]).unsqueeze(0)
    expected = model.encoder.attention_maps(batch, 3).detach()[0]
    found = inference.attention_maps(model, paths[0])
    assert found.shape == (2, 4, 8, 4, 8) and not found.requires_grad
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(inference.attention_maps(model, paths[0], block=3, token=(1, 2)), expected[:, 1, 2])


@pytest.mark.parametrize(("number", "block", "message"), [
    (2, -1, "attention is that of one image, and 2 were given"),
    (1, 4, r"block=4 (--block) does not exist: the encoder has blocks 1 to 3, counted from the end -3 to -1.")])
def test_several_images_or_a_block_too_many_are_refused(model, paths, number, block, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        inference.attention_maps(model, paths[:number] if number > 1 else paths[0], block)


# ---- the map of a block -------------------------------------------------------------------------------------------

@torch.no_grad()
def test_map_of_a_block_is_what_its_mean_is_of(case):
    _, encoder, images = case
    layers = [1, len(encoder.probed_blocks()), "last"]
    maps = encoder.forward_layers(images, layers, "map")
    for found, mean in zip(maps[:2], encoder.forward_layers(images, layers[:2]), strict=True):
        torch.testing.assert_close(found.mean(dim=(2, 3)), mean)
    torch.testing.assert_close(maps[2], encoder.forward_map(images))
