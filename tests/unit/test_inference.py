"""Models in one line: what get_model builds, what comes back for an image."""
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import inference
from config import dump, image_size, load_config, with_values
from data.datasets import ImageDataset
from data.transforms import eval_transform, heldout_transform
from evaluation import evaluate
from inference import (
    extract_feat,
    get_model,
    get_transform,
    imagenet_classes,
    inference_model,
    labelled_images,
    list_models,
    reconstruct,
)
from models import build_model
from models.probe import build_probe
from models.weights import zoo
from models.weights.layouts import write_layout
from recipes import Recipe, open_recipe, task_of
from tests.contracts.tiny import CASES, CLASSES, ENCODER_CASES, build, make_config, make_images
from utils.cli import run
from utils.precision import build_precision

from .helpers import opts_of, state_of, tiny_config

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
TASK_OF_FILE = {"pretrain": "pretrain", "finetune": "classification", "linprobe": "probe"}
PRETRAIN = "configs/demo/mae_pretrain__vit_nano__img64.yaml"
FINETUNE = "configs/demo/mae_finetune__vit_nano__img64.yaml"
NAMES = ["ant", "bee", "cat", "dog", "eel"]
CPU = torch.device("cpu")


def photographs(folder, sizes=((90, 50), (70, 130), (64, 64))):
    """Files of noise with a gradient, whose width and height differ."""
    rng = np.random.RandomState(5)
    paths = []
    for i, (width, height) in enumerate(sizes):
        pixels = rng.uniform(0, 90, (height, width, 3)) + np.linspace(0, 160, width)[None, :, None]
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("photographs"))


def saved(model, folder, name="weights.pth"):
    torch.save({"model": model.state_dict()}, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    """A classifier with weights that matter, as a recipe and a checkpoint leave it."""
    config = make_config("swin", "plain")
    return get_model(config, saved(build(config, is_pretrain=False), tmp_path_factory.mktemp("swin")), task="classification",
                     classes=NAMES)


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    config = make_config("vit", "mae", "mae")
    return get_model(config, saved(build(config, is_pretrain=True), tmp_path_factory.mktemp("mae")), task="pretrain")


# ---- every encoder and method -------------------------------------------------------------------------------------

@pytest.fixture(scope="module", params=ENCODER_CASES, ids="-".join)
def classifier(request, tmp_path_factory):
    config = make_config(*request.param)
    weights = saved(build(config, is_pretrain=False), tmp_path_factory.mktemp("weights"))
    return get_model(config, weights, task="classification")


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def pretrained(request, tmp_path_factory):
    config = make_config(*request.param)
    weights = saved(build(config, is_pretrain=True), tmp_path_factory.mktemp("weights"))
    return get_model(config, weights, task="pretrain")


def test_prediction_is_that_of_the_evaluation(classifier, paths):
    """The logits that main_finetune.py --eval ranks, bit for bit, on the same batch."""
    config, seen = classifier.recipe.config, []
    hook = classifier.register_forward_hook(lambda module, args, logits: seen.append(logits.clone()))
    results = inference_model(classifier, paths)
    dataset = ImageDataset([(str(path), 0) for path in paths], eval_transform(config))
    evaluate(classifier, DataLoader(dataset, batch_size=len(paths)), CPU, build_precision("", "native", CPU))
    hook.remove()
    assert len(seen) == 2 and seen[0].shape == (len(paths), CLASSES) and torch.equal(*seen)
    scores = seen[1].softmax(dim=1)
    assert [result["pred_label"] for result in results] == scores.argmax(dim=1).tolist()
    assert np.array_equal(np.stack([result["pred_scores"] for result in results]), scores.numpy())


def test_batches_give_what_single_images_give(classifier, paths):
    together = np.stack([result["pred_scores"] for result in inference_model(classifier, paths, batch_size=2)])
    alone = np.stack([inference_model(classifier, path)["pred_scores"] for path in paths])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_classifier_gives_its_pooled_features(classifier, paths):
    (features,) = extract_feat(classifier, paths)
    assert features.shape == (len(paths), classifier.num_features) and features.dtype == torch.float32
    assert torch.allclose(classifier.head(features).softmax(dim=1),
                          torch.tensor(np.stack([r["pred_scores"] for r in inference_model(classifier, paths)])), atol=1e-6)


@torch.no_grad()
def test_features_of_a_pretrained_model_have_every_form(pretrained):
    encoder, images = pretrained.encoder, make_images(pretrained.recipe.config)
    forms = {output: extract_feat(pretrained, images, output, batch_size=2)[0] for output in ("map", "tokens", "pooled")}
    feature_map = encoder.forward_map(images)
    torch.testing.assert_close(forms["map"], feature_map, atol=1e-5, rtol=1e-4)
    cells = feature_map.shape[2] * feature_map.shape[3]
    assert forms["tokens"].shape == (len(images), encoder.num_prefix_tokens + cells, encoder.num_features)
    assert forms["pooled"].shape == (len(images), encoder.num_features)
    torch.testing.assert_close(forms["pooled"], encoder.forward_last(images), atol=1e-5, rtol=1e-4)
    default = {"mae": "tokens", "mixmim": "pooled"}.get(pretrained.recipe.config.MODEL.METHOD, "map")
    assert torch.equal(extract_feat(pretrained, images, batch_size=2)[0], forms[default])


def test_reconstruction_shows_a_row_for_each_image(pretrained, paths):
    sheets = [reconstruct(pretrained, paths[:count]) for count in (1, 2)]
    height, _ = image_size(pretrained.recipe.config)
    assert sheets[0].width == sheets[1].width and sheets[1].height - sheets[0].height >= height
    assert reconstruct(pretrained, paths[0]).tobytes() == sheets[0].tobytes()
    assert reconstruct(pretrained, paths[0], seed=1).tobytes() != sheets[0].tobytes()


@torch.no_grad()
def test_layers_are_those_of_a_probe(pretrained, paths):
    encoder, images = pretrained.encoder, make_images(pretrained.recipe.config)
    found = extract_feat(pretrained, images, layer=[1, -1, "last"], batch_size=2)
    expected = encoder.forward_layers(images, [1, len(encoder.probed_blocks()), "last"])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert torch.equal(extract_feat(pretrained, images, layer="last", batch_size=2)[0], found[2])


@torch.no_grad()
def test_features_of_timm_are_tokens_or_a_map(pretrained):
    encoder, images = pretrained.encoder, make_images(pretrained.recipe.config)
    features = pretrained.forward_features(images)
    if encoder.num_prefix_tokens:
        assert torch.equal(features, encoder.forward_tokens(images))
    else:
        assert torch.equal(features.permute(0, 3, 1, 2), encoder.forward_map(images))


@torch.no_grad()
def test_reconstruction_as_tensors_has_the_loss_of_pretraining(pretrained):
    images = make_images(pretrained.recipe.config, batch=4)
    found = reconstruct(pretrained, images, output="tensors", seed=3)
    assert found["mask"].dtype == torch.bool and found["loss"].shape == (4,)
    assert found["prediction"].shape == images.shape and torch.equal(found["images"], images)
    torch.testing.assert_close(found["loss"].mean(), pretrained(images, found["mask"]), atol=1e-5, rtol=1e-3)
    view = pretrained.reconstruct(images, found["mask"], denormalize=True)
    torch.testing.assert_close(found["prediction"], view, atol=1e-5, rtol=1e-4)


# ---- images -------------------------------------------------------------------------------------------------------

def test_folder_stands_for_its_images(swin, paths):
    results = inference_model(swin, paths[0].parent)
    assert [result["image"] for result in results] == [str(path) for path in paths]
    assert [result["pred_label"] for result in results] == [result["pred_label"] for result in inference_model(swin, paths)]
    assert torch.equal(extract_feat(swin, [paths[0].parent])[0], extract_feat(swin, paths)[0])
    assert len(inference_model(swin, [paths[0], paths[0].parent])) == 1 + len(paths)


def test_labels_stand_beside_features(swin, tmp_path):
    for name in ("cat", "ant"):
        (tmp_path / name).mkdir()
        photographs(tmp_path / name)
    paths, labels, classes = labelled_images(tmp_path)
    assert classes == ["ant", "cat"] and labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [Path(path).parent.name for path in paths] == [classes[label] for label in labels]
    target = tmp_path.parent / f"{tmp_path.name}.npz"
    inference.write_whole(target, lambda path: np.savez(path, **inference.labels_of(paths, [str(tmp_path)])))
    with np.load(target) as written:
        assert written["labels"].tolist() == labels.tolist() and written["classes"].tolist() == classes
    assert inference.labels_of(paths[:3], [str(tmp_path / "ant")]) == {} == inference.labels_of(paths, paths)


def test_transform_is_that_of_the_evaluation(swin, paths):
    transform = get_transform(swin)
    expected = eval_transform(swin.recipe.config)(Image.open(paths[0]).convert("RGB"))
    assert torch.equal(transform(paths[0]), expected)


def test_recipe_is_known_by_its_name_alone():
    assert open_recipe("mae_pretrain__vit_nano__img64")[0].config == open_recipe(PRETRAIN)[0].config
    assert load_config("mae_pretrain__vit_nano__img64") == load_config(PRETRAIN)


def test_other_output_of_a_layer_is_refused(swin, mae, paths):
    with pytest.raises(ValueError, match="output=tokens .*with layer=1 .*use pooled, cls or map"):
        extract_feat(swin, paths, output="tokens", layer=1)
    with pytest.raises(ValueError, match=r"PROBE.LAYER=9 \(--layer\) does not exist"):
        extract_feat(mae, paths, layer=9)
    with pytest.raises(ValueError, match="has no class token"):
        extract_feat(swin, paths, output="cls")


def test_every_kind_of_image_gives_the_same_prediction(swin, paths):
    expected = inference_model(swin, paths[0])["pred_scores"]
    picture = Image.open(paths[0])
    pixels = np.array(picture)
    kinds = [str(paths[0]), picture, paths[0].read_bytes(), pixels, torch.from_numpy(pixels).permute(2, 0, 1),
             eval_transform(swin.recipe.config)(picture)]
    for image in kinds:
        assert np.array_equal(inference_model(swin, image)["pred_scores"], expected)
    assert not np.array_equal(inference_model(swin, pixels[..., ::-1])["pred_scores"], expected)  # BGR is another image


def test_four_dimensions_are_several_images(swin):
    pixels = np.random.RandomState(0).randint(0, 256, (2, 40, 70, 3), dtype=np.uint8)
    results = inference_model(swin, pixels)
    assert [r["pred_label"] for r in results] == [inference_model(swin, image)["pred_label"] for image in pixels]
    normalised = make_images(swin.recipe.config, batch=2)
    assert extract_feat(swin, normalised)[0].shape[0] == 2


def test_grey_and_transparent_images_are_brought_to_the_mode(swin):
    grey = np.random.RandomState(0).randint(0, 256, (40, 70), dtype=np.uint8)
    expected = inference_model(swin, np.stack([grey] * 3, axis=-1))["pred_scores"]
    opaque = np.stack([grey] * 3 + [np.full_like(grey, 255)], axis=-1)
    for image in (grey, grey[..., None], opaque):
        assert np.array_equal(inference_model(swin, image)["pred_scores"], expected)


def test_picture_of_sixteen_bits_is_scaled(swin):
    grey = np.random.RandomState(0).randint(0, 256, (40, 70), dtype=np.uint8)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(inference_model(swin, deep)["pred_scores"], inference_model(swin, grey)["pred_scores"])


@pytest.mark.parametrize(("image", "message"), [
    (np.zeros((8, 8, 3)), "array of float64, expected uint8"),
    (np.zeros((8, 8, 2), np.uint8), r"shape \(8, 8, 2\)"),
    (torch.zeros(8, 8), r"float tensor of shape \(8, 8\)"),
    (torch.zeros(8, 16, 3), r"float tensor of shape \(8, 16, 3\), expected \(3, H, W\)"),
    (torch.zeros(8, 16, 3, dtype=torch.uint8), r"tensor of torch.uint8 and shape \(8, 16, 3\)"),
    (torch.zeros(3, 8, 8, dtype=torch.int64), "tensor of torch.int64"),
    (b"no image", r"image 0 \(8 bytes\) can't be read"),
    (3.5, "image 0 is float, expected a path"),
    ([], "no images were given")])
def test_what_is_no_image_is_refused(swin, image, message):
    with pytest.raises(ValueError, match=message):
        inference_model(swin, image)


def test_missing_file_and_empty_folder_are_refused(swin, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.png does not exist"):
        inference_model(swin, tmp_path / "none.png")
    with pytest.raises(ValueError, match="holds no images: it is empty"):
        inference_model(swin, tmp_path)
    with pytest.raises(ValueError, match="https://a.org/b.png is an address"):
        inference_model(swin, "https://a.org/b.png")


def test_missing_file_is_said_before_the_first_image_is_read(swin, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "_run", lambda *_: pytest.fail("images were read"))
    for function in (inference_model, extract_feat):
        with pytest.raises(FileNotFoundError, match="none.png"):
            function(swin, [np.zeros((8, 8, 3), np.uint8), tmp_path / "none.png"])


def test_tensors_of_different_sizes_are_refused(swin):
    with pytest.raises(ValueError, match=r"image 2 has shape \(3, 64, 64\), those before it have \(3, 32, 64\)"):
        extract_feat(swin, [torch.zeros(3, 32, 64), torch.zeros(3, 32, 64), torch.zeros(3, 64, 64)], batch_size=2)


# ---- what comes back ----------------------------------------------------------------------------------------------

def test_one_image_gives_a_dict_and_a_list_gives_a_list(swin, paths):
    result = inference_model(swin, paths[0], topk=2)
    assert result["pred_class"] == NAMES[result["pred_label"]] and len(result["pred_topk"]) == 2
    assert result["pred_score"] == result["pred_scores"].max() and result["pred_scores"].sum() == pytest.approx(1, abs=1e-6)
    assert [best["score"] for best in result["pred_topk"]] == sorted(result["pred_scores"].tolist(), reverse=True)[:2]
    assert isinstance(inference_model(swin, [paths[0]]), list)


def test_classes_are_those_of_imagenet_where_they_are_asked_for(paths):
    model = get_model(tiny_config("vit"), task="classification", num_classes=1000)
    assert "pred_class" not in inference_model(model, paths[0])  # a head of 1000 classes may be of anything
    result = inference_model(model, paths[0], classes="imagenet")
    assert result["pred_class"] == imagenet_classes()[result["pred_label"]]
    assert (imagenet_classes()[0], imagenet_classes()[999]) == ("tench", "toilet tissue")


def test_without_names_there_is_no_class(paths):
    result = inference_model(get_model(tiny_config("vit"), task="classification"), paths[0])
    assert "pred_class" not in result and result["pred_topk"][0].keys() == {"label", "score"}


def test_classes_come_from_a_file_or_the_data_folder(paths, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    for name in reversed(NAMES):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / "train" / name / "0.png")
    for classes in (tmp_path / "names.txt", tmp_path / "data", tmp_path / "data" / "train"):
        assert get_model(tiny_config("vit"), task="classification", classes=classes).recipe.classes == NAMES


@pytest.mark.parametrize(("kept", "given", "known"), [
    (NAMES, None, NAMES), (NAMES, NAMES[::-1], NAMES[::-1]), (NAMES[:3], None, None), (None, None, None)])
def test_classes_are_those_that_the_checkpoint_keeps_unless_others_are_given(kept, given, known, tmp_path):
    config = make_config("swin", "plain")
    content = {"model": build(config, is_pretrain=False).state_dict(), **({"classes": kept} if kept else {})}
    torch.save(content, tmp_path / "ckpt_best.pth")
    model = get_model(config, tmp_path / "ckpt_best.pth", task="classification", classes=given)
    assert model.recipe.classes == known


def test_another_number_of_names_and_a_missing_file_are_refused(swin, paths):
    with pytest.raises(FileNotFoundError, match="classes=none.txt .--classes. does not exist"):
        inference_model(swin, paths[0], classes="none.txt")
    with pytest.raises(ValueError, match="4 names, the model has 5 classes"):
        inference_model(swin, paths[0], classes=NAMES[:4])


@pytest.mark.parametrize("classes", [dict(enumerate(NAMES)), set(NAMES)], ids=["dict", "set"])
def test_names_without_an_order_are_refused(classes, swin, paths):
    with pytest.raises(ValueError, match=f"classes= is a {type(classes).__name__}: pass a list"):
        inference_model(swin, paths[0], classes=classes)


def test_file_of_names_may_begin_with_a_mark_and_must_be_text(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8-sig")  # as some editors do
    assert get_model(FINETUNE, num_classes=5, classes=path).recipe.classes == NAMES
    path.write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"names\.txt \(--classes\) is not a text file in UTF-8"):
        get_model(FINETUNE, num_classes=5, classes=path)


def test_features_may_take_part_in_training(swin, paths):
    (features,) = extract_feat(swin, paths)
    head = torch.nn.Linear(features.shape[1], 2)
    head(features).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_model_is_left_as_it_was(swin, paths):
    swin.train()
    swin.layers[0].eval()
    before, modes = state_of(swin), [module.training for module in swin.modules()]
    inference_model(swin, paths[0])
    assert [module.training for module in swin.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in swin.state_dict().items())
    swin.eval()
    with pytest.raises(ValueError):
        inference_model(swin, 3.5)
    assert not swin.training


def test_training_mode_does_not_change_the_prediction(paths):
    model = get_model(tiny_config("vit", {"MODEL.DROP_RATE": 0.5}), task="classification")
    expected = inference_model(model, paths[0])["pred_scores"]
    assert np.array_equal(inference_model(model.train(), paths[0])["pred_scores"], expected)


# ---- reconstructions ----------------------------------------------------------------------------------------------

def test_reconstruction_is_prepared_as_held_out_images_are(mae, paths):
    """Not as those of a classifier, which are resized in another way."""
    with Image.open(paths[0]) as picture:
        prepared = heldout_transform(mae.recipe.config)(picture)
        assert not torch.equal(prepared, eval_transform(mae.recipe.config)(picture))
    assert reconstruct(mae, paths[0]).tobytes() == reconstruct(mae, prepared).tobytes()


def test_given_mask_hides_what_it_says(mae, paths):
    config = mae.recipe.config
    mask = np.zeros((4, 8), dtype=bool)
    mask[:, :4] = True  # the left half
    sheet = np.asarray(reconstruct(mae, paths[0], mask=mask))
    height, width = image_size(config)
    scale = sheet.shape[0] // height
    masked = sheet[16:16 + height * scale, width * scale + 4:2 * width * scale + 4]
    grey = (masked == 128).all(axis=-1)
    assert grey[:, :width * scale // 2].all() and not grey[:, width * scale // 2:].all()


def test_mask_ratio_changes_how_much_is_hidden(mae, paths):
    def greys(ratio):
        return (np.asarray(reconstruct(mae, paths[0], mask_ratio=ratio)) == 128).all(axis=-1).sum()
    assert greys(0.25) * 2 < greys(0.75)


def test_mask_and_mask_ratio_contradict_each_other(mae, paths):
    with pytest.raises(ValueError, match="leave one out"):
        reconstruct(mae, paths[0], mask_ratio=0.5, mask=np.zeros((4, 8)))


@pytest.mark.parametrize("mask", [np.zeros((4, 8)), np.ones((4, 8))])
def test_mask_of_none_or_all_patches_is_refused(mae, paths, mask):
    with pytest.raises(ValueError, match=rf"mask hides {int(mask.sum())} of 32 patches"):
        reconstruct(mae, paths[0], mask=mask)


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 60, float("nan")])
def test_mask_ratio_that_hides_none_or_all_is_refused_by_its_flag(mae, paths, ratio):
    with pytest.raises(ValueError, match=rf"mask_ratio={ratio} \(--mask-ratio\).*use e\.g\. 0\.6"):
        reconstruct(mae, paths[0], mask_ratio=ratio)


def test_mask_ratio_that_hides_all_by_rounding_is_refused(mae, paths):
    with pytest.raises(ValueError, match=r"DATA\.MASK_RATIO=0\.999 hides all of the"):
        reconstruct(mae, paths[0], mask_ratio=0.999)


def test_pretrained_model_predicts_no_classes_and_a_classifier_reconstructs_nothing(mae, swin, paths):
    with pytest.raises(ValueError, match="is a pre-training model and predicts no classes"):
        inference_model(mae, paths[0])
    with pytest.raises(ValueError, match="is built for classification, which reconstructs nothing"):
        reconstruct(swin, paths[0])


def test_wrong_task_is_refused_before_weights_are_looked_for(paths):
    with pytest.raises(ValueError, match="predicts no classes"):
        inference_model(PRETRAIN, paths[0], pretrained="none.pth")
    with pytest.raises(ValueError, match="reconstructs nothing"):
        reconstruct(FINETUNE, paths[0], pretrained="none.pth")


def test_encoder_alone_gives_features_but_reconstructs_nothing(mae, tmp_path, paths, caplog):
    weights = saved(mae.encoder, tmp_path)
    recipe = tmp_path / "mae_pretrain.yaml"
    recipe.write_text(with_values(mae.recipe.config, MODEL__NAME="mae_pretrain").dump(), encoding="utf-8")
    (features,) = extract_feat(str(recipe), paths, pretrained=weights, device="cpu")
    assert torch.equal(features, extract_feat(mae, paths)[0])
    assert "has no decoder that fits" in caplog.text
    with pytest.raises(ValueError, match="has no decoder that fits"):
        reconstruct(recipe, paths[0], pretrained=weights)


# ---- models -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_task_is_told_by_every_recipe(recipe):
    expected = next(task for word, task in TASK_OF_FILE.items() if word in recipe.name.partition("__")[0])
    assert task_of(load_config(recipe)) == expected


@pytest.mark.parametrize("whole", [False, True], ids=["now", "with_all_settings_as_before"])
@pytest.mark.parametrize(("job", "recipe"), [("pretrain", PRETRAIN), ("finetune", FINETUNE),
                                             ("probe", "configs/demo/linprobe__vit_nano__img64.yaml")])
def test_task_is_told_by_the_config_that_a_run_leaves(job, recipe, whole, tmp_path):
    config = load_config(ROOT / recipe)
    (tmp_path / "config.yaml").write_text(config.dump() if whole else dump(config, job), encoding="utf-8")
    assert task_of(load_config(tmp_path / "config.yaml")) == task_of(config)
    if not whole:  # the settings of the job tell, whatever its name
        assert task_of(load_config(tmp_path / "config.yaml", ["MODEL.NAME", "run"])) == task_of(config)


@pytest.mark.parametrize("given", [{}, {"TRAIN.LAYER_DECAY": 0.8, "DATA.MASK_RATIO": 0.5}])
def test_recipe_that_does_not_tell_its_task_is_refused(given):
    with pytest.raises(ValueError, match="does not tell what it is for.*Pass task="):
        get_model(load_config(opts=opts_of(given)))
    with pytest.raises(ValueError, match="task='classify' is unknown"):
        get_model(load_config(), task="classify")


def test_model_of_a_recipe_is_that_of_its_main():
    torch.manual_seed(0)
    expected = build_model(load_config(ROOT / PRETRAIN))
    torch.manual_seed(0)
    model = get_model(PRETRAIN)
    assert not model.training and model.recipe.task == "pretrain"
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in expected.state_dict().items())


def test_recipe_is_found_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert get_model(FINETUNE).recipe.task == "classification"
    with pytest.raises(FileNotFoundError, match="none.yaml does not exist"):
        get_model("none.yaml")


def test_settings_are_changed_by_word_or_key():
    config = get_model(FINETUNE, num_classes=7, img_size=[32, 48], in_chans=1, **{"MODEL.VIT.DEPTH": 2}).recipe.config
    assert (config.MODEL.NUM_CLASSES, config.DATA.IMG_SIZE, config.MODEL.VIT.IN_CHANS, config.MODEL.VIT.DEPTH) == (
        7, [32, 48], 1, 2)
    again = get_model(config, task="classification", img_size=64).recipe.config  # the rest stays
    assert (again.DATA.IMG_SIZE, again.MODEL.NUM_CLASSES, again.MODEL.VIT.DEPTH) == (64, 7, 2)


@pytest.mark.parametrize(("overrides", "message"), [
    ({"num_clases": 7}, "keyword='num_clases' is unknown.*Did you mean 'num_classes'"),
    ({"MODEL.NUM_CLASES": 7}, "closest valid key is MODEL.NUM_CLASSES"),
    ({"num_classes": 7, "MODEL.NUM_CLASSES": 5}, "MODEL.NUM_CLASSES is given twice"),
    ({"img_size": 65}, "does not divide DATA.IMG_SIZE"),
    ({"window_size": 7}, "unknown key 'MODEL.VIT.WINDOW_SIZE'")])
def test_setting_that_does_not_fit_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        get_model(FINETUNE, **overrides)


def test_pretraining_model_takes_no_classes_unless_it_becomes_a_classifier():
    with pytest.raises(ValueError, match="task=\"classification\""):
        get_model(PRETRAIN, num_classes=7)
    with pytest.raises(ValueError, match="leave it out"):
        get_model(PRETRAIN, classes=NAMES)
    assert get_model(PRETRAIN, task="classification", num_classes=7).head.out_features == 7


def test_head_for_other_classes_is_random_and_said_so(swin, tmp_path, caplog, paths):
    weights = saved(swin, tmp_path)
    model = get_model(swin.recipe.config, weights, task="classification", num_classes=9)
    assert "has no head for 9 classes" in caplog.text and model.recipe.lacks("head.")
    assert inference_model(model, paths[0])["pred_scores"].shape == (9,)  # it may have been trained since
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(with_values(model.recipe.config, MODEL__NAME="finetune").dump(), encoding="utf-8")
    with pytest.raises(ValueError, match="has no head that fits"):
        inference_model(recipe, paths[0], pretrained=weights)


def test_name_of_a_classifier_is_no_pretraining_model():
    """Its recipe has no MODEL.METHOD: the default one would be built, whatever the name says."""
    with pytest.raises(ValueError, match="mae_vit_base_1600ep_ft224 is a classifier.*list_models"):
        get_model("mae_vit_base_ft", task="pretrain")


def test_recipe_has_no_released_weights(paths):
    with pytest.raises(ValueError, match="is a recipe, which has none"):
        inference_model(FINETUNE, paths[0])
    with pytest.raises(ValueError, match="needs pretrained=True"):
        get_model(FINETUNE, weights_dir="weights")


def test_built_model_takes_no_weights_and_needs_a_recipe(swin, paths):
    with pytest.raises(ValueError, match="this model is built"):
        inference_model(swin, paths[0], pretrained=True)
    bare = build(swin.recipe.config, is_pretrain=False)
    with pytest.raises(ValueError, match="make it with get_model"):
        inference_model(bare, paths[0])
    bare.recipe = Recipe(swin.recipe.config, "classification")
    assert inference_model(bare, paths[0])["pred_scores"].shape == (CLASSES,)


@pytest.mark.parametrize(("device", "name", "count"), [
    ("gpu", "'gpu'", 0), ("cuda", "cuda", 0), ("cuda:1", "cuda:1", 1), (torch.device("cuda", 0), "cuda:0", 0)])
def test_device_that_is_not_there_is_refused(device, name, count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ValueError, match=rf"device={name} \(--device\)"):
        get_model(FINETUNE, device=device)


def test_device_zero_is_not_taken_for_none(paths, monkeypatch):
    """0 is the first accelerator of torch, e.g. cuda:0."""
    asked = []
    monkeypatch.setattr(inference, "_device", lambda device: asked.append(device) or CPU)
    get_model(FINETUNE, device=0)
    inference_model(FINETUNE, paths[0], device=0, pretrained=False)
    assert asked == [0, 0]


def test_weights_are_looked_for_before_a_model_is_built(monkeypatch, tmp_path):
    """Building a large model takes minutes; that its file is missing should not."""
    monkeypatch.setenv("SIMMIM_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(inference, "build", lambda recipe: pytest.fail("a model was built"))
    with pytest.raises(ValueError, match="put it at"):
        get_model("mixmim_base", pretrained=True)


def test_what_is_no_model_is_refused(swin, tmp_path):
    with pytest.raises(ValueError, match="a SwinTransformer was given as the model"):
        get_model(swin)
    with pytest.raises(ValueError, match="weights.pth keeps no settings of its model.*recipe"):
        get_model(saved(swin, tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_model_that_was_cast_takes_images(dtype, paths):
    model = get_model(FINETUNE, num_classes=5)
    (expected,) = extract_feat(model, paths)
    (features,) = extract_feat(model.to(dtype), paths)
    assert features.dtype == torch.float32 and 0 < (features - expected).abs().max() < 0.1
    assert inference_model(model, paths[0])["pred_scores"].dtype == np.float32
    assert reconstruct(get_model(PRETRAIN).to(dtype), paths[0]).size


def test_compiled_model_has_every_feature(paths):
    model = get_model(FINETUNE)
    expected = extract_feat(model, paths, "map")[0]
    assert torch.equal(extract_feat(torch.compile(model, backend="eager"), paths, "map")[0], expected)


def test_probe_predicts_with_its_own_head(tmp_path, paths):
    recipe = ROOT / "configs/demo/linprobe__vit_nano__img64.yaml"
    probe = build_probe(load_config(recipe), 5).eval()
    with torch.no_grad():
        probe.head[1].weight.normal_()
        probe.head[0].running_mean.normal_()
    model = get_model(recipe, saved(probe, tmp_path), num_classes=5)
    images = make_images(model.recipe.config)
    scores = np.stack([result["pred_scores"] for result in inference_model(model, images)])
    with torch.no_grad():
        np.testing.assert_allclose(scores, probe(images)[0].softmax(dim=1).numpy(), atol=1e-6)
        torch.testing.assert_close(extract_feat(model, images)[0], probe.features(images)[0])
    assert not model.recipe.lacks("head.") and get_model(recipe, saved(probe, tmp_path), num_classes=6).recipe.lacks("head.")


def test_head_of_a_probe_that_is_not_finite_is_refused(tmp_path):
    recipe = ROOT / "configs/demo/linprobe__vit_nano__img64.yaml"
    probe = build_probe(load_config(recipe), 5)
    with torch.no_grad():
        probe.head[1].bias[2] = float("nan")
    with pytest.raises(ValueError, match=r"weights\.pth holds NaN or infinite values in 1 of \d+ tensors \(head\.1\.bias\)"):
        get_model(recipe, saved(probe, tmp_path), num_classes=5)


def test_probe_of_mmpretrain_predicts_with_its_head(tmp_path):
    """Its linear classifiers are a ViT, a ClsBatchNormNeck and a VisionTransformerClsHead."""
    recipe = ROOT / "configs/demo/linprobe__vit_nano__img64.yaml"
    settings = opts_of({"MODEL.VIT.K_BIAS": True, "MODEL.VIT.USE_SHARED_RPB": False, "PROBE.LAYER": "last"})
    probe = build_probe(load_config(recipe, settings), 5).eval()
    own, names = probe.state_dict(), {"0": "neck.bn", "1": "head.layers.head"}
    weights, *_ = write_layout({f"encoder.{name}": own[name] for name in own if not name.startswith("head.")}, "mmpretrain")
    for name, value in probe.head.state_dict().items():
        layer, _, part = name.partition(".")
        weights[f"{names[layer]}.{part}"] = value.uniform_(0.1, 2) if value.is_floating_point() else value
    torch.save({"state_dict": weights}, tmp_path / "linear.pth")
    model = get_model(recipe, tmp_path / "linear.pth", num_classes=5, **dict(zip(settings[::2], settings[1::2], strict=True)))
    assert not model.recipe.lacks("head.")
    images = make_images(model.recipe.config)
    with torch.no_grad():
        torch.testing.assert_close(model(images)[0], probe(images)[0])


# ---- released models ----------------------------------------------------------------------------------------------

def test_names_are_those_of_the_zoo():
    assert list_models("simmim_vit*", task="pretrain") == zoo.list_models("simmim_vit*", task="pretrain") != []


@pytest.mark.parametrize(("name", "task"), [
    ("pixmim_vit_base", "pretrain"), ("pixmim_vit_base_ft", "classification"), ("pixmim_vit_base_linear", "probe")])
def test_name_tells_the_task(name, task):
    assert open_recipe(name)[0].task == task


def test_name_has_its_settings_beside_the_recipe_also_with_others():
    entry = zoo.find("mae_vit_huge_1600ep_ft448_mmpretrain")
    assert entry.opts == ("TEST.CROP_RATIO", 0.875) and load_config(ROOT / entry.config).TEST.CROP_RATIO == 1.0
    for overrides in (None, {"num_classes": 7}):
        assert open_recipe(entry.name, overrides=overrides)[0].config.TEST.CROP_RATIO == 0.875


def test_released_weights_are_read_from_their_folder(tmp_path, monkeypatch, paths):
    """The whole way of a name, with a tiny model in its place."""
    config = tmp_path / "finetune.yaml"
    config.write_text(tiny_config("vit", {"MODEL.NAME": "finetune"}).dump(), encoding="utf-8")
    entry = replace(zoo.find("mae_vit_base_ft"), config=str(config), filename="released.pth", sha256=None, opts=())
    monkeypatch.setattr(zoo, "find", lambda name: {"tiny": entry}[name])
    trained = get_model(tiny_config("vit"), task="classification")
    saved(trained, tmp_path, "released.pth")
    model = get_model("tiny", pretrained=True, weights_dir=tmp_path)
    assert model.recipe.task == "classification"
    assert np.array_equal(inference_model(model, paths[0])["pred_scores"], inference_model(trained, paths[0])["pred_scores"])
    monkeypatch.setenv("SIMMIM_WEIGHTS", str(tmp_path))
    assert inference_model("tiny", paths[0], device="cpu")["pred_label"] == inference_model(trained, paths[0])["pred_label"]


def test_misspelt_name_is_refused_with_those_like_it():
    with pytest.raises(ValueError, match="Did you mean 'simmim_swin_base"):
        get_model("simmim_swin_bas")


def test_model_that_cannot_be_built_says_why():
    entry = next(entry for entry in zoo.entries().values() if entry.config is None)
    with pytest.raises(ValueError, match=re.escape(f"{entry.name} can't be built here: {entry.obstacle}")):
        get_model(entry.name)


def test_predictions_that_are_no_numbers_are_an_error(paths):
    model = get_model(make_config("swin", "plain"), task="classification")
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"predictions of 3 of 3 images are NaN or infinite: the weights .* AMP_OPT_LEVEL O0"):
        inference_model(model, paths)


def test_broken_image_is_raised_from_python(swin, paths, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png can't be read as an image"):
        inference_model(swin, [*paths, tmp_path / "broken.png"])


# ---- the head of a file -------------------------------------------------------------------------------------------

def own_classifier(tmp_path, names, num_classes=None):
    config = make_config("swin", "plain")
    config = with_values(config, MODEL__NUM_CLASSES=num_classes or len(names))
    content = {"model": build(config, is_pretrain=False).state_dict(), **({"classes": names} if names else {})}
    torch.save(content, tmp_path / "best.pth")
    return tmp_path / "best.pth"


def recipe_of(tmp_path):
    """A recipe that does not say how many classes there are."""
    lines = [line for line in make_config("swin", "plain").dump().splitlines() if "NUM_CLASSES" not in line]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "recipe.yaml"


def test_number_and_names_of_the_classes_are_those_of_the_file(tmp_path, paths):
    weights = own_classifier(tmp_path, ["ant", "bee", "cat"])
    model = get_model(recipe_of(tmp_path), weights, task="classification")
    assert model.recipe.config.MODEL.NUM_CLASSES == 3 and model.recipe.classes == ["ant", "bee", "cat"]
    assert inference_model(model, paths[0])["pred_class"] in ("ant", "bee", "cat")


def test_head_of_1000_other_classes_never_has_the_names_of_imagenet(tmp_path, paths):
    model = get_model(recipe_of(tmp_path), own_classifier(tmp_path, [], 1000), task="classification")
    assert model.recipe.classes is None and "pred_class" not in inference_model(model, paths[0])
    names = [f"plant {i}" for i in range(1000)]
    model = get_model(recipe_of(tmp_path), own_classifier(tmp_path, names), task="classification")
    assert inference_model(model, paths[0])["pred_class"].startswith("plant ")


def test_advice_on_the_number_of_classes_works(tmp_path, paths, capsys):
    """What the message says to type is typed."""
    weights, recipe = own_classifier(tmp_path, ["ant", "bee", "cat"]), recipe_of(tmp_path)
    command = ["--task", "classification", "--model", str(recipe), "--weights", str(weights), str(paths[0])]

    def inferred(*more):
        with pytest.raises(SystemExit) as end:
            run(inference.main, inference.parse_arguments([*command, *more]))
        return end.value.code, capsys.readouterr()

    code, text = inferred("--opts", "MODEL.NUM_CLASSES", "7")
    advice = re.search(r"\((--opts MODEL\.NUM_CLASSES \d+)\)", text.err)[1]
    assert code == 2 and "it is for 3 classes, and MODEL.NUM_CLASSES=7 is set" in text.err
    for more in (advice.split(), []):
        code, text = inferred(*more)
        assert code == 0 and "ant" in text.out
