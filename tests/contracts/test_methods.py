"""What every pre-training method keeps, around every encoder."""
import re
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from .tiny import (
    AXIS_CASES,
    BATCH,
    CASES,
    HEIGHT,
    WIDTH,
    build,
    hidden_pixels,
    make_config,
    make_images,
    make_mask,
    predicted_pixels,
)

CASES = [*CASES, *AXIS_CASES]
IDS = ["-".join(case) for case in CASES]


@pytest.fixture(scope="module", params=CASES, ids=IDS)
def case(request):
    config = make_config(*request.param)
    return SimpleNamespace(config=config, model=build(config, is_pretrain=True), images=make_images(config),
                           mask=make_mask(config))


@pytest.fixture(scope="module", params=CASES, ids=IDS)
def names(request):
    return request.param


def test_loss_is_an_fp32_scalar_with_a_gradient(case):
    loss = case.model(case.images, case.mask)
    assert loss.shape == () and loss.dtype == torch.float32 and loss.requires_grad and loss.isfinite() and loss > 0


def test_loss_is_fp32_in_mixed_precision(case):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        loss = case.model(case.images, case.mask)
    with torch.no_grad():
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(case.model(case.images, case.mask).item(), rel=0.05)


def test_every_trainable_parameter_gets_a_gradient(case):
    """One without stops distributed training; one of zeros is not connected."""
    case.model.zero_grad(set_to_none=True)
    case.model(case.images, case.mask).backward()
    trained = {name: p.grad for name, p in case.model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None] == []
    assert [name for name, gradient in trained.items() if not gradient.any()] == []
    case.model.zero_grad(set_to_none=True)


@torch.no_grad()
def test_reconstruction_has_the_shape_of_the_target_and_its_picture_that_of_the_images(case):
    prediction, target = case.model.reconstruct(case.images, case.mask), case.model.target(case.images)
    assert case.model.target.likeliest(prediction).shape == target.shape
    assert prediction.shape == (BATCH, case.model.target.width(3), *target.shape[2:])
    assert target.shape[2] * case.model.target.cell == HEIGHT and not target.requires_grad
    assert case.model.reconstruct(case.images, case.mask, denormalize=True).shape == case.images.shape


@torch.no_grad()
def test_pictures_are_of_the_size_of_the_images_and_start_with_them(case):
    pictures = case.model.pictures(case.images, case.mask)
    assert all(picture.shape == case.images.shape for picture in pictures.values())
    assert next(iter(pictures)) == "original" and torch.equal(pictures["original"], case.images)
    assert any(picture.isfinite().all() and not torch.equal(picture, case.images) for picture in pictures.values())


@torch.no_grad()
def test_hidden_pixels_do_not_leak_into_the_prediction(case):
    """Other content under the mask leaves the raw prediction as it is, bit for bit, and changes the loss."""
    hidden = hidden_pixels(case.config, case.mask)
    other = torch.where(hidden, make_images(case.config, seed=8) * 3, case.images)
    predicted = predicted_pixels(case.config, case.mask)
    assert torch.equal(case.model.reconstruct(other, case.mask) * predicted,
                       case.model.reconstruct(case.images, case.mask) * predicted)
    assert abs(case.model(other, case.mask) - case.model(case.images, case.mask)) > 1e-3


@torch.no_grad()
def test_visible_pixels_matter_to_the_prediction(case):
    hidden = hidden_pixels(case.config, case.mask)
    other = torch.where(hidden, case.images, make_images(case.config, seed=8))
    difference = (case.model.reconstruct(other, case.mask) - case.model.reconstruct(case.images, case.mask)).abs()
    assert (difference * predicted_pixels(case.config, case.mask)).max() > 1e-3


@torch.no_grad()
def test_where_the_mask_lies_matters_to_the_prediction(case):
    flipped = case.mask.flip(dims=[2])
    assert not torch.equal(case.model.reconstruct(case.images, flipped), case.model.reconstruct(case.images, case.mask))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_mask_of_zeros_and_ones_equals_one_of_booleans(case, dtype):
    assert torch.equal(case.model(case.images, case.mask.to(dtype)), case.model(case.images, case.mask))
    assert torch.equal(case.model.reconstruct(case.images, case.mask.to(dtype)), case.model.reconstruct(case.images, case.mask))


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(case):
    together = case.model.reconstruct(case.images, case.mask)
    alone = torch.cat([case.model.reconstruct(case.images[i:i + 1], case.mask[i:i + 1]) for i in range(BATCH)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("change", ["transposed", "coarser", "finer", "other_batch", "flat"])
def test_mask_off_the_grid_is_refused_with_both_shapes(case, change):
    mask = case.mask
    wrong = {"transposed": mask.transpose(1, 2), "coarser": mask[:, ::2, ::2], "other_batch": mask[:-1],
             "finer": mask.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2), "flat": mask.flatten(1)}[change]
    with pytest.raises(ValueError, match=rf"{re.escape(str(tuple(wrong.shape)))}.*{re.escape(str(tuple(mask.shape)))}"):
        case.model(case.images, wrong)


@torch.no_grad()
def test_model_without_a_mask_gives_features(case):
    features, encoder = case.model(case.images), case.model.encoder
    assert isinstance(features, tuple) and isinstance(case.model.extract_feat(case.images), tuple)
    assert features[-1].shape == (BATCH, encoder.num_features, HEIGHT // encoder.stride, WIDTH // encoder.stride)
    assert torch.equal(features[-1], case.model.extract_feat(case.images)[-1])


@torch.no_grad()
@pytest.mark.parametrize("cells", [(5, 9), (1, 3), (8, 4)])
def test_features_of_another_size_have_its_shape(case, cells):
    encoder = case.model.encoder
    images = make_images(case.config, size=[side * encoder.stride for side in cells])
    features = case.model(images)[-1]
    assert features.shape == (BATCH, encoder.num_features, *cells) and features.isfinite().all()


@pytest.mark.parametrize(("channels", "size"), [(1, (64, 96)), (4, (64, 32))])
def test_any_channels_and_sizes_train_and_reconstruct(names, channels, size):
    config = make_config(*names, channels=channels, size=size)
    model, images, mask = build(config, is_pretrain=True), make_images(config), make_mask(config)
    assert images.shape == (BATCH, channels, *size)
    loss = model(images, mask)
    loss.backward()
    assert loss.isfinite() and model.reconstruct(images, mask, denormalize=True).shape == images.shape
    assert model(images)[-1].shape[2:] == (size[0] // model.encoder.stride, size[1] // model.encoder.stride)


def test_images_of_another_number_of_channels_are_refused(case):
    with pytest.raises(ValueError, match="1 channels, the encoder was built for 3"):
        case.model(case.images[:, :1], case.mask)


@torch.no_grad()
def test_state_dict_makes_another_model_equal(case, tmp_path):
    torch.save(case.model.state_dict(), tmp_path / "state.pth")
    other = build(case.config, is_pretrain=True, seed=9)
    assert not torch.equal(other(case.images, case.mask), case.model(case.images, case.mask))
    other.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True), strict=True)
    assert torch.equal(other(case.images, case.mask), case.model(case.images, case.mask))
    assert torch.equal(other.reconstruct(case.images, case.mask), case.model.reconstruct(case.images, case.mask))


@cache
def parameters_of_cases(encoder):
    """Names of the parameters that a method around this encoder can have."""
    return {parameter for other, *rest in CASES if other == encoder
            for parameter, _ in build(make_config(other, *rest), is_pretrain=True).named_parameters()}


def test_names_without_weight_decay_are_parameters_of_some_variant(case):
    """A misspelt name would decay in silence; names of parts that are switched off are allowed."""
    known = parameters_of_cases(case.config.MODEL.TYPE)
    assert case.model.no_weight_decay() <= known
    assert all(exempt.startswith("encoder.") for exempt in case.model.no_weight_decay() if "mask_token" in exempt)


@torch.no_grad()
def test_step_on_one_batch_lowers_its_loss(case):
    """Gradients point the right way for the whole chain of mask, encoder, decoder and target."""
    model = build(case.config, is_pretrain=True)
    before = model(case.images, case.mask)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with torch.enable_grad():
        model(case.images, case.mask).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert model(case.images, case.mask) < before
