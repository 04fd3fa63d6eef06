"""Windows, shifts, padding and merging of Swin, against loops that follow the definition."""
import pytest
import torch
from torch.nn import functional as F

from models.encoders.swin import BLOCKED, PatchMerging, SwinBlock, SwinTransformer, WindowAttention, window_mask

from ..helpers import perturb, random_images, tiny_model

MAPS = {  # grid, window, shifted
    "whole_windows": ((6, 6), (3, 3), False),
    "shifted": ((6, 6), (3, 3), True),
    "shifted_even_window": ((4, 8), (2, 4), True),
    "padded": ((5, 7), (3, 3), False),
    "padded_and_shifted": ((5, 7), (3, 3), True),
    "padded_along_one_axis": ((6, 7), (3, 4), True),
    "one_window_along_one_axis": ((3, 6), (3, 3), True),
    "smaller_than_the_window": ((2, 7), (3, 3), True),
}
each_map = pytest.mark.parametrize(("grid", "window", "shifted"), MAPS.values(), ids=MAPS.keys())


def shift_of(grid, window, shifted):
    """Half a window, along the axes on which there is more than one."""
    return tuple(w // 2 if shifted and side > w else 0 for side, w in zip(grid, window, strict=True))


def padded_size(grid, window):
    return tuple(-(-side // w) * w for side, w in zip(grid, window, strict=True))


def may_attend(query, key, grid, window, shift):
    """By definition: both in one window after the roll, and as far apart as in the image (not joined by the wrap)."""
    size = padded_size(grid, window)
    rolled = [[(position - s) % n for position, s, n in zip(token, shift, size, strict=True)] for token in (query, key)]
    together = all(a // w == b // w for a, b, w in zip(*rolled, window, strict=True))
    return together and [a - b for a, b in zip(*rolled, strict=True)] == [a - b for a, b in zip(query, key, strict=True)]


def tokens_of(size):
    return [(y, x) for y in range(size[0]) for x in range(size[1])]


@each_map
def test_window_mask_lets_neighbours_of_a_window_attend_and_nobody_else(grid, window, shifted):
    """For every real query and every key of its window; what padding may see does not matter."""
    shift, size = shift_of(grid, window, shifted), padded_size(grid, window)
    mask = window_mask(grid, window, shift)
    columns, area = size[1] // window[1], window[0] * window[1]
    assert mask.shape == (size[0] // window[0] * columns, area, area)
    checked = 0
    for query in tokens_of(grid):
        for key in tokens_of(size):
            slots = [[(position - s) % n for position, s, n in zip(token, shift, size, strict=True)] for token in (query, key)]
            windows = [y // window[0] * columns + x // window[1] for y, x in slots]
            if windows[0] != windows[1]:
                continue
            inside = [y % window[0] * window[1] + x % window[1] for y, x in slots]
            is_real = key[0] < grid[0] and key[1] < grid[1]
            allowed = is_real and may_attend(query, key, grid, window, shift)
            assert mask[windows[0], inside[0], inside[1]] == (0.0 if allowed else BLOCKED), (query, key)
            checked += 1
    assert checked == grid[0] * grid[1] * area


def test_window_mask_of_window_3_on_a_6x6_map_shifted_by_1():
    """By hand: rolled by 1, the last window along an axis holds positions 4, 5 and the wrapped 0: groups 0 0 1."""
    mask = window_mask((6, 6), (3, 3), (1, 1))
    whole, joined = [0, 0, 0], [0, 0, 1]
    for index, (rows, columns) in enumerate([(whole, whole), (whole, joined), (joined, whole), (joined, joined)]):
        group = torch.tensor([[r, c] for r in rows for c in columns])
        same = (group[:, None] == group[None, :]).all(-1)
        assert torch.equal(mask[index] == 0, same) and torch.equal(mask[index] == BLOCKED, ~same)


def naive_attention(block, x):
    """Attention of one map (H, W, C) token by token, from the definition."""
    attention, grid = block.attn, tuple(x.shape[:2])
    (h, w), shift = block.window, shift_of(grid, block.window, block.shifted)
    heads, dim = attention.num_heads, x.shape[-1]
    queries, keys, values = attention.qkv(x).view(*grid, 3, heads, dim // heads).unbind(2)  # (H, W, heads, C / heads)
    table = attention.relative_position_bias_table.view(2 * h - 1, 2 * w - 1, heads)
    out = torch.zeros_like(x)
    for query in tokens_of(grid):
        seen = [key for key in tokens_of(grid) if may_attend(query, key, grid, (h, w), shift)]
        scores = torch.stack([(queries[query] * keys[key]).sum(-1) * (dim // heads) ** -0.5
                              + table[query[0] - key[0] + h - 1, query[1] - key[1] + w - 1] for key in seen])
        weights = scores.softmax(dim=0)  # (keys, heads)
        out[query] = sum(weight[:, None] * values[key] for weight, key in zip(weights, seen, strict=True)).flatten()
    return attention.proj(out)


def block_on(grid, window, shifted, built_for=None):
    torch.manual_seed(0)
    block = SwinBlock(8, built_for or grid, WindowAttention(8, window, 2), shifted, 2.0, 0.0, 0.0).eval()
    return perturb(block, scale=0.5)


@pytest.mark.parametrize("built_for", [None, (12, 12)], ids=["own_map", "other_map"])
@each_map
def test_block_attends_as_a_loop_over_tokens_does(grid, window, shifted, built_for):
    block, x = block_on(grid, window, shifted, built_for), torch.randn(2, *grid, 8)
    with torch.no_grad():
        expected = torch.stack([naive_attention(block, one) for one in x])
        torch.testing.assert_close(block.attend(x), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shifted", [False, True])
def test_padding_never_matters(shifted, monkeypatch):
    block, x, pad = block_on((5, 7), (3, 3), shifted), torch.randn(2, 5, 7, 8), F.pad
    with torch.no_grad():
        expected = block(x)
        paddings = []
        monkeypatch.setattr("models.encoders.swin.F.pad", lambda x, sizes: paddings.append(sizes) or pad(x, sizes, value=2.0))
        torch.testing.assert_close(block(x), expected, atol=1e-6, rtol=0)
    assert len(paddings) == 1


def test_block_ignores_the_border_it_was_built_for():
    """The stored mask belongs to the built map: on another one the block works out its own."""
    block, x = block_on((6, 6), (3, 3), True), torch.randn(1, 9, 6, 8)
    with torch.no_grad():
        expected = block_on((9, 6), (3, 3), True)(x)
        torch.testing.assert_close(block(x), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("window_size", "shift"), [(3, 1), (2, 1), (4, 2), (5, 2), (1, 0)])
def test_shift_is_half_the_window_rounded_down(window_size, shift):
    grid = (window_size * 2, window_size * 3)
    block = block_on(grid, (window_size, window_size), True)
    impulse = torch.zeros(1, *grid, 8)
    assert block._shift_for(grid) == (shift, shift)
    assert block(impulse).shape == impulse.shape


def test_every_second_block_is_shifted_and_windows_shrink_to_the_map():
    model = SwinTransformer((32, 64), 4, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=8)
    blocks = [block for stage in model.layers for block in stage.blocks]
    assert [block.shifted for block in blocks] == [False, True, False, True]
    assert [block.window for block in blocks] == [(8, 8), (8, 8), (4, 8), (4, 8)]  # maps of 8x16 and 4x8 tokens
    assert [block._shift_for(block.grid) for block in blocks] == [(0, 0), (0, 4), (0, 0), (0, 0)]


# ---- merging ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (4, 5), (1, 3)])
def test_merging_joins_four_neighbours_in_the_official_order(height, width):
    merging = perturb(PatchMerging(3), scale=0.5)
    x = torch.randn(2, height, width, 3)
    even = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    joined = torch.cat([even[:, 0::2, 0::2], even[:, 1::2, 0::2], even[:, 0::2, 1::2], even[:, 1::2, 1::2]], dim=-1)
    torch.testing.assert_close(merging(x), merging.reduction(merging.norm(joined)))
    assert merging(x).shape == (2, -(-height // 2), -(-width // 2), 6)


# ---- whole encoder ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("height", "width"), [(112, 112), (96, 112), (40, 72), (100, 52), (4, 8)])
def test_features_of_a_size_that_windows_do_not_divide_have_the_right_shape(height, width):
    """As a 192-px, window-6 model on 224 px; 100x52 px gives odd maps of 25x13 and 13x7 tokens."""
    model = perturb(SwinTransformer((96, 96), 4, embed_dim=8, depths=(2, 2, 1), num_heads=(1, 2, 2), window_size=3)).eval()
    with torch.no_grad():
        features, = model.extract_feat(random_images(2, 3, height, width))
    assert features.shape == (2, 32, -(-height // 16), -(-width // 16)) and features.isfinite().all()


@pytest.mark.parametrize("ape", [False, True])
def test_features_depend_on_each_image_alone_when_maps_are_padded(ape):
    model = perturb(SwinTransformer((96, 96), 4, embed_dim=8, depths=(2, 1), num_heads=(1, 2), window_size=3, ape=ape)).eval()
    images = random_images(3, 3, 40, 72)
    with torch.no_grad():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_number_of_tokens_that_is_odd_merges_to_the_built_shape():
    """20x36 px with patches of 4: maps of 5x9, 3x5 tokens; the model is built for them, so its buffers fit."""
    model = SwinTransformer((20, 36), 4, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=3)
    assert model(random_images(2, 3, 20, 36)).shape == (2, 16, 3, 5)
    assert [stage.blocks[0].grid for stage in model.layers] == [(5, 9), (3, 5)]


def test_absolute_embedding_counts_as_last_layer():
    """Quirk of the official code (13): its layer scale is 1 in fine-tuning."""
    model = tiny_model("swin", {"MODEL.SWIN.APE": True}, is_pretrain=False)
    assert model.layer_id("absolute_pos_embed") == model.num_layers + 1 == 5


@pytest.mark.parametrize(("name", "layer"), [
    ("mask_token", 0), ("patch_embed.proj.weight", 0), ("patch_embed.norm.bias", 0),
    ("layers.0.blocks.0.norm1.weight", 1), ("layers.0.blocks.1.attn.qkv.weight", 2),
    ("layers.0.downsample.reduction.weight", 2), ("layers.0.downsample.norm.bias", 2),  # quirk 14: as the block before it
    ("layers.1.blocks.0.mlp.fc1.bias", 3), ("layers.1.blocks.2.mlp.fc1.bias", 5), ("layers.1.downsample.norm.weight", 5),
    ("layers.2.blocks.0.mlp.fc1.bias", 6), ("norm.weight", 7), ("head.bias", 7)])
def test_layer_ids_of_depths_2_3_1(name, layer):
    model = SwinTransformer((96, 96), 4, num_classes=5, embed_dim=8, depths=(2, 3, 1), num_heads=(1, 2, 2), window_size=3,
                            use_mask_token=True)
    assert name in dict(model.named_parameters())
    assert model.layer_id(name) == layer


def test_encoder_without_mask_token_refuses_a_mask():
    model = SwinTransformer((32, 64), 4, embed_dim=8, depths=(1,), num_heads=(1,), window_size=4)
    with pytest.raises(ValueError, match="without a mask token"):
        model(random_images(2), torch.zeros(2, 8, 16))


def test_residual_stream_keeps_full_precision_under_autocast():
    model, seen = tiny_model("swin").encoder, []
    for stage in model.layers:
        stage.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(random_images())
    assert seen == [torch.float32, torch.float32]
