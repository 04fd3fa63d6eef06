"""Heads, targets, losses and areas of SimMIM's ablations, against what they are by hand."""
import math

import numpy as np
import pytest
import torch
from torch import nn

from config import check_pretraining, load_config
from models import build_model
from models.methods.class_targets import BinTarget, ClusterTarget, Tokenizer, read_palette
from models.methods.feature_targets import HogTarget
from models.methods.simmim import class_error, hidden_cells, masked_mean
from models.methods.targets import ResizedTarget
from planning.costs import count_flops
from tests.contracts.tiny import make_config, palette, teacher
from utils.checkpoint import save_checkpoint

from ..helpers import opts_of

RECIPE = "configs/swin_base/simmim_pretrain__swin_base__img192_window6__100ep.yaml"
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def normalised(pixels):
    """(B, 3, H, W) of pixels in [0, 1]."""
    return (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


@pytest.mark.parametrize(("head", "millions"), [("linear", 89.9), ("mlp", 90.9), ("inverse_swin_t", 115.2),
                                                ("inverse_swin_b", 174.8)])
def test_models_of_the_heads_are_as_large_as_the_paper_says(head, millions):
    with torch.device("meta"):
        model = build_model(load_config(RECIPE, ["MODEL.SIMMIM.HEAD", head]))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == millions


def test_bins_are_equal_shares_between_black_and_white():
    pixels = torch.tensor([0.0, 0.124, 0.126, 0.5, 0.999, 1.0, -0.2, 1.3]).view(1, 1, 2, 4).expand(1, 3, 2, 4)
    target = BinTarget(8, MEAN, STD)
    assert target(normalised(pixels))[0, 1].flatten().tolist() == [0, 0, 1, 4, 7, 7, 0, 7]
    error = target.view(target(normalised(pixels)), pixels) - normalised(pixels.clamp(0, 1))
    assert error[0].abs().amax(dim=(1, 2)).le(torch.tensor([1 / 16 / deviation for deviation in STD]) + 1e-5).all()


def test_clusters_are_the_nearest_colours_of_pixels():
    colours = np.random.RandomState(1).rand(9, 3).astype(np.float32)
    pixels = torch.rand(2, 3, 4, 6)
    expected = [[[int(((colours - pixels[b, :, y, x].numpy()) ** 2).sum(axis=1).argmin()) for x in range(6)] for y in range(4)]
                for b in range(2)]
    target = ClusterTarget(colours, MEAN, STD)
    assert target(normalised(pixels))[:, 0].tolist() == expected
    torch.testing.assert_close(target.view(target(normalised(pixels)), pixels),
                               normalised(torch.from_numpy(colours)[torch.tensor(expected)].movedim(-1, 1)))


def test_histograms_equal_a_loop_over_pixels():
    images, target = torch.randn(1, 2, 8, 16), HogTarget()
    expected = np.zeros((2, 9, 1, 2))
    padded = np.pad(images[0].numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    for channel in range(2):
        for y in range(8):
            for x in range(16):
                across = padded[channel, y + 1, x + 2] - padded[channel, y + 1, x]
                down = padded[channel, y + 2, x + 1] - padded[channel, y, x + 1]
                turn = math.atan2(down, across) % math.pi / math.pi
                expected[channel, int(turn * 9) % 9, 0, x // 8] += math.hypot(across, down)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(target(images)[0].view(2, 9, 1, 2).numpy(), expected, atol=1e-4)


def test_histogram_of_an_edge_has_one_direction_and_that_of_a_plain_cell_none():
    images = torch.zeros(1, 1, 8, 16)
    images[..., 4:8] = 1.0
    found = HogTarget()(images)[0, :, 0]
    assert found[0, 0] == 1 and found[1:, 0].abs().max() == 0 and found.isfinite().all()


def test_features_are_normalised_and_those_of_the_teacher():
    model = build_model(make_config("swin", "plain", "simmim", "features"))
    images = torch.randn(2, 3, 32, 64)
    target = model.target(images)
    config = load_config(teacher(3))
    other = build_model(config)
    other.load_state_dict(torch.load(teacher(3), weights_only=True)["model"])
    with torch.no_grad():
        expected = nn.functional.layer_norm(other.eval().encoder.forward_map(images).movedim(1, -1), (16,)).movedim(-1, 1)
    torch.testing.assert_close(target, expected)
    assert not any("teacher" in name for name in model.state_dict())


def test_small_image_is_the_mean_of_its_squares():
    images = torch.randn(2, 3, 8, 12)
    target = ResizedTarget(BinTarget(4, MEAN, STD), 4)
    small = images.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(4, 5))
    assert torch.equal(target(images), target.target(small)) and target.cell == 4
    assert target.view(target(images), images).shape == images.shape


def test_visible_positions_count_by_their_weight():
    error, mask = torch.rand(2, 3, 4, 4), torch.zeros(2, 2, 2)
    mask[0, 0, 1] = mask[1, 1] = 1
    hidden = mask.bool().repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1).expand_as(error)
    for weight in (0.0, 0.3, 1.0):
        expected = (error[hidden].sum() + weight * error[~hidden].sum()) / (hidden.sum() + weight * (~hidden).sum())
        assert masked_mean(error, mask, weight).item() == pytest.approx(expected.item(), rel=1e-5)


def test_cells_coarser_than_the_mask_are_hidden_as_a_whole_or_not():
    mask = torch.zeros(1, 4, 8)
    mask[0, :2, :4], mask[0, 2, 6] = 1, 1
    assert hidden_cells(mask, (2, 4)).tolist() == [[[True, True, False, False], [False] * 4]]
    assert torch.equal(hidden_cells(mask, (4, 8)), mask.bool()) and hidden_cells(mask, (8, 16)).sum() == 4 * 9


def test_cross_entropy_is_of_each_value():
    prediction, target = torch.randn(2, 6, 2, 2), torch.randint(3, (2, 2, 2, 2))
    expected = -prediction.view(2, 2, 3, 2, 2).log_softmax(dim=2).gather(2, target.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(class_error(prediction, target, 3), expected)


SIMMIM = "MODEL.SIMMIM."


@pytest.mark.parametrize(("settings", "message"), [
    ({"TARGET_SIZE": 50}, "TARGET_SIZE=50 does not divide DATA.IMG_SIZE=192.*Use one of 192, 96, 64"),
    ({"TARGET_SIZE": 48, "TARGET": "hog"}, "TARGET_SIZE=48 is of the targets pixels"),
    ({"TARGET": "bins", "LOSS": "l2"}, "LOSS=l2 measures values, and TARGET bins has classes"),
    ({"LOSS": "cross_entropy"}, "LOSS=cross_entropy is for the targets bins"),
    ({"LOSS_AREA": "some"}, "LOSS_AREA.*must be masked, all, or the weight"), ({"LOSS_AREA": "1.5"}, "LOSS_AREA.*must be"),
    ({"TARGET_SIZE": 3}, "cells of 64 pixels, the encoder of 32"),
    ({"HEAD": "inverse_swin_t", "TARGET_SIZE": 24}, "HEAD=inverse_swin_t goes .* the target 8. Use MODEL.SIMMIM.HEAD linear"),
    ({"TARGET": "clusters"}, "TARGET clusters needs MODEL.SIMMIM.PALETTE"),
    ({"TARGET": "tokens"}, "TARGET tokens needs MODEL.SIMMIM.TOKENIZER"),
    ({"TARGET": "features"}, "TARGET features needs MODEL.SIMMIM.TEACHER"),
    ({"TARGET": "tokens", "TOKENIZER": "nowhere.at:All"}, "TOKENIZER=nowhere.at:All can't be imported"),
    ({"TARGET": "tokens", "TOKENIZER": "os:abort"}, "TOKENIZER=os:abort is no class of torch.nn.Module"),
    ({"TARGET": "tokens", "TOKENIZER": "torch.nn:Identity"}, "has no whole number num_tokens")])
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_model(load_config(RECIPE, [item for key, value in settings.items() for item in (SIMMIM + key, value)]))


@pytest.mark.parametrize(("settings", "unit", "cell"), [
    ({SIMMIM + "TARGET": "hog"}, 4, 8), ({SIMMIM + "TARGET_SIZE": 6}, 16, 32), ({SIMMIM + "TARGET_SIZE": 12}, 8, 16)])
def test_masks_that_hide_cells_of_the_target_in_part_are_refused(settings, unit, cell):
    with pytest.raises(ValueError, match=f"units of {unit} pixels.*cells of {cell}.*Use DATA.MASK_PATCH_SIZE {cell}"):
        check_pretraining(load_config(RECIPE, opts_of({**settings, "DATA.MASK_PATCH_SIZE": unit})))
    check_pretraining(load_config(RECIPE, opts_of({**settings, "DATA.MASK_PATCH_SIZE": cell})))


@pytest.mark.parametrize(("values", "message"), [
    (np.random.rand(5, 4), "float64 of shape .5, 4."), (np.ones((5, 3), dtype=int), "int64"),
    (np.ones((1, 3)), "of shape .1, 3."), (np.ones((5, 3)) * 200, "colours from 200 to 200")])
def test_palettes_of_other_images_are_refused(values, message, tmp_path):
    np.save(tmp_path / "palette.npy", values)
    with pytest.raises(ValueError, match=message):
        read_palette(tmp_path / "palette.npy", 3)
    assert read_palette(palette(3), 3).shape == (7, 3)


def test_tokenizer_of_a_file_is_that_which_was_saved(tmp_path):
    tokenizer = Tokenizer(num_tokens=7, cell=8, in_chans=3, dim=8)
    save_checkpoint(tmp_path / "tokenizer.pth", {"model": tokenizer.state_dict(), "tokenizer": tokenizer.sizes()})
    config = ["MODEL.SIMMIM.TARGET", "tokens", "MODEL.SIMMIM.TOKENIZER", str(tmp_path / "tokenizer.pth")]
    with torch.device("meta"):
        model = build_model(load_config(RECIPE, config))  # but not its tokenizer
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.target(images)[:, 0], tokenizer(images)) and model.target.classes == 7
    with pytest.raises(ValueError, match="takes images of 3 channels, the encoder of 1"):
        build_model(load_config(RECIPE, [*config, "MODEL.SWIN.IN_CHANS", 1]))


@pytest.mark.parametrize("kind", ["tokens", "features", "bins", "clusters"])
def test_costs_are_counted_without_weights_and_with_what_makes_the_target(kind):
    """Of the heads, 1x1 convolutions, the difference is known; a teacher computes beside it, in every step."""
    configs = [make_config("swin", "plain", "simmim", of) for of in (kind, "pixels")]
    forward, plain = (count_flops(config, True)[0] for config in configs)
    with torch.device("meta"):
        heads = [2 * 32 * build_model(config).decoder[0].weight.numel() for config in configs]  # 32 cells
    beside = forward - plain - (heads[0] - heads[1])
    assert beside > 1e5 if kind == "features" else beside >= 0
