"""tools/avgdist.py: the paper's table and figure of AvgDist."""
import json
import re

import pytest

from tools import avgdist, plots
from utils.cli import run

RECIPE = "configs/swin_base/simmim_pretrain__swin_base__img192_window6__100ep.yaml"
PUBLISHED = {(4, 0.6): 2.1, (16, 0.6): 7.4, (32, 0.1): 7.5, (32, 0.6): 15.6, (64, 0.6): 36.6}  # means of 40 masks by others
SMALL = ["--kinds", "random", "square", "--units", "32", "64", "--ratios", "0.6", "0.9", "--masks", "3"]


def answer(capsys, *arguments, code=0):
    """The console of the program; ends otherwise than with `code` fail."""
    with pytest.raises(SystemExit) as end:
        run(avgdist.main, avgdist.parse_arguments([str(word) for word in arguments]))
    out, err = capsys.readouterr()
    assert end.value.code == code, err
    return err if code else out


@pytest.mark.parametrize(("unit", "ratio"), PUBLISHED)
def test_mean_of_random_masks_is_near_that_of_others(unit, ratio):
    (row,) = avgdist.measure(["random"], [unit], [ratio], 192, 40, seed=1)
    assert row["avgdist"] == pytest.approx(PUBLISHED[unit, ratio], rel=0.12)


def test_table_has_a_line_for_each_kind_and_unit_and_a_dash_where_all_is_hidden(capsys):
    lines = [line.split() for line in answer(capsys, *SMALL).splitlines()]
    assert [line[:2] for line in lines[1:]] == [["random", "32"], ["random", "64"], ["square", "32"], ["square", "64"]]
    assert lines[0][-2:] == ["0.6", "0.9"] and lines[2][-1] == lines[4][-1] == "-"  # 9 units, of which 8.1 are rounded up


def test_json_holds_the_numbers_of_the_table(capsys):
    rows = json.loads(answer(capsys, *SMALL, "--json"))
    assert len(rows) == 8 and {"kind": "random", "unit": 64, "ratio": 0.9, "avgdist": None} in rows


def test_masks_of_a_recipe_are_measured(capsys):
    found = answer(capsys, "--cfg", RECIPE)
    assert "random masks of 32 px, ratio 0.6, within the 10 to 20 px" in found
    assert "outside of" in answer(capsys, "--cfg", RECIPE, "--masks", 3, "--opts", "DATA.MASK_PATCH_SIZE", 4)


def test_figure_has_a_panel_for_each_kind_with_the_band(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="draws a figure: pip install -r requirements-plots.txt")
    rows = avgdist.measure(["random", "square"], [32, 64], [0.5, 0.9], 192, 2, seed=0)
    first, second = avgdist.figure_of(rows).axes
    assert (first.get_title(), second.get_title()) == ("random masks", "square masks")
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["10 to 20 px", "units of 32 px", "units of 64 px"]
    assert [len(line.get_xdata()) for line in first.lines] == [2, 1]
    answer(capsys, *SMALL, "--out", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--kinds", "randm"], r"--kinds='randm' is unknown; valid: .*Did you mean 'random'"),
    (["--kinds", "file"], "one mask has no ratio"),
    (["--units", "20"], "must divide the image 192x192"),
    (["--cfg", RECIPE, "--units", "4"], "leave out --units"),
    (["--opts", "DATA.MASK_RATIO", "0.5"], "add --cfg"),
    (["--cfg", RECIPE, "--opts", "DATA.MASK_RATIO", "1.0"], "hides all of the 36 units")])
def test_what_can_not_be_measured_is_refused_in_a_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        run(avgdist.main, avgdist.parse_arguments(arguments))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert re.search(message, error)


def test_ratio_of_nothing_is_refused(capsys):
    with pytest.raises(SystemExit):
        avgdist.parse_arguments(["--ratios", "0"])
    assert "0 does not lie between 0, which hides nothing, and 1" in capsys.readouterr().err


@pytest.mark.parametrize(("path", "message"), [("a.jpg", "must end in .png, .svg or .pdf"), ("none/a.png", "no folder none")])
def test_plot_that_can_not_be_written_is_refused(monkeypatch, path, message):
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=message):
        plots.check_plot(path)


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install -r requirements-plots.txt"):
        plots.check_plot("a.png")
