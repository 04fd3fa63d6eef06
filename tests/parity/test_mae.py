"""Small pre-training models of MAE, LSMAE and PixMIM: loss, prediction, latent tokens, every gradient."""
import functools
from types import SimpleNamespace

import pytest
import torch

from data.masks import num_hidden
from models import build_model

from .mae_records import (
    load_mim,
    mim_names,
    noise_to_mask,
    our_name,
    our_names,
    part,
    patches_of,
    pretrain_config,
    pretrain_model,
    wrong_gradients,
)

CASES = mim_names("mae_pretrain_?", "lsmae_pretrain*", "pixmim_pretrain_?")
FORWARD = {"atol": 1e-5, "rtol": 0}


@functools.cache
def run_of(name):
    """One recorded model after its backward pass."""
    record, tensors = load_mim(name)
    model = pretrain_model(record, part(tensors, "state"))
    side = record["img_size"] // record["patch_size"]
    images, mask = tensors["in/image"], tensors["out/mask"].view(-1, side, side).bool()
    loss = model(images, mask)
    loss.backward()
    return SimpleNamespace(record=record, tensors=tensors, model=model, images=images, mask=mask, loss=loss.item(),
                           patch=record["patch_size"], prediction=model.reconstruct(images, mask).detach())


@pytest.fixture(params=CASES)
def run(request):
    return run_of(request.param)


def test_names_are_the_official_ones_under_the_key_rule(run):
    assert {our_name(name) for name in part(run.tensors, "state")} == set(run.model.state_dict())


def test_loss_matches(run):
    assert run.loss == pytest.approx(run.tensors["out/loss"].item(), abs=1e-6, rel=1e-6)


def test_prediction_matches_in_every_patch(run):
    torch.testing.assert_close(patches_of(run.prediction, run.patch), run.tensors["out/pred"], **FORWARD)


def test_prediction_has_the_layout_of_the_unpatchified_one():
    run = run_of("mae_pretrain_a")
    torch.testing.assert_close(run.prediction, run.tensors["out/pred_unpatchified"], **FORWARD)


def test_gradients_match(run):
    assert wrong_gradients(run.model.named_parameters(), run.tensors, our_name) == {}


def test_recorded_gradients_are_those_of_all_trainable_parameters(run):
    names = {our_name(name) for prefix in ("grad", "grad_every8") for name in part(run.tensors, prefix)}
    assert {name for name, parameter in run.model.named_parameters() if parameter.grad is not None} == names
    assert {name for name, parameter in run.model.named_parameters() if parameter.requires_grad} == names


def test_latent_tokens_match_when_sorted_by_position(run):
    """Official tokens come in the order of the noise, ours in rising order; the class token is first in both."""
    expected = run.tensors["out/latent"]
    num_visible = expected.shape[1] - 1
    official_ids = run.tensors["out/ids_restore" if "out/ids_restore" in run.tensors else "in/ids_restore"].argsort(dim=1)
    ids, order = official_ids[:, :num_visible].sort(dim=1)
    patches = expected[:, 1:].gather(1, order.unsqueeze(-1).expand(-1, -1, expected.shape[-1]))
    with torch.no_grad():
        tokens = run.model.encoder.forward_visible(run.images, run.mask, ids)
    torch.testing.assert_close(tokens, torch.cat([expected[:, :1], patches], dim=1), **FORWARD)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("lsmae")])  # which hides blocks of patches
def test_recorded_mask_follows_from_the_recorded_noise(name):
    run = run_of(name)
    noise = run.tensors["in/noise"]
    assert torch.equal(noise_to_mask(noise, run.record["mask_ratio"], run.mask.shape[1:]), run.mask)
    assert torch.equal(noise.argsort(dim=1).argsort(dim=1), run.tensors["out/ids_restore"])


def test_number_of_hidden_patches_is_rounded_as_the_official_one(run):
    expected = num_hidden(run.mask[0].numel(), run.record["mask_ratio"], "visible_down")
    assert (run.mask.flatten(1).sum(dim=1) == expected).all()


def test_target_patches_match_before_normalisation():
    """Of the image itself; for those of PixMIM see test_pixmim.py."""
    run = run_of("mae_pretrain_a")
    assert torch.equal(patches_of(run.model.target(run.images), run.patch), run.tensors["out/target_patches_raw"])


@pytest.mark.parametrize("name", [name for name in CASES if not load_mim(name)[0].get("perturb_pos_embed")])
def test_fresh_position_tables_are_the_recorded_ones(name):
    """Those of the PixMIM cases have the axes of mmpretrain, row before column: ours with the grid transposed."""
    run = run_of(name)
    fresh, expected = build_model(pretrain_config(run.record)).state_dict(), our_names(part(run.tensors, "state"))
    for key in ("encoder.pos_embed", "decoder.pos_embed"):
        table = fresh[key]
        if name.startswith("pixmim"):
            patches = table[:, 1:].unflatten(1, run.mask.shape[1:]).transpose(1, 2).flatten(1, 2)
            table = torch.cat([table[:, :1], patches], dim=1)
        torch.testing.assert_close(table, expected[key], atol=1e-6, rtol=0)


def test_a_mask_of_numbers_gives_the_same_loss(run):
    with torch.no_grad():
        assert run.model(run.images, run.mask.float()).item() == run.loss
