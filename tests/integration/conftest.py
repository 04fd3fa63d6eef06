from types import SimpleNamespace

import numpy as np
import pytest

from .processes import Forks, opts
from .recipes import FINETUNE, PRETRAIN, VIT, make_images, write_recipe


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Folder with train/<class>/ and val/<class>/."""
    root = tmp_path_factory.mktemp("images")
    make_images(root)
    return root


@pytest.fixture(scope="session")
def cfg(tmp_path_factory):
    """Recipe files: pretrain, finetune (Swin), pretrain_vit, finetune_vit."""
    folder = tmp_path_factory.mktemp("recipes")
    recipes = {"pretrain": PRETRAIN, "finetune": FINETUNE, "pretrain_vit": {**PRETRAIN, **VIT},
               "finetune_vit": {**FINETUNE, **VIT}}
    return SimpleNamespace(**{name: write_recipe(folder / f"{name}.yaml", values) for name, values in recipes.items()})


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Runs the mains; see processes.Forks."""
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def train(forks, cfg, images):
    """train(stage, output, *flags, settings={}, ranks=1) -> (run folder, console text); stages as the recipes of `cfg`."""
    def run(stage, output, *flags, settings=None, ranks=1):
        pretrains = stage.startswith("pretrain")
        arguments = ["--cfg", getattr(cfg, stage), "--data-path", images / "train" if pretrains else images,
                     "--output", output, *flags, *opts(settings or {})]
        script = "main_simmim.py" if pretrains else "main_finetune.py"
        results = [forks.run(script, *arguments)] if ranks == 1 else forks.run_ranks(ranks, script, *arguments)
        for result in results:
            result.checked()
        return output / stage.removesuffix("_vit") / "default", results[0].out
    return run


@pytest.fixture(scope="session")
def pretrained_run(train, tmp_path_factory):
    """Run folder of one epoch of pre-training. Not to be written to."""
    return train("pretrain", tmp_path_factory.mktemp("pretrained"), settings={"TRAIN.EPOCHS": 1})[0]


@pytest.fixture(scope="session")
def finetuned_run(train, tmp_path_factory, pretrained_run):
    """Run folder of one epoch of fine-tuning. Not to be written to."""
    return train("finetune", tmp_path_factory.mktemp("finetuned"), "--pretrained", pretrained_run / "ckpt_epoch_0.pth",
                 settings={"TRAIN.EPOCHS": 1})[0]


@pytest.fixture
def rng():
    return np.random.RandomState(3)
