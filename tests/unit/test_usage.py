"""The lines that converting and exporting print do what they say, and predict what this repository does."""
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from config import dump, load_config
from inference import inference_model
from tests.parity.test_converted import MAE_VIT, PER_BLOCK, PLAIN, SWIN, SWINV2, VIT, ours
from tools import convert, export
from utils.kept import read_kept

from .helpers import opts_of

NAMES = ["ant", "bee", "cat", "dog", "eel"]
KINDS = {"swin": SWIN, "swinv2": SWINV2, "shared": VIT, "per_block": PER_BLOCK, "plain": PLAIN, "mae": MAE_VIT,
         "mean": MAE_VIT | {"MODEL.VIT.USE_MEAN_POOLING": True}}
CASES = [*(("timm", kind) for kind in KINDS), ("torchvision", "swin"), ("torchvision", "swinv2"), ("torchvision", "mae")]


@pytest.fixture
def picture():
    return Image.fromarray(np.random.RandomState(3).randint(0, 255, (90, 130, 3), dtype=np.uint8))


def checkpoint(folder, settings):
    settings = settings | {"DATA.MEAN": [0.4, 0.5, 0.6], "DATA.STD": [0.3, 0.2, 0.1]}
    torch.save({"model": ours(settings, is_pretrain=False).state_dict(), "classes": NAMES,
                "config": dump(load_config(opts=opts_of(settings)), "finetune")}, folder / "ckpt.pth")
    return folder / "ckpt.pth"


def typed(lines, **names):
    """What is there after the lines were typed."""
    exec("\n".join(lines), names)
    return names


@torch.no_grad()
@pytest.mark.parametrize(("layout", "kind"), CASES)
def test_printed_lines_predict_as_here(layout, kind, tmp_path, picture):
    source = checkpoint(tmp_path, KINDS[kind])
    lines = convert.convert(source, tmp_path / "there.pth", layout)
    there = typed(lines[lines.index("to load it there:") + 1:])
    scores = there["model"](there["transform"](picture).unsqueeze(0)).softmax(dim=1)[0].numpy()
    np.testing.assert_allclose(scores, inference_model(source, picture, device="cpu")["pred_scores"], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"TEST.CROP": False}, {"TEST.CROP_RATIO": 1.0, "DATA.INTERPOLATION": "bilinear"}])
def test_timms_own_data_config_prepares_images_alike(settings, tmp_path, picture):
    from timm.data import create_transform

    source = checkpoint(tmp_path, SWIN | settings)
    lines = convert.convert(source, tmp_path / "there.safetensors", "timm")
    with safe_open(tmp_path / "there.safetensors", framework="pt") as file:
        kept = json.loads(file.metadata()["checkpoint"])
    facts = json.loads(kept["image"])
    crop = {"crop_pct": 1.0, "crop_mode": "squash"} if facts["resize"] is None else {
        "crop_pct": facts["size"][0] / facts["resize"], "crop_mode": "center"}
    transform = create_transform(input_size=(3, *facts["size"]), mean=facts["mean"], std=facts["std"],
                                 interpolation=facts["interpolation"], is_training=False, **crop)
    model = typed(lines[lines.index("to load it there:") + 1:])["model"]
    scores = model(transform(picture).unsqueeze(0)).softmax(dim=1)[0].numpy()
    np.testing.assert_allclose(scores, inference_model(source, picture, device="cpu")["pred_scores"], atol=1e-5)
    assert kept["classes"] == NAMES


def test_file_converted_to_ours_still_knows_what_it_is(tmp_path):
    source = checkpoint(tmp_path, SWIN)
    convert.convert(source, tmp_path / "ours.safetensors", "ours")
    assert read_kept(tmp_path / "ours.safetensors") == read_kept(source)


@torch.no_grad()
def test_exported_program_is_used_as_printed(tmp_path, picture, capsys):
    source = checkpoint(tmp_path, SWIN)
    export.main(export.parse_arguments([str(tmp_path / "a.pt2"), "--weights", str(source), "--to", "torch"]))
    lines = capsys.readouterr().out.splitlines()
    found = typed(lines[lines.index("to use it:") + 1:], picture=picture)
    expected = inference_model(source, picture, device="cpu")["pred_scores"]
    np.testing.assert_allclose(found["output"].softmax(dim=1)[0].numpy(), expected, atol=1e-5)
    assert found["names"] == NAMES and json.loads(found["kept"]["image"])["size"] == [64, 64]
