"""Cosine attention, position bias, norms after the branches of SwinV2, against loops that follow the definition."""
import math

import pytest
import torch
from torch.nn import functional as F

from models.encoders.swinv2 import CosineWindowAttention, PatchMergingV2, SwinTransformerV2, SwinV2Block, log_spaced_offsets

from ..helpers import perturb, random_images, random_mask, tiny_model
from .test_swin import each_map, may_attend, shift_of, tokens_of


def attention_of(window, dim=8, num_heads=2, scale=0.5, **kwargs):
    torch.manual_seed(0)
    return perturb(CosineWindowAttention(dim, window, num_heads, **kwargs), scale=scale).eval()


def blocks_of(model):
    return [block for stage in model.layers for block in stage.blocks]


# ---- offsets ------------------------------------------------------------------------------------------------------

def test_log_spaced_offsets_of_a_window_by_hand():
    """Axis y of 3 tokens: 0 and +-1 of 2, so +-4 and +-8, and log2(5) / 3, log2(9) / 3; axis x of 2: +-8."""
    near, far = math.log2(5) / 3, math.log2(9) / 3
    rows = torch.tensor([-far, -near, 0.0, near, far])
    cols = torch.tensor([-far, 0.0, far])
    expected = torch.stack([rows[:, None].expand(5, 3), cols[None, :].expand(5, 3)], dim=-1)
    torch.testing.assert_close(log_spaced_offsets((3, 2)), expected[None])


def test_log_spaced_offsets_of_a_pretrained_window_keep_what_they_were_there():
    """A side of 4 tokens in pre-training: its offsets -3..3 are found unchanged, those beyond it go on above 1."""
    before, after = log_spaced_offsets((4, 4)), log_spaced_offsets((6, 5), pretrained_window=4)
    assert after.shape == (1, 11, 9, 2)
    torch.testing.assert_close(after[:, 2:-2, 1:-1], before)
    assert after[0, -1, 0].tolist() == pytest.approx([math.log2(8 * 5 / 3 + 1) / 3, -math.log2(8 * 4 / 3 + 1) / 3])


def test_each_stage_takes_its_pretrained_window():
    model = SwinTransformerV2((64, 128), 4, embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=8,
                              pretrained_window_sizes=(6, 0))
    tables = [block.attn.relative_coords_table for block in blocks_of(model)]
    assert torch.equal(tables[0], log_spaced_offsets((8, 8), 6))
    assert torch.equal(tables[1], log_spaced_offsets((8, 8))) and torch.equal(tables[2], tables[1])


# ---- position bias ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("window", [(3, 3), (2, 4), (1, 3), (1, 1)])
def test_position_bias_is_16_sigmoid_of_the_network_but_for_a_constant(window):
    """The same constant for all pairs and heads: softmax ignores it."""
    attention = attention_of(window, scale=1.0)
    with torch.no_grad():
        first, _, last = attention.cpb_mlp
        hidden = F.relu(F.linear(log_spaced_offsets(window), first.weight, first.bias))
        official = 16 * torch.sigmoid(F.linear(hidden, last.weight))  # (1, 2h-1, 2w-1, heads)
        bias = attention.bias_table()
    assert bias.shape == ((2 * window[0] - 1) * (2 * window[1] - 1), 2)
    torch.testing.assert_close(official.view(-1, 2) - bias, torch.full_like(bias, 8.0), atol=1e-5, rtol=0)
    assert bias.abs().max() <= 8


def test_position_bias_is_worked_out_in_full_precision_under_autocast():
    attention = attention_of((3, 4))
    expected = attention.bias_table()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bias = attention.bias_table()
    assert bias.dtype == torch.float32 and torch.equal(bias, expected)


def test_position_bias_keeps_full_precision_in_a_step_of_a_block(monkeypatch):
    """The block casts its other linear weights beforehand, see models.products.casts_together."""
    attention, found = attention_of((3, 4)), []
    block = SwinV2Block(8, (3, 4), attention, shifted=False, mlp_ratio=2.0, drop=0.0, drop_path=0.0)
    expected, bias_table = attention.bias_table().detach(), CosineWindowAttention.bias_table
    monkeypatch.setattr(CosineWindowAttention, "bias_table", lambda self: found.append(bias_table(self)) or found[-1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block(torch.randn(2, 3, 4, 8)).sum().backward()
    assert found[0].requires_grad and torch.equal(found[0], expected)
    assert attention.cpb_mlp[0].weight.grad.dtype == torch.float32


# ---- attention ----------------------------------------------------------------------------------------------------

def bias_of_pair(attention, query, key):
    """(heads,), from the two positions alone."""
    scaled = [8 * (a - b) / max((attention.pretrained_window or side) - 1, 1)
              for a, b, side in zip(query, key, attention.window, strict=True)]
    coordinates = torch.tensor([math.copysign(math.log2(abs(c) + 1) / 3, c) for c in scaled])
    return 16 * torch.sigmoid(attention.cpb_mlp(coordinates))


def naive_attention(attention, x, seen_by):
    """Attention of one map (H, W, C) token by token; `seen_by` gives the keys that a query sees."""
    grid, dim, heads = tuple(x.shape[:2]), x.shape[-1], attention.num_heads
    queries, keys, values = (part.view(*grid, heads, -1) for part in F.linear(x, attention.qkv.weight).chunk(3, dim=-1))
    if attention.q_bias is not None:  # none for the keys
        queries, values = queries + attention.q_bias.view(heads, -1), values + attention.v_bias.view(heads, -1)
    temperature = torch.tensor([math.exp(min(scale, math.log(100))) for scale in attention.logit_scale.flatten().tolist()])
    out = torch.zeros_like(x)
    for query in tokens_of(grid):
        seen, q = seen_by(query), queries[query]
        scores = torch.stack([temperature * (q * keys[key]).sum(-1) / (q.norm(dim=-1) * keys[key].norm(dim=-1))
                              + bias_of_pair(attention, query, key) for key in seen])
        weights = scores.softmax(dim=0)  # (keys, heads)
        out[query] = sum(weight[:, None] * values[key] for weight, key in zip(weights, seen, strict=True)).reshape(dim)
    return attention.proj(out)


@pytest.mark.parametrize("settings", [{}, {"qkv_bias": False}, {"pretrained_window": 5}],
                         ids=["plain", "no_qkv_bias", "pretrained_window"])
@pytest.mark.parametrize("window", [(3, 3), (2, 4), (4, 1)])
def test_attention_of_a_window_follows_the_definition(window, settings):
    attention = attention_of(window, **settings)
    with torch.no_grad():
        attention.logit_scale.copy_(torch.tensor([1.5, 6.0]).view(2, 1, 1))  # 6 is above log(100)
        x = torch.randn(3, *window, 8)
        expected = torch.stack([naive_attention(attention, one, lambda query: tokens_of(window)) for one in x])
        actual = attention(x.view(3, 1, -1, 8)).view(3, *window, 8)
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("built_for", [None, (12, 12)], ids=["own_map", "other_map"])
@each_map
def test_block_attends_as_a_loop_over_tokens_does(grid, window, shifted, built_for):
    attention, shift = attention_of(window), shift_of(grid, window, shifted)
    block = SwinV2Block(8, built_for or grid, attention, shifted, 2.0, 0.0, 0.0).eval()

    def seen_by(query):
        return [key for key in tokens_of(grid) if may_attend(query, key, grid, window, shift)]

    x = torch.randn(2, *grid, 8)
    with torch.no_grad():
        expected = torch.stack([naive_attention(attention, one, seen_by) for one in x])
        torch.testing.assert_close(block.attend(x), expected, atol=2e-5, rtol=1e-4)


def test_logit_scale_is_clamped_at_log_100_and_has_no_gradient_above():
    attention, x = attention_of((3, 4)), torch.randn(2, 1, 12, 8)
    outputs = []
    for scale in (math.log(100) - 1e-6, 5.0, 9.0):
        attention.zero_grad()
        with torch.no_grad():
            attention.logit_scale.copy_(torch.tensor([2.0, scale]).view(2, 1, 1))
        outputs.append(attention(x))
        outputs[-1].square().sum().backward()
        free, clamped = attention.logit_scale.grad.flatten().tolist()
        assert free != 0 and (clamped == 0) == (scale > math.log(100))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)
    assert torch.equal(outputs[1], outputs[2])


def test_attention_does_not_depend_on_the_length_of_queries_and_keys():
    attention, x = attention_of((3, 4), qkv_bias=False), torch.randn(2, 1, 12, 8)
    with torch.no_grad():
        expected = attention(x)
        attention.qkv.weight[:16] *= 7.0  # queries and keys; values stay
        torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-4)


def test_attention_of_queries_and_keys_of_length_zero_is_finite():
    """They have no direction: their similarity is 0, not 0 / 0."""
    attention, x = attention_of((3, 4), qkv_bias=False), torch.zeros(2, 1, 12, 8, requires_grad=True)
    out = attention(x)
    out.sum().backward()
    assert out.isfinite().all() and x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())


# ---- blocks and mergings ------------------------------------------------------------------------------------------

def test_blocks_are_the_identity_at_initialisation():
    model = tiny_model("swinv2").encoder
    blocks = blocks_of(model)
    assert len(blocks) == 4
    for block in blocks:
        x = torch.randn(2, *block.grid, block.norm1.normalized_shape[0])
        assert torch.equal(block(x), x)


def test_block_normalises_each_branch_before_it_is_added():
    block = perturb(SwinV2Block(8, (4, 6), attention_of((2, 3)), True, 2.0, 0.0, 0.0).eval(), scale=0.5)
    x = torch.randn(2, 4, 6, 8)
    with torch.no_grad():
        middle = x + block.norm1(block.attend(x))
        torch.testing.assert_close(block(x), middle + block.norm2(block.mlp(middle)))


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (1, 3), (1, 1)])
def test_merging_normalises_after_the_reduction(height, width):
    merging = perturb(PatchMergingV2(3), scale=0.5)
    x = torch.randn(2, height, width, 3)
    even = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    joined = torch.cat([even[:, 0::2, 0::2], even[:, 1::2, 0::2], even[:, 0::2, 1::2], even[:, 1::2, 1::2]], dim=-1)
    torch.testing.assert_close(merging(x), merging.norm(merging.reduction(joined)))
    assert merging(x).shape == (2, -(-height // 2), -(-width // 2), 6)


def test_extra_norm_stands_after_every_so_many_blocks_of_a_stage():
    model = tiny_model("swinv2", {"MODEL.SWINV2.DEPTHS": [2, 7], "MODEL.SWINV2.EXTRA_NORM_EVERY": 3}).encoder
    names = {name for name, _ in model.named_parameters() if ".norm3." in name}
    assert names == {f"layers.1.blocks.{index}.norm3.{kind}" for index in (2, 5) for kind in ("weight", "bias")}
    assert {model.layer_id(name) for name in names} == {5, 8}


def test_no_extra_norm_by_default():
    model = tiny_model("swinv2", {"MODEL.SWINV2.DEPTHS": [2, 7]}).encoder
    assert not any(".norm3." in name for name in model.state_dict())


def test_extra_norm_is_on_the_main_branch():
    """Right after initialisation both branches are zero, so the block is this norm alone."""
    model = tiny_model("swinv2", {"MODEL.SWINV2.EXTRA_NORM_EVERY": 2}).encoder
    plain, block = model.layers[1].blocks
    x = torch.randn(2, *block.grid, 16) * 3 + 1
    assert torch.equal(plain(x), x)
    torch.testing.assert_close(block(x), F.layer_norm(x, (16,)))
    norm, out = block.norm3, perturb(block)(x)
    block.norm3 = torch.nn.Identity()
    torch.testing.assert_close(norm(block(x)), out)


# ---- whole encoder ------------------------------------------------------------------------------------------------

def four_stages(img_size, **kwargs):
    torch.manual_seed(0)
    return perturb(SwinTransformerV2(img_size, 4, num_classes=5, embed_dim=8, depths=(1, 1, 1, 2), num_heads=(1, 2, 2, 4),
                                     window_size=4, **kwargs)).eval()


@pytest.mark.parametrize("pretrained_window_sizes", [(0, 0, 0, 0), (4, 4, 2, 1)])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 64), (64, 32)])
def test_last_stage_of_one_token_along_an_axis_is_finite(height, width, pretrained_window_sizes):
    """The official code divides the offset 0 by 0 there."""
    model = four_stages((height, width), pretrained_window_sizes=pretrained_window_sizes)
    assert model.layers[3].blocks[0].window == (height // 32, width // 32)
    logits = model(random_images(2, 3, height, width))
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.isfinite().all()] == []


def test_token_that_sees_only_itself_gets_its_value():
    """Softmax over one key is 1, whatever scores and bias are."""
    attention, x = attention_of((1, 1)), torch.randn(3, 1, 1, 8)
    value = F.linear(x, attention.qkv.weight[16:], attention.v_bias)
    torch.testing.assert_close(attention(x), attention.proj(value))


@pytest.mark.parametrize(("height", "width"), [(112, 112), (96, 112), (40, 72), (100, 52), (4, 8)])
def test_features_of_a_size_that_windows_do_not_divide_have_the_right_shape(height, width):
    model = perturb(SwinTransformerV2((96, 96), 4, embed_dim=8, depths=(2, 2, 1), num_heads=(1, 2, 2), window_size=3)).eval()
    with torch.no_grad():
        features, = model.extract_feat(random_images(2, 3, height, width))
    assert features.shape == (2, 32, -(-height // 16), -(-width // 16)) and features.isfinite().all()


def test_windows_of_a_map_smaller_than_they_are_shrink_along_that_axis():
    model = SwinTransformerV2((32, 64), 4, embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=8,
                              pretrained_window_sizes=(0, 6))
    attentions = [block.attn for block in blocks_of(model)]
    assert [attention.window for attention in attentions] == [(8, 8), (4, 8), (4, 8)]
    assert torch.equal(attentions[1].relative_coords_table, log_spaced_offsets((4, 8), 6))


def test_encoder_is_that_of_transposed_images_when_its_weights_are():
    """Non-square windows: swap the axes of images, patches and offsets, and the features swap theirs.

    In a merging the second and third neighbour change places.
    """
    wide = perturb(SwinTransformerV2((32, 64), 4, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=6,
                                     pretrained_window_sizes=(5, 3))).eval()
    tall = SwinTransformerV2((64, 32), 4, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=6,
                             pretrained_window_sizes=(5, 3)).eval()
    own, state = tall.state_dict(), {}
    for name, value in wide.named_parameters():
        if name == "patch_embed.proj.weight":
            value = value.transpose(2, 3)
        elif name.endswith("cpb_mlp.0.weight"):
            value = value.flip(1)
        elif name.endswith("reduction.weight"):
            value = value.unflatten(1, (4, -1))[:, [0, 2, 1, 3]].flatten(1)
        state[name] = value
    tall.load_state_dict(own | state)
    assert {block.window for block in blocks_of(wide)} == {(6, 6), (4, 6)}
    assert {block.window for block in blocks_of(tall)} == {(6, 6), (6, 4)}
    images = random_images(2)
    with torch.no_grad():
        torch.testing.assert_close(tall(images.mT).mT, wide(images), atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_stays_near_full_precision():
    model = perturb(tiny_model("swinv2"))
    images, mask = random_images(), random_mask("swinv2")
    results = {}
    for mixed in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            features, loss = model.encoder(images, mask), model(images, mask)
        loss.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        results[mixed] = features.detach(), loss.detach(), gradient
    for full, near, tolerance in zip(results[False], results[True], (0.02, 0.002, 0.08), strict=True):
        assert near.dtype == torch.float32
        assert 0 < (near - full).norm() < tolerance * full.norm()


def test_residual_stream_keeps_full_precision_under_autocast():
    model, seen = tiny_model("swinv2").encoder, []
    for block in blocks_of(model):
        block.register_forward_hook(lambda block, args, out: seen.extend([args[0].dtype, out.dtype]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(random_images())
    assert seen == [torch.float32] * 8


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for use_checkpoint in (False, True):
        model = perturb(tiny_model("swinv2", {"TRAIN.USE_CHECKPOINT": use_checkpoint}))
        model(random_images(), random_mask("swinv2")).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
