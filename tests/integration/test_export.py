"""tools/export.py: written programs give what the model gives, and nothing is written that does not."""
import copy
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from models.build import ENCODERS
from tests.contracts.tiny import CLASSES, VARIANTS, build, make_config, make_images
from tools import export
from tools.convert import convert
from utils.checkpoint import save_checkpoint
from utils.cli import run

BATCHES = (1, 5)


NAMES = [f"class {i} \u732b" for i in range(CLASSES)]


def prepare(folder, name, features=False, **more):
    """A recipe and a checkpoint in a folder, the model that stands in the latter, and what it gives for images."""
    config = make_config(name, next(iter(VARIANTS.get(name, ["tiny"]))))
    model = build(config, is_pretrain=False)
    if features:
        pretrained = build(config, is_pretrain=True)
        model = pretrained.encoder
        save_checkpoint(folder / "weights.pth", {"model": pretrained.state_dict()})
    else:
        save_checkpoint(folder / "weights.pth", {"model": model.state_dict(), **more})
    (folder / "recipe.yaml").write_text(config.dump(), encoding="utf-8")
    return SimpleNamespace(config=config, model=model, arguments=["--cfg", folder / "recipe.yaml", "--weights",
                                                                  folder / "weights.pth"])


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    export.main(export.parse_arguments())


def refused(monkeypatch, capsys, *arguments):
    """What stands on stderr."""
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        run(export.main, export.parse_arguments())
    assert stopped.value.code == 2
    return capsys.readouterr().err


@torch.no_grad()
def assert_equal_to_model(case, program, batches):
    for batch in batches:
        images = make_images(case.config, batch)
        expected = case.model(images)
        assert (program(images) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture
def onnx():
    """Path -> function of images; the test is skipped where a package is not installed."""
    for package in export.ONNX_PACKAGES:
        pytest.importorskip(package, reason=f"needs {package}: pip install {package}")
    return onnx_program


def onnx_program(path):
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def metadata_of(path):
    import onnxruntime
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map


# ---- torch.export -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ENCODERS)
def test_features_as_torch_program_are_those_of_the_encoder(name, tmp_path, monkeypatch, capsys):
    case = prepare(tmp_path, name, features=True)
    call(monkeypatch, *case.arguments, "--features", "--to", "torch", tmp_path / "encoder.pt2")
    assert_equal_to_model(case, torch.export.load(tmp_path / "encoder.pt2").module(), [1])
    assert "encoder.pt2" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.pt2", "recipe.yaml", "weights.pth"]


@pytest.mark.parametrize("names", [NAMES, None])
def test_classifier_as_torch_program_takes_any_batch_and_knows_its_classes(names, tmp_path, monkeypatch, capsys):
    case = prepare(tmp_path, "swin" if names else "vit", **({"classes": names} if names else {}))
    extra = {"classes": ""}
    call(monkeypatch, *case.arguments, "--to", "torch", tmp_path / "classifier.pt2", "--dynamic-batch")
    program = torch.export.load(tmp_path / "classifier.pt2", extra_files=extra).module()
    assert extra["classes"] == (json.dumps(names, ensure_ascii=False) if names else "")
    assert (f"with the names of its {CLASSES} classes" if names else "so it holds none") in capsys.readouterr().out
    assert program(make_images(case.config, 4)).shape == (4, CLASSES)
    assert_equal_to_model(case, program, BATCHES)


@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_classifier_of_another_project_is_exported_as_it_is(layout, tmp_path, monkeypatch):
    case, theirs, program = prepare(tmp_path, "swin"), tmp_path / "theirs.safetensors", tmp_path / "classifier.pt2"
    convert(tmp_path / "weights.pth", theirs, layout)
    call(monkeypatch, *case.arguments, "--weights", theirs, "--to", "torch", program)
    assert_equal_to_model(case, torch.export.load(program).module(), [1])


# ---- ONNX ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ENCODERS)
def test_classifier_as_onnx_takes_any_batch(name, onnx, tmp_path, monkeypatch):
    case = prepare(tmp_path, name, classes=NAMES)
    call(monkeypatch, *case.arguments, "--to", "onnx", tmp_path / "classifier.onnx", "--dynamic-batch")
    assert_equal_to_model(case, onnx(tmp_path / "classifier.onnx"), BATCHES)
    assert json.loads(metadata_of(tmp_path / "classifier.onnx")["classes"]) == NAMES


def test_onnx_of_a_large_model_has_its_weights_in_a_second_file(onnx, tmp_path, monkeypatch):
    case = prepare(tmp_path, "vit", features=True)
    monkeypatch.setattr(export, "LARGEST_FILE", 0)
    call(monkeypatch, *case.arguments, "--features", "--to", "onnx", tmp_path / "encoder.onnx", "--opset", 18)
    assert (tmp_path / "encoder.onnx.data").is_file() and "classes" not in metadata_of(tmp_path / "encoder.onnx")
    assert_equal_to_model(case, onnx(tmp_path / "encoder.onnx"), [1])


def test_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    find = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name))
    case = prepare(tmp_path, "vit")
    error = refused(monkeypatch, capsys, *case.arguments, "--to", "onnx", tmp_path / "classifier.onnx")
    assert "pip install onnx onnxscript onnxruntime" in error


# ---- what is refused ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("taken.pt2", [], "taken.pt2 exists"), ("model.onnx", [], "must end in .pt2"), ("no/model.pt2", [], "no does not exist"),
    ("model.pt2", ["--opset", 18], "--opset 18")])
def test_target_that_can_not_be_written_is_refused(name, arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken.pt2").write_text("mine")
    case = prepare(tmp_path, "vit")
    error = refused(monkeypatch, capsys, *case.arguments, "--to", "torch", tmp_path / name, *arguments)
    assert message in error and (tmp_path / "taken.pt2").read_text() == "mine"


def test_force_writes_over_a_file(tmp_path, monkeypatch):
    (tmp_path / "taken.pt2").write_text("mine")
    case = prepare(tmp_path, "vit", features=True)
    call(monkeypatch, *case.arguments, "--features", "--to", "torch", tmp_path / "taken.pt2", "--force")
    assert_equal_to_model(case, torch.export.load(tmp_path / "taken.pt2").module(), [1])


def test_folder_is_not_replaced(tmp_path, monkeypatch, capsys):
    (tmp_path / "model.pt2").mkdir()
    case = prepare(tmp_path, "vit")
    error = refused(monkeypatch, capsys, *case.arguments, "--to", "torch", tmp_path / "model.pt2", "--force")
    assert "model.pt2 is a folder" in error


def test_file_that_does_not_fit_on_the_disk_leaves_the_old_one(forks, tmp_path):
    (tmp_path / "taken.pt2").write_text("mine")
    case = prepare(tmp_path, "vit")
    (tmp_path / "limit.py").write_text("import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n")
    arguments = [*case.arguments, "--to", "torch", tmp_path / "taken.pt2", "--force"]
    [(pid, _, err)] = forks.start([("tools/export.py", arguments, {})], prelude=tmp_path / "limit.py")
    assert forks.codes([pid], wait=True) == [2] and "error: [Errno" in err.read_text().splitlines()[-1]
    assert (tmp_path / "taken.pt2").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["limit.py", "recipe.yaml", "taken.pt2", "weights.pth"]


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_program_with_other_weights_is_not_kept(ending, tmp_path, monkeypatch, capsys, request):
    if ending == ".onnx":
        request.getfixturevalue("onnx")
    name = {".pt2": "torch", ".onnx": "onnx"}[ending]
    write = getattr(export, f"write_{name}")

    def write_another(model, *arguments):
        another = copy.deepcopy(model)
        another.head.bias.data[1] += 0.02
        write(another, *arguments)

    monkeypatch.setattr(export, f"write_{name}", write_another)
    case = prepare(tmp_path, "vit")
    error = refused(monkeypatch, capsys, *case.arguments, "--to", name, tmp_path / f"classifier{ending}")
    assert "the exported program differs from the model by" in error and "nothing was written" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "weights.pth"]


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_program_that_differs_from_the_model_is_not_kept(difference, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "largest_difference", lambda *_: difference)
    case = prepare(tmp_path, "vit")
    error = refused(monkeypatch, capsys, *case.arguments, "--to", "torch", tmp_path / "classifier.pt2")
    assert "--tolerance 1.0e-04" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "weights.pth"]


def test_checkpoint_without_a_head_is_no_classifier(tmp_path, monkeypatch, capsys):
    case = prepare(tmp_path, "swin", features=True)
    error = refused(monkeypatch, capsys, *case.arguments, "--to", "torch", tmp_path / "classifier.pt2")
    assert "no classification head" in error and "--features" in error


def test_checkpoint_that_lacks_weights_of_the_output_is_refused(tmp_path, monkeypatch, capsys):
    case = prepare(tmp_path, "vit")
    mean = ["--opts", "MODEL.VIT.USE_MEAN_POOLING", "True"]  # which wants an fc_norm
    error = refused(monkeypatch, capsys, *case.arguments, "--to", "torch", tmp_path / "classifier.pt2", *mean)
    assert "no weights for fc_norm.weight" in error
