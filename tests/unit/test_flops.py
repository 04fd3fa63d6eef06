"""tools/flops.py: counts of our models against formulas, and both against what mmpretrain measured and lists."""
import json
import re
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from config import encoder_config, load_config
from models import build_model
from tests.contracts.tiny import HEIGHT, WIDTH, make_config
from tests.parity.recorded import REPOSITORY
from tools import flops
from utils.cli import run
from utils.costs import AsOnCuda, empty_copies, forward_costs, no_memory

FIXTURES = REPOSITORY / "tests" / "parity" / "fixtures" / "mim"
MEASURED = json.loads((FIXTURES / "mmpretrain_flops_measured.json").read_text())["runs"]
LISTED = json.loads((FIXTURES / "mmpretrain_flops_listed.json").read_text())
RECIPES = {  # start of the file name of a config there: recipe here
    "simmim_swin-base-w6": "swin_base/simmim_pretrain__swin_base__img192_window6__100ep",
    "simmim_swin-large-w12": "swin_large/simmim_pretrain__swin_large__img192_window12__800ep",
    "swin-base-w6_8xb256": "swin_base/simmim_finetune__swin_base__img192_window6__100ep",
    "swin-base-w7_8xb256": "swin_base/simmim_finetune__swin_base__img224_window7__100ep",
    "swin-base_16xb64": "swin_base/simmim_finetune__swin_base__img224_window7__100ep",
    "swin-large-w14_8xb256": "swin_large/simmim_finetune__swin_large__img224_window14__800ep",
    "mae_vit-base-p16": "mae/mae_pretrain__vit_base__img224__800ep",
    "mae_vit-large-p16": "mae/mae_pretrain__vit_large__img224__1600ep",
    "mae_vit-huge-p14": "mae/mae_pretrain__vit_huge__img224__1600ep",
    "mixmim_mixmim-base": "mixmim/mixmim_pretrain__mixmim_base__img224__300ep",
    "mixmim-base_8xb128": "mixmim/mixmim_finetune__mixmim_base__img224__300ep",
    "vit-base-p16_8xb128": "mae/mae_finetune__vit_base__img224",
    "vit-large-p16_8xb128": "mae/mae_finetune__vit_large__img224",
    "vit-huge-p14_8xb128": "mae/mae_finetune__vit_huge__img224",
    "vit-huge-p14_32xb8": "mae/mae_finetune__vit_huge__img448",
    "vit-base-p16_8xb2048-linear": "mae/mae_linprobe__vit_base__img224__1600ep",
    "vit-large-p16_8xb2048-linear": "mae/mae_linprobe__vit_large__img224__1600ep",
}
LARGER = re.compile("-(large|huge)-")  # the same formulas at other widths, and counting takes seconds
MIXMIM_BASE = {"patch_size": 4, "in_chans": 3, "embed_dim": 128, "depths": (2, 2, 18, 2)}


def recipe_of(config):
    name = Path(config).name
    return REPOSITORY / "configs" / f"{next(recipe for start, recipe in RECIPES.items() if name.startswith(start))}.yaml"


@cache
def described(path, size=None):
    config = load_config(path, [] if size is None else ["DATA.IMG_SIZE", size])
    return flops.describe(config, flops.stage_of(config), "mmpretrain", fixed_size=size is not None)


def mixmim(grid, windows, **settings):
    return flops.swin_costs((grid, grid), windows=[(side, side) for side in windows], **MIXMIM_BASE | settings)


def model_costs(config, size, is_pretrain=True):
    """Of the features of an image of another size than the model is built for."""
    with torch.device("meta"):
        model = build_model(config, is_pretrain)
    with no_memory(), AsOnCuda():
        model = empty_copies(model).eval()
        return forward_costs(lambda: model.extract_feat(torch.empty(1, encoder_config(config).IN_CHANS, *size)))


# ---- what mmpretrain measured and lists ---------------------------------------------------------------------------

@pytest.mark.parametrize("row", [row for row in MEASURED if row["config"].startswith(("simmim/", "swin_"))],
                         ids=lambda row: f"{Path(row['config']).stem}-{row['size']}")
def test_measured_swin_is_reproduced_by_operator(row):
    path = recipe_of(row["config"])
    pretrained_at_its_size = path.stem.startswith("simmim_pretrain") and row["size"] == 192
    zoo = described(path, 192 if pretrained_at_its_size else None)["zoo"]
    assert zoo["by_operator"] == row["by_operator"] and zoo["image_size"] == (row["size"], row["size"])
    assert (zoo["flops"], zoo["parameters"]) == (row["flops"], row["params"])


@pytest.mark.parametrize("row", [row for row in MEASURED if row["config"].startswith("mae/")],
                         ids=lambda row: Path(row["config"]).stem)
def test_measured_mae_is_what_our_model_costs_without_attention(row):
    result = described(recipe_of(row["config"]))
    assert {kind: cost for kind, cost in result["by_operator"].items() if kind != "matmul"} == row["by_operator"]
    assert result["flops"] - result["by_operator"]["matmul"] == row["flops"] and result["parameters"] == row["params"]


@pytest.mark.parametrize("row", [row for row in MEASURED if row["config"].startswith("mixmim/")],
                         ids=lambda row: Path(row["config"]).stem)
def test_measured_mixmim_is_what_our_model_costs_and_the_formula_says(row):
    result = described(recipe_of(row["config"]))
    assert result["by_operator"] == mixmim(56, (14, 14, 14, 7)) == row["by_operator"]
    assert (result["flops"], result["parameters"]) == (row["flops"], row["params"])


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if LARGER.search(name) else [])
                                  for name in LISTED["listed"]])
def test_listed_number_is_reproduced(name):
    row = LISTED["listed"][name]
    result = described(recipe_of(row["config"]))
    listed = result["zoo"] or result  # MixMIM costs here what it costs there
    assert (listed["flops"], listed["parameters"]) == (row["flops"], row["params"])


def test_mixmim_readme_is_the_formula_rounded():
    sizes = {"Swin-B/W14": (56, (14, 14, 14, 7), 128), "Swin-B/W16-384": (96, (16, 16, 24, 12), 128),
             "Swin-L/W14": (56, (14, 14, 14, 7), 192), "Swin-L/W16-384": (96, (16, 16, 24, 12), 192)}
    for row in LISTED["mixmim_official_readme"]:
        grid, windows, width = sizes[row["model"]]
        costs = mixmim(grid, windows, embed_dim=width)
        assert sum(costs.values()) / 1e9 == pytest.approx(row["flops_G"], rel=5e-3), row["model"]


# ---- our models against the formulas ------------------------------------------------------------------------------

@pytest.mark.parametrize("variant", ["plain", "ape", "no_qkv_bias"])
def test_tiny_swin_costs_what_the_formula_says(variant):
    config = make_config("swin", variant)
    _, costs = flops.count(config, "pretrain", "mmpretrain")
    assert costs == flops.swin_costs((HEIGHT // 4, WIDTH // 4), 4, 3, 8, (2, 2), [(4, 4), (4, 4)], patch_norm=variant != "ape")


@pytest.mark.parametrize(("stage", "norm"), [("finetune", {}), ("linprobe", {"batch_norm": 16})])
def test_tiny_vit_with_mean_pooling_normalises_the_mean_alone(stage, norm):
    _, costs = flops.count(make_config("vit", "mean_pooling"), stage, "mmpretrain")
    assert costs == norm | flops.vit_costs((HEIGHT // 8, WIDTH // 8), 8, 3, 16, 3, normalised_tokens=1)


@pytest.mark.parametrize("variant", ["plain", "all_tables"])
def test_vit_of_a_kind_that_the_zoo_lacks_has_no_row_of_it(variant):
    assert flops.zoo_row(make_config("vit", variant), "pretrain", 0) is None


def test_swin_costs_the_formula_where_windows_do_not_divide_the_map():
    config = load_config(recipe_of("simmim_swin-base-w6"))
    costs = model_costs(config, (224, 224))
    assert costs == flops.zoo_row(config, "pretrain", 0)["by_operator"] and sum(costs.values()) == 18_832_161_792


@pytest.mark.parametrize("config", ["swin-base-w7_8xb256", "mae_vit-base-p16", "vit-base-p16_8xb2048-linear"])
def test_recipe_costs_what_is_listed_but_for_the_pooling(config):
    result = described(recipe_of(config))
    listed = {kind: cost for kind, cost in result["zoo"]["by_operator"].items() if kind != "adaptive_avg_pool2d"}
    assert result["by_operator"] == listed and result["parameters"] == result["zoo"]["parameters"]


def test_torch_convention_counts_a_multiply_add_twice_and_the_whole_model():
    config = make_config("vit", "no_tables")
    result = flops.describe(config, "finetune", "torch")
    expected = flops.vit_costs((HEIGHT // 8, WIDTH // 8), 8, 3, 16, 3)
    matrices = sum(expected[kind] for kind in ("conv", "linear", "matmul")) + 16 * 5  # the head
    assert result["multiply_adds"] == matrices and result["flops"] == 2 * matrices
    assert result["parameters"] == sum(p.numel() for p in build_model(config, is_pretrain=False).parameters())


def test_torch_convention_of_pretraining_has_visible_patches_and_the_decoder():
    config = make_config("vit", "no_tables", "mae")
    result = flops.describe(config, "pretrain", "torch")
    patches, visible = 4 * 8, 12  # of 32, 60 % of the units hidden, rounded up to 20
    per_token = 12 * 16 ** 2
    encoder = 8 * 8 * 3 * 16 * patches + 3 * ((visible + 1) * per_token + 2 * (visible + 1) ** 2 * 16)
    tokens = patches + 1
    decoder = (visible + 1) * 16 * 16 + tokens * per_token + 2 * tokens ** 2 * 16 + tokens * 16 * 192
    assert result["multiply_adds"] == encoder + decoder


# ---- command line -------------------------------------------------------------------------------------------------

def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["flops.py", *map(str, arguments)])
    flops.main(flops.parse_arguments())
    return capsys.readouterr().out


@pytest.mark.parametrize("path", flops.recipes(), ids=lambda path: path.stem)
def test_stage_of_a_recipe_is_that_of_its_name(path):
    assert flops.stage_of(load_config(path)) in path.stem.split("__")[0]


def test_json_has_numbers_of_each_recipe(monkeypatch, capsys):
    demo = REPOSITORY / "configs" / "demo"
    names = ["simmim_pretrain__swin_nano__img64", "convmae_finetune__convmae_nano__img64"]
    found = json.loads(call(monkeypatch, capsys, "--cfg", *(demo / f"{name}.yaml" for name in names), "--json",
                            "--convention", "mmpretrain"))
    assert [row["recipe"] for row in found] == names and [row["stage"] for row in found] == ["pretrain", "finetune"]
    assert all(row["flops"] == sum(row["by_operator"].values()) > 0 for row in found)
    assert found[0]["zoo"]["image_size"] == [224, 224] and found[1]["zoo"] is None


def test_image_size_and_settings_of_the_command_line_count(monkeypatch, capsys):
    path = REPOSITORY / "configs" / "demo" / "simmim_finetune__vit_nano__img64.yaml"
    base, larger, deeper = (json.loads(call(monkeypatch, capsys, "--cfg", path, "--json", *arguments))[0]
                            for arguments in ((), ("--img-size", 96), ("--opts", "MODEL.VIT.DEPTH", 12)))
    assert larger["image_size"] == [96, 96] and larger["flops"] > 2 * base["flops"]
    assert deeper["parameters"] > base["parameters"]


def test_table_names_what_the_zoo_does_otherwise(monkeypatch, capsys):
    text = call(monkeypatch, capsys, "--cfg", recipe_of("swin-large-w14_8xb256"), "--convention", "mmpretrain")
    assert "35.86 G" in text and "38.85 G" in text and "196.85 M" in text
    assert "maps of 7x7 are padded to whole windows of 14" in text


def test_size_that_does_not_fit_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["flops.py", "--cfg", str(recipe_of("simmim_swin-base-w6")), "--img-size", "224"])
    with pytest.raises(SystemExit):
        run(flops.main, flops.parse_arguments())
    assert "MODEL.SWIN.WINDOW_SIZE=6" in capsys.readouterr().err
