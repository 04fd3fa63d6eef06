"""Checkpoints know what they are of: every encoder and method is built, probed and told apart by what its file keeps."""
import numpy as np
import pytest
import torch
from PIL import Image

from config import dump, encoder_config, flatten, load_config
from inference import extract_feat, get_model, inference_model, reconstruct
from models import load_pretrained
from models.probe import build_probe
from tests.contracts.tiny import CLASSES, ENCODER_CASES, METHOD_CASES, build, make_config, make_images
from utils.kept import read_kept

from .helpers import opts_of

NAMES = ["ant", "bee", "cat", "dog", "eel"]


def saved(folder, config, is_pretrain, encoder_alone=False):
    """A checkpoint as runs leave it, and its model."""
    model = build(config, is_pretrain)
    content = {"model": (model.encoder if encoder_alone else model).state_dict(),
               "config": dump(config, "pretrain" if is_pretrain else "finetune"), **({} if is_pretrain else {"classes": NAMES})}
    path = folder / ("encoder.pth" if encoder_alone else "ckpt_epoch_0.pth")
    torch.save(content, path)
    return path, model


@pytest.fixture
def picture(rng):
    return Image.fromarray(rng.randint(0, 255, (50, 70, 3), dtype=np.uint8))


@pytest.fixture
def rng():
    return np.random.RandomState(3)


@pytest.mark.parametrize("case", METHOD_CASES, ids="-".join)
def test_file_of_pretraining_is_built_as_it_was(case, tmp_path, picture):
    config = make_config(*case)
    path, model = saved(tmp_path, config, is_pretrain=True)
    found = get_model(str(path))
    assert found.recipe.task == "pretrain" and not found.recipe.report.missing
    assert encoder_config(found.recipe.config) == encoder_config(config)
    images = make_images(config)
    assert torch.equal(found.extract_feat(images)[0], model.extract_feat(images)[0])
    assert reconstruct(found, picture).width > 0


@pytest.mark.parametrize("case", ENCODER_CASES, ids="-".join)
def test_file_of_a_classifier_is_built_as_it_was(case, tmp_path, picture):
    config = make_config(*case)
    path, model = saved(tmp_path, config, is_pretrain=False)
    result = inference_model(path, picture, device="cpu")
    assert result["pred_class"] in NAMES and len(result["pred_scores"]) == CLASSES
    images = make_images(config)
    assert torch.equal(get_model(path)(images), model(images))


@torch.no_grad()
@pytest.mark.parametrize("case", ENCODER_CASES, ids="-".join)
def test_encoder_alone_is_probed_with_its_own_settings(case, tmp_path):
    config = make_config(*case)
    path, model = saved(tmp_path, config, is_pretrain=True, encoder_alone=True)
    probed = load_config(None, ["PRETRAINED", path], "probe")
    assert encoder_config(probed) == encoder_config(config) and probed.DATA.IMG_SIZE == config.DATA.IMG_SIZE
    assert probed.TRAIN.OPTIMIZER.NAME == "lars" and probed.TRAIN.EPOCHS == 60  # of the recipe for any encoder
    probe = build_probe(probed, CLASSES).eval()
    load_pretrained(probe.encoder, path)
    images = make_images(config)
    assert torch.equal(probe.features(images)[0], model.encoder.forward_last(images))
    (features,) = extract_feat(path, images, output="map", device="cpu")
    assert torch.equal(features, model.encoder.forward_map(images).detach())


def test_recipe_of_a_probe_need_not_repeat_the_encoder(tmp_path):
    """An MAE was once probed without its positions, which the recipe did not name."""
    config = make_config("vit", "mae", "mae")
    path, _ = saved(tmp_path, config, is_pretrain=True)
    named = {key: value for key, value in flatten(config).items() if key in ("MODEL.TYPE", "MODEL.VIT.DEPTH", "DATA.IMG_SIZE")}
    probed = load_config(opts=opts_of(named | {"PRETRAINED": path, "DATA.STD": [0.5, 0.5, 0.5]}), path=None, job="probe")
    assert encoder_config(probed) == encoder_config(config) and probed.DATA.STD == [0.5, 0.5, 0.5]


def test_recipe_of_fine_tuning_that_names_its_encoder_stays_as_it_is(tmp_path):
    path, _ = saved(tmp_path, make_config("vit", "plain"), is_pretrain=True)
    (tmp_path / "named.yaml").write_text("MODEL: {TYPE: vit, VIT: {NUM_HEADS: 2, USE_RPB: True}}")
    (tmp_path / "open.yaml").write_text("TRAIN: {EPOCHS: 7}")
    named, open_ = (load_config(tmp_path / f"{name}.yaml", ["PRETRAINED", path], "finetune") for name in ("named", "open"))
    assert named.MODEL.VIT.DEPTH == 12 and named.MODEL.VIT.USE_RPB
    assert open_.MODEL.VIT.DEPTH == 3 and open_.TRAIN.EPOCHS == 7 and open_.DATA.IMG_SIZE == [32, 64]


def test_number_of_heads_that_no_shape_shows_is_refused(tmp_path):
    config = make_config("vit", "mae", "mae")
    path, _ = saved(tmp_path, config, is_pretrain=True)
    other = opts_of(flatten(config) | {"MODEL.VIT.NUM_HEADS": 4, "PRETRAINED": path})
    other = [word for key, value in zip(other[::2], other[1::2], strict=True) if key != "BASE" for word in (key, value)]
    message = r"MODEL\.VIT\.NUM_HEADS=4, and .*ckpt_epoch_0\.pth was made with 2"
    for job in ("probe", "finetune"):
        with pytest.raises(ValueError, match=message):
            load_config(opts=other, path=config_file(tmp_path), job=job)
    with pytest.raises(ValueError, match=message):
        get_model(load_config(opts=other), path, task="pretrain")


def config_file(folder):
    (folder / "empty.yaml").write_text("SEED: 0")
    return folder / "empty.yaml"


@pytest.mark.parametrize(("case", "settings", "message"), [
    (("vit", "mae", "mae"), {"MODEL.VIT.USE_SINCOS_APE": False}, r"has positions that the model lacks: pos_embed\. .*USE_APE"),
    (("vit", "no_tables"), {"MODEL.VIT.USE_SINCOS_APE": True}, r"lacks positions that the model has: pos_embed\. "),
    (("vit", "plain"), {"MODEL.VIT.USE_SHARED_RPB": False}, r"has positions that the model lacks: rel_pos_bias\..*SHARED_RPB"),
    (("vit", "no_tables"), {"MODEL.VIT.USE_RPB": True}, r"lacks positions that the model has: blocks\.0\..* and 2 more.*RPB"),
    (("swin", "ape"), {"MODEL.SWIN.APE": False}, r"has positions that the model lacks: absolute_pos_embed\. .*SWIN\.APE")])
def test_positions_that_only_one_side_has_are_refused(case, settings, message, tmp_path):
    config = make_config(*case)
    path, _ = saved(tmp_path, config, is_pretrain=True)
    leaves = {key: value for key, value in flatten(config).items() if key != "BASE"}
    model = build(load_config(opts=opts_of(leaves | settings)), is_pretrain=False)
    with pytest.raises(ValueError, match=message):
        load_pretrained(model, path)


def test_settings_of_a_checkpoint_are_those_of_its_run_but_not_of_its_start(tmp_path):
    config = load_config(opts=opts_of({"MODEL.NAME": "own", "TAG": "one/two", "PRETRAINED": "x.pth", "OUTPUT": "/elsewhere",
                                       "SEED": 5, "TRAIN.EPOCHS": 7, "DATA.IMG_SIZE": 192, "MODEL.SWIN.WINDOW_SIZE": 6}))
    folder = tmp_path / "own" / "one" / "two"
    folder.mkdir(parents=True)
    torch.save({"model": {"head.weight": torch.zeros(5, 8)}, "config": dump(config, "finetune")}, folder / "a.pth")
    found = load_config(folder / "a.pth", ["TRAIN.EPOCHS", 9])
    assert (found.SEED, found.TRAIN.EPOCHS, found.PRETRAINED, found.OUTPUT) == (5, 9, "", str(tmp_path))
    (folder / "a.pth").rename(tmp_path / "a.pth")
    assert load_config(tmp_path / "a.pth").OUTPUT == ""


def test_official_file_keeps_the_settings_of_its_model(tmp_path):
    official = {"MODEL": {"TYPE": "swin", "NAME": "theirs", "RESUME": "a", "SWIN": {"EMBED_DIM": 48, "NEW_KEY": 1}},
                "DATA": {"IMG_SIZE": 192, "ZIP_MODE": False}, "TRAIN": {"BASE_LR": 3.0}}
    torch.save({"model": {"layers.0.x": torch.zeros(1)}, "config": official}, tmp_path / "a.pth")
    assert read_kept(tmp_path / "a.pth").task is None
    found = load_config(tmp_path / "a.pth", ["MODEL.SWIN.WINDOW_SIZE", 6])
    assert (found.MODEL.SWIN.EMBED_DIM, found.DATA.IMG_SIZE, found.MODEL.RESUME) == (48, 192, "")
    assert found.TRAIN.BASE_LR == load_config().TRAIN.BASE_LR


@pytest.mark.parametrize(("job", "opts", "message"), [
    ("pretrain", [], "--cfg is missing: name a recipe"),
    ("finetune", ["PRETRAINED", "pretrained.pth"], "--cfg is missing: name a recipe"),
    ("probe", ["PROBE.RANDOM_ENCODER", True], "--cfg is missing: name a recipe"),
    ("finetune", ["MODEL.RESUME", "pretrained.pth"], r"pretrained\.pth is of main_simmim\.py, not of main_finetune\.py"),
    ("finetune", ["MODEL.RESUME", "foreign.pth"], r"foreign\.pth keeps no settings of its model"),
    ("finetune", ["MODEL.RESUME", "none.pth"], "none.pth does not exist")])
def test_program_without_a_recipe_says_what_it_needs(job, opts, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, _ = saved(tmp_path, make_config("vit", "plain"), is_pretrain=True)
    path.rename("pretrained.pth")
    torch.save({"layers.0.x": torch.zeros(1)}, "foreign.pth")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_config(None, opts, job)
