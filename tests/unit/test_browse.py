"""tools/browse.py: the images, masks and learning rates of a run, before it trains."""
import math

import numpy as np
import pytest
import torch
from PIL import Image

from config import load_config, scaled_config
from data.loader import build_loader
from lr_scheduler import build_scheduler
from tools import browse
from utils import sheets
from utils.cli import run

from .test_inference import photographs

DEMO = "configs/demo/simmim_pretrain__swin_nano__img64.yaml"
FINETUNE = "configs/swin_base/simmim_finetune__swin_base__img192_window6__100ep.yaml"
PROBE = "configs/demo/linprobe__swin_nano__img64.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """photos/ with three images, classes/train/ with two classes."""
    root = tmp_path_factory.mktemp("place")
    for place in ("photos", "classes/train/ant", "classes/train/bee", "classes/val/ant", "classes/val/bee"):
        (root / place).mkdir(parents=True)
        photographs(root / place)
    return root


@pytest.fixture
def browsed(folder, monkeypatch, capsys, tmp_path):
    """browsed(arguments) -> (rows that were drawn, console)."""
    def of(*arguments, code=0):
        drawn, draw = [], sheets.draw_sheet
        monkeypatch.setattr(sheets, "draw_sheet", lambda rows, cell: drawn.extend(rows) or draw(rows, cell))
        with pytest.raises(SystemExit) as end:
            run(browse.main, browse.parse_arguments([str(word) for word in arguments]))
        monkeypatch.undo()
        out, err = capsys.readouterr()
        assert end.value.code == code, err
        return drawn, err if code else out
    return of


def test_images_and_masks_are_those_of_the_run(browsed, folder, tmp_path):
    opts = ["DATA.BATCH_SIZE", "3", "SEED", "4"]
    drawn, out = browsed("--cfg", DEMO, "--data-path", folder / "photos", "--out", tmp_path / "a.png", "--epochs", 2, "--opts",
                         *opts)
    assert [name for name, _ in drawn] == ["0.png", "1.png", "2.png"] and "3 of 3 training images in 2 epochs" in out
    columns = ["file", "epoch 0", "epoch 0, masked", "epoch 1", "epoch 1, masked"]
    assert all(list(pictures) == columns for _, pictures in drawn)
    config = load_config(DEMO, [*opts, "DATA.DATA_PATH", str(folder / "photos"), "DATA.NUM_WORKERS", 0])
    loader = build_loader(config, is_pretrain=True).train
    loader.sampler.set_epoch(1)
    (images, masks), order = next(iter(loader)), [index for _, index, *_ in loader.sampler]
    for position, index in enumerate(order):
        assert np.array_equal(np.asarray(drawn[index][1]["epoch 1"]), np.asarray(browse.seen(images[position], config)))
        grey = (np.asarray(drawn[index][1]["epoch 1, masked"]) == 128).all(axis=2)
        assert np.array_equal(grey[::8, ::8], masks[position].numpy()[::2, ::2])


def test_labelled_images_have_their_class_and_no_mask(browsed, folder, tmp_path):
    drawn, _ = browsed("--cfg", FINETUNE, "--data-path", folder / "classes", "--out", tmp_path / "a.html", "--number", 2,
                       "--epochs", 1, "--opts", "DATA.IMG_SIZE", 96, "MODEL.SWIN.WINDOW_SIZE", 3)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2 * 2 and "0.png\nant" in page and "0.png\nbee" in page and "masked" not in page
    drawn, _ = browsed("--cfg", PROBE, "--data-path", folder / "classes", "--out", tmp_path / "b.png", "--number", 1)
    assert [(name, list(columns)) for name, columns in drawn] == [("0.png\nant", ["file", "epoch 0", "epoch 1", "epoch 2"])]


def reference(config, job_scale, length, gpus):
    """Rates as the mains have them: that of the group at each step, set after the one before."""
    scaled = scaled_config(config, gpus)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": scaled.TRAIN.BASE_LR * job_scale, "lr_scale": job_scale}])
    scheduler, rates = build_scheduler(scaled, optimizer, length), []
    for step in range(config.TRAIN.EPOCHS * length):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(step)
    return rates


@pytest.mark.parametrize(("recipe", "job", "scales"), [
    (DEMO, "pretrain", {"all": 1.0}), (PROBE, "probe", {"all": 1.0}),
    (FINETUNE, "finetune", {"head": 1.0, "patch embedding": 0.9 ** 25}),
    ("configs/mae/mae_pretrain__vit_base__img224__800ep.yaml", "pretrain", {"all": 1.0})])
def test_rates_are_those_in_effect_at_each_iteration(recipe, job, scales):
    config = load_config(recipe)
    length, gpus = 3, 2
    curves = browse.rates_of(config, job, config.DATA.BATCH_SIZE * gpus * length + 1, gpus)
    assert list(curves) == list(scales)
    for name, scale in scales.items():
        expected = reference(config, scale, length, gpus)
        assert {0, len(expected) - 1} <= {step for _, step, _ in curves[name]}
        for epoch, step, rate in curves[name]:
            assert rate == pytest.approx(expected[step], rel=1e-9) and epoch == pytest.approx(step / length)


def test_table_has_the_peak_and_both_ends(browsed):
    _, out = browsed("--cfg", FINETUNE, "--rates", "--images", 128 * 10, "--opts", "TRAIN.EPOCHS", 10, "TRAIN.WARMUP_EPOCHS", 2)
    lines = [line.split() for line in out.splitlines()]
    assert [line[1] for line in lines[1:]] == ["0", "20", "25", "50", "74", "99"]
    config = load_config(FINETUNE, ["TRAIN.EPOCHS", 10, "TRAIN.WARMUP_EPOCHS", 2])
    rates = [reference(config, scale, 10, 1) for scale in (1.0, 0.9 ** 25)]
    assert [float(rate) for rate in lines[2][2:]] == pytest.approx([max(of) for of in rates], rel=1e-3)


def test_curve_is_drawn(browsed, tmp_path):
    pytest.importorskip("matplotlib", reason="draws a figure: pip install -r requirements-plots.txt")
    browsed("--cfg", FINETUNE, "--images", 1280, "--rates", tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").width == 600
    (axis,) = browse.figure_of(browse.rates_of(load_config(FINETUNE), "finetune", 1280, 1)).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["head", "patch embedding"]
    assert math.isclose(max(axis.lines[0].get_ydata()), 1.25e-3 * 128 / 512, rel_tol=0.01)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--cfg", DEMO], "pass --out"), (["--cfg", "none.yaml", "--rates"], "none.yaml"),
    (["--cfg", DEMO, "--data-path", "none", "--out", "a.png"], "none"),
    (["--cfg", DEMO, "--data-path", "tests/unit/utils", "--out", "a.png"], "no images"),
    (["--cfg", DEMO, "--out", "a.txt"], "must end in .png"),
    (["--cfg", DEMO, "--rates", "--images", "10"], "10 images do not fill one batch of 32 x 1 GPUs"),
    (["--cfg", DEMO, "--rates", "--images", "99", "--opts", "TRAIN.WARMUP_EPOCHS", "99"], "TRAIN.WARMUP_EPOCHS=99 is longer"),
    (["--cfg", DEMO, "--rates", "--images", "99", "--opts", "DATA.MASK_PATCH_SIZ", "8"], "DATA.MASK_PATCH_SIZE")])
def test_what_can_not_be_browsed_is_refused_in_a_line(browsed, arguments, message):
    _, error = browsed(*arguments, code=2)
    assert message in error and error.count("\n") == 1


def test_recipe_that_does_not_tell_what_it_is_for_asks_for_the_stage(browsed, tmp_path):
    (tmp_path / "recipe.yaml").write_text("MODEL:\n  NAME: mine\n", encoding="utf-8")
    _, error = browsed("--cfg", tmp_path / "recipe.yaml", "--rates", "--images", 1000, code=2)
    assert "pass --stage pretrain, finetune or probe" in error
    assert "rate" in browsed("--cfg", tmp_path / "recipe.yaml", "--rates", "--images", 1000, "--stage", "pretrain")[1]
