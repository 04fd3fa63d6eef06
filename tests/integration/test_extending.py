"""docs/extending.md does what it says: its code, put into a copy of the repository, trains by the ordinary commands."""
import re
import shutil

import pytest

from .processes import ROOT, Forks, opts
from .recipes import PRETRAIN, VIT
from .runs import losses

DOC = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", re.DOTALL)
ENTRY = re.compile(r"\s*# in (\S+)$")
SMALL = {key: value for key, value in PRETRAIN.items() if key not in ("MODEL.TYPE", "MODEL.NAME")}


def sections():
    """{heading: [(file, code)]} of the document."""
    parts = re.split(r"^## (.+)$", DOC, flags=re.MULTILINE)[1:]
    found = {heading: BLOCK.findall(text) for heading, text in zip(parts[::2], parts[1::2], strict=True)}
    return {heading: blocks for heading, blocks in found.items() if blocks}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the repository with all the document's code in it."""
    copy = tmp_path_factory.mktemp("extended") / "repository"
    for path in (*ROOT.glob("*.py"), *(ROOT / folder for folder in ("data", "models", "planning", "utils", "configs"))):
        if path.is_dir():
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(path, copy)
    for blocks in sections().values():
        for name, code in blocks:
            path = copy / name
            path.write_text(joined(path.read_text(encoding="utf-8"), code) if path.exists() else code, encoding="utf-8")
    return copy


def joined(source, code):
    """`code` put into an existing file by the rules that the document states."""
    lines, rest = source.splitlines(), []
    for line in code.splitlines():
        entry = ENTRY.search(line)
        if entry:
            place = next(i for i, other in enumerate(lines) if other.startswith(f"{entry[1]} = {{"))
            before, _, after = lines[place].partition("{")
            lines[place] = f"{before}{{{line[:entry.start()]} {after}"
        elif line.startswith(("from ", "import ")):
            lines.insert(next(i for i, other in enumerate(lines) if re.match(r"(from|import) ", other)), line)
        else:
            rest.append(line)
    table = next((i for i, line in enumerate(lines) if re.match(r"(MASKS|TARGETS) = ", line)), len(lines))
    return "\n".join([*lines[:table], *rest, "", *lines[table:]]) + "\n"


@pytest.fixture(scope="module")
def programs(extended, tmp_path_factory):
    """Runs the mains of the copy."""
    server = Forks(tmp_path_factory.mktemp("forks"), extended)
    yield server
    server.close()


def train(programs, images, output, script="main_simmim.py", *arguments, recipe, settings):
    return programs.run(script, "--cfg", recipe, "--data-path", images, "--output", output, *arguments,
                        *opts(settings)).checked().out


def test_document_shows_each_seam():
    assert sections().keys() == {"A method", "An encoder", "A mask", "A target"}


@pytest.mark.parametrize(("name", "encoder"), [
    ("all_pixels", {"MODEL.TYPE": "swin"}), ("all_pixels", VIT), ("mixer", {}), ("columns", {"MODEL.TYPE": "swin"}),
    ("grey", {"MODEL.TYPE": "swin"})], ids=["method_swin", "method_vit", "encoder", "mask", "target"])
def test_code_of_the_document_trains(name, encoder, programs, images, tmp_path):
    train(programs, images / "train", tmp_path, recipe=f"configs/{name}_pretrain.yaml",
          settings={**SMALL, **encoder, "MODEL.NAME": name, "TRAIN.EPOCHS": 2})
    values = losses(tmp_path / name / "default")
    assert len(values) == 6 and all(value == value and 0 < value < 5 for value in values)
    assert (tmp_path / name / "default" / "reconstructions" / "epoch_0001.png").is_file()


@pytest.mark.parametrize(("setting", "message"), [
    (["MODEL.ALL_PIXELS.VISIBLE_WEIGHT", 0], "VISIBLE_WEIGHT=0.0 is MODEL.METHOD simmim"),
    (["MODEL.ALL_PIXELS.VISIBLE_WEIGHT", 2], "MODEL.ALL_PIXELS.VISIBLE_WEIGHT=2.0 is out of range"),
    (["DATA.MASK_RATIO", 0], "DATA.MASK_RATIO=0.0 hides nothing")], ids=["check", "range", "check_masks"])
def test_checks_of_the_document_refuse_before_anything_is_trained(setting, message, programs, images, tmp_path):
    result = programs.run("main_simmim.py", "--cfg", "configs/all_pixels_pretrain.yaml", "--data-path", images / "train",
                          "--output", tmp_path, "--opts", *setting)
    assert result.code == 2 and message in result.error_lines[0] and not list(tmp_path.iterdir())


def test_code_of_the_document_keeps_the_contracts_and_its_pages_can_be_made(extended, programs):
    """The tests and pages of the repository find what is new by themselves: the encoder with each method, the method with an
    encoder of windows and one without; the blocks of the latter are compiled, too.
    """
    for folder in ("contracts", "unit"):
        shutil.copytree(ROOT / "tests" / folder, extended / "tests" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py"):
        shutil.copy(ROOT / name, extended / name)
    shutil.copytree(ROOT / "docs", extended / "docs")
    shutil.copytree(ROOT / "tools", extended / "tools")
    programs.run("tools/pages.py").checked()
    tests = ["tests/contracts", "tests/unit/test_pages.py", "tests/unit/test_structure.py"]
    result = programs.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k",
                          "mixer or test_pages or test_structure or all_pixels and (vit-plain or swin-plain and not compiled)")
    assert result.code == 0, result.out[-3000:]


def test_encoder_of_the_document_is_finetuned_from_its_pretraining(programs, images, tmp_path):
    settings = {**SMALL, "TRAIN.EPOCHS": 1, "AUG.AUTO_AUGMENT": "none"}
    train(programs, images / "train", tmp_path, recipe="configs/mixer_pretrain.yaml",
          settings={**settings, "MODEL.NAME": "pretrain"})
    out = train(programs, images, tmp_path, "main_finetune.py", "--pretrained", tmp_path / "pretrain/default/encoder.pth",
                recipe="configs/mixer_pretrain.yaml", settings={**settings, "MODEL.NAME": "finetune", "TRAIN.LAYER_DECAY": 0.8})
    assert "2 missing (head.weight, head.bias)" in out
