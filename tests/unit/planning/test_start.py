"""From a folder to a recipe, and where it lies."""
import shlex

import pytest
import torch

from config import load_config
from planning import recipe, start, values
from planning.facts import Cost, Images, Machine
from planning.machine import free_memory, measured
from planning.start import Plan, default_tag, free_run, keep_out, with_recipe
from tests import drawn
from tests.integration.processes import in_process
from tools import recipe as tool

from ..helpers import tiny_config


@pytest.fixture
def quick(monkeypatch):
    """Nothing is timed: a step of any encoder takes a millisecond an image."""
    monkeypatch.setattr(start, "measured", lambda *_: Cost(1e-3, 0, 2 ** 20))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "my icons, all of them"
    drawn.icons(folder, 3)
    return folder


def test_tool_writes_a_recipe_with_reasons_and_commands_to_paste(quick, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = in_process(tool, "--data-path", data, "--hours", 0.1).checked()
    path = tmp_path / "pretrain_my_icons_all_of_them.yaml"
    config = load_config(path)
    assert (config.DATA.DATA_PATH, config.TAG, config.DATA.BACKGROUND) == (str(data), "my_icons_all_of_them", "white")
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# SimMIM") and "18 images" in lines[0]
    assert [line[:12] for line in lines[1:4]] == ["# Expected: ", "# Hardware: ", "# Command:  "]
    assert any(line.strip().startswith("MASK_PATCH_SIZE: 8  # ours: ") for line in lines)
    assert all(len(line) <= 128 for line in lines if str(data) not in line)
    commands = [shlex.split(line.partition("    #")[0]) for line in result.out.splitlines() if line.startswith("python ")]
    assert [command[1] for command in commands] == ["main_simmim.py", "main_finetune.py", "main_finetune.py", "inference.py",
                                                    "main_linprobe.py", "inference.py"]
    assert commands[1][2:] == ["--pretrained", "output/simmim_pretrain/my_icons_all_of_them/encoder.pth", "--data-path",
                               str(data)]


def test_tool_writes_over_nothing_and_not_into_the_images(quick, data, tmp_path, monkeypatch):
    target = tmp_path / "own.yaml"
    target.write_text("mine")
    assert "exists, and nothing is written over" in in_process(tool, "--data-path", data, "--output", target).err
    assert target.read_text() == "mine"
    monkeypatch.chdir(data)
    assert "into which nothing is written" in in_process(tool, "--data-path", data).err
    assert not list(data.glob("*.yaml"))


@pytest.mark.parametrize("flags, words", [
    (["--opts", "SEED", "3"], "--opts SEED: the choice reckons with"), (["--pretrained", "x.pth"], "add --for finetune"),
    (["--opts", "DATA.IMG_SIZE"], "takes pairs"), (["--opts", "DATA.IMG_SIZE", "[32,64]"], "images are square"),
    (["--for", "finetune", "--pretrained", "absent.pth"], "absent.pth")])
def test_wrong_flags_of_the_tool_are_one_line(quick, data, tmp_path, flags, words):
    result = in_process(tool, "--data-path", data, "--output", tmp_path / "a.yaml", *flags)
    assert result.code == 2 and words in result.err.splitlines()[-1]


def test_settled_size_and_encoder_are_reckoned_with(quick, data, tmp_path):
    in_process(tool, "--data-path", data, "--output", tmp_path / "a.yaml", "--encoder", "vit", "--opts", "DATA.IMG_SIZE",
               96).checked()
    config = load_config(tmp_path / "a.yaml")
    assert (config.MODEL.TYPE, config.DATA.IMG_SIZE, config.DATA.MASK_PATCH_SIZE) == ("vit", 96, 16)


def test_fine_tuning_of_a_folder_without_classes_says_what_it_needs(quick, data, tmp_path):
    result = in_process(tool, "--data-path", data / "disc", "--for", "finetune", "--output", tmp_path / "a.yaml")
    assert result.code == 2 and "fine-tuning needs labels, a folder for each of several classes" in result.err


def test_folder_without_classes_is_told_what_needs_labels(quick, data, tmp_path):
    result = in_process(tool, "--data-path", data / "disc", "--output", tmp_path / "a.yaml").checked()
    assert "need labels" in result.out and "--features" in result.out and "main_finetune" not in result.out


# ---- programs without --cfg ---------------------------------------------------------------------------------------

def test_recipe_that_is_named_is_left_alone():
    assert with_recipe("a.yaml", ["DATA.DATA_PATH", "x"], "pretrain") == ("a.yaml", ["DATA.DATA_PATH", "x"])
    assert with_recipe(None, ["MODEL.RESUME", "x.pth", "DATA.DATA_PATH", "x"], "finetune")[0] is None


def test_hours_beside_a_recipe_are_refused():
    with pytest.raises(ValueError, match="--hours bounds a run whose settings are chosen"):
        with_recipe("a.yaml", ["DATA.DATA_PATH", "x", "HOURS", 2.0], "pretrain")


def test_recipe_is_chosen_once_and_then_read_again(quick, data, tmp_path):
    opts = ["DATA.DATA_PATH", str(data), "OUTPUT", str(tmp_path / "out"), "HOURS", 0.1]
    path, left = with_recipe(None, opts, "pretrain")
    assert path == str(tmp_path / "out" / "simmim_pretrain" / "my_icons_all_of_them" / "recipe.yaml") and "HOURS" not in left
    before = (tmp_path / path).read_text()
    assert with_recipe(None, opts, "pretrain") == with_recipe(None, opts[:4], "pretrain") == (path, left)
    with pytest.raises(ValueError, match="was chosen for --hours 0.1: to go on with it, leave out --hours 5.*--tag .*_5h"):
        with_recipe(None, [*opts[:4], "HOURS", 5.0], "pretrain")
    assert (tmp_path / path).read_text() == before


def test_other_images_of_the_same_name_get_another_run(tmp_path):
    (tmp_path / "runs" / "birds").mkdir(parents=True)
    (tmp_path / "runs" / "birds" / "recipe.yaml").write_text(f"DATA:\n  DATA_PATH: {tmp_path / 'a' / 'birds'}\n")
    assert free_run(tmp_path / "runs", "birds", tmp_path / "a" / "birds").name == "birds"
    assert free_run(tmp_path / "runs", "birds", tmp_path / "b" / "birds").name == "birds_2"


def test_run_of_a_named_recipe_is_not_mixed_with_a_chosen_one(quick, data, tmp_path):
    run = tmp_path / "out" / "simmim_pretrain" / "mine"
    run.mkdir(parents=True)
    (run / "ckpt_epoch_0.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="holds a run of a recipe that was named"):
        with_recipe(None, ["DATA.DATA_PATH", str(data), "OUTPUT", str(tmp_path / "out"), "TAG", "mine"], "pretrain")


@pytest.mark.parametrize("folder, given, tag", [
    ("/data/My Birds!", {"PRETRAINED": "x"}, "My_Birds"), ("/data/birds/train", {"PRETRAINED": "x"}, "birds"),
    ("/data/birds", {}, "birds_scratch"), ("/data/..odd", {"PRETRAINED": "x"}, "odd")])
def test_run_is_named_after_its_images(folder, given, tag):
    assert default_tag(folder, "finetune", given) == tag


def test_nothing_is_written_into_the_folder_of_the_images(tmp_path):
    keep_out(tmp_path / "out", tmp_path / "data", "--output")
    for place in (tmp_path / "data", tmp_path / "data" / "sub" / "out"):
        with pytest.raises(ValueError, match="into which nothing is written: choose another place with --output"):
            keep_out(place, tmp_path / "data", "--output")


@pytest.mark.parametrize("given, words", [({"MODEL.METHOD": "mae"}, "chosen for simmim, not for MODEL.METHOD=mae"),
                                          ({"MODEL.TYPE": "mixmim"}, "the encoder is one of swin, swinv2, vit")])
def test_what_is_not_chosen_is_said(given, words, quick, data):
    with pytest.raises(ValueError, match=words):
        start.plan(data, "pretrain", given)


# ---- text ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seconds, text", [(40, "40 seconds"), (600, "10 minutes"), (36_000, "10 hours"),
                                           (864_000, "10.0 days")])
def test_time_in_words(seconds, text):
    assert recipe.duration(seconds) == text


def test_long_reason_stands_above_its_value():
    choice = values.Choice("pretrain")
    choice.set("MODEL.TYPE", "vit", "x" * 120)
    choice.set("DATA.DATA_PATH", "/a: b", "", False)
    choice.set("DATA.BATCH_SIZE", 8, "short", False)
    text = recipe.recipe_text(choice, Images(9), Machine(), "/a: b", "r.yaml")
    assert f"MODEL:\n  # ours: {'x' * 120}\n  TYPE: vit\nDATA:\n  DATA_PATH: '/a: b'\n  BATCH_SIZE: 8  # short\n" in text


def test_plan_of_fine_tuning_names_its_own_run():
    choice = values.Choice("finetune")
    plan = Plan(choice, Images(9, classes=2), Machine(), "/data")
    plan.name_run("birds", "simmim_finetune")
    assert [line for title, line in plan.commands("out") if title.startswith("evaluate")] == [
        "python main_finetune.py --eval --resume out/simmim_finetune/birds/ckpt_best.pth --data-path /data"]


# ---- measuring ----------------------------------------------------------------------------------------------------

def test_steps_of_a_model_are_timed_and_its_memory_is_counted():
    config = tiny_config("swin")
    found = measured(config, True, torch.device("cpu"), Machine(), longest=0.0)
    assert 0 < found.seconds < 60 and found.fixed > 0 and found.activations > 0


def test_model_that_does_not_fit_is_not_run():
    assert measured(tiny_config("swin"), True, torch.device("cpu"), Machine(memory=2 ** 10)).seconds == float("inf")


def test_free_memory_is_that_of_the_system_or_of_its_container(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  2048 kB\n")
    (tmp_path / "max").write_text("1048576\n")
    monkeypatch.setattr("planning.machine.MEMINFO", str(tmp_path / "meminfo"))
    monkeypatch.setattr("planning.machine.CGROUP", str(tmp_path / "max"))
    assert free_memory() == 2 ** 20
    (tmp_path / "max").write_text("max\n")
    assert free_memory() == 2 ** 21
