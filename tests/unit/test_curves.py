"""tools/curves.py: curves of runs from what they write, seeds as one line, and files that are no runs."""
import json

import pytest

from logger import MetricWriter, record_line
from tools import curves
from utils.cli import run

STEPS = 4  # of an epoch


def write_run(folder, seed, tag, value=0.0, epochs=3, **settings):
    """A run as the engine writes it: two lines an epoch, a validation each."""
    writer = MetricWriter(folder)
    writer.file.write(record_line("start", step=0, epoch=0, command="python main_simmim.py"))
    for epoch in range(epochs):
        for i in (1, STEPS - 1):
            step = epoch * STEPS + i
            writer.write("train", step, epoch=epoch, loss=value + 1 / (step + 1), lr=0.1, grad_norm=1.0, time=0.5, skipped=0)
        writer.write("val", (epoch + 1) * STEPS - 1, epoch=epoch, loss=value + epoch, top1=10.0 * epoch + seed, images=5)
    writer.close()
    lines = [f"SEED: {seed}", f"TAG: {tag}", *(f"{key}: {text}" for key, text in settings.items())]
    (folder / "config.yaml").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two seeds of a, one of b, which has another rate, and an evaluation."""
    monkeypatch.chdir(tmp_path)
    for seed in (1, 3):
        write_run(tmp_path / "runs" / "job" / f"a_{seed}", seed, f"a_{seed}", RATE=1)
    write_run(tmp_path / "runs" / "job" / "b", 1, "b", value=1.0, RATE=2)
    (tmp_path / "runs" / "job" / "eval").mkdir()
    (tmp_path / "runs" / "job" / "eval" / "metrics.jsonl").write_text('{"kind": "eval", "top1": 3.0}\n', encoding="utf-8")
    return tmp_path


def answer(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as end:
        run(curves.main, curves.parse_arguments([str(word) for word in arguments]))
    out, err = capsys.readouterr()
    assert end.value.code == code, err
    return err if code else out


def test_runs_that_differ_in_their_seed_are_one_line(place, capsys):
    lines = [line.split(maxsplit=2) for line in answer(capsys, "runs", "--metrics", "val/top1").splitlines()]
    assert lines[1:] == [["a", "2", "22 (21 to 23)"], ["b", "1", "21"]]


def test_curve_has_every_place_that_all_runs_have(place, capsys):
    write_run(place / "runs" / "job" / "a_2", 2, "a_2", epochs=2, RATE=1)  # still training
    found = json.loads(answer(capsys, "runs", "--json"))
    assert list(found) == ["train/loss", "val/loss", "val/top1", "train/lr", "train/grad_norm"]
    assert found["val/top1"]["a"] == {"x": [1, 2], "mean": [2, 12], "low": [1, 11], "high": [3, 13], "runs": 3}
    assert found["train/loss"]["b"]["x"] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert found["train/loss"]["b"]["mean"][:2] == [1.5, 1.25]
    steps = json.loads(answer(capsys, "runs/job/b", "--json", "--x", "step"))
    assert steps["train/loss"]["b"]["x"] == [1, 3, 5, 7, 9, 11] and steps["val/loss"]["b"]["x"] == [3, 7, 11]


def test_runs_of_one_name_are_one_line_whatever_their_settings(place, capsys):
    lines = answer(capsys, "all=runs", "b=runs/job/b/metrics.jsonl", "--metrics", "val/loss").splitlines()
    assert [line.split(maxsplit=2) for line in lines[1:]] == [["all", "3", "2.333 (2 to 3)"], ["b", "1", "3"]]


def test_run_that_was_killed_while_it_wrote_is_read_as_far_as_it_goes(place, capsys):
    with open(place / "runs/job/b/metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 12, "los')
    assert "b" in answer(capsys, "runs")


def test_values_that_were_not_finite_are_left_out(place, capsys):
    writer = MetricWriter(place / "nan")
    for step, loss in enumerate((1.0, float("nan"), 3.0)):
        writer.write("train", step, epoch=0, loss=loss)
    writer.close()
    assert json.loads(answer(capsys, "nan", "--json"))["train/loss"]["nan"]["mean"] == [1.0, 3.0]


def test_figure_has_a_panel_for_each_metric_and_a_band_for_seeds(place, capsys):
    pytest.importorskip("matplotlib", reason="draws a figure: pip install -r requirements-plots.txt")
    merged = {"val/top1": json.loads(answer(capsys, "runs", "--json"))["val/top1"]}
    figure = curves.figure_of(merged | {"train/odd": {"b": merged["val/top1"]["b"]}}, "epoch")
    first, second = figure.axes
    assert (first.get_title(), second.get_title(), first.get_xlabel()) == ("top-1, %", "train/odd", "epochs")
    assert len(first.lines) == 2 and len(first.collections) == 1 and len(second.collections) == 0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a, 2 runs", "b"]
    answer(capsys, "runs", "--out", place / "a.png")
    assert (place / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("arguments", "message"), [
    (["none"], "none does not exist"), (["empty"], "empty holds no metrics.jsonl"),
    (["runs/job/eval"], "no records of training or validation"), (["broken"], "broken/metrics.jsonl, line 1 is no record"),
    (["runs", "--metrics", "val/top"], "Did you mean 'val/top1'"), (["x=none"], "none does not exist")])
def test_what_is_no_run_is_refused_in_a_line(place, capsys, arguments, message):
    (place / "empty").mkdir()
    (place / "broken").mkdir()
    (place / "broken" / "metrics.jsonl").write_text('{"step": 3}\n', encoding="utf-8")
    error = answer(capsys, *arguments, code=2)
    assert message in error and error.count("\n") == 1
