"""MixMIM: two images that never see each other, masks that do not fit, batches of any size; recorded numbers: tests/parity."""
import numpy as np
import pytest
import torch

from config import load_config
from data.masks import build_mask_generator, draw_masks
from models import build_model
from models.position import sincos_table
from tests.unit.helpers import opts_of, perturb, random_images

HEIGHT, WIDTH, STRIDE, PATCH = 64, 96, 16, 4
TINY = {"MODEL.TYPE": "mixmim", "MODEL.METHOD": "mixmim", "DATA.IMG_SIZE": [HEIGHT, WIDTH], "DATA.MASK_SHARED": True,
        "DATA.MASK_PATCH_SIZE": STRIDE, "MODEL.DROP_PATH_RATE": 0.0,
        "MODEL.MIXMIM.EMBED_DIM": 8, "MODEL.MIXMIM.DEPTHS": [1, 2, 1], "MODEL.MIXMIM.NUM_HEADS": [1, 2, 2],
        "MODEL.MIXMIM.WINDOW_SIZES": [8, 4, 14], "MODEL.MIXMIM.DECODER_EMBED_DIM": 16,
        "MODEL.MIXMIM.DECODER_DEPTH": 1, "MODEL.MIXMIM.DECODER_NUM_HEADS": 2, "MODEL.NUM_CLASSES": 5}


def mixmim(overrides=None, is_pretrain=True):
    torch.manual_seed(1)
    return perturb(build_model(load_config(opts=opts_of(TINY | (overrides or {}))), is_pretrain)).eval()


def images_of(batch=4, height=HEIGHT, width=WIDTH, seed=2):
    return random_images(batch, height=height, width=width, seed=seed)


def cells_of(height=HEIGHT, width=WIDTH, seed=3):
    """(h, w) bool on the last map, about half True."""
    cells = torch.rand(height // STRIDE, width // STRIDE, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert cells.any() and not cells.all()
    return cells


def mask_of(cells, batch=4):
    scale = STRIDE // PATCH
    return cells.repeat_interleave(scale, 0).repeat_interleave(scale, 1).expand(batch, -1, -1)


# ---- two images in one --------------------------------------------------------------------------------------------

@torch.no_grad()
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (80, 48)], ids=["built_for", "padded_windows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_token_of_the_encoder_depends_on_the_other_image(size, dtype):
    """Bit for bit, in all of the map, whatever the partner shows; and it depends on its own image."""
    encoder, images, cells = mixmim().encoder, images_of(2, *size), cells_of(*size)
    other = torch.stack([images[0], images_of(2, *size, seed=9)[1] * 5])
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        before, after = encoder.forward_mixed(images, cells), encoder.forward_mixed(other, cells)
    own = ~cells.expand_as(before[0])
    assert torch.equal(before[0][own], after[0][own]) and torch.equal(before[1][~own], after[1][~own])
    assert not torch.isclose(before[0][~own], after[0][~own]).any() and not torch.isclose(before[1][own], after[1][own]).any()


def test_no_gradient_reaches_the_other_image():
    encoder, images, cells = mixmim().encoder, images_of(2).requires_grad_(), cells_of()
    features = encoder.forward_mixed(images, cells)
    features[0].masked_select(~cells).sum().backward()
    hidden = mask_of(cells, 1)[0].repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
    assert not images.grad[1].any() and not images.grad[0, :, hidden].any()
    assert images.grad[0, :, ~hidden].all()


@torch.no_grad()
def test_encoding_of_the_visible_part_does_not_depend_on_the_partner():
    """Nor does it need one: alone, an image is mixed with itself."""
    encoder, images, cells = mixmim().encoder, images_of(4), cells_of()
    mixed, alone = encoder.forward_mixed(images, cells), encoder.forward_mixed(images[:1], cells)
    torch.testing.assert_close(mixed[0].masked_select(~cells), alone[0].masked_select(~cells), atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed[3].masked_select(cells), alone[0].masked_select(cells), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (80, 48)], ids=["built_for", "padded_windows"])
def test_mixture_that_shows_one_image_alone_is_encoded_as_that_image(size):
    """What fills up windows belongs to neither of the two."""
    encoder, images = mixmim().encoder, images_of(3, *size)
    own, partner = (torch.full_like(cells_of(*size), shows_partner) for shows_partner in (False, True))
    expected = encoder(images)
    torch.testing.assert_close(encoder.forward_mixed(images, own), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.forward_mixed(images, partner), expected.flip(0), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_batches_of_any_size_reconstruct_each_image_alike(batch):
    """The middle image of an odd batch is its own partner."""
    model, images, mask = mixmim(), images_of(5), mask_of(cells_of(), 5)
    whole, part = model.reconstruct(images, mask), model.reconstruct(images[:batch], mask[:batch])
    torch.testing.assert_close(part, whole[:batch], atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_pixel_is_predicted_where_it_was_hidden():
    """`reconstruct` takes hidden pixels from the own mixture and visible ones from that of the partner."""
    model, images, mask = mixmim(), images_of(3), mask_of(cells_of(), 3)
    own, partner = model.reconstruct_both(images, mask)
    hidden = mask.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2).unsqueeze(1).expand_as(images)
    prediction = model.reconstruct(images, mask)
    assert torch.equal(prediction[hidden], own[hidden]) and torch.equal(prediction[~hidden], partner.flip(0)[~hidden])
    assert model(images, mask).item() == pytest.approx((prediction - images).square().mean().item(), rel=1e-5)


@torch.no_grad()
def test_reconstruction_for_viewing_undoes_the_normalised_target():
    model, images, mask = mixmim({"MODEL.MIXMIM.NORM_PIX_LOSS": True}), images_of(3) * 2 + 1, mask_of(cells_of(), 3)
    cells = (3, 3, HEIGHT // STRIDE, STRIDE, WIDTH // STRIDE, STRIDE)
    var, mean = torch.var_mean(images.view(cells), dim=(1, 3, 5), keepdim=True)
    raw, shown = (model.reconstruct(images, mask, denormalize=on).view(cells) for on in (False, True))
    torch.testing.assert_close(shown, raw * (var + 1e-6).sqrt() + mean, atol=1e-4, rtol=0)


@torch.no_grad()
def test_pictures_are_the_mixture_and_both_images():
    model, images, mask = mixmim({"MODEL.MIXMIM.NORM_PIX_LOSS": True}), images_of(4), mask_of(cells_of())
    hidden = mask.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2).unsqueeze(1).expand_as(images)
    pictures = model.pictures(images, mask)
    assert list(pictures) == ["original", "partner", "mixed", "reconstruction", "of the partner"]
    partner, prediction = images.flip(0), model.reconstruct(images, mask, denormalize=True)
    assert torch.equal(pictures["partner"], partner)
    assert torch.equal(pictures["mixed"][hidden], partner[hidden]) and torch.equal(pictures["mixed"][~hidden], images[~hidden])
    for name, image, guess, shown in (("reconstruction", images, prediction, ~hidden),
                                      ("of the partner", partner, prediction.flip(0), hidden)):
        assert torch.equal(pictures[name][shown], image[shown]) and torch.equal(pictures[name][~shown], guess[~shown])


# ---- settings -----------------------------------------------------------------------------------------------------

def test_settings_of_the_config_reach_encoder_and_decoder():
    model = mixmim({"MODEL.DROP_PATH_RATE": 0.3, "MODEL.DROP_RATE": 0.2, "TRAIN.USE_CHECKPOINT": True,
                    "MODEL.MIXMIM.MLP_RATIO": 3.0})
    rates = [block.drop_path.rate for layer in model.encoder.layers for block in layer.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3]) and model.encoder.use_checkpoint
    assert {module.p for module in model.encoder.modules() if isinstance(module, torch.nn.Dropout)} == {0.2}
    assert {block.mlp.fc1.out_features / block.mlp.fc1.in_features for layer in model.encoder.layers
            for block in layer.blocks} == {3.0}


def test_positions_of_the_decoder_are_those_of_the_cells():
    torch.manual_seed(1)
    decoder = build_model(load_config(opts=opts_of(TINY))).decoder
    assert decoder.grid == (HEIGHT // STRIDE, WIDTH // STRIDE) and not decoder.pos_embed.requires_grad
    assert torch.equal(decoder.pos_embed, sincos_table((HEIGHT // STRIDE, WIDTH // STRIDE), 16))


def test_checkpointing_recomputes_blocks_of_mixtures_and_changes_neither_loss_nor_gradients():
    results = []
    for use_checkpoint in (False, True):
        model = mixmim({"TRAIN.USE_CHECKPOINT": use_checkpoint}).train()
        calls = []
        model.encoder.layers[1].blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss = model(images_of(), mask_of(cells_of()))
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        results.append((len(calls), loss.detach(), gradients))
    (once, loss, gradients), (twice, loss_again, gradients_again) = results
    assert (once, twice) == (1, 2) and torch.equal(loss, loss_again)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient, atol=1e-7, rtol=1e-5, msg=name)


@torch.no_grad()
def test_pixmim_s_target_is_what_both_images_are_compared_with():
    model = mixmim({"MODEL.PIXMIM.ENABLE": True, "MODEL.PIXMIM.CUTOFF_RADIUS": 6})
    images, mask = images_of(), mask_of(cells_of())
    low = model.target.prepare(images)
    assert not torch.allclose(low, images, atol=0.1)
    assert model(images, mask).item() == pytest.approx((model.reconstruct(images, mask) - low).square().mean().item(), rel=1e-5)


def test_shares_of_hidden_cells_lie_in_the_range_with_mixmim_alone():
    """RANGE_MASK_RATIO draws a number for every batch, the same for all of its images."""
    ranged = {"DATA.MASK_RATIO": 0.25, "DATA.MASK_ROUND": "down", "MODEL.MIXMIM.RANGE_MASK_RATIO": 0.5}
    shares = {}
    for method in ("mixmim", "simmim"):
        config = load_config(opts=opts_of(TINY | ranged | {"MODEL.METHOD": method}))
        masks = torch.stack([draw_masks(config, 2, np.random.RandomState(seed)) for seed in range(40)])
        assert torch.equal(masks[:, 0], masks[:, 1])
        shares[method] = masks[:, 0].float().mean(dim=(1, 2))
    assert shares["mixmim"].min() >= 0.25 and shares["mixmim"].max() <= 0.75 and len(shares["mixmim"].unique()) > 6
    assert (shares["simmim"] == 0.25).all()


# ---- what is refused ----------------------------------------------------------------------------------------------

def test_masks_that_differ_within_a_batch_are_refused():
    model, mask = mixmim(), mask_of(cells_of()).clone()
    mask[2] = ~mask[2]
    with pytest.raises(ValueError, match="one mask for all images.*MASK_SHARED True"):
        model(images_of(), mask)


def test_mask_that_cuts_a_cell_is_refused():
    model, mask = mixmim(), mask_of(cells_of()).clone()
    mask[:, 1, 1] = ~mask[:, 1, 1]
    with pytest.raises(ValueError, match=f"MASK_PATCH_SIZE that is a multiple of {STRIDE}"):
        model(images_of(), mask)


def test_images_that_are_not_whole_cells_are_refused():
    with pytest.raises(ValueError, match="72x96 pixels are not whole cells of 16"):
        mixmim().train()(images_of(2, 72, 96), torch.zeros(2, 18, 24, dtype=torch.bool))


@pytest.mark.parametrize(("overrides", "message"), [
    ({"DATA.MASK_SHARED": False}, "MASK_SHARED True"),
    ({"DATA.MASK_PATCH_SIZE": 8}, r"DATA\.MASK_PATCH_SIZE=8.*DATA\.MASK_PATCH_SIZE 16"),
    ({"DATA.MASK_TYPE": "blockwise"}, "DATA.MASK_TYPE random"),
    ({"MODEL.MIXMIM.RANGE_MASK_RATIO": 0.5}, "RANGE_MASK_RATIO=0.5 is above 1"),
    ({"MODEL.MIXMIM.WINDOW_SIZES": [8, 4]}, "WINDOW_SIZES=.*3 stages"),
    ({"MODEL.MIXMIM.WINDOW_SIZES": [7, 4, 4]}, r"does not divide the map of stage 0.*WINDOW_SIZES \[4,4,2\]\."),
    ({"MODEL.MIXMIM.WINDOW_SIZES": [7, 7, 7], "DATA.IMG_SIZE": [80, 96]}, r"stage 0.*e\.g\. .*WINDOW_SIZES \[4,2,7\]\."),
    ({"DATA.IMG_SIZE": 72, "DATA.MASK_PATCH_SIZE": 8}, r"multiple of 16.*Use DATA\.IMG_SIZE 64\."),
    ({"DATA.IMG_SIZE": [80, 90]}, r"multiple of 16.*Use DATA\.IMG_SIZE \[80,96\]\."),
    ({"MODEL.MIXMIM.EMBED_DIM": 6}, "EMBED_DIM=6 must be a multiple of 4"),
    ({"MODEL.MIXMIM.EMBED_DIM": 0}, "EMBED_DIM=0 is out of range"),
    ({"MODEL.MIXMIM.PATCH_SIZE": 0}, "PATCH_SIZE=0 is out of range"),
    ({"MODEL.MIXMIM.IN_CHANS": 0}, "IN_CHANS=0 is out of range"),
    ({"MODEL.MIXMIM.NUM_HEADS": [1, 2, 3]}, "3 heads do not divide"),
    ({"MODEL.MIXMIM.DECODER_NUM_HEADS": 3}, "DECODER_NUM_HEADS=3 does not divide MODEL.MIXMIM.DECODER_EMBED_DIM=16"),
    ({"MODEL.MIXMIM.DECODER_NORM_EPS": -1.0}, "DECODER_NORM_EPS"),
])
def test_settings_that_can_not_work_are_refused_with_what_to_type(overrides, message):
    with pytest.raises(ValueError, match=message):
        build_mask_generator(load_config(opts=opts_of(TINY | overrides)))


def test_windows_that_the_error_names_fit_both_sides():
    """A window of a smaller map shrinks along each axis, so the last stage may keep its own."""
    model = mixmim({"MODEL.MIXMIM.WINDOW_SIZES": [4, 2, 7], "DATA.IMG_SIZE": [80, 96]})
    assert [layer.blocks[0].window for layer in model.encoder.layers] == [(4, 4), (2, 2), (5, 6)]


@pytest.mark.parametrize("encoder", ["swin", "vit"])
def test_encoder_that_can_not_keep_images_apart_is_refused(encoder):
    with pytest.raises(ValueError, match=f"MODEL.TYPE {encoder} can't keep apart. Use MODEL.TYPE mixmim"):
        mixmim({"MODEL.TYPE": encoder, "DATA.IMG_SIZE": 224, "DATA.MASK_PATCH_SIZE": 32})


# ---- beside the method --------------------------------------------------------------------------------------------

@torch.no_grad()
def test_absolute_positions_are_sines_and_do_not_learn():
    classifier = build_model(load_config(opts=opts_of(TINY)), is_pretrain=False)
    table = classifier.absolute_pos_embed
    assert not table.requires_grad and table.shape == (1, HEIGHT // PATCH * (WIDTH // PATCH), 8)
    assert (table.square().sum(dim=2) - 4).abs().max() < 1e-6  # sine and cosine of four angles


@torch.no_grad()
def test_images_of_another_size_resize_the_positions_on_the_fly():
    classifier = mixmim(is_pretrain=False)
    assert classifier(images_of(2, 48, 128)).isfinite().all()


@torch.no_grad()
def test_classifier_gives_one_pooled_feature_and_the_encoder_a_map():
    assert [tuple(f.shape) for f in mixmim(is_pretrain=False).extract_feat(images_of())] == [(4, 32)]
    assert [tuple(f.shape) for f in mixmim().extract_feat(images_of())] == [(4, 32, HEIGHT // STRIDE, WIDTH // STRIDE)]
