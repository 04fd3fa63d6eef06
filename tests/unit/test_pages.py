"""The pages of docs/ that tools/pages.py makes are in step with what they are made from, and say what a reader needs."""
import re

import pytest

from config import load_config
from defaults import settings
from tools import pages, recipes_page, settings_page
from utils.settings import Setting

SETTINGS, RECIPES = (pages.path_of(name).read_text(encoding="utf-8") for name in ("settings", "recipes"))
FILES = sorted((pages.ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("name", pages.PAGES)
def test_page_is_in_step(name):
    assert pages.MAKERS[name]() == pages.path_of(name).read_text(encoding="utf-8"), "run python tools/pages.py"


def test_tool_writes_or_prints_the_pages_it_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pages, "path_of", lambda name: tmp_path / f"{name}.md")
    pages.main(pages.parse_arguments(["settings"]))
    assert [path.name for path in tmp_path.iterdir()] == ["settings.md"]
    assert (tmp_path / "settings.md").read_text(encoding="utf-8") == SETTINGS
    capsys.readouterr()
    pages.main(pages.parse_arguments(["recipes", "--print"]))
    assert capsys.readouterr().out == RECIPES


def test_unknown_page_is_refused(capsys):
    with pytest.raises(SystemExit):
        pages.parse_arguments(["setings"])
    assert "there is no page 'setings': choose from models, settings, recipes" in capsys.readouterr().err


# ---- settings -----------------------------------------------------------------------------------------------------

def test_every_setting_has_one_row():
    rows = re.findall(r"^\| `([A-Z0-9_.]+)` \|", SETTINGS, flags=re.MULTILINE)
    assert rows == [key for key in settings() if key != "BASE"]


def test_row_of_a_setting_says_what_was_declared():
    setting = Setting("a", "what it is", "pixels", choices=("a", ""), jobs=("probe",))
    assert settings_page.row("X.Y", setting) == ["`X.Y`", "`a`", 'a \\| ""', "probe", "what it is (pixels)"]


@pytest.mark.parametrize(("key", "section"), [("SEED", ""), ("DATA.IMG_SIZE", "DATA"), ("TRAIN.OPTIMIZER.NAME", "TRAIN"),
                                              ("MODEL.NAME", "MODEL"), ("MODEL.SIMMIM.NORM_TARGET.ENABLE", "MODEL.SIMMIM")])
def test_section_of_a_key(key, section):
    assert settings_page.section_of(key) == section


# ---- recipes ------------------------------------------------------------------------------------------------------

def test_every_recipe_has_a_section_and_every_folder_a_heading():
    linked = re.findall(r"^### \[.+?\]\(\.\./(.+?)\)$", RECIPES, flags=re.MULTILINE)
    assert sorted(linked) == [path.relative_to(pages.ROOT).as_posix() for path in FILES]
    assert recipes_page.FOLDERS.keys() <= {path.parent.name for path in FILES}


def test_links_of_the_contents_lead_to_headings():
    headings = {recipes_page.anchor(title) for title in re.findall(r"^## (.+)$", RECIPES, flags=re.MULTILINE)}
    assert set(re.findall(r"\(#(.+?)\)", RECIPES)) == headings


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_commands_of_a_recipe_name_that_recipe(path):
    header = recipes_page.read_header(path)
    for lines in header.commands.values():
        assert f" --cfg {header.path}" in " ".join(recipes_page.shown(lines)).replace("\\ ", "").replace("  ", " ")


def test_header_is_read_with_its_continued_lines_and_remarks(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes_page, "ROOT", tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text("# Paper: what\n# More.\n# Expected: 1\n#           2\n# Hardware: h\n# Command:  torchrun --nnodes 2 \\\n"
                    "#             --nproc_per_node 8 main.py --cfg a.yaml \\\n#             --batch-size 1\n"
                    "#           (or so)\n# The end\nMODEL:\n# not of the header\n")
    header = recipes_page.read_header(path)
    assert (header.title, header.expected, header.hardware) == ("Paper: what. More", "1 2", "h")
    assert header.remarks == ["(or so)", "The end"]
    assert recipes_page.shown(header.commands["Command"]) == [
        "torchrun --nnodes 2 \\", "  --nproc_per_node 8 main.py \\", "  --cfg a.yaml \\", "  --batch-size 1"]


def test_header_without_a_part_is_refused_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes_page, "ROOT", tmp_path)
    (tmp_path / "a.yaml").write_text("# Paper: what\n# Expected: 1\nMODEL: {}\n")
    with pytest.raises(ValueError, match=r"a\.yaml begins without Hardware, Command"):
        recipes_page.read_header(tmp_path / "a.yaml")


# ---- recipes under the names they had -------------------------------------------------------------------------------

OLD = [("swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep", "swin_base"),
       ("swin_base__800ep/simmim_finetune__swin_base__img224_window7__800ep", "swin_base"),
       ("swin_large__800ep/simmim_pretrain__swin_large__img192_window12__800ep", "swin_large"),
       ("swinv2_base__800ep/simmim_pretrain__swinv2_base__img192_window12__800ep", "swinv2_base"),
       ("vit_base__800ep/simmim_linprobe__vit_base__img224__800ep", "vit_base"),
       ("swinv2_g/simmim_pretrain__swinv2_g__img192_window12__20ep", "swinv2_giant_3b"),
       ("swinv2_giant/simmim_finetune__swinv2_giant__img224_window14__800ep", "swinv2_giant_1b")]


@pytest.mark.parametrize(("old", "folder"), OLD)
def test_recipe_is_found_under_its_former_path_with_a_line_that_says_the_new_one(old, folder, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from anywhere
    config = load_config(f"configs/{old}.yaml")
    line, = [record.getMessage() for record in caplog.records]
    new = line.removeprefix(f"configs/{old}.yaml is ").removesuffix(" now")
    assert (pages.ROOT / new).is_file() and f"configs/{folder}/" in new
    assert config.TAG == old.split("/")[1]  # runs that were begun go on in their folder
    assert {**dict(config), "TAG": ""} == {**dict(load_config(pages.ROOT / new)), "TAG": ""}


def test_recipe_of_today_is_found_from_anywhere_without_a_line(caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = FILES[0].relative_to(pages.ROOT)
    assert load_config(path) == load_config(FILES[0]) and not caplog.records


def test_file_beside_the_user_wins_over_that_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = FILES[0].relative_to(pages.ROOT)
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text("SEED: 77\n")
    assert load_config(path).SEED == 77


def test_base_may_name_a_recipe_by_its_former_path(tmp_path):
    (tmp_path / "own.yaml").write_text(f"BASE: {pages.ROOT}/configs/{OLD[0][0]}.yaml\nSEED: 5\n")
    config = load_config(tmp_path / "own.yaml")
    assert config.SEED == 5 and config.MODEL.SWIN.WINDOW_SIZE == 6
