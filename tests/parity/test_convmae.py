"""ConvMAE: small models of both stages, and names, sizes and fine-tuning groups of the published one."""
import functools
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from config import load_config
from models import build_model
from optimizer import finetune_groups

from .mae_records import load_mim, load_mim_json, noise_to_mask, our_name, our_names, part, patches_of, wrong_gradients
from .recorded import opts_of

PATCH = 16
FORWARD = {"atol": 1e-5, "rtol": 0}
BASE = load_mim_json("convmae_keys_and_groups")


def config_of(record):
    opts = {"MODEL.TYPE": "convmae", "MODEL.METHOD": "mae", "MODEL.DROP_PATH_RATE": 0.0, "DATA.IMG_SIZE": record["img_size"][0],
            "MODEL.CONVMAE.EMBED_DIM": record["embed_dim"], "MODEL.CONVMAE.DEPTHS": record["depth"],
            "MODEL.CONVMAE.NUM_HEADS": record["num_heads"], "MODEL.CONVMAE.MLP_RATIO": record["mlp_ratio"],
            "MODEL.NUM_CLASSES": record.get("num_classes", 1000)}
    if "decoder_depth" in record:
        opts |= {"MODEL.MAE.DECODER_EMBED_DIM": record["decoder_embed_dim"], "MODEL.MAE.DECODER_DEPTH": record["decoder_depth"],
                 "MODEL.MAE.DECODER_NUM_HEADS": record["decoder_num_heads"], "MODEL.MAE.NORM_PIX_LOSS": record["norm_pix_loss"]}
    return load_config(opts=opts_of(opts))


@functools.cache
@torch.enable_grad()
def pretrained():
    """The recorded pre-training model after its backward pass."""
    record, tensors = load_mim("convmae_pretrain")
    model = build_model(config_of(record))
    model.load_state_dict(our_names(part(tensors, "state")), strict=True)
    images, mask = tensors["in/image"], noise_to_mask(tensors["in/noise"], record["mask_ratio"], (14, 14))
    loss = model(images, mask)
    loss.backward()
    return SimpleNamespace(tensors=tensors, model=model, images=images, mask=mask, loss=loss.item())


@functools.cache
@torch.enable_grad()
def classified():
    """The recorded classifier after its backward pass."""
    record, tensors = load_mim("convmae_cls")
    model = build_model(config_of(record), is_pretrain=False)
    model.load_state_dict(part(tensors, "state"), strict=True)
    logits = model(tensors["in/image"])
    loss = F.cross_entropy(logits, tensors["in/label"])
    loss.backward()
    return SimpleNamespace(tensors=tensors, model=model, logits=logits.detach(), loss=loss.item())


@functools.cache
def base_model(is_pretrain):
    """The published size, without memory."""
    opts = {"MODEL.TYPE": "convmae", "MODEL.METHOD": "mae", "DATA.MASK_PATCH_SIZE": PATCH}
    with torch.device("meta"):
        return build_model(load_config(opts=opts_of(opts)), is_pretrain)


# ---- pre-training -------------------------------------------------------------------------------------------------

def test_mask_is_the_recorded_one():
    run = pretrained()
    assert torch.equal(run.mask.flatten(1), run.tensors["out/mask"].bool())


def test_loss_matches():
    assert pretrained().loss == pytest.approx(pretrained().tensors["out/loss"].item(), abs=1e-6, rel=1e-6)


@torch.no_grad()
def test_prediction_matches():
    run = pretrained()
    patches = patches_of(run.model.reconstruct(run.images, run.mask), PATCH)
    torch.testing.assert_close(patches[:, ::8], run.tensors["out/pred_every8"], **FORWARD)


@torch.no_grad()
def test_latent_tokens_match_when_sorted_by_position():
    """Official tokens come in the order of the noise, ours in rising order."""
    run = pretrained()
    expected = run.tensors["out/latent"]
    ids, order = run.tensors["out/ids_restore"].argsort(dim=1)[:, :expected.shape[1]].sort(dim=1)
    latent = run.model.encoder.forward_visible(run.images, run.mask, ids)
    torch.testing.assert_close(latent, expected.gather(1, order.unsqueeze(-1).expand_as(expected)), **FORWARD)


def test_pretraining_gradients_match():
    run = pretrained()
    assert wrong_gradients(run.model.named_parameters(), run.tensors, our_name) == {}


def test_recorded_gradients_are_those_of_all_trainable_parameters():
    names = {our_name(name) for prefix in ("grad", "grad_every8") for name in part(pretrained().tensors, prefix)}
    assert {name for name, parameter in pretrained().model.named_parameters() if parameter.requires_grad} == names


# ---- classification -----------------------------------------------------------------------------------------------

@torch.no_grad()
def test_feature_matches():
    run = classified()
    torch.testing.assert_close(run.model.extract_feat(run.tensors["in/image"])[-1], run.tensors["out/feature"], **FORWARD)


def test_logits_and_loss_match():
    run = classified()
    torch.testing.assert_close(run.logits, run.tensors["out/logits"], **FORWARD)
    assert run.loss == pytest.approx(run.tensors["out/loss"].item(), abs=1e-6, rel=1e-6)


def test_classification_gradients_match():
    run = classified()
    assert wrong_gradients(run.model.named_parameters(), run.tensors) == {}
    assert all(parameter.requires_grad for parameter in run.model.parameters())


# ---- the published size -------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("stage", "number"), [("pretrain_base", 115_041_408), ("finetune_base", 85_374_824)])
def test_number_of_parameters_is_the_published_one(stage, number):
    assert sum(p.numel() for p in base_model(stage == "pretrain_base").parameters()) == BASE[stage]["params"] == number


def test_pretraining_parameters_have_the_official_names_and_shapes():
    ours = {name: list(value.shape) for name, value in base_model(True).state_dict().items()}
    assert ours == {our_name(name): shape for name, shape in BASE["pretrain_base"]["keys"].items()}


def test_classification_parameters_have_the_official_names_shapes_and_order():
    """Optimizer states are stored by position, so an official training checkpoint needs the same order."""
    ours = {name: list(value.shape) for name, value in base_model(False).state_dict().items()}
    assert list(ours.items()) == list(BASE["finetune_base"]["keys"].items())


def test_finetuning_groups_match_in_order():
    model = base_model(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = finetune_groups(model, 0.65)
    expected = BASE["layer_decay_0_65"]
    assert [[names[id(parameter)] for parameter in group["params"]] for group in groups] == [
        group["params"] for group in expected]
    assert [0.05 * group["decays"] for group in groups] == [group["weight_decay"] for group in expected]
    assert [group["lr_scale"] for group in groups] == pytest.approx([group["lr_scale"] for group in expected], rel=1e-12)
