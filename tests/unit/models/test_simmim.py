"""The SimMIM loss and reconstruction."""
import pytest
import torch

from models.methods.simmim import SimMIM, masked_l1

from ..helpers import TINY, random_images, random_mask, tiny_model


def naive_l1(prediction, target, mask):
    """Pixel by pixel, in double precision."""
    batch, channels, height, width = target.shape
    unit_h, unit_w = height // mask.shape[1], width // mask.shape[2]
    total, count = 0.0, 0
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                if mask[b, y // unit_h, x // unit_w]:
                    count += 1
                    total += sum(abs(prediction[b, c, y, x].item() - target[b, c, y, x].item()) for c in range(channels))
    return total / (count + 1e-5) / channels


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_masked_l1_equals_a_loop_over_pixels(channels):
    prediction, target = torch.randn(2, 2, channels, 6, 8)
    mask = torch.rand(2, 3, 2) < 0.6
    assert masked_l1(prediction, target, mask).item() == pytest.approx(naive_l1(prediction, target, mask), rel=1e-5)


def test_masked_l1_weights_pixels_not_images():
    """One image with one hidden unit of error 1, one with five of error 3: 16 units' worth of error over 6."""
    mask = torch.tensor([[[1, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 0]]])
    prediction = torch.stack([torch.ones(3, 4, 6), torch.full((3, 4, 6), 3.0)])
    assert masked_l1(prediction, torch.zeros_like(prediction), mask).item() == pytest.approx(16 / 6, rel=1e-6)


def test_masked_l1_is_zero_when_nothing_is_hidden():
    loss = masked_l1(torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6), torch.zeros(2, 2, 3))
    assert loss.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masked_l1_of_a_half_precision_prediction_is_computed_in_fp32(dtype):
    prediction, target = torch.randn(2, 3, 64, 96).to(dtype).requires_grad_(), torch.randn(2, 3, 64, 96)
    mask = torch.ones(2, 4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = masked_l1(prediction, target, mask)
    assert loss.dtype == torch.float32
    exact = (prediction.detach().double() - target.double()).abs().mean().item()
    assert loss.item() == pytest.approx(exact, rel=1e-5)
    loss.backward()
    assert prediction.grad.dtype == dtype and prediction.grad.abs().sum() > 0


def test_masked_l1_names_both_sizes_when_the_mask_does_not_align():
    with pytest.raises(ValueError, match="3x2 units does not align with 7x8"):
        masked_l1(torch.zeros(1, 3, 7, 8), torch.zeros(1, 3, 7, 8), torch.ones(1, 3, 2))


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("channels", [1, 4])
def test_decoder_follows_the_channels_of_the_encoder(encoder, channels):
    """The official decoder always has three and broadcasts them against one (quirk 10)."""
    model = tiny_model(encoder, {f"MODEL.{encoder.upper()}.IN_CHANS": channels})
    images, mask = random_images(channels=channels), random_mask(encoder)
    prediction = model.reconstruct(images, mask)
    assert prediction.shape == images.shape
    assert model(images, mask).item() == pytest.approx(naive_l1(prediction, images, mask), rel=1e-5)


@pytest.mark.parametrize(("patch", "depths", "stride"), [(2, [1, 1], 4), (4, [1], 4), (2, [1, 1, 1], 8)])
def test_decoder_follows_the_stride_of_the_encoder(patch, depths, stride):
    """The official decoder is hard-wired to stride 32 (quirk 10)."""
    model = tiny_model("swin", {"MODEL.SWIN.PATCH_SIZE": patch, "MODEL.SWIN.DEPTHS": depths,
                                "MODEL.SWIN.NUM_HEADS": [1] * len(depths)})
    assert model.encoder.stride == stride
    assert model.reconstruct(random_images(2), torch.ones(2, 32 // patch, 64 // patch)).shape == (2, 3, 32, 64)


def test_reconstruction_puts_the_pixels_of_a_cell_into_that_cell():
    """Cell (1, 5) of the feature map of a stride of 8 decodes to pixels (8..15, 40..47)."""
    class OneCell(torch.nn.Module):
        num_features, stride, in_chans = 5, 8, 3

        def forward(self, images, mask=None):
            features = torch.zeros(1, 5, 4, 8)
            features[0, :, 1, 5] = 1.0
            return features

    model = SimMIM(OneCell())
    with torch.no_grad():
        model.decoder[0].bias.zero_()
        shown = model.reconstruct(torch.zeros(1, 3, 32, 64), None)[0].abs().amax(dim=0).nonzero()
    assert shown.shape == (64, 2)
    assert (shown.amin(0).tolist(), shown.amax(0).tolist()) == ([8, 40], [15, 47])


@pytest.mark.parametrize("encoder", TINY)
def test_loss_compares_the_reconstruction_with_the_normalised_target(encoder):
    key = "MODEL.SIMMIM.NORM_TARGET"
    model = tiny_model(encoder, {f"{key}.ENABLE": True, f"{key}.PATCH_SIZE": 5})
    images, mask = random_images(), random_mask(encoder)
    with torch.no_grad():
        target, prediction = model.target(images), model.reconstruct(images, mask)
        assert not torch.allclose(target, images, atol=0.1)
        assert model(images, mask).item() == pytest.approx(masked_l1(prediction, target, mask).item(), rel=1e-6)


def test_denormalised_reconstruction_is_on_the_scale_of_the_images():
    """A perfect prediction of the normalised target comes back as the image."""
    key = "MODEL.SIMMIM.NORM_TARGET"
    model, images = tiny_model("vit", {f"{key}.ENABLE": True, f"{key}.PATCH_SIZE": 5}), random_images() * 2 + 3
    model.decoder = torch.nn.Module()
    model.decoder.forward = lambda features: model.target(images)
    view = model.reconstruct(images, random_mask("vit"), denormalize=True)
    torch.testing.assert_close(view, images, atol=1e-4, rtol=1e-4)


def test_no_weight_decay_names_are_those_of_the_method():
    names = dict(tiny_model("swin", {"MODEL.SWIN.APE": True}).named_parameters())
    model = tiny_model("swin", {"MODEL.SWIN.APE": True})
    assert model.no_weight_decay() == {"encoder.mask_token", "encoder.absolute_pos_embed"} <= names.keys()
