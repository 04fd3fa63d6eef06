"""Every published recipe at its full size: parameters counted without memory, and one block of each stage run.

Whole models of up to 3 billion parameters do not fit here; one block at a time does.
"""
import re
from pathlib import Path

import pytest
import torch

from config import encoder_config, image_size, load_config
from models import build_model
from models.build import materialize
from models.probe import build_probe

REPOSITORY = Path(__file__).parents[3]
OWN = {"demo", "probe", "small"}  # folders of recipes that are nobody's publication
RECIPES = {path.stem: path for path in sorted(REPOSITORY.glob("configs/*/*.yaml")) if path.parent.name not in OWN}
each_recipe = pytest.mark.parametrize("name", RECIPES)

# of the G of the paper without its extra norms: the official code in that size (tests/parity/fixtures/simmim/keys)
G_PRETRAIN = 3_010_401_504
G_EXTRA_NORMS = 7 * 2 * 2048  # after every 6th of the 42 blocks of the third stage
MORE_PATCHES = 28 ** 2 - 14 ** 2


def decoder(width, dim, tokens=1 + 28 ** 2, depth=8, values=16 * 16 * 3):
    """Parameters of MAE's decoder: embedding, mask token, positions, blocks, norm, prediction."""
    return (width + 1) * dim + dim + tokens * dim + depth * (12 * dim + 13) * dim + 2 * dim + (dim + 1) * values


def cells_decoder(width, cells):
    return decoder(width, 512, tokens=cells, depth=1, values=32 * 32 * 3)


PARAMETERS = {
    # the official code under the official recipes (tests/parity/fixtures/simmim/keys)
    "simmim_pretrain__swin_base__img192_window6__100ep": 89_874_104,
    "simmim_finetune__swin_base__img192_window6__100ep": 87_750_176,
    "simmim_finetune__swin_base__img224_window7__100ep": 87_768_224,
    "simmim_pretrain__swin_base__img192_window6__800ep": 89_874_104,
    "simmim_finetune__swin_base__img224_window7__800ep": 87_768_224,
    "simmim_pretrain__swin_large__img192_window12__800ep": 199_881_204,
    "simmim_finetune__swin_large__img224_window14__800ep": 196_794_556,
    "simmim_pretrain__vit_base__img224__800ep": 86_256_720,
    "simmim_finetune__vit_base__img224__800ep": 86_530_984,
    "simmim_pretrain__swinv2_base__img192_window12__800ep": 90_042_744,
    "simmim_finetune__swinv2_base__img224_window14__800ep": 87_918_816,
    # the official code in this size of the paper (same place); no SwinV2 parameter depends on the window
    "simmim_pretrain__swinv2_huge__img192_window12__800ep": 663_865_098,
    "simmim_finetune__swinv2_huge__img224_window14__800ep": 658_027_922,
    "simmim_finetune__swinv2_huge__img512_window32__800ep": 658_027_922,
    "simmim_pretrain__swinv2_giant_3b__img192_window12__20ep": G_PRETRAIN + G_EXTRA_NORMS,
    # without mask token and decoder, with a head
    "simmim_finetune__swinv2_giant_3b__img224_window14__20ep":
        G_PRETRAIN + G_EXTRA_NORMS - 512 - (4096 + 1) * 3 * 32 ** 2 + (4096 + 1) * 1000,
    # nothing was recorded: our count of the encoder, which MODEL_HUB confirms as rounded, and what the widths add to it
    "simmim_pretrain__swinv2_small__img192_window12__800ep": 48_959_418 + 96 + (768 + 1) * 3 * 32 ** 2,
    "simmim_finetune__swinv2_small__img224_window14__800ep": 48_959_418 + (768 + 1) * 1000,
    "simmim_pretrain__swinv2_large__img192_window12__800ep": 195_202_932 + 192 + (1536 + 1) * 3 * 32 ** 2,
    "simmim_finetune__swinv2_large__img224_window14__800ep": 195_202_932 + (1536 + 1) * 1000,
    "simmim_pretrain__swinv2_giant_1b__img192_window12__800ep": 1_060_976_996 + 448 + (3584 + 1) * 3 * 32 ** 2,
    "simmim_finetune__swinv2_giant_1b__img224_window14__800ep": 1_060_976_996 + (3584 + 1) * 1000,
    # the official MAE (tests/parity/fixtures/mim/mae_model_keys.json), frozen position tables included
    "mae_pretrain__vit_base__img224__800ep": 111_907_840,
    "mae_pretrain__vit_base__img224__1600ep": 111_907_840,
    "mae_pretrain__vit_large__img224__1600ep": 329_541_888,
    "mae_pretrain__vit_huge__img224__1600ep": 657_074_508,
    "mae_finetune__vit_base__img224": 86_567_656,
    "mae_finetune__vit_large__img224": 304_326_632,
    "mae_finetune__vit_huge__img224": 632_045_800,
    "mae_finetune__vit_huge__img448": 632_045_800 + (32 ** 2 - 16 ** 2) * 1280,  # a larger position table
    "pixmim_pretrain__vit_base__img224__300ep": 111_907_840,
    "pixmim_pretrain__vit_base__img224__800ep": 111_907_840,
    "pixmim_finetune__vit_base__img224__300ep": 86_567_656,
    "pixmim_finetune__vit_base__img224__800ep": 86_567_656,
    # with a linear head of 1000 classes instead of a decoder
    "mae_linprobe__vit_base__img224__1600ep": 86_567_656,
    "mae_linprobe__vit_large__img224__1600ep": 304_326_632,
    "mae_linprobe__vit_huge__img224__1600ep": 632_045_800,
    "pixmim_linprobe__vit_base__img224__300ep": 86_567_656,
    "pixmim_linprobe__vit_base__img224__800ep": 86_567_656,
    # ConvMAE keeps what adds up its stages in pre-training: convolutions of 4 x 4 and 2 x 2 cells
    "mae_linprobe__convmae_base__img224__1600ep": 85_374_824 + (256 * 16 + 1) * 768 + (384 * 4 + 1) * 768,
    "simmim_linprobe__vit_base__img224__800ep": 86_256_720 - (768 + 1) * 768 - 768 + (768 + 1) * 1000,
    # the official ConvMAE (tests/parity/fixtures/mim/convmae_keys_and_groups.json)
    "mae_pretrain__convmae_base__img224__1600ep": 115_041_408,
    "mae_finetune__convmae_base__img224__1600ep": 85_374_824,
    # the official MixMIM (tests/parity/fixtures/mim/mixmim_official_keys.json)
    "mixmim_pretrain__mixmim_base__img224__300ep": 114_665_784,
    "mixmim_pretrain__mixmim_base__img224__600ep": 114_665_784,
    "mixmim_pretrain__mixmim_large__img224__600ep": 223_468_244,
    "mixmim_pretrain__mixmim_huge__img224__600ep": 684_709_594,
    "mixmim_finetune__mixmim_base__img224__300ep": 88_344_352,
    "mixmim_finetune__mixmim_base__img224__600ep": 88_344_352,
    "mixmim_finetune__mixmim_base__img384__600ep": 89_577_440,
    "mixmim_finetune__mixmim_large__img224__600ep": 197_396_668,
    "mixmim_finetune__mixmim_large__img384__600ep": 199_246_300,
    "mixmim_finetune__mixmim_huge__img224__600ep": 659_262_658,
    # Swin without its head, and a decoder of one block that predicts cells of 32 pixels
    "greenmim_pretrain__swin_base__img192_window6__800ep": 87_750_176 - (1024 + 1) * 1000 + cells_decoder(1024, 6 ** 2),
    "greenmim_pretrain__swin_base__img224_window7__800ep": 87_768_224 - (1024 + 1) * 1000 + cells_decoder(1024, 7 ** 2),
    "greenmim_pretrain__swin_large__img224_window14__800ep": 196_794_556 - (1536 + 1) * 1000 + cells_decoder(1536, 7 ** 2),
    # those of MAE, with position tables for 28 x 28 patches instead of 14 x 14, and for ViT-B a decoder of another width
    "lsmae_pretrain__vit_base__img448__800ep": 86_567_656 - (768 + 1) * 1000 + MORE_PATCHES * 768 + decoder(768, 384),
    "lsmae_pretrain__vit_large__img448__800ep": 329_541_888 + MORE_PATCHES * (1024 + 512),
    "lsmae_finetune__vit_base__img224__800ep": 86_567_656,
    "lsmae_finetune__vit_base__img448__800ep": 86_567_656 + MORE_PATCHES * 768,
}
MAINS = {"pretrain": "simmim.py", "finetune": "finetune.py", "linprobe": "linprobe.py"}
# MODELHUB.md of github.com/microsoft/Swin-Transformer, "model size counts only the backbone weights"
MODEL_HUB = {"small": "49M", "base": "87M", "large": "195M", "huge": "655M", "giant_1b": "1.06B"}


def model_of(name):
    """The model of a recipe, without memory, and its config."""
    config = load_config(RECIPES[name])
    with torch.device("meta"):
        if "linprobe" in name:
            return build_probe(config, config.MODEL.NUM_CLASSES), config
        return build_model(config, is_pretrain="pretrain" in name), config


def number_of_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@each_recipe
def test_recipe_builds_a_model_with_the_published_number_of_parameters(name):
    assert number_of_parameters(model_of(name)[0]) == PARAMETERS[name]


@pytest.mark.parametrize("size", MODEL_HUB)
def test_encoder_of_a_released_swinv2_has_the_size_that_the_model_hub_states(size):
    encoder = model_of(next(name for name in RECIPES if f"pretrain__swinv2_{size}__" in name))[0].encoder
    encoder.mask_token = None
    parameters = number_of_parameters(encoder)
    assert MODEL_HUB[size] == (f"{parameters / 1e9:.2f}B" if parameters > 1e9 else f"{parameters / 1e6:.0f}M")


@each_recipe
def test_recipe_starts_with_paper_expected_number_hardware_and_command(name):
    path = RECIPES[name]
    header = path.read_text(encoding="utf-8").partition("\nMODEL:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert re.search(r"arXiv \d{4}\.\d{5}", header)
    assert "\n# Expected: " in header and "\n# Hardware: " in header
    script = "main_" + next(main for stage, main in MAINS.items() if stage in name)
    assert f"{script} --cfg {path.relative_to(REPOSITORY).as_posix()} " in header.partition("\n# Command:  ")[2]


@each_recipe
def test_recipe_runs_under_its_own_name(name):
    assert load_config(RECIPES[name]).TAG == name


def commands_of(name):
    """The commands of a recipe's header, on one line each."""
    text = RECIPES[name].read_text(encoding="utf-8").replace("\\\n#", " ")
    return [" ".join(line.split()[2:]) for line in text.splitlines() if line.startswith(("# Command:", "# Evaluate:"))]


@each_recipe
def test_page_of_recipes_has_the_commands_of_the_recipe(name):
    page = " ".join((REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8").replace("\\\n", " ").split())
    assert len(commands_of(name)) == (1 if "pretrain" in name else 2)
    assert [command for command in commands_of(name) if command not in page] == []


# ---- blocks ---------------------------------------------------------------------------------------------------------

def shapes_of(config):
    """For each stage, what tells its last block from those of other recipes."""
    encoder, kind = encoder_config(config), config.MODEL.TYPE
    grid = tuple(side // encoder.PATCH_SIZE for side in image_size(config))
    if kind == "vit":
        return [(kind, encoder.EMBED_DIM, encoder.NUM_HEADS, grid, encoder.USE_RPB, encoder.USE_SHARED_RPB)]
    if kind == "convmae":
        return [(kind, dim, stage, tuple(side * 4 // 2 ** stage for side in grid))
                for stage, dim in enumerate(encoder.EMBED_DIM)]
    cells = [tuple(side // 2 ** stage for side in grid) for stage in range(len(encoder.DEPTHS))]
    windows = encoder.WINDOW_SIZES if kind == "mixmim" else [encoder.WINDOW_SIZE] * len(cells)
    return [(kind, encoder.EMBED_DIM * 2 ** stage, heads, side, min(window, *side))
            for stage, (heads, side, window) in enumerate(zip(encoder.NUM_HEADS, cells, windows, strict=True))]


def different_blocks():
    """(recipe, stage) of one block of every shape that a recipe has."""
    first = {}
    for name, path in RECIPES.items():
        if "linprobe" in name:  # its blocks are frozen ones of another recipe
            continue
        for stage, shape in enumerate(shapes_of(load_config(path))):
            first.setdefault(shape, (name, stage))
    return list(first.values())


def block_of(name, stage):
    """(the last block of a stage, its shape): alone with memory and initial weights, and with branches that count."""
    model, config = model_of(name)
    encoder = model.encoder if "pretrain" in name else model
    path = f"blocks.{config.MODEL.VIT.DEPTH - 1}"
    if config.MODEL.TYPE == "convmae":
        path = f"blocks{stage + 1}.{config.MODEL.CONVMAE.DEPTHS[stage] - 1}"
    elif hasattr(encoder, "layers"):
        path = f"layers.{stage}.blocks.{encoder.depths[stage] - 1}"
    block = encoder.get_submodule(path)
    block.init_module = lambda own, module: encoder.init_module(f"{path}.{own}".rstrip("."), module)
    materialize(block).eval()  # without drop path
    del block.init_module  # it holds the encoder, which holds the block: neither would be freed at once
    with torch.no_grad():  # res-post-norms start at zero, which hides all behind them
        for norm in (block.norm1, block.norm2):
            norm.weight.add_(torch.rand_like(norm.weight))
    return block, shapes_of(config)[stage]


def inputs_of(shape):
    """Arguments of a block for one image."""
    kind, dim, heads, grid, *_ = shape
    if kind == "convmae":
        if shape[2] == 2:  # attends, to tokens
            return [torch.randn(1, grid[0] * grid[1], dim)]
        return [torch.randn(1, *grid, dim), torch.rand(1, *grid) < 0.75]
    if kind != "vit":
        return [torch.randn(1, *grid, dim)]
    tokens = 1 + grid[0] * grid[1]
    uses_shared_bias = shape[-1]
    return [torch.randn(1, tokens, dim), grid, torch.randn(heads, tokens, tokens) if uses_shared_bias else None]


@pytest.mark.slow  # blocks of up to 3 billion parameters
@pytest.mark.parametrize(("name", "stage"), different_blocks())
def test_full_size_block_learns_from_an_image(name, stage):
    """In shifted windows where there is more than one. Every parameter has a gradient, finite and not zero everywhere."""
    block, shape = block_of(name, stage)
    if shape[0].startswith("swin") or shape[0] == "mixmim":
        assert (block.grid, block.window) == (shape[3], (shape[4],) * 2)
    x, *others = inputs_of(shape)
    x.requires_grad_()
    out = block(x, *others)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    out.backward(torch.randn_like(out))
    gradients = {"input": x.grad} | {own: parameter.grad for own, parameter in block.named_parameters()}
    assert [own for own, grad in gradients.items() if not torch.isfinite(grad).all()] == []
    assert [own for own, grad in gradients.items() if not grad.any()] == []
