"""Folders that a config names: none outside of the output folder, and ~ for the home folder."""
import re
from pathlib import Path

import pytest

from config import flatten, load_config, run_folder, with_values
from utils.cli import parse_arguments

PATHS = ("DATA.DATA_PATH", "DATA.VAL_PATH", "MODEL.RESUME", "PRETRAINED", "PROBE.CACHE", "OUTPUT")


@pytest.mark.parametrize("name", ["a/../../../x", "..", "/tmp/x", "", ".", "./", "//x", "~", "~/x", "a/.."])
@pytest.mark.parametrize("key", ["TAG", "MODEL.NAME"])
def test_run_folder_outside_of_the_output_is_refused(key, name):
    with pytest.raises(ValueError, match=rf"^{re.escape(key)}='.*' must name a folder below OUTPUT.*--output"):
        load_config(opts=[key, name])


@pytest.mark.parametrize("name", ["a", "a/b", "a/", "..a", "a..b", ".hidden", "2024-01-31", "ünï 日本", "a\nb", "a~"])
@pytest.mark.parametrize("key", ["TAG", "MODEL.NAME"])
def test_other_names_are_taken_as_they_are(key, name):
    assert flatten(load_config(opts=[key, name]))[key] == name


@pytest.mark.parametrize("key", [*PATHS, "TAG", "MODEL.NAME", "AUG.AUTO_AUGMENT"])
def test_byte_of_zero_is_refused(key):
    with pytest.raises(ValueError, match=rf"^{re.escape(key)}='a\\x00b' holds a byte of 0"):
        load_config(opts=[key, "a\0b"])


@pytest.mark.parametrize("key", PATHS)
def test_tilde_is_the_home_folder(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert flatten(load_config(opts=[key, "~/x"]))[key] == "/home/someone/x"
    assert flatten(load_config(opts=[key, "a/~/x"]))[key] == "a/~/x"
    assert flatten(load_config(opts=[key, "https://host/~someone/x.pth"]))[key] == "https://host/~someone/x.pth"


def test_tilde_of_a_flag_and_of_a_file_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("DATA: {DATA_PATH: ~/images}\nTAG: t\nMODEL: {NAME: n}\n")
    path, opts = parse_arguments("", ["--cfg=~/recipe.yaml", "--output=~/runs"])
    config = load_config(path, opts)
    assert Path(config.DATA.DATA_PATH) == tmp_path / "images"
    assert Path(run_folder(config)) == tmp_path / "runs" / "n" / "t"
    assert with_values(config, OUTPUT="~/other").OUTPUT == str(tmp_path / "other")


@pytest.mark.parametrize("key", PATHS)
def test_variable_of_the_environment_is_replaced(key, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOWHERE", raising=False)
    for given, meant in (("$SCRATCH/x", "/scratch/me/x"), ("${SCRATCH}/x", "/scratch/me/x"), ("/a/$SCRATCH", "/a//scratch/me"),
                         ("/a/5$", "/a/5$"), ("it costs $NOWHERE", "it costs $NOWHERE")):
        assert flatten(load_config(opts=[key, given]))[key] == meant
    for given in ("$NOWHERE/x", "/a/${NOWHERE}"):
        with pytest.raises(ValueError, match=rf"{re.escape(key)}=.* NOWHERE is not set.*export NOWHERE"):
            load_config(opts=[key, given])


def test_folder_that_has_the_name_of_a_variable_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$NOWHERE").mkdir()
    assert load_config(opts=["DATA.DATA_PATH", "$NOWHERE"]).DATA.DATA_PATH == "$NOWHERE"


@pytest.mark.parametrize("word", ["no", "off", "yes", "True"])
@pytest.mark.parametrize("key", ["TAG", "DATA.VAL_PATH", "AUG.AUTO_AUGMENT"])
def test_word_that_yaml_takes_for_a_bool_is_no_text(key, word, tmp_path):
    """A run named no had the folder False."""
    section, _, name = key.rpartition(".")
    path = tmp_path / "a.yaml"
    path.write_text(f"{section}: {{{name}: {word}}}" if section else f"{name}: {word}")
    with pytest.raises(ValueError, match=rf"a\.yaml: {re.escape(key)}=(True|False) is bool, expected text.*in quotes alone"):
        load_config(path)
    if key == "TAG":
        path.write_text(f"{name}: '{word}'")
        assert load_config(path).TAG == word


def test_folder_as_a_recipe_names_one_that_is_in_it():
    with pytest.raises(FileNotFoundError, match=r"configs/demo is a folder: name a recipe in it, e\.g\. convmae_\w+\.yaml"):
        load_config("configs/demo")
