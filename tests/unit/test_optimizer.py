"""Parameter groups of tiny models by hand; those of the official recipes are in tests/parity."""
import pytest
import torch

from optimizer import LARS, OPTIMIZERS, build_optimizer, finetune_groups, pretrain_groups

from .helpers import TINY, tiny_config, tiny_model


def names_of(model, parameters):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in parameters]


def decay_of(model, optimizer):
    """{parameter: weight decay}"""
    return {name: group["weight_decay"] for group in optimizer.param_groups for name in names_of(model, group["params"])}


def build(encoder, overrides=None, is_pretrain=False):
    config = tiny_config(encoder, {"TRAIN.BASE_LR": 1.0, "TRAIN.WEIGHT_DECAY": 0.05} | (overrides or {}))
    model = tiny_model(encoder, overrides, is_pretrain)
    return model, build_optimizer(config, model, is_pretrain)


@pytest.mark.parametrize(("name", "expected"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimizer_is_built_with_its_settings(name, expected):
    _, optimizer = build("vit", {"TRAIN.OPTIMIZER.NAME": name, "TRAIN.OPTIMIZER.EPS": 1e-6, "TRAIN.OPTIMIZER.MOMENTUM": 0.8,
                                 "TRAIN.OPTIMIZER.BETAS": [0.8, 0.9]})
    assert type(optimizer) is expected
    if name == "adamw":
        assert (optimizer.defaults["eps"], optimizer.defaults["betas"]) == (1e-6, (0.8, 0.9))
    else:
        assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.8, True)


def test_unknown_optimizer_lists_the_valid_ones():
    config = tiny_config("vit").clone()
    config.defrost()
    config.TRAIN.OPTIMIZER.NAME = "adam"
    with pytest.raises(ValueError, match=r"TRAIN\.OPTIMIZER\.NAME='adam'.*valid: adamw, fused_adam, fused_lamb, lars, sgd"):
        build_optimizer(config, tiny_model("vit"))
    assert set(OPTIMIZERS) == {"adamw", "sgd", "lars", "fused_adam", "fused_lamb"}


def test_layer_decay_of_a_swin_of_depths_2_2():
    """Ids 0 (embedding) to 5 (norm, head); factor 0.5 ** (5 - id)."""
    model, optimizer = build("swin", {"TRAIN.LAYER_DECAY": 0.5, "MODEL.SWIN.APE": True})
    rates = {name: group["lr"] for group in optimizer.param_groups for name in names_of(model, group["params"])}
    expected = {
        "patch_embed.proj.weight": 1 / 32, "patch_embed.norm.weight": 1 / 32,
        "layers.0.blocks.0.attn.qkv.weight": 1 / 16, "layers.0.blocks.1.mlp.fc1.bias": 1 / 8,
        "layers.0.downsample.reduction.weight": 1 / 8, "layers.1.blocks.0.norm1.weight": 1 / 4,
        "layers.1.blocks.1.attn.relative_position_bias_table": 1 / 2, "norm.weight": 1.0, "head.bias": 1.0,
        "absolute_pos_embed": 1.0}
    assert {name: rates[name] for name in expected} == expected
    assert set(rates.values()) == {1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0}


def test_layer_decay_of_a_vit_of_depth_3():
    model, optimizer = build("vit", {"TRAIN.LAYER_DECAY": 0.5})
    rates = {name: group["lr"] for group in optimizer.param_groups for name in names_of(model, group["params"])}
    expected = {"cls_token": 1 / 16, "patch_embed.proj.bias": 1 / 16, "blocks.0.gamma_1": 1 / 8, "blocks.1.attn.q_bias": 1 / 4,
                "blocks.2.mlp.fc2.weight": 1 / 2, "rel_pos_bias.relative_position_bias_table": 1.0, "head.weight": 1.0}
    assert {name: rates[name] for name in expected} == expected


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("is_pretrain", [True, False])
def test_each_trainable_parameter_is_in_exactly_one_group(encoder, is_pretrain):
    model, optimizer = build(encoder, {"TRAIN.LAYER_DECAY": 0.7}, is_pretrain)
    grouped = [name for group in optimizer.param_groups for name in names_of(model, group["params"])]
    assert sorted(grouped) == sorted(name for name, p in model.named_parameters() if p.requires_grad)


def test_groups_of_one_layer_share_a_name_and_a_rate():
    _, optimizer = build("vit", {"TRAIN.LAYER_DECAY": 0.5})
    names = [group["group_name"] for group in optimizer.param_groups]
    assert len(names) == len(set(names)) and {"layer_0_decay", "layer_0_no_decay", "layer_4_decay"} <= set(names)
    for group in optimizer.param_groups:
        layer, kind = int(group["group_name"].split("_")[1]), group["group_name"].split("_", 2)[2]
        assert group["lr_scale"] == group["lr"] == 0.5 ** (4 - layer)
        assert group["weight_decay"] == {"decay": 0.05, "no_decay": 0.0}[kind]


@pytest.mark.parametrize("is_pretrain", [True, False])
@pytest.mark.parametrize("encoder", TINY)
def test_one_dimensional_parameters_and_biases_never_decay(encoder, is_pretrain):
    model, optimizer = build(encoder, is_pretrain=is_pretrain)
    decay = decay_of(model, optimizer)
    shapes = {name: p.ndim for name, p in model.named_parameters()}
    assert {decay[name] for name in decay if shapes[name] == 1} == {0.0}
    assert decay[("encoder." if is_pretrain else "") + "patch_embed.proj.weight"] == 0.05


def test_swin_tables_decay_in_pretraining_and_not_in_fine_tuning():
    """Quirk 11: the official keywords never match in pre-training."""
    for is_pretrain, expected in ((True, 0.05), (False, 0.0)):
        model, optimizer = build("swin", is_pretrain=is_pretrain)
        tables = {value for name, value in decay_of(model, optimizer).items() if name.endswith("bias_table")}
        assert tables == {expected}


def test_vit_tables_and_mask_token_decay_as_official():
    """Quirk 12: the list of ViT holds only pos_embed and cls_token."""
    model, optimizer = build("vit", {"MODEL.VIT.USE_APE": True}, is_pretrain=True)
    decay = decay_of(model, optimizer)
    names = ("mask_token", "rel_pos_bias.relative_position_bias_table", "pos_embed", "cls_token")
    assert [decay[f"encoder.{name}"] for name in names] == [0.05, 0.05, 0.0, 0.0]


def test_swin_mask_token_and_absolute_embedding_do_not_decay():
    model, optimizer = build("swin", {"MODEL.SWIN.APE": True}, is_pretrain=True)
    decay = decay_of(model, optimizer)
    assert (decay["encoder.mask_token"], decay["encoder.absolute_pos_embed"]) == (0.0, 0.0)


@pytest.mark.parametrize("encoder", TINY)
def test_frozen_parameters_are_left_out(encoder):
    frozen = "patch_embed.proj.weight"
    for is_pretrain in (True, False):
        model = tiny_model(encoder, is_pretrain=is_pretrain)
        name = ("encoder." if is_pretrain else "") + frozen
        model.get_parameter(name).requires_grad_(False)
        groups = pretrain_groups(model) if is_pretrain else finetune_groups(model, 0.5)
        grouped = {name for group in groups for name in names_of(model, group["params"])}
        assert name not in grouped and len(grouped) == len(list(model.parameters())) - 1


def test_group_that_would_be_empty_is_left_out():
    model = tiny_model("vit")
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    assert [group["decays"] for group in pretrain_groups(model)] == [False]


def test_lars_skips_a_step_when_told_so_on_the_device():
    model = torch.nn.Linear(3, 2)
    before, optimizer = [p.detach().clone() for p in model.parameters()], LARS(model.parameters(), lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(state["mu"], torch.zeros_like(state["mu"])) for state in optimizer.state.values())
