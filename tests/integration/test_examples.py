"""examples/: both programs run on every kind of encoder, learn, and start from our checkpoints."""
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from examples import detection, segmentation
from examples.pyramid import Pyramid, SimplePyramid, StageMaps, load_encoder
from examples.shapes import LEAST_VISIBLE, SHAPES, class_map, draw_scene
from models import build_model
from models.build import ENCODERS
from tests.contracts.tiny import HEIGHT, VARIANTS, WIDTH, build, make_config, make_images
from tests.parity.recorded import REPOSITORY
from utils.checkpoint import save_checkpoint

FINEST = {"convmae": 2, "swin": 4, "swinv2": 4, "vit": 8}  # pixels of a cell in the first stage of tiny encoders
DEMO = REPOSITORY / "configs" / "demo"
RECIPES = {"swin": DEMO / "simmim_pretrain__swin_nano__img64.yaml", "vit": DEMO / "mae_pretrain__vit_nano__img64.yaml"}


def tiny_encoder(name):
    config = make_config(name, next(iter(VARIANTS.get(name, ["tiny"]))))
    return build(config, is_pretrain=True).encoder, config


def settings(**values):
    return SimpleNamespace(**{"size": 64, "steps": 1, "batch_size": 2, "lr": 1e-3, "seed": 0} | values)


# ---- scenes -------------------------------------------------------------------------------------------------------

def test_scene_has_boxes_around_what_is_visible_of_each_object():
    rng = np.random.default_rng(3)
    for _ in range(20):
        image, target = draw_scene(rng, 48)
        assert image.shape == (3, 48, 48) and 0 <= image.min() and image.max() <= 1
        assert target["masks"].sum(dim=0).max() == 1  # no pixel is of two objects
        for box, mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
            left, top, right, bottom = box
            assert mask[top:bottom, left:right].sum() == mask.sum() >= LEAST_VISIBLE
            assert mask[top].any() and mask[bottom - 1].any() and mask[:, left].any() and mask[:, right - 1].any()
        assert set(class_map(target).unique().tolist()) == {0, *target["labels"].tolist()}


def test_image_without_room_for_shapes_is_refused():
    with pytest.raises(ValueError, match="--size 32 is too small.*use 48"):
        draw_scene(np.random.default_rng(0), 32)


# ---- maps of an encoder -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ENCODERS)
def test_stage_maps_have_each_resolution_once_finest_first(name):
    encoder, config = tiny_encoder(name)
    maps = StageMaps(encoder, (HEIGHT, WIDTH))(make_images(config))
    strides = [HEIGHT // features.shape[2] for features in maps]
    assert strides == [WIDTH // features.shape[3] for features in maps] and strides[-1] == encoder.stride
    assert all(coarser == 2 * finer for finer, coarser in zip(strides, strides[1:], strict=False))
    assert strides[0] == FINEST.get(name, strides[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin", "vit"])
def test_coarsest_map_is_what_the_encoder_normalises(name):
    encoder, config = tiny_encoder(name)
    stages, images = StageMaps(encoder, (HEIGHT, WIDTH)), make_images(config)
    normalised = encoder.norm(stages.collect(images)[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert (normalised - encoder(images)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ENCODERS)
def test_pyramid_halves_its_maps(name):
    encoder, config = tiny_encoder(name)
    backbone = Pyramid(encoder, config, 16)
    maps = backbone(make_images(config))
    assert isinstance(backbone.pyramid, SimplePyramid) == (len(backbone.stages.widths) == 1)
    heights = [features.shape[2] for features in maps.values()]
    assert heights[0] == HEIGHT // (2 if name == "vit" else FINEST.get(name, encoder.patch_size))
    assert all(finer == 2 * coarser for finer, coarser in zip(heights, heights[1:], strict=False))
    assert all(features.shape[1] == 16 for features in maps.values())


def test_encoder_has_the_weights_of_the_checkpoint(tmp_path):
    config = load_encoder(RECIPES["swin"], 64)[1]
    model = build_model(config)
    save_checkpoint(tmp_path / "pretrained.pth", {"model": model.state_dict()})
    encoder, _ = load_encoder(RECIPES["swin"], 64, tmp_path / "pretrained.pth")
    theirs = model.encoder.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in encoder.state_dict().items())


# ---- learning -----------------------------------------------------------------------------------------------------

def test_segmenter_learns(capsys):
    torch.manual_seed(0)
    args = settings(steps=30, batch_size=4, lr=3e-3)
    segmentation.train(segmentation.Segmenter(*load_encoder(RECIPES["vit"], 64), len(SHAPES), False), args)
    first, *_, last = (float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines())
    assert last < 0.6 * first


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_encoder_stays_as_it_is(freeze):
    model = segmentation.Segmenter(*load_encoder(RECIPES["vit"], 64), len(SHAPES), freeze)
    encoder = {name: value.clone() for name, value in model.stages.encoder.named_parameters()}
    head = model.classify[0].weight.clone()
    segmentation.train(model, settings())
    moved = any(not torch.equal(value, encoder[name]) for name, value in model.stages.encoder.named_parameters())
    assert moved is not freeze and not torch.equal(model.classify[0].weight, head)
    assert model.training and model.stages.encoder.training is not freeze  # stochastic depth is for what learns


@pytest.mark.parametrize("recipe", RECIPES)
def test_detector_trains_the_encoder_and_judges_proposals(recipe):
    torch.manual_seed(0)
    args = settings(steps=2)
    model = detection.build_detector(*load_encoder(RECIPES[recipe], args.size), args.size)
    encoder = model.backbone.stages.encoder
    before = encoder.patch_embed.proj.weight.clone()
    detection.train(model, args)
    assert not torch.equal(encoder.patch_embed.proj.weight, before)
    found, objects, wrong = detection.evaluate(model, args, num_images=2, least_score=0.0)
    assert 0 <= found <= objects and objects >= 2 and wrong > 0  # hardly trained, so most of what it proposes is wrong


# one interpreter with the libraries in it; a copy of it runs each program
RUN_EACH = """
import os, runpy, sys, timm.layers, torch, torchvision
programs = sys.argv[1:]
for program in programs:
    if not os.fork():
        sys.argv = [program, "--steps", "1", "--size", "64", "--batch-size", "1"]
        runpy.run_path(program, run_name="__main__")
    if os.wait()[1]:
        sys.exit(f"{program} failed")
"""


def test_programs_run_from_anywhere(tmp_path):
    programs = [str(REPOSITORY / "examples" / f"{name}.py") for name in ("detection", "segmentation")]
    result = subprocess.run([sys.executable, "-c", RUN_EACH, *programs], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "objects found" in result.stdout and "held-out images: IoU" in result.stdout
