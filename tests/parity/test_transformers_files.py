"""Folders that tools/convert.py writes for transformers' from_pretrained: the settings in them, and what its models compute."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from config import dump
from data.transforms import eval_transform
from tools.convert import convert
from utils.checkpoint import save_checkpoint

from .recorded import import_transformers
from .test_converted import (
    MAE,
    MAE_VIT,
    PER_BLOCK,
    PLAIN,
    SIZE,
    SWIN,
    SWINV2,
    VIT,
    hf_logits,
    hf_patches,
    hf_reconstruction,
    load_config,
    logits,
    opts_of,
    ours,
    reconstruction,
    visible,
)

NAMES = ["cat", "dog", "eel", "fox", "gnu"]
CASES = {  # settings, whether it is pre-trained, the class there, what is compared here and there
    "swin": (SWIN, True, "SwinForMaskedImageModeling", reconstruction((16, 16)), hf_reconstruction((16, 16))),
    "swin classifier": (SWIN, False, "SwinForImageClassification", logits, hf_logits),
    "swinv2": (SWINV2, True, "Swinv2ForMaskedImageModeling", reconstruction((16, 16)), hf_reconstruction((16, 16))),
    "swinv2 classifier": (SWINV2, False, "Swinv2ForImageClassification", logits, hf_logits),
    "swinv2 shrunk windows": (SWINV2 | {"MODEL.SWINV2.WINDOW_SIZE": 16}, False, "Swinv2ForImageClassification", logits,
                              hf_logits),
    "vit": (VIT, True, "BeitModel", visible, hf_patches),
    "vit classifier": (PER_BLOCK, False, "BeitForImageClassification", logits, hf_logits),
    "plain vit": (PLAIN, True, "ViTForMaskedImageModeling", reconstruction((4, 4)), hf_reconstruction((4, 4))),
    "mae": (MAE | {"MODEL.VIT.MLP_RATIO": 2.0}, True, "ViTMAEForPreTraining", None, None),
    "mae classifier": (MAE_VIT, False, "ViTForImageClassification", logits, hf_logits)}


def written(folder, settings, is_pretrain, name="model.safetensors"):
    """(our model, the lines) of a checkpoint that was converted into a folder."""
    settings = settings | {"DATA.INTERPOLATION": "bicubic", "DATA.MEAN": [0.1, 0.2, 0.3], "DATA.STD": [0.5, 0.6, 0.7]}
    model, config = ours(settings, is_pretrain), load_config(opts=opts_of(settings))
    content = {"model": model.state_dict(), "config": dump(config, "pretrain" if is_pretrain else "finetune")}
    save_checkpoint(folder / "source.pth", content | ({} if is_pretrain else {"classes": NAMES}))
    (folder / "there").mkdir()
    return model, config, convert(folder / "source.pth", folder / "there" / name, "transformers")


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_model_of_transformers_is_that_of_the_folder(name, tmp_path):
    transformers = import_transformers()
    settings, is_pretrain, kind, run, run_other = CASES[name]
    model, _, _ = written(tmp_path, settings, is_pretrain)
    other, report = getattr(transformers, kind).from_pretrained(tmp_path / "there", output_loading_info=True)
    assert report["unexpected_keys"] == report["mismatched_keys"] == []
    assert [key for key in report["missing_keys"] if not key.endswith("position_index")] == []
    assert other.config.architectures == [kind]
    if name == "vit classifier":
        other.beit.pooler.layernorm.eps = 1e-6  # not a setting there
    if run:
        images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(3))
        assert (run(model, images) - run_other(other.eval(), images)).abs().max() <= 1e-5
    if not is_pretrain:
        assert list(other.config.id2label.values()) == NAMES


def test_images_are_prepared_there_as_evaluation_does_here(tmp_path):
    transformers = import_transformers()
    _, config, _ = written(tmp_path, SWIN, False)
    prepare = transformers.AutoImageProcessor.from_pretrained(tmp_path / "there")
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (146, 292, 3), dtype=np.uint8))
    actual = prepare(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(actual, eval_transform(config)(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_settings_stand_in_the_files(name, tmp_path):
    settings, is_pretrain, kind, _, _ = CASES[name]
    _, _, lines = written(tmp_path, settings, is_pretrain)
    config = json.loads((tmp_path / "there" / "config.json").read_text())
    images = json.loads((tmp_path / "there" / "preprocessor_config.json").read_text())
    assert config["architectures"] == [kind] and config["image_size"] == SIZE[0]
    assert images["image_mean"] == [0.1, 0.2, 0.3] and images["image_std"] == [0.5, 0.6, 0.7]
    assert images["crop_size"] == {"height": 64, "width": 64} and images["size"] == {"shortest_edge": 73}
    if name == "swinv2 shrunk windows":
        assert config["window_size"] == 16  # to 8, the map of the last stage, there as here
    if name == "mae":
        assert (config["intermediate_size"], config["decoder_intermediate_size"]) == (32, 32)
    if not is_pretrain:
        assert config["id2label"] == {str(i): label for i, label in enumerate(NAMES)}
    assert any("config.json and preprocessor_config.json for from_pretrained" in line for line in lines)


@pytest.mark.parametrize(("settings", "window", "depth"), [(SWIN, 8, 2), (SWINV2, 8, 2), (SWINV2, 16, 1)])
def test_windows_that_differ_along_the_sides_of_an_image_are_refused(settings, window, depth, tmp_path):
    """A map of 8x16 tokens: windows of 8 are shifted along its long side alone, those of 16 shrink along the short one."""
    section = f"MODEL.{settings['MODEL.TYPE'].upper()}"
    wide = settings | {"DATA.IMG_SIZE": [64, 128], "DATA.MASK_PATCH_SIZE": 8, f"{section}.DEPTHS": [depth, depth],
                       f"{section}.NUM_HEADS": [1, 2], f"{section}.WINDOW_SIZE": window}
    with pytest.raises(ValueError, match=r"in stage 1, a map of 8x16 tokens, windows of .* along one side alone.*--to timm"):
        written(tmp_path, wide, False)
    assert not any((tmp_path / "there").iterdir())


def test_name_that_from_pretrained_does_not_find_is_said(tmp_path):
    assert any("looks for weights in model.safetensors" in line for line in written(tmp_path, SWIN, False, "x.safetensors")[2])


def test_file_without_settings_needs_a_recipe(tmp_path):
    save_checkpoint(tmp_path / "source.pth", {"model": ours(SWIN, False).state_dict()})
    lines = convert(tmp_path / "source.pth", tmp_path / "a.safetensors", "transformers")
    assert any("config.json and preprocessor_config.json were not written" in line and "--cfg" in line for line in lines)
    recipe = "configs/demo/simmim_finetune__swin_nano__img64.yaml"
    with pytest.raises(ValueError, match=r"the config is of another model: encoder\..*--cfg"):
        convert(tmp_path / "source.pth", tmp_path / "b.safetensors", "transformers", cfg=recipe)
    convert(tmp_path / "source.pth", tmp_path / "b.safetensors", "transformers", cfg=recipe, opts=[
        str(word) for word in opts_of(SWIN)])
    assert json.loads((tmp_path / "config.json").read_text())["depths"] == [2, 1, 2, 1]


def test_files_beside_are_kept_without_force(tmp_path):
    save_checkpoint(tmp_path / "source.pth", {"model": ours(SWIN, False).state_dict()})
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(ValueError, match=r"config\.json exists and is not written over: .*--force"):
        convert(tmp_path / "source.pth", tmp_path / "a.safetensors", "transformers")
    assert not (tmp_path / "a.safetensors").exists()


def test_recipe_is_refused_where_it_has_no_effect(tmp_path):
    with pytest.raises(ValueError, match="leave them out with --to timm"):
        convert(tmp_path / "source.pth", tmp_path / "a.pth", "timm", cfg="x.yaml")
