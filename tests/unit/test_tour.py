"""examples/tour.ipynb runs from its first cell to its last."""
import json
from pathlib import Path

import torch
from PIL import Image

from config import dump
from tests.contracts.tiny import build, make_config

from .test_inference import photographs

TOUR = Path(__file__).parents[2] / "examples" / "tour.ipynb"
CELLS = [cell["source"] for cell in json.loads(TOUR.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_tour_runs(tmp_path, capsys, monkeypatch):
    config = make_config("vit", "mae", "mae")
    torch.save({"model": build(config, is_pretrain=True).state_dict(), "config": dump(config, "pretrain")}, tmp_path / "a.pth")
    for name in ("ant", "bee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        photographs(tmp_path / "images" / name)
    start, _, _ = CELLS[0].partition("from data.demo")
    monkeypatch.chdir(TOUR.parent)
    names = {}
    for cell in (start, f"IMAGES, CHECKPOINT = {str(tmp_path / 'images')!r}, {str(tmp_path / 'a.pth')!r}", *CELLS[1:]):
        exec(cell, names)
    assert "MAE around VisionTransformer" in capsys.readouterr().out
    assert isinstance(names["sheet"], Image.Image) and names["numbers"]["loss"].shape == (4,)


def test_tour_holds_no_outputs():
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
