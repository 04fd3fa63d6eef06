"""The recipes of configs/small are what is chosen for such images on a GPU of 24 GB with time enough."""
import re
from dataclasses import replace
from pathlib import Path

import pytest

from checks import check_job
from config import load_config
from planning import values
from planning.facts import Cost, Images, Machine
from planning.sizes import Encoder, encoders

FOLDER = Path(__file__).parents[3] / "configs" / "small"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NUMBERS = {"5k": 5000, "": 50_000, "500k": 500_000}
SIDES = (96, 128, 192, 224)
ENCODERS = {"swin_tiny": ("swin", "tiny"), "vit_small": ("vit", "small")}
GPU = Machine("cuda", "a GPU of 24 GB", 24 * 2 ** 30, 16)
ACTIVATIONS = 66 * 2 ** 20  # bytes an image; counted of Swin-T at 224 pixels: 64 MB
OF_THE_MACHINE = {"DATA.NUM_WORKERS"}


def choice_of(job, encoder, side, number):
    """What is chosen where the images are large enough, and time does not count."""
    family, name = ENCODERS[encoder]
    images = Images(number, short_side=500, classes=100, labelled=number, has_validation=True)
    size = next(one.size for one in encoders(family, 500) if one.size.name == name)
    encoder, cost = Encoder(family, size, side), Cost(1e-4, 0, ACTIVATIONS)
    if job == "pretrain":
        return values.pretraining(images, GPU, encoder, cost, 1e6)
    return values.finetuning(images, GPU, values.of_encoder(encoder, replace(images)), cost, 1e6)


def parts_of(name):
    """(job, encoder, side, number of images) of a recipe by its name."""
    job, encoder, side, scale = re.fullmatch(r"simmim_(\w+?)__(\w+?)__img(\d+?)(?:__(\w+))?", name).groups(default="")
    return job, encoder, int(side), NUMBERS[scale]


def test_every_size_and_every_number_of_images_has_recipes():
    found = {parts_of(name) for name in RECIPES}
    for job in ("pretrain", "finetune"):
        for encoder in ENCODERS:
            assert {(job, encoder, side, 50_000) for side in SIDES} <= found
            assert {(job, encoder, 192, number) for number in NUMBERS.values()} <= found


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_values_that_are_chosen(name):
    config, choice = load_config(FOLDER / f"{name}.yaml"), choice_of(*parts_of(name))
    check_job(config, choice.job)
    wanted = {key: None if value == "none" else value for key, value in choice.settings.items() if key not in OF_THE_MACHINE}
    read = {}
    for key in wanted:
        node = config
        for part in key.split("."):
            node = node[part]
        read[key] = node
    assert read == wanted
    assert (config.TAG, config.MODEL.NAME) == (name, f"simmim_{choice.job}")


@pytest.mark.parametrize("job", ["pretrain", "finetune"])
@pytest.mark.parametrize("number", NUMBERS.values())
def test_what_follows_from_the_number_of_images_does_not_depend_on_their_size(job, number):
    """So that a recipe of one size, and the lines of another number of images, are the recipe of both."""
    own = {"MODEL.SWIN.WINDOW_SIZE", "DATA.IMG_SIZE", "DATA.MASK_PATCH_SIZE"}
    every = [choice_of(job, "swin_tiny", side, number).settings for side in SIDES]
    first, *others = [{key: value for key, value in found.items() if key not in own} for found in every]
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_begins_with_what_it_is_and_its_command(name):
    header = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert re.match(r"# SimMIM, arXiv 2111.09886, .*\n# Expected: not known", header) and "\n# Hardware: " in header
    script = {"pretrain": "main_simmim", "finetune": "main_finetune"}[parts_of(name)[0]]
    assert f"\n# Command:  python {script}.py --cfg configs/small/{name}.yaml " in header
