"""What is particular to ViT: class token, tables on other grids, layer ids."""
import pytest
import torch

from ..helpers import perturb, random_images, tiny_model

ALL_TABLES = {"MODEL.VIT.USE_APE": True, "MODEL.VIT.USE_RPB": True, "MODEL.VIT.USE_SHARED_RPB": True}


@pytest.mark.parametrize("overrides", [{}, ALL_TABLES, {"MODEL.VIT.USE_SHARED_RPB": False}], ids=["shared", "all", "none"])
@pytest.mark.parametrize(("height", "width"), [(48, 40), (8, 80), (64, 32)])
def test_features_of_another_size_have_the_right_shape(overrides, height, width):
    model = perturb(tiny_model("vit", overrides).encoder).eval()
    with torch.no_grad():
        features, = model.extract_feat(random_images(2, 3, height, width))
    assert features.shape == (2, 16, height // 8, width // 8) and features.isfinite().all()


def test_feature_map_lies_as_the_image_does():
    """Without attention between tokens (values 0), a changed patch changes its own cell only."""
    model = perturb(tiny_model("vit").encoder).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_()
    images = random_images(1)
    other = images.clone()
    other[:, :, 8:16, 40:48] += 1.0  # row 1, column 5 of the 4x8 grid
    with torch.no_grad():
        changed = (model(images) - model(other)).abs().amax(dim=1)[0]
    assert changed.shape == (4, 8) and changed.nonzero().tolist() == [[1, 5]]


def test_tables_of_the_blocks_are_added_to_the_shared_one():
    model = perturb(tiny_model("vit", ALL_TABLES).encoder).eval()
    images = random_images(2)
    with torch.no_grad():
        expected = model(images)
        for block in model.blocks:
            block.attn.relative_position_bias_table += model.rel_pos_bias.relative_position_bias_table
        model.rel_pos_bias.relative_position_bias_table.zero_()
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
        for block in model.blocks:
            block.attn.relative_position_bias_table.zero_()
        assert not torch.allclose(model(images), expected, atol=1e-3)


def test_mean_pooling_averages_the_patch_tokens_without_the_class_token():
    model = perturb(tiny_model("vit", {"MODEL.VIT.USE_MEAN_POOLING": True}, is_pretrain=False)).eval()
    images = random_images(2)
    with torch.no_grad():
        expected = model.fc_norm(model.forward_map(images).mean(dim=(2, 3)))
        torch.testing.assert_close(model.forward_pooled(images), expected, atol=1e-5, rtol=1e-5)


def test_class_token_is_the_pooled_feature_without_mean_pooling():
    model = perturb(tiny_model("vit", is_pretrain=False)).eval()
    with torch.no_grad():
        tokens, _ = model._tokens(random_images(2))
        torch.testing.assert_close(model.forward_pooled(random_images(2)), tokens[:, 0])


@pytest.mark.parametrize(("name", "layer"), [
    ("cls_token", 0), ("pos_embed", 0), ("patch_embed.proj.bias", 0), ("blocks.0.gamma_1", 1),
    ("blocks.2.attn.q_bias", 3), ("rel_pos_bias.relative_position_bias_table", 4), ("norm.weight", 4), ("head.weight", 4)])
def test_layer_ids_of_depth_3(name, layer):
    model = tiny_model("vit", ALL_TABLES, is_pretrain=False)
    assert name in dict(model.named_parameters())
    assert model.layer_id(name) == layer


def test_layer_scale_is_off_when_its_start_is_none():
    names = dict(tiny_model("vit", {"MODEL.VIT.INIT_VALUES": None}).named_parameters())
    assert not any("gamma" in name for name in names)


def test_unused_norm_is_frozen_in_pretraining_and_trained_in_fine_tuning():
    """Official files have fc_norm; a parameter without gradient would stop distributed training."""
    overrides = {"MODEL.VIT.USE_MEAN_POOLING": True}
    assert not tiny_model("vit", overrides).encoder.fc_norm.weight.requires_grad
    assert tiny_model("vit", overrides, is_pretrain=False).fc_norm.weight.requires_grad


def test_classification_model_refuses_a_mask():
    with pytest.raises(ValueError, match="takes no mask"):
        tiny_model("vit", is_pretrain=False)(random_images(2), torch.zeros(2, 4, 8))
