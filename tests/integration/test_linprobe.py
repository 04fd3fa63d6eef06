"""Linear probe and nearest neighbours as users run them: one process and two, sweep, resume, evaluation, bad input."""
import shutil

import pytest

from .processes import ROOT, opts
from .recipes import CLASSES, PROBE, VAL_IMAGES, VIT, write_recipe
from .runs import accuracies, checkpoint, losses, records, unequal

PUBLISHED = sorted(path for path in (ROOT / "configs").glob("*/*linprobe*.yaml") if path.parent.name not in ("demo", "probe"))


@pytest.fixture(scope="session")
def encoder(pretrained_run):
    return pretrained_run / "encoder.pth"


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("probe") / "probe.yaml", PROBE)


@pytest.fixture(scope="session")
def probe(forks, recipe, images):
    """probe(output, *flags, settings={}, ranks=1) -> (run folder, console text)."""
    def run(output, *flags, settings=None, ranks=1):
        arguments = ["--cfg", recipe, "--data-path", images, "--output", output, *flags, *opts(settings or {})]
        results = ([forks.run("main_linprobe.py", *arguments)] if ranks == 1 else
                   forks.run_ranks(ranks, "main_linprobe.py", *arguments))
        for result in results:
            result.checked()
        return output / "linprobe" / "default", results[0].out
    return run


@pytest.fixture(scope="session")
def probed(probe, tmp_path_factory, encoder):
    """(Run folder, text) of three epochs on one process. Not to be written to."""
    return probe(tmp_path_factory.mktemp("probed"), "--pretrained", encoder)


def numbers(folder, kind="val", *names):
    return [[record[name] for name in names or ("top1", "top5", "images")] for record in records(folder, kind)]


def test_probe_counts_each_step_and_each_image_once(probed):
    folder, text = probed
    assert len(losses(folder)) == 9
    assert [int(count) for count, *_ in accuracies(text)] == [VAL_IMAGES] * 3
    assert {name for name in checkpoint(folder, 2)["model"] if name.startswith("head")} == {
        "head.0.running_mean", "head.0.running_var", "head.0.num_batches_tracked", "head.1.weight", "head.1.bias"}


def test_two_processes_train_the_head_that_one_trains(probed, probe, tmp_path, encoder):
    folder, _ = probe(tmp_path, "--pretrained", encoder, "--batch-size", 4, ranks=2)
    assert losses(folder) == pytest.approx(losses(probed[0]), rel=1e-4)
    assert numbers(folder) == numbers(probed[0])
    assert len(list((folder / "features").iterdir())) == 4  # two files, each with its key, and no parts


def test_encoder_stays_what_it_was_and_the_head_moves(probed):
    first, last = (checkpoint(probed[0], epoch)["model"] for epoch in (0, 2))
    assert set(unequal(first, last)) <= {f".head.{name}" for name in (
        "0.running_mean", "0.running_var", "0.num_batches_tracked", "1.weight", "1.bias")}


def test_features_are_reused_and_extracted_again_with_other_weights(probed, probe, tmp_path, encoder):
    cache = tmp_path / "cache"
    shutil.copytree(probed[0] / "features", cache)
    _, text = probe(tmp_path / "a", "--pretrained", encoder, "--cache", cache)
    assert "extracting" not in text and text.count("layer last: those of") == 2
    _, text = probe(tmp_path / "b", "--random-encoder", "--cache", cache)
    assert text.count("can't be used, it differs in weights") == 2


def test_interrupted_probe_goes_on_to_the_same_end(probed, probe, tmp_path, encoder):
    probe(tmp_path, "--pretrained", encoder)
    folder = tmp_path / "linprobe" / "default"
    (folder / "ckpt_epoch_2.pth").unlink()
    _, text = probe(tmp_path, "--pretrained", encoder)
    assert "going on with epoch 2" in text
    assert unequal(checkpoint(folder, 2)["model"], checkpoint(probed[0], 2)["model"]) == []


def test_saved_probe_evaluates_to_the_same_numbers(probed, probe, tmp_path):
    for ranks in (1, 2):
        folder, _ = probe(tmp_path / str(ranks), "--eval", "--resume", probed[0] / "ckpt_epoch_2.pth", ranks=ranks)
        assert numbers(folder, "eval") == numbers(probed[0])[-1:]
        assert (folder / "eval" / "001_ckpt_epoch_2" / "confusion.png").exists()


def test_evaluation_needs_no_training_images(probed, forks, recipe, images, tmp_path):
    shutil.copytree(images / "val", tmp_path / "data" / "val")
    forks.run("main_linprobe.py", "--cfg", recipe, "--data-path", tmp_path / "data", "--output", tmp_path, "--eval", "--resume",
              probed[0] / "ckpt_epoch_2.pth").checked()
    assert numbers(tmp_path / "linprobe" / "default", "eval") == numbers(probed[0])[-1:]


def test_augmented_probe_trains_on_images(probe, tmp_path, encoder):
    folder, text = probe(tmp_path, "--pretrained", encoder, "--augment", settings={"TRAIN.EPOCHS": 1})
    assert "train images, layer" not in text and len(losses(folder)) == 3


def test_sweep_has_a_head_and_a_record_for_each_layer(probed, probe, tmp_path, encoder):
    folder, text = probe(tmp_path, "--pretrained", encoder, "--sweep")
    assert [record["layer"] for record in records(folder, "probe")] == ["1", "2", "last"]
    assert text.count("extracting") == 2  # all layers in one pass of each set of images
    assert accuracies(text) == [] and text.count("% of layer ") == 3 and text.count("\nlayer ") == 3  # a line an epoch
    together, alone = checkpoint(folder, 2)["model"], checkpoint(probed[0], 2)["model"]
    assert together["head.last.0.running_mean"].equal(alone["head.0.running_mean"])
    assert len(numbers(folder, "val", "top1_layer_1", "top1_layer_2", "top1_layer_last")) == 3


def test_layer_counts_from_the_end_as_from_the_start(probe, tmp_path, encoder):
    runs = [probe(tmp_path / layer, "--pretrained", encoder, "--layer", layer, settings={"TRAIN.EPOCHS": 1})[0]
            for layer in ("2", "-1")]
    assert losses(runs[0]) == losses(runs[1])


def test_neighbours_are_counted_once_on_any_number_of_processes(probe, tmp_path, encoder):
    found = []
    for ranks in (1, 2):
        folder, text = probe(tmp_path / str(ranks), "--pretrained", encoder, "--knn", ranks=ranks,
                             settings={"PROBE.KNN_K": "[1,5]"})
        assert [record["k"] for record in records(folder, "eval")] == [1, 5]
        found.append(numbers(folder, "eval"))
    assert found[0] == found[1] and found[0][0][2] == VAL_IMAGES
    assert found[0][0][0] > 100 / len(CLASSES)


def test_class_token_of_a_vit_is_probed(forks, images, tmp_path, train):
    run, _ = train("pretrain_vit", tmp_path / "pretrained", settings={"TRAIN.EPOCHS": 1})
    recipe = write_recipe(tmp_path / "vit.yaml", PROBE | VIT)
    result = forks.run("main_linprobe.py", "--cfg", recipe, "--data-path", images, "--output", tmp_path, "--pretrained",
                       run / "encoder.pth", "--feature", "cls", "--layer", "1").checked()
    assert "(layer 1, cls)" in result.out


@pytest.mark.parametrize(("flags", "message"), [
    ([], "pass --pretrained <checkpoint>"),
    (["--knn"], "pass --pretrained <checkpoint>"),
    (["--eval"], "--eval needs a trained head"),
    (["--random-encoder", "--layer", "3"], "PROBE.LAYER=3 (--layer) does not exist: the encoder has blocks 1 to 2"),
    (["--random-encoder", "--layer", "first"], "PROBE.LAYER='first'"),
    (["--random-encoder", "--feature", "cls"], "no class token"),
    (["--random-encoder", "--pretrained", "x.pth"], "contradict each other"),
    (["--random-encoder", "--sweep", "--opts", "TRAIN.CLIP_GRAD", "1"], "TRAIN.CLIP_GRAD"),
    (["--random-encoder", "--opts", "TRAIN.PARALLEL", "fsdp"], "TRAIN.PARALLEL"),
    (["--pretrained", "absent.pth"], "absent.pth does not exist")])
def test_bad_input_is_one_line(forks, recipe, images, tmp_path, flags, message):
    result = forks.run("main_linprobe.py", "--cfg", recipe, "--data-path", images, "--output", tmp_path, *flags)
    assert result.code == 2 and len(result.error_lines) == 1 and message in result.error_lines[0]
    assert "Traceback" not in result.err


@pytest.mark.parametrize("name", PUBLISHED, ids=lambda path: path.stem)
def test_published_recipe_runs_with_a_small_model(forks, images, tmp_path, name):
    small = {"TRAIN.EPOCHS": 1, "TRAIN.WARMUP_EPOCHS": 0, "DATA.NUM_WORKERS": 0, "DATA.BATCH_SIZE": 8,
             "DATA.IMG_SIZE": 56 if "huge" in name.stem else 64}
    small |= ({"MODEL.CONVMAE.EMBED_DIM": "[8,8,16]", "MODEL.CONVMAE.DEPTHS": "[1,1,1]", "MODEL.CONVMAE.NUM_HEADS": 2}
              if "convmae" in name.stem else {"MODEL.VIT.EMBED_DIM": 16, "MODEL.VIT.DEPTH": 8, "MODEL.VIT.NUM_HEADS": 2})
    result = forks.run("main_linprobe.py", "--cfg", name, "--data-path", images, "--output", tmp_path, "--random-encoder",
                       *opts(small)).checked()
    assert [int(count) for count, *_ in accuracies(result.out)] == [VAL_IMAGES]


def test_head_of_another_layer_is_refused(probed, forks, recipe, images, tmp_path):
    result = forks.run("main_linprobe.py", "--cfg", recipe, "--data-path", images, "--output", tmp_path, "--eval", "--layer",
                       "2", "--resume", probed[0] / "ckpt_epoch_2.pth")
    assert result.code == 2 and "was made with PROBE.LAYER=last, not 2" in result.error_lines[0]


@pytest.mark.parametrize("ranks", [1, 2])
def test_unreadable_images_end_no_probe(probe, images, encoder, tmp_path, ranks):
    """Two of training and two of validation, which is not a single image for one of the processes."""
    shutil.copytree(images, tmp_path / "images")
    val = sorted((tmp_path / "images" / "val").rglob("*.png"))
    for path in (tmp_path / "images/train/ant/0.jpg", tmp_path / "images/train/bee/1.jpg", val[0], val[2]):
        path.write_bytes(b"no image")
    flags = ["--data-path", tmp_path / "images", "--pretrained", encoder, "--cache", tmp_path / "cache"]
    settings = {"DATA.BATCH_SIZE": 8 // ranks, "DATA.MAX_BAD_FRACTION": 0.1, "TRAIN.EPOCHS": 1, "PROBE.KNN_K": "[5,10,20]"}
    folder, text = probe(tmp_path / "probe", *flags, settings=settings, ranks=ranks)
    assert all(loss == loss for loss in losses(folder)) and len(losses(folder)) == 3
    assert numbers(folder, "val", "images", "unreadable") == [[VAL_IMAGES - 2, 2]]
    assert "2 of 24 train images could not be read" in text and f"2 of {VAL_IMAGES} val images" in text
    folder, text = probe(tmp_path / "knn", *flags, "--knn", settings=settings, ranks=ranks)
    assert numbers(folder, "eval", "images", "unreadable") == [[VAL_IMAGES - 2, 2]] * 3
    assert "those of" in text and "2 of 24 train images could not be read" in text
