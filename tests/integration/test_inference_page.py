"""docs/inference.md does what it says, and inference.py as a command; tiny models stand behind the names of large ones."""
import json
import os
import re
import shlex
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from config import dump, load_config
from inference import get_model, imagenet_classes
from models.weights import zoo
from tests.unit.helpers import TINY

from .processes import ROOT
from .recipes import CLASSES, save_image, write_recipe

DOC = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", DOC, flags=re.DOTALL)
PYTHON = [code for kind, code in BLOCKS if kind == "python"]
COMMANDS = [line for kind, code in BLOCKS if kind == "bash" for line in code.replace("\\\n", " ").splitlines()]
MAE = {"MODEL.METHOD": "mae", "MODEL.VIT.USE_SHARED_RPB": False, "MODEL.VIT.K_BIAS": True, "MODEL.MAE.DECODER_EMBED_DIM": 16,
       "MODEL.MAE.DECODER_DEPTH": 1, "MODEL.MAE.DECODER_NUM_HEADS": 2, "DATA.MASK_ROUND": "visible_down"}
RECIPES = {  # what stands behind a name, by its beginning and task
    ("simmim_swin", "classification"): {**TINY["swin"], "MODEL.NUM_CLASSES": 1000, "MODEL.NAME": "simmim_finetune"},
    ("simmim_swin", "pretrain"): {**TINY["swin"], "MODEL.NAME": "simmim_pretrain"},
    ("mae_vit", "pretrain"): {**TINY["vit"], **MAE, "MODEL.NAME": "mae_pretrain"}}
RELEASED = ("simmim_swin_base_800ep_ft224_mmpretrain", "mae_vit_base_1600ep_mmpretrain")
ENCODER_ALONE = "mae_vit_base_1600ep"  # as its authors released it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, released weights, and the run folder of a fine-tuning."""
    root = tmp_path_factory.mktemp("place")
    rng = np.random.RandomState(3)
    for i, path in enumerate(("bird.jpg", "cat.jpg", "photos/a.png", "photos/more/b.png")):
        save_image(root / path, rng, i)
    for name in CLASSES[:5]:
        save_image(root / "data" / "train" / name / "0.png", rng, 1)
    for (method, task), settings in RECIPES.items():
        write_recipe(root / "recipes" / f"{method}_{task}.yaml", settings)
    (root / "weights").mkdir()
    for name, recipe in zip(RELEASED, ("simmim_swin_classification", "mae_vit_pretrain"), strict=True):
        torch.save({"model": get_model(root / "recipes" / f"{recipe}.yaml").state_dict()}, root / "weights" / f"{name}.pth")
    encoder = get_model(root / "recipes" / "mae_vit_pretrain.yaml").encoder
    torch.save({"model": encoder.state_dict()}, root / "weights" / f"{ENCODER_ALONE}.pth")
    run = root / "output" / "finetune" / "default"
    run.mkdir(parents=True)
    config = load_config(root / "recipes" / "simmim_swin_classification.yaml", ["MODEL.NUM_CLASSES", 5])
    (run / "config.yaml").write_text(config.dump(), encoding="utf-8")
    torch.save({"model": get_model(run / "config.yaml").state_dict(), "classes": list("abcde"),
                "config": dump(config, "finetune")}, run / "ckpt_best.pth")
    pretrained = root / "output" / "pretrain" / "default"
    pretrained.mkdir(parents=True)
    model = get_model(root / "recipes" / "mae_vit_pretrain.yaml")
    for part, name in ((model, "ckpt_epoch_9.pth"), (model.encoder, "encoder.pth")):
        torch.save({"model": part.state_dict(), "config": dump(model.recipe.config, "pretrain")}, pretrained / name)
    return root


@pytest.fixture
def place(folder, monkeypatch, tmp_path):
    """Working folder with all that, and tiny models in the zoo."""
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    real = zoo.find

    def find(name):
        entry = real(name)
        recipe = next((f"{method}_{task}" for method, task in RECIPES
                       if entry.name.startswith(method) and entry.task == task), None)
        config = str(folder / "recipes" / f"{recipe}.yaml") if recipe else entry.config
        nowhere = f"http://127.0.0.1:1/{entry.name}.pth"  # a test downloads nothing
        return replace(entry, config=config, opts=(), filename=f"{entry.name}.pth", sha256=None, url=nowhere)

    monkeypatch.setattr(zoo, "find", find)
    monkeypatch.setenv("SIMMIM_WEIGHTS", str(folder / "weights"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(monkeypatch, capsys, *words):
    """(exit code, stdout, stderr) of `python inference.py <words>`."""
    monkeypatch.setattr(sys, "argv", ["inference.py", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        inference.run(inference.main, inference.parse_arguments())
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.splitlines()[-1][:40])
def test_python_of_the_page_runs(code, place, caplog):
    exec(code.replace("<path of the clone>", str(ROOT)), {})
    assert "has no decoder that fits" not in caplog.text
    if "bird_reconstructed.png" in code:
        assert Image.open(place / "bird_reconstructed.png").height > 32


@pytest.mark.parametrize("line", COMMANDS)
def test_command_of_the_page_runs(line, place, monkeypatch, capsys):
    program, script, *words = shlex.split(line)
    assert (program, script) == ("python", "inference.py")
    code, out, err = command(monkeypatch, capsys, *words)
    assert code == 0 and out and [line for line in err.splitlines() if "has no decoder that fits" not in line] == []
    targets = [words[i + 1] for i, word in enumerate(words) if word in ("--features", "--reconstruct")]
    assert all((place / target).is_file() for target in targets)


def test_file_of_an_encoder_alone_reconstructs_nothing(place, monkeypatch, capsys):
    """The page must not ask it to."""
    assert "the file holds the encoder alone" in zoo.find(ENCODER_ALONE).note
    code, _, err = command(monkeypatch, capsys, "--model", ENCODER_ALONE, "bird.jpg", "--reconstruct", "x.png")
    assert code == 2 and "has no decoder" in err


def test_page_shows_python_and_commands():
    assert len(PYTHON) >= 3 and len(COMMANDS) >= 6


def test_predictions_are_a_table_with_the_best_classes(place, monkeypatch, capsys):
    _, out, _ = command(monkeypatch, capsys, "--model", RELEASED[0], "photos", "bird.jpg", "--topk", 2)
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[::2][:1]] == ["image"] and len(lines) == 1 + 3 * 2
    assert [line.split()[0] for line in lines[1::2]] == ["photos/a.png", "photos/more/b.png", "bird.jpg"]
    assert len({len(line) for line in lines}) == 1  # aligned on the right


def test_predictions_as_json_are_those_of_python(place, monkeypatch, capsys):
    _, out, _ = command(monkeypatch, capsys, "--model", RELEASED[0], "bird.jpg", "cat.jpg", "--json")
    expected = inference.inference_model(RELEASED[0], ["bird.jpg", "cat.jpg"], device="cpu")
    assert [(found["image"], found["pred_label"], found["pred_class"]) for found in json.loads(out)] == [
        (name, result["pred_label"], imagenet_classes()[result["pred_label"]])
        for name, result in zip(("bird.jpg", "cat.jpg"), expected, strict=True)]


def test_features_are_written_with_their_paths(place, monkeypatch, capsys):
    command(monkeypatch, capsys, "--model", RELEASED[1], "photos", "bird.jpg", "--features", "out.npz")
    with np.load("out.npz") as written:
        assert written["paths"].tolist() == ["photos/a.png", "photos/more/b.png", "bird.jpg"]
        expected = inference.extract_feat(RELEASED[1], written["paths"].tolist(), device="cpu")[0]
        assert np.array_equal(written["features"], expected.numpy())


def test_list_shows_the_models_that_match(monkeypatch, capsys):
    code, out, _ = command(monkeypatch, capsys, "--list", "simmim_vit")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:]] == zoo.list_models("simmim_vit")


def test_list_shows_the_models_of_a_task(monkeypatch, capsys):
    _, out, _ = command(monkeypatch, capsys, "--list", "simmim_vit", "--task", "pretrain")
    assert [line.split()[0] for line in out.splitlines()[1:]] == zoo.list_models("simmim_vit", "pretrain")


@pytest.mark.parametrize("flag", ["--features", "--reconstruct"])
def test_interrupted_write_leaves_no_file(flag, place, monkeypatch, capsys):
    def half(*_, **__):
        (place / f".{os.getpid()}.x{ending}").write_bytes(b"half")
        raise OSError("no space left")

    ending = {"--features": ".npz", "--reconstruct": ".png"}[flag]
    monkeypatch.setattr(np, "savez", half)
    monkeypatch.setattr(Image.Image, "save", half)
    before = sorted(path.name for path in place.iterdir())
    code, out, err = command(monkeypatch, capsys, "--model", RELEASED[1], "bird.jpg", flag, f"x{ending}")
    assert (code, out) == (2, "") and "no space left" in err
    assert sorted(path.name for path in place.iterdir()) == before


def test_flags_reach_get_model(place, monkeypatch, capsys):
    asked = []

    def get_model(*arguments, **settings):
        asked.append((arguments, settings))
        raise ValueError("enough")

    monkeypatch.setattr(inference, "get_model", get_model)
    flags = ["--weights-dir", "there", "--task", "classification", "--classes", "data", "--device", "cuda:1"]
    command(monkeypatch, capsys, "--model", RELEASED[0], "bird.jpg", *flags, "--opts", "MODEL.DROP_RATE", "0.5")
    assert asked == [((RELEASED[0], True, "cuda:1", "there", "classification", "data"), {"MODEL.DROP_RATE": "0.5"})]


def test_missing_image_and_target_are_said_before_a_model_is_made(place, monkeypatch, capsys):
    monkeypatch.setattr(inference, "get_model", lambda *_, **__: pytest.fail("a model was made"))
    for words in (["none.jpg"], ["bird.jpg", "--features", "none/x.npz"], ["bird.jpg", "--reconstruct", "x.xyz"]):
        code, _, err = command(monkeypatch, capsys, "--model", RELEASED[1], "--features", "y.npz", *words)
        assert code == 2 and err.startswith("error: ")


@pytest.mark.parametrize(("words", "message"), [
    (["--model", "simmim_swin_bas", "bird.jpg"], "model 'simmim_swin_bas' is unknown. Did you mean"),
    (["--model", RELEASED[0]], "nothing to do: pass --model"),
    (["bird.jpg"], "nothing to do: pass --model"),
    (["--model", RELEASED[0], "none.jpg"], "image none.jpg does not exist"),
    (["--model", RELEASED[0], "bird.jpg", "--topk", "0"], "topk=0 (--topk) must be at least 1"),
    (["--model", RELEASED[1], "bird.jpg"], "is a pre-training model and predicts no classes"),
    (["--model", RELEASED[1], "bird.jpg", "--features", "cat.jpg"], "cat.jpg exists and is not written over"),
    (["--model", RELEASED[1], "bird.jpg", "--features", "out.txt"], "--features out.txt must end in .npz"),
    (["--model", RELEASED[0], "bird.jpg", "--opts", "MODEL.DROP_RATE"], "--opts takes pairs KEY VALUE"),
    (["--model", RELEASED[0], "bird.jpg", "--opts", "MODEL.NUM_CLASSES", "7"], "has no head that fits"),
    (["--model", "recipes/simmim_swin_classification.yaml", "bird.jpg"], "is a recipe, which has none"),
    (["--model", RELEASED[0], "bird.jpg", "--output", "map"], "--output map says nothing without --features"),
    (["--model", RELEASED[1], "bird.jpg", "--mask-ratio", "0.5"], "--mask-ratio 0.5 says nothing without --reconstruct"),
    (["--model", RELEASED[1], "bird.jpg", "--json", "--features", "x.npz"], "--json is for predictions"),
    (["--model", RELEASED[1], "bird.jpg", "--topk", "3", "--features", "x.npz"], "--topk 3 is for predictions"),
    (["--model", RELEASED[0], "bird.jpg", "--classes", "data", "--features", "x.npz"], "--classes data is for predictions"),
    (["--model", RELEASED[0], "bird.jpg", "--seed", "0"], "--seed 0 says nothing without --reconstruct"),
    (["--model", RELEASED[1], "bird.jpg", "--reconstruct", "x.png", "--batch-size", "2"], "--batch-size 2 says nothing to"),
    (["--model", RELEASED[0], "bird.jpg", "--batch-size", "0"], "batch_size=0 must be at least 1"),
    (["--model", RELEASED[1], "bird.jpg", "--features", "none/x.npz"], "none is no folder that can be written to"),
    (["--model", RELEASED[1], "bird.jpg", "--reconstruct", "x.xyz"], "--reconstruct x.xyz must end in .png"),
    (["--model", RELEASED[0], "https://a.org/b.jpg"], "https://a.org/b.jpg is an address, and images are not downloaded"),
    (["--model", "run/ckpt_best.pth", "bird.jpg"], "checkpoint run/ckpt_best.pth does not exist"),
    (["--list", "--json"], "--list takes a pattern and --task alone: leave out json"),
    (["--list", "xyz", "--model", RELEASED[0]], "--list takes a pattern and --task alone: leave out model"),
    (["--list", "--task", "probe"], "task='probe' is unknown"),
    (["--model", RELEASED[0], "bird.jpg", "--reconstruct", "x.png"], "reconstructs nothing"),
    (["--list", "xyz"], "no model is named like 'xyz'")])
def test_mistake_is_one_line(words, message, place, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, *words)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and out == "" and len(errors) == 1 and message in errors[0]


def test_model_without_released_weights_says_what_to_do(place, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("SIMMIM_WEIGHTS", str(tmp_path))
    code, _, err = command(monkeypatch, capsys, "--model", RELEASED[1], "bird.jpg", "--features", "x.npz",
                           "--weights-dir", tmp_path / "empty")
    assert code == 2 and str(tmp_path / "empty" / f"{RELEASED[1]}.pth") in err and "127.0.0.1" in err


@pytest.fixture
def album(place):
    """Five images, of which one is broken, one a pipe, and one leads nowhere; one has a name that is no UTF-8."""
    folder = place / "album"
    folder.mkdir()
    for name in (b"a.png", b"e\xe9.png"):
        Image.new("RGB", (40, 30), (90, 60, 30)).save(os.path.join(os.fsencode(folder), name))
    (folder / "b.png").write_bytes(b"no image")
    os.mkfifo(folder / "c.png")
    (folder / "d.png").symlink_to("nowhere.png")
    return folder


def test_images_that_can_not_be_read_do_not_cost_the_others(album, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "--model", RELEASED[0], "album", "--topk", 1)
    assert code == 1 and [line.split()[0] for line in out.splitlines()] == ["image", "album/a.png", r"album/e\udce9.png"]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [line.partition("album/")[2][:5] for line in errors] == ["b.png", "c.png", "d.png"]
    assert "it is a named pipe" in errors[1]


def test_splits_that_are_read_as_one_are_said_beside_the_predictions(album, monkeypatch, capsys):
    for split, name in (("train", "a.png"), ("val", "b.png")):
        (album / split).mkdir()
        (album / name).rename(album / split / name)
    for name in ("c.png", "d.png", "e\udce9.png"):
        (album / name).unlink()
    _, out, err = command(monkeypatch, capsys, "--model", RELEASED[0], "album", "--json")
    assert "album holds train/, val/: the images of all of them are read. For one alone pass album/val" in err
    assert [one["image"] for one in json.loads(out)] == ["album/train/a.png", "album/val/b.png"]


def test_error_of_an_image_stands_beside_it_in_json(album, monkeypatch, capsys):
    code, out, _ = command(monkeypatch, capsys, "--model", RELEASED[0], "album", "--json")
    found = json.loads(out)
    assert code == 1 and [one["image"] for one in found] == [f"album/{name}.png" for name in ("a", "b", "c", "d", "e\udce9")]
    assert [sorted(one) for one in found[1:4]] == [["error", "image"]] * 3 and "error" not in found[0] | found[4]


def test_features_are_written_of_the_images_that_can_be_read(album, place, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "--model", RELEASED[1], "album", "--features", "x.npz")
    content = np.load(place / "x.npz")
    assert code == 1 and len(content["features"]) == len(content["paths"]) == 2 and "of 2 images" in out
    assert err.count("error: ") == 3


def test_reconstructions_are_drawn_of_the_images_that_can_be_read(album, place, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "--model", RELEASED[1], "album", "--reconstruct", "x.png")
    assert code == 1 and (place / "x.png").is_file() and "reconstructions of 2 images" in out
    assert err.count("error: ") == 3


@pytest.mark.parametrize("flags", [
    (RELEASED[0],), (RELEASED[1], "--features", "y.npz"), (RELEASED[1], "--reconstruct", "y.png")])
def test_folder_without_a_readable_image_is_one_error_and_writes_nothing(flags, album, place, monkeypatch, capsys):
    for name in (b"a.png", b"e\xe9.png"):
        os.remove(os.path.join(os.fsencode(album), name))
    code, out, err = command(monkeypatch, capsys, "--model", flags[0], "album", *flags[1:])
    assert code == 2 and out == "" and "none of 3 images can be read: album/b.png can't be read" in err
    assert not list(place.glob("y.*"))


def test_no_readable_image_at_all_is_one_error(album, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "--model", RELEASED[0], "album/b.png")
    assert code == 2 and out == "" and "none of 1 images can be read: album/b.png can't be read" in err
