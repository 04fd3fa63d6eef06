"""Studies: which commands a YAML becomes, what is shared and not done again, and the tables. Programs are stand-ins."""
import csv
import json
from pathlib import Path

import pytest

from tools import ablate, grids

STUDY = """
recipes:
  pretrain: configs/demo/simmim_pretrain__swin_nano__img64.yaml
  finetune: configs/demo/simmim_finetune__swin_nano__img64.yaml
  probe: configs/demo/linprobe__swin_nano__img64.yaml
measures: [loss, finetune, knn]
seeds: [0, 1]
settings: {TRAIN.EPOCHS: 4, finetune TRAIN.EPOCHS: 6}
axes:
  unit: {DATA.MASK_PATCH_SIZE: [8, 16]}
  labels: {DATA.IMAGES_PER_CLASS: [5, 50]}
"""


@pytest.fixture
def started(monkeypatch):
    """Commands that were started; each leaves the metrics of a run, whose figures follow from its settings."""
    found = []

    class Program:
        def __init__(self, words, cwd, stdout, stderr, env):
            found.append(words[1:])
            if found[-1][0] == "main_simmim.py" and "DATA.MASK_PATCH_SIZE 16" in " ".join(words) and env.get("BROKEN"):
                stdout.write("a line\nerror: it broke\n")
                self.code = 2
                return
            flags = dict(zip(words[2::2], words[3::2], strict=False))
            name = {"main_simmim.py": "simmim_pretrain", "main_finetune.py": "simmim_finetune", "main_linprobe.py": "linprobe"}
            folder = Path(flags["--output"]) / name[words[1]] / flags["--tag"]
            folder.mkdir(parents=True)
            seed, labels = int(words[words.index("SEED") + 1]), "50" if "DATA.IMAGES_PER_CLASS 50" in " ".join(words) else "5"
            records = [{"kind": "train", "step": 9, "time": 6.0, "loss": 1.0},
                       {"kind": "val", "loss": 0.5 + seed, "top1": 10.0},
                       {"kind": "val", "loss": 0.25 + seed, "top1": float(labels) + seed}]
            if "--knn" in words:
                records = [{"kind": "eval", "k": k, "top1": 30.0 + k} for k in (10, 20, 100)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
            self.code = 0

        def wait(self):
            return self.code

    monkeypatch.setattr(grids.subprocess, "Popen", Program)
    return found


def run(folder, *words, text=STUDY):
    (folder / "study.yaml").write_text(text)
    ablate.main(ablate.parse_arguments([str(folder / "study.yaml"), "--output", str(folder / "out"), *words]))


@pytest.mark.parametrize("jobs", [1, 3])
def test_rows_share_what_they_pre_train_alike_and_the_table_has_all_seeds(started, jobs, tmp_path, capsys):
    run(tmp_path, "--jobs", str(jobs))
    programs = [words[0] for words in started]
    assert {name: programs.count(name) for name in set(programs)} == {
        "main_simmim.py": 4, "main_finetune.py": 8, "main_linprobe.py": 8}
    for words in started:
        line = " ".join(words)
        assert ("TRAIN.EPOCHS 6" in line) == (words[0] == "main_finetune.py")
        assert ("DATA.IMAGES_PER_CLASS" in line) == (words[0] != "main_simmim.py")
        if words[0] != "main_simmim.py":
            weights = Path(words[words.index("--pretrained") + 1])
            unit, seed = words[words.index("--tag") + 1].split("__")[0], words[words.index("SEED") + 1]
            assert weights.parent.name.startswith(unit) and weights.parent.name.endswith(f"seed{seed}")
            assert (weights.parent / "metrics.jsonl").is_file() and "MASK" not in line
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert [(row["unit"], row["labels"]) for row in rows] == [("8", "5"), ("8", "50"), ("16", "5"), ("16", "50")]
    assert [float(row["finetune mean"]) for row in rows] == [5.5, 50.5, 5.5, 50.5]
    assert float(rows[0]["finetune deviation"]) == pytest.approx(0.5 ** 0.5) and rows[0]["finetune seeds"] == "2"
    assert {float(row["knn mean"]) for row in rows} == {50.0} and {float(row["minutes"]) for row in rows} == {1.0}
    assert "| 8 | 50 | 0.7500 ± 0.7071 | 50.5 ± 0.7 | 50.0 ± 0.0 | 1.0 | 2 |" in (tmp_path / "out" / "table.md").read_text()
    assert "finetune" in capsys.readouterr().out


def test_what_is_done_is_not_done_again_and_more_seeds_are_added(started, tmp_path):
    run(tmp_path)
    before = len(started)
    run(tmp_path)
    assert len(started) == before
    run(tmp_path, "--seeds", "0", "1", "2")
    assert len(started) == before + 10 and all("SEED 2" in " ".join(words) for words in started[before:])


def test_rows_that_fail_are_said_and_the_others_are_finished(started, tmp_path, monkeypatch):
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(ValueError, match="4 of 8 runs failed.*unit=16.*error: it broke .exit code 2; all it said is in"):
        run(tmp_path)
    assert sum(words[0] == "main_simmim.py" for words in started) == 4  # a run that two rows share fails for both
    assert sum("| - |" in line for line in (tmp_path / "out" / "table.md").read_text().splitlines()) == 2
    monkeypatch.delenv("BROKEN")
    run(tmp_path)
    assert "| - |" not in (tmp_path / "out" / "table.md").read_text()


def test_a_row_from_scratch_has_no_pre_training(started, tmp_path):
    axes = "axes:\n  start:\n    pre-trained: {}\n    scratch: {pretrain: no}\n"
    run(tmp_path, text=STUDY.partition("axes:")[0].replace(", knn", "") + axes)
    assert [words[0] for words in started].count("main_simmim.py") == 2
    assert sum("--pretrained" in words for words in started) == 2 and len(started) == 6


@pytest.mark.parametrize(("old", "new", "message"), [
    ("axes:", "axis:", "'axis' is unknown.*Did you mean 'axes'"),
    ("[loss, finetune, knn]", "[accuracy]", "'accuracy' is unknown"),
    ("  probe: configs/demo/linprobe__swin_nano__img64.yaml\n", "", "measures knn, which needs a recipe for probe"),
    ("DATA.MASK_PATCH_SIZE", "DATA.MASK_PATCH", "'DATA.MASK_PATCH' is unknown.*Did you mean"),
    ("[8, 16]", "8", "the axis unit must be one setting with a list of values"),
    ("seeds: [0, 1]", "seeds: 3", "seeds must be a list"), ("simmim_pretrain__swin_nano", "nothing", "nothing"),
    ("finetune TRAIN.EPOCHS", "tune TRAIN.EPOCHS", "'tune' is unknown"), ("[8, 16]", "[8, 7]", "MASK_PATCH_SIZE=7 is not")])
def test_studies_that_can_not_be_are_refused(started, old, new, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(tmp_path, text=STUDY.replace(old, new))
    assert not started


@pytest.mark.parametrize("path", sorted(Path(ablate.__file__).with_name("studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_studies_of_the_repository_are_ones(path, tmp_path, capsys):
    """Their settings go together, too."""
    ablate.main(ablate.parse_arguments([str(path), "--list"]))
    assert "of measuring" in capsys.readouterr().out
    study = ablate.read_study(path)
    grid = grids.Grid(ablate.rows_of(study), study["measures"], study["seeds"], tmp_path)
    assert all(grid.plan.values()) and len(grid.plan) == len(grid.rows) * len(study["seeds"])
