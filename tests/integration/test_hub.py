"""The repository as torch.hub sees it: a clone, loaded by a program of its own in another folder."""
import subprocess
import sys

import pytest
import torch
from PIL import Image

from models.weights import zoo

from .processes import ROOT, environment

NAME = "simmim_vit_base_800ep_ft224"
TINY = "img_size=32, num_classes=5, **{'MODEL.VIT.DEPTH': 1, 'MODEL.VIT.EMBED_DIM': 24}"  # what the entry point is asked for


def program(folder, *lines):
    """Run lines of Python in a folder that is not the repository, as a user's script."""
    script = folder / "script.py"
    script.write_text("\n".join(["import torch", f"clone = {str(ROOT)!r}", *lines]), encoding="utf-8")
    return subprocess.run([sys.executable, script.name], cwd=folder, env=environment(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """One program that does what a user would; starting one for each test would take long."""
    folder = tmp_path_factory.mktemp("elsewhere")
    Image.new("RGB", (50, 40), (200, 90, 30)).save(folder / "bird.png")
    (folder / "utils.py").write_text("mine = True\n", encoding="utf-8")  # not imported yet: no clash
    result = program(
        folder,
        "names = torch.hub.load(clone, 'list_models', 'simmim_vit*', source='local')",
        f"model = torch.hub.load(clone, {NAME!r}, source='local', {TINY})",
        "weights = {name: torch.full_like(value, 2) for name, value in model.state_dict().items()}",
        "average = {name: torch.full_like(value, 3) for name, value in weights.items()}",
        "torch.save({'model': weights, 'model_ema': average}, 'both.pth')",
        f"both = [torch.hub.load(clone, {NAME!r}, pretrained='both.pth', source='local', pretrained_key=key, {TINY})"
        " for key in ('', 'ema')]",
        "print('HEADS', *(found.head.bias[0].item() for found in both))",
        "print('MODEL', type(model).__name__, model.training, tuple(model(torch.rand(2, 3, 32, 32)).shape))",
        "found = torch.hub.load(clone, 'inference_model', model, 'bird.png', source='local')",
        "print('KEYS', *sorted(found))",
        "print('NAMES', *names)")
    assert result.returncode == 0, result.stderr
    return dict(line.split(" ", 1) for line in result.stdout.splitlines() if line.split(" ", 1)[0].isupper())


@pytest.fixture(scope="module")
def hubconf():
    return torch.hub._import_module("hubconf", ROOT / "hubconf.py")


def test_entry_points_are_the_models_that_can_be_built(hubconf):
    entries = [entry for entry in zoo.entries().values() if entry.config]
    names = {name for entry in entries for name in (entry.name, *entry.aliases) if name.isidentifier()}
    functions = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert "simmim_swin_base" in names and functions == names | set(hubconf.__all__)


def test_every_entry_point_says_what_it_builds(hubconf):
    assert getattr(hubconf, NAME).__doc__.startswith(
        "SimMIM: classification, 800 epochs at 224 px, 86.5 M parameters (arXiv 2111.09886).")


def test_dependencies_are_installed_with_the_requirements(hubconf):
    assert all(torch.hub._check_module_exists(name) for name in hubconf.dependencies)


def test_names_are_listed(session):
    assert session["NAMES"].split() == zoo.list_models("simmim_vit*")


def test_entry_point_builds_a_model_with_other_settings(session):
    assert session["MODEL"] == "VisionTransformer False (2, 5)"


def test_average_is_chosen_by_its_key(session):
    """As --ema of the command line."""
    assert session["HEADS"] == "2.0 3.0"


def test_image_is_predicted_from_another_folder(session):
    assert session["KEYS"] == "image pred_label pred_score pred_scores pred_topk"


def test_module_of_the_program_with_one_of_our_names_is_said(tmp_path):
    (tmp_path / "utils.py").write_text("mine = True\n", encoding="utf-8")
    result = program(tmp_path, "import utils", f"torch.hub.load(clone, {NAME!r}, source='local')")
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and last.startswith("ImportError: this program has already imported a module named 'utils'")
    assert str(tmp_path / "utils.py") in last and "Load the model before that import" in last
