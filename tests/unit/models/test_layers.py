"""Layers that the encoders share."""
import pytest
import torch

from models.layers import DropPath, PatchEmbed, drop_path_rates, hide_tokens, lift_mask


def test_drop_path_drops_whole_samples_at_its_rate_and_scales_the_others():
    """6000 samples: the standard error of the share is sqrt(0.3 * 0.7 / 6000) = 0.006; four of them are allowed."""
    out = DropPath(0.3)(torch.ones(6000, 2, 3))
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    kept = out[:, 0, 0] > 0
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / 0.7))
    assert (~kept).float().mean().item() == pytest.approx(0.3, abs=0.024)


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True)])
def test_drop_path_returns_its_input(rate, training):
    x = torch.randn(3, 2, 5)
    assert DropPath(rate).train(training)(x) is x


def test_drop_path_is_repeated_by_its_seed_and_changes_with_it():
    x, layer = torch.ones(64, 3), DropPath(0.5)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(layer(x))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


@pytest.mark.parametrize(("rate", "depth", "expected"), [(0.3, 4, [0.0, 0.1, 0.2, 0.3]), (0.3, 1, [0.0]), (0.0, 2, [0, 0])])
def test_drop_path_rates_rise_linearly_from_zero(rate, depth, expected):
    assert drop_path_rates(rate, depth) == pytest.approx(expected, abs=1e-12)


def test_lift_mask_repeats_each_unit():
    mask = torch.tensor([[[1, 0, 0], [0, 0, 1]]])  # 2x3 units -> 4x9 cells of 2x3
    lifted = lift_mask(mask, (4, 9))
    assert lifted.dtype == torch.bool
    assert lifted.int().tolist() == [[[1, 1, 1, 0, 0, 0, 0, 0, 0]] * 2 + [[0, 0, 0, 0, 0, 0, 1, 1, 1]] * 2]


@pytest.mark.parametrize("size", [(5, 9), (4, 8), (3, 2)])
def test_lift_mask_names_both_sizes_when_units_do_not_align(size):
    with pytest.raises(ValueError, match=f"2x3 units does not align with {size[0]}x{size[1]}"):
        lift_mask(torch.zeros(1, 2, 3), size)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_hide_tokens_replaces_exactly_the_hidden_ones(dtype):
    tokens, token = torch.randn(2, 3, 4, 5), torch.randn(1, 1, 5)
    mask = torch.rand(2, 3, 4) < 0.5
    out = hide_tokens(tokens, mask.to(dtype), token)
    assert torch.equal(out[mask], token.reshape(1, 5).expand(int(mask.sum()), 5))
    assert torch.equal(out[~mask], tokens[~mask])


@pytest.mark.parametrize("shape", [(2, 4, 3), (1, 3, 4), (2, 3, 2), (2, 12)])
def test_hide_tokens_names_both_shapes_when_the_mask_is_off_the_grid(shape):
    with pytest.raises(ValueError) as caught:
        hide_tokens(torch.zeros(2, 3, 4, 5), torch.zeros(shape), torch.zeros(1, 1, 5))
    assert str(shape) in str(caught.value) and "(2, 3, 4)" in str(caught.value)


def test_hide_tokens_keeps_the_format_of_the_tokens():
    out = hide_tokens(torch.zeros(1, 2, 3, 5, dtype=torch.bfloat16), torch.ones(1, 2, 3), torch.zeros(1, 1, 5))
    assert out.dtype == torch.bfloat16


def test_patch_embed_puts_each_patch_at_its_place():
    """A patch of ones among zeros shows in one token only."""
    layer = PatchEmbed(patch_size=2, in_chans=1, dim=3)
    images = torch.zeros(1, 1, 4, 6)
    images[:, :, 2:4, 4:6] = 1.0
    with torch.no_grad():
        changed = (layer(images) - layer(torch.zeros_like(images))).abs().sum(-1)[0]
    assert changed.shape == (2, 3) and changed.nonzero().tolist() == [[1, 2]]


def test_patch_embed_names_the_key_when_channels_differ():
    with pytest.raises(ValueError, match="1 channels, the encoder was built for 3.*IN_CHANS"):
        PatchEmbed(2, 3, 5)(torch.zeros(1, 1, 4, 6))


def test_patch_embed_names_sizes_when_patches_do_not_fit():
    with pytest.raises(ValueError, match="5x6 pixels.*patches of 2"):
        PatchEmbed(2, 3, 5)(torch.zeros(1, 3, 5, 6))
