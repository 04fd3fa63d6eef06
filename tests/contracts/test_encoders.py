"""What every encoder keeps: facts, feature maps, classification."""
import re
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from .tiny import (
    BATCH,
    CLASSES,
    ENCODER_CASES,
    FIXED_IN_CLASSIFIER,
    HEAD_LIKE_LAST_BLOCK,
    HEIGHT,
    MASKED_CASES,
    NEEDS,
    OWN_PARTS,
    VARIANTS,
    WIDTH,
    build,
    hidden_pixels,
    make_config,
    make_images,
    make_mask,
)


@pytest.fixture(scope="module", params=ENCODER_CASES, ids="-".join)
def case(request):
    """An encoder as pre-training has it, and the same with a head."""
    config = make_config(*request.param)
    return SimpleNamespace(name=request.param[0], config=config, encoder=build(config, is_pretrain=True).encoder,
                           classifier=build(config, is_pretrain=False), images=make_images(config), mask=make_mask(config))


@pytest.fixture(scope="module", params=MASKED_CASES, ids="-".join)
def masked(request):
    """An encoder with a mask token."""
    config = make_config(*request.param)
    return SimpleNamespace(config=config, encoder=build(config, is_pretrain=True).encoder, images=make_images(config),
                           mask=make_mask(config))


@pytest.fixture(scope="module", params=NEEDS["mae"], ids="-".join)
def dropping(request):
    """An encoder that lets only visible patches through, with a mask that hides half."""
    config = make_config(*request.param, method="mae")
    mask, encoder = make_mask(config), build(config, is_pretrain=True).encoder
    step = encoder.stride // encoder.patch_size
    ids = torch.stack([row.logical_not().nonzero().squeeze(1) for row in mask[:, ::step, ::step].flatten(1)])
    return SimpleNamespace(name=request.param[0], config=config, encoder=encoder, images=make_images(config), mask=mask,
                           ids=ids)


# ---- facts --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_facts_are_whole_numbers_that_fit_together(case, kind):
    encoder = getattr(case, kind)
    for fact in ("patch_size", "stride", "num_features", "in_chans", "num_layers"):
        assert type(getattr(encoder, fact)) is int and getattr(encoder, fact) >= 1, fact
    assert encoder.stride % encoder.patch_size == 0 and encoder.in_chans == 3
    assert encoder.has_head == (kind == "classifier")


@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_layer_id_of_each_parameter_is_in_range_and_each_layer_has_one(case, kind):
    encoder = getattr(case, kind)
    ids = {name: encoder.layer_id(name) for name, _ in encoder.named_parameters()}
    assert {type(layer) for layer in ids.values()} == {int}
    last = encoder.num_layers + (case.name not in HEAD_LIKE_LAST_BLOCK)
    # what comes after the blocks has the last number; without a head it need not exist
    assert set(range(encoder.num_layers + 1)) <= set(ids.values()) <= set(range(last + 1))
    assert {layer for name, layer in ids.items() if name.startswith("patch_embed")} == {0}
    if kind == "classifier":
        assert ids["head.weight"] == last


def test_layers_come_in_order(case):
    """Gradients reach a layer only from those behind it: parameters of block i stand before those of block i + 1."""
    ids = [case.encoder.layer_id(name) for name, _ in case.encoder.named_parameters()]
    blocks = [layer for layer in ids if 0 < layer <= case.encoder.num_layers]
    assert blocks == sorted(blocks)


@cache
def parameters_of_variants(name):
    """Names of the parameters that an encoder of this type can have, in pre-training or as a classifier."""
    models = [build(make_config(name, variant), is_pretrain) for variant in VARIANTS.get(name, ["tiny"])
              for is_pretrain in (True, False)]
    return {parameter for model in models for parameter, _ in getattr(model, "encoder", model).named_parameters()}


def test_names_without_weight_decay_are_parameters_of_some_variant(case):
    known = parameters_of_variants(case.config.MODEL.TYPE)
    assert case.encoder.no_weight_decay() <= known
    for keyword in case.encoder.no_weight_decay_keywords():
        assert any(keyword in parameter for parameter in known), keyword


def test_own_state_dict_needs_no_resizing(case):
    state, resized = case.classifier.resize_state_dict(case.classifier.state_dict())
    own = dict(case.classifier.named_parameters())
    assert resized == [] and state.keys() == own.keys()
    assert all(torch.equal(state[name], own[name]) for name in own)


def test_state_dict_of_another_grid_is_resized_to_the_own_shapes(case, request):
    config = make_config(case.config.MODEL.TYPE, request.node.callspec.params["case"][1], size=(64, 128))
    state, resized = case.classifier.resize_state_dict(build(config, is_pretrain=False).state_dict())
    own = dict(case.classifier.named_parameters())
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in own.items()}
    assert set(resized) <= own.keys() and all(state[name].isfinite().all() for name in resized)


# ---- feature maps -------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_feature_map_has_the_stated_shape(case):
    encoder = case.encoder
    shape = (BATCH, encoder.num_features, HEIGHT // encoder.stride, WIDTH // encoder.stride)
    assert encoder(case.images).shape == shape
    assert isinstance(encoder.extract_feat(case.images), tuple) and encoder.extract_feat(case.images)[-1].shape == shape


@torch.no_grad()
def test_tokens_are_the_map_row_by_row_after_the_class_token(case):
    tokens, encoder = case.encoder.forward_tokens(case.images), case.encoder
    feature_map = encoder.forward_map(case.images)
    cells = feature_map.shape[2] * feature_map.shape[3]
    assert tokens.shape == (BATCH, encoder.num_prefix_tokens + cells, encoder.num_features)
    assert torch.equal(tokens[:, encoder.num_prefix_tokens:], feature_map.flatten(2).transpose(1, 2))


@torch.no_grad()
def test_feature_map_is_not_transposed(case):
    """Of all cells, the one below a changed corner changes most."""
    encoder, other = case.encoder, case.images.clone()
    other[:, :, :encoder.stride, -encoder.stride:] += 3.0
    change = (encoder(other) - encoder(case.images)).square().sum(dim=(0, 1))
    assert divmod(int(change.argmax()), change.shape[1]) == (0, change.shape[1] - 1)


# ---- masks --------------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_hidden_pixels_do_not_reach_the_features(masked):
    hidden = hidden_pixels(masked.config, masked.mask)
    other = torch.where(hidden, torch.full_like(masked.images, 7.0), masked.images)
    assert torch.equal(masked.encoder(other, masked.mask), masked.encoder(masked.images, masked.mask))
    assert not torch.equal(masked.encoder(other), masked.encoder(masked.images))


@torch.no_grad()
def test_mask_does_not_change_the_shape_of_the_features(masked):
    assert masked.encoder(masked.images, masked.mask).shape == masked.encoder(masked.images).shape


@torch.no_grad()
def test_mask_that_hides_nothing_changes_nothing(masked):
    torch.testing.assert_close(masked.encoder(masked.images, torch.zeros_like(masked.mask)), masked.encoder(masked.images))


@torch.no_grad()
def test_fully_hidden_images_look_alike(masked):
    features = masked.encoder(masked.images, torch.ones_like(masked.mask))
    torch.testing.assert_close(features, features[:1].expand_as(features), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_visible_tokens_have_the_stated_shape(dropping):
    encoder = dropping.encoder
    tokens = encoder.forward_visible(dropping.images, dropping.mask, dropping.ids)
    assert encoder.drops_tokens
    assert tokens.shape == (BATCH, encoder.num_prefix_tokens + dropping.ids.shape[1], encoder.num_features)


@torch.no_grad()
def test_hidden_pixels_do_not_reach_the_visible_tokens(dropping):
    hidden = hidden_pixels(dropping.config, dropping.mask)
    other = torch.where(hidden, torch.full_like(dropping.images, 7.0), dropping.images)
    tokens = [dropping.encoder.forward_visible(images, dropping.mask, dropping.ids) for images in (dropping.images, other)]
    assert torch.equal(*tokens)


@torch.no_grad()
def test_visible_tokens_of_a_whole_image_are_its_features(dropping):
    """The same computation, whatever is regrouped for it; ConvMAE then adds earlier stages."""
    if dropping.name in OWN_PARTS:
        return
    all_ids = torch.arange(dropping.ids.shape[1] * 2).expand(BATCH, -1)
    tokens = dropping.encoder.forward_visible(dropping.images, torch.zeros_like(dropping.mask), all_ids)
    torch.testing.assert_close(tokens, dropping.encoder.forward_tokens(dropping.images), atol=1e-5, rtol=1e-5)


# ---- classification -----------------------------------------------------------------------------------------------

@torch.no_grad()
@pytest.mark.parametrize("cells", [None, (5, 9), (8, 4)])
def test_classifier_gives_logits_and_pooled_features_of_any_size(case, cells):
    model = case.classifier
    images = make_images(case.config, size=cells and [side * model.stride for side in cells])
    logits, features = model(images), model.extract_feat(images)
    assert logits.shape == (BATCH, CLASSES) and logits.isfinite().all()
    assert isinstance(features, tuple) and features[-1].shape == (BATCH, model.num_features)
    torch.testing.assert_close(model.head(features[-1]), logits)


def test_classifier_refuses_a_mask(case):
    with pytest.raises(ValueError, match="takes no mask"):
        case.classifier(case.images, case.mask)


def test_every_parameter_of_a_classifier_gets_a_gradient(case):
    case.classifier.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(case.classifier(case.images), torch.tensor([0, 2, 4])).backward()
    gradients = {name: parameter.grad for name, parameter in case.classifier.named_parameters() if parameter.requires_grad}
    fixed = {name for name, parameter in case.classifier.named_parameters() if not parameter.requires_grad}
    assert fixed == FIXED_IN_CLASSIFIER.get(case.name, set())
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []
    case.classifier.zero_grad(set_to_none=True)


@torch.no_grad()
def test_classifier_has_the_encoder_s_names_at_the_root(case):
    """One mechanism for both, so that official files load without a map."""
    encoder = {name for name, _ in case.encoder.named_parameters()} - {"mask_token"}
    classifier = {name for name, _ in case.classifier.named_parameters()}
    pretraining, classification = OWN_PARTS.get(case.config.MODEL.TYPE, (set(), set()))
    assert {name.partition(".")[0] for name in classifier - encoder} == {"head"} | classification
    assert {name.partition(".")[0] for name in encoder - classifier} == pretraining
    assert {"head.weight", "head.bias"} <= classifier


@pytest.mark.parametrize(("channels", "size"), [(1, (32, 64)), (4, (64, 32))])
def test_classifier_takes_any_channels_and_sizes(case, request, channels, size):
    config = make_config(*request.node.callspec.params["case"], channels=channels, size=size)
    assert build(config, is_pretrain=False)(make_images(config)).shape == (BATCH, CLASSES)


def test_images_that_are_no_whole_number_of_patches_are_refused(case):
    side = case.encoder.patch_size
    images = torch.zeros(1, 3, side * 4 + 1, side * 8)
    with pytest.raises(ValueError, match=re.escape(f"{side * 4 + 1}x{side * 8} pixels")):
        case.encoder(images)


# ---- probing ------------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_layers_are_pooled_in_one_pass_and_leave_no_hook(case):
    encoder = case.encoder
    layers = [*range(1, len(encoder.probed_blocks()) + 1), "last"]
    features = encoder.forward_layers(case.images, layers)
    assert all(feature.ndim == 2 and len(feature) == BATCH for feature in features)
    assert features[-1].shape[1] == encoder.num_features
    assert torch.equal(features[-1], encoder.forward_last(case.images))
    assert not any(block._forward_hooks for block in encoder.probed_blocks())
    for layer, feature in zip(layers, features, strict=True):
        assert torch.equal(encoder.forward_layers(case.images, [layer])[0], feature)


@torch.no_grad()
def test_output_of_a_block_is_pooled_over_all_places(case):
    """A block that gives ones at one token or cell has a pooled feature of one over their number."""
    encoder, widths = case.encoder, []
    for block in encoder.probed_blocks():
        handle = block.register_forward_hook(lambda module, args, output: widths.append(output.shape) or output)
        encoder.forward_last(case.images)
        handle.remove()
        shape = widths.pop()
        output = torch.zeros(shape)
        (output[:, -1] if output.ndim == 3 else output[:, -1, -1]).fill_(1)
        if len(shape) == 4:
            assert shape[1] * WIDTH == shape[2] * HEIGHT, f"{tuple(shape)} is no map (B, h, w, C): override pool"
        places = shape[1] - encoder.num_prefix_tokens if len(shape) == 3 else shape[1] * shape[2]
        assert torch.allclose(encoder.pool(output, "mean"), torch.full((BATCH, shape[-1]), 1 / places))


# ---- TorchScript --------------------------------------------------------------------------------------------------

@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")  # newer torch prefers torch.export
@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_traced_model_computes_the_same_for_other_images_in_another_number(case, kind):
    model = getattr(case, kind).eval()
    traced = torch.jit.trace(model, case.images[:2], check_trace=False)
    images = case.images[:1].flip(2) * 2
    torch.testing.assert_close(traced(images), model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_script_is_refused_with_what_works(case):
    for model in (case.classifier, build(case.config, is_pretrain=True)):
        with pytest.raises(NotImplementedError, match=rf"a {type(model).__name__}: .*torch\.jit\.trace.*tools/export\.py"):
            torch.jit.script(model)
