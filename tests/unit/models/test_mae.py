"""MAE: what a mask may be, the loss, images of other shapes, and the errors. Recorded numbers are in tests/parity."""
import pytest
import torch

from models import build_model
from models.methods.mae import masked_l2
from tests.unit.helpers import HEIGHT, WIDTH, perturb, random_images, random_mask, tiny_config, tiny_model

MAE = {"MODEL.METHOD": "mae", "MODEL.VIT.K_BIAS": True, "MODEL.VIT.USE_SINCOS_APE": True, "MODEL.VIT.USE_SHARED_RPB": False,
       "MODEL.VIT.INIT_VALUES": None, "MODEL.MAE.DECODER_EMBED_DIM": 8, "MODEL.MAE.DECODER_DEPTH": 1,
       "MODEL.MAE.DECODER_NUM_HEADS": 2}
NORMALIZED = MAE | {"MODEL.MAE.NORM_PIX_LOSS": True}
PATCH = 8


def mae(overrides=None):
    return perturb(tiny_model("vit", MAE | (overrides or {})))


def batch(model, height=HEIGHT, width=WIDTH):
    """Images, and a mask that hides half of each, of any size."""
    return random_images(channels=model.encoder.in_chans, height=height, width=width), random_mask("vit", height=height,
                                                                                                   width=width)


# ---- masks --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("training", [True, False])
def test_images_that_hide_different_numbers_of_patches_are_refused(training):
    model = mae().train(training)
    images, mask = batch(model)
    mask[1] = False
    mask[1, 0, 0] = True
    with pytest.raises(ValueError, match="same number of patches, but between 16 and 31 are visible: METHOD mae"):
        model(images, mask)


@pytest.mark.parametrize("shape", [(3, WIDTH // PATCH, HEIGHT // PATCH), (3, HEIGHT, WIDTH),
                                   (2, HEIGHT // PATCH, WIDTH // PATCH), (3, HEIGHT * WIDTH // PATCH ** 2)],
                         ids=["transposed", "pixels", "batch", "flat"])
def test_mask_of_another_shape_is_refused_with_both_shapes(shape):
    model = mae()
    with pytest.raises(ValueError) as error:
        model(random_images(), torch.zeros(shape, dtype=torch.bool))
    assert str(shape) in str(error.value) and str((3, HEIGHT // PATCH, WIDTH // PATCH)) in str(error.value)


def test_mask_of_integers_is_that_of_bools():
    model = mae()
    images, mask = batch(model)
    assert model(images, mask.long()).item() == model(images, mask).item()


def test_two_batches_may_hide_different_numbers():
    """In training, too; on CUDA they may not, see MAE.num_visible."""
    model = mae().train()
    images, mask = batch(model)
    few = torch.zeros_like(mask)
    few[:, 1, 2] = True
    assert model(images, mask).isfinite() and model(images, few).isfinite()


def test_mask_that_hides_nothing_gives_a_loss_of_zero():
    model = mae()
    images, mask = batch(model)
    loss = model(images, torch.zeros_like(mask))
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


def test_mask_that_hides_everything_leaves_the_class_token():
    """The prediction is then the same for every image."""
    model = mae()
    images, mask = batch(model)
    with torch.no_grad():
        prediction = model.reconstruct(images, torch.ones_like(mask))
    torch.testing.assert_close(prediction, prediction[:1].expand_as(prediction))


def test_hidden_pixels_never_reach_the_prediction():
    model = mae()
    images, mask = batch(model)
    hidden = mask.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2).unsqueeze(1)
    other = torch.where(hidden, images + 100.0, images)
    with torch.no_grad():
        assert torch.equal(model.reconstruct(images, mask), model.reconstruct(other, mask))


def test_each_image_of_a_batch_has_its_own_mask():
    """As if each were alone."""
    model = mae().eval()
    images, mask = batch(model)
    assert not torch.equal(mask[0], mask[1])
    with torch.no_grad():
        together = model.reconstruct(images, mask)
        alone = torch.cat([model.reconstruct(images[i:i + 1], mask[i:i + 1]) for i in range(len(images))])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


# ---- loss ---------------------------------------------------------------------------------------------------------

def test_loss_is_the_mean_square_over_hidden_pixels():
    prediction, target = random_images(seed=5), random_images(seed=6)
    mask = random_mask("vit")
    errors = [(prediction[b, :, y, x] - target[b, :, y, x]).double().square() for b in range(3) for y in range(HEIGHT)
              for x in range(WIDTH) if mask[b, y // PATCH, x // PATCH]]
    assert masked_l2(prediction, target, mask).item() == pytest.approx(torch.cat(errors).mean().item(), rel=1e-5)


def test_loss_is_in_single_precision_under_autocast():
    prediction, target, mask = random_images(seed=5), random_images(seed=6), random_mask("vit")
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_l2(prediction.bfloat16(), target, mask)
    assert loss.dtype == torch.float32
    assert loss.item() == masked_l2(prediction.bfloat16().float(), target, mask).item()


@pytest.mark.parametrize("overrides", [MAE, NORMALIZED], ids=["pixels", "normalised"])
def test_loss_of_a_perfect_prediction_is_zero(overrides, monkeypatch):
    model = mae(overrides)
    images, mask = batch(model)
    monkeypatch.setattr(model, "reconstruct", lambda images, mask: model.target(images))
    assert model(images, mask).item() == 0.0


class Prophet(torch.nn.Module):
    """A decoder that knows the answer."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, tokens, ids, grid):
        return self.answer


@pytest.mark.parametrize("overrides", [MAE, NORMALIZED], ids=["pixels", "normalised"])
def test_denormalised_prediction_is_the_image_where_it_equals_the_target(overrides):
    model = mae(overrides)
    images, mask = batch(model)
    images = 3 * images + 2
    model.decoder = Prophet(model.target(images))
    torch.testing.assert_close(model.reconstruct(images, mask, denormalize=True), images, atol=1e-4, rtol=1e-4)


def test_denormalised_prediction_with_pixmim_is_the_filtered_image():
    model = mae(NORMALIZED | {"MODEL.PIXMIM.ENABLE": True, "MODEL.PIXMIM.CUTOFF_RADIUS": 6})
    images, mask = batch(model)
    model.decoder = Prophet(model.target(images))
    torch.testing.assert_close(model.reconstruct(images, mask, denormalize=True), model.target.prepare(images),
                               atol=1e-4, rtol=1e-4)


# ---- images of other shapes ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("low_pass", [False, True], ids=["pixels", "low_pass"])
@pytest.mark.parametrize("method", ["mae", "simmim"])
def test_methods_train_on_other_channels_and_non_square_images(channels, low_pass, method):
    overrides = {"MODEL.METHOD": method, "MODEL.VIT.IN_CHANS": channels, "MODEL.PIXMIM.ENABLE": low_pass,
                 "MODEL.PIXMIM.CUTOFF_RADIUS": 6}
    model = mae(NORMALIZED | overrides)
    images, mask = batch(model)
    loss = model(images, mask)
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert model.reconstruct(images, mask).shape == (3, channels, HEIGHT, WIDTH)
    without_gradient = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without_gradient == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("height, width", [(HEIGHT + 2 * PATCH, WIDTH), (WIDTH, HEIGHT)], ids=["larger", "portrait"])
def test_images_of_another_size_than_configured_are_reconstructed(height, width):
    model = mae()
    images, mask = batch(model, height, width)
    loss = model(images, mask)
    loss.backward()
    assert loss.isfinite() and model.reconstruct(images, mask).shape == images.shape


def test_features_without_a_mask_are_the_map_of_the_whole_image():
    model = mae().eval()
    images, _ = batch(model)
    with torch.no_grad():
        features, = model(images)
        assert torch.equal(features, model.encoder(images))
    assert features.shape == (3, model.encoder.num_features, HEIGHT // PATCH, WIDTH // PATCH)


# ---- errors -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("overrides", [{"MODEL.VIT.USE_SHARED_RPB": True}, {"MODEL.VIT.USE_RPB": True}])
def test_encoder_that_cannot_drop_tokens_is_refused_in_one_line(overrides):
    """Tables of relative positions are made for the whole grid."""
    with pytest.raises(ValueError) as error:
        build_model(tiny_config("vit", MAE | overrides))
    text = str(error.value)
    assert "\n" not in text
    assert "MODEL.TYPE vit" in text and "USE_SHARED_RPB False" in text and "MODEL.METHOD simmim" in text


def test_decoder_width_that_its_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"MODEL.MAE.DECODER_NUM_HEADS=3 does not divide MODEL.MAE.DECODER_EMBED_DIM=16. Use "
                                         r"e.g. 2 heads"):
        tiny_model("vit", MAE | {"MODEL.MAE.DECODER_EMBED_DIM": 16, "MODEL.MAE.DECODER_NUM_HEADS": 3})


def test_decoder_width_without_quarters_is_refused():
    with pytest.raises(ValueError, match=r"MODEL.MAE.DECODER_EMBED_DIM=10 must be a multiple of 4.*Use 12"):
        tiny_model("vit", MAE | {"MODEL.MAE.DECODER_EMBED_DIM": 10, "MODEL.MAE.DECODER_NUM_HEADS": 2})
