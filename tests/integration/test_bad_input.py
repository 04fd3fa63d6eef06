"""What users get wrong ends in one line that says what is wrong, what was expected and what to do; nothing is written."""
import shutil

import pytest
import torch

from .processes import finish, free_port, opts, start
from .recipes import PRETRAIN, save_image, write_recipe
from .runs import changed, checkpoint_names, snapshot, truncate

PRETRAIN_MAIN, FINETUNE_MAIN = "main_simmim.py", "main_finetune.py"


@pytest.fixture
def output(tmp_path):
    """A folder for runs that must stay away."""
    return tmp_path / "output"


@pytest.fixture
def refused(forks, cfg, images, output):
    """refused(script, *flags, settings={}) -> the error line of a run that has left nothing behind.

    Flags come last on the command line, so that --cfg, --data-path and --output can be given again.
    """
    def run(script, *flags, settings=None, **env):
        pretrains = script == PRETRAIN_MAIN
        result = forks.run(script, "--cfg", cfg.pretrain if pretrains else cfg.finetune, "--data-path",
                           images / "train" if pretrains else images, "--output", output, *opts(settings or {}), *flags, **env)
        assert not output.exists()
        return error_line(result)
    return run


def error_line(result):
    assert result.code not in (0, None), result.out
    assert "Traceback" not in result.err + result.out
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.err
    return lines[0]


def assert_names(line, *parts):
    absent = [str(part) for part in parts if str(part) not in line]
    assert not absent, f"{absent} not in: {line}"


# ---- data ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("script", [PRETRAIN_MAIN, FINETUNE_MAIN])
def test_error_names_the_data_folder_when_it_is_missing(script, refused, tmp_path):
    assert_names(refused(script, "--data-path", tmp_path / "nowhere"), tmp_path / "nowhere", "does not exist", "--data-path")


@pytest.mark.parametrize("script", [PRETRAIN_MAIN, FINETUNE_MAIN])
def test_error_asks_for_the_data_folder_when_none_is_given(script, refused):
    assert_names(refused(script, "--data-path", ""), "no data folder is given", "--data-path")


def test_error_says_that_the_data_path_is_a_file(refused, tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK")
    line = refused(PRETRAIN_MAIN, "--data-path", tmp_path / "images.zip")
    assert_names(line, "images.zip", "is a file, not a folder", "--data-path")


def test_error_says_that_the_data_folder_is_empty(refused, tmp_path):
    (tmp_path / "bare").mkdir()
    assert_names(refused(PRETRAIN_MAIN, "--data-path", tmp_path / "bare"), tmp_path / "bare", "is empty", ".jpg")


def test_error_says_what_the_data_folder_holds_when_there_are_no_images(refused, tmp_path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "notes.txt").write_text("no image")
    line = refused(PRETRAIN_MAIN, "--data-path", tmp_path / "papers")
    assert_names(line, tmp_path / "papers", "no images", "notes.txt", ".jpg")


@pytest.mark.parametrize("name", ["bare", "papers"])
def test_finetuning_error_names_the_missing_train_folder(name, refused, tmp_path):
    (tmp_path / name).mkdir()
    line = refused(FINETUNE_MAIN, "--data-path", tmp_path / name)
    assert_names(line, tmp_path / name / "train", "does not exist", "train/<class>/", "DATA.DATASET folder")


def test_finetuning_error_names_the_missing_val_folder(refused, images, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "train").symlink_to(images / "train")
    assert_names(refused(FINETUNE_MAIN, "--data-path", tmp_path / "half"), tmp_path / "half" / "val", "does not exist")


@pytest.mark.parametrize("dataset", ["imagenet", "folder"])
def test_finetuning_error_asks_for_class_folders_when_images_lie_flat(dataset, refused, images, tmp_path):
    for part in ("train", "val"):
        (tmp_path / "flat" / part).mkdir(parents=True)
        for path in images.glob(f"{part}/ant/*"):
            shutil.copy(path, tmp_path / "flat" / part)
    line = refused(FINETUNE_MAIN, "--data-path", tmp_path / "flat", settings={"DATA.DATASET": dataset})
    assert_names(line, tmp_path / "flat" / "train", "3 images but no class folders", "one folder for each class")


def test_finetuning_error_names_validation_classes_that_training_lacks(refused, images, rng, tmp_path):
    shutil.copytree(images, tmp_path / "more")
    save_image(tmp_path / "more" / "val" / "yak" / "0.png", rng, 0)
    assert_names(refused(FINETUNE_MAIN, "--data-path", tmp_path / "more"), tmp_path / "more" / "val", "yak")


def test_error_suggests_a_batch_size_when_the_batch_is_larger_than_the_data(refused):
    for script in (PRETRAIN_MAIN, FINETUNE_MAIN):
        assert_names(refused(script, "--batch-size", 26), "24 training images", "26", "--batch-size", "at most 24")


def test_finetuning_error_suggests_an_even_batch_for_mixup(refused):
    assert_names(refused(FINETUNE_MAIN, "--batch-size", 7), "DATA.BATCH_SIZE=7 is odd", "mixup", "Use 8", "AUG.MIXUP 0")


def test_steps_of_more_batches_than_an_epoch_has_are_refused_by_every_program_that_trains(refused):
    for script in (PRETRAIN_MAIN, FINETUNE_MAIN):
        assert_names(refused(script, "--batch-size", 8, "--accumulation-steps", 4), "TRAIN.ACCUMULATION_STEPS=4", "3 batches",
                     "Use at most 3")


def test_finetuning_error_compares_the_number_of_classes(refused):
    line = refused(FINETUNE_MAIN, settings={"MODEL.NUM_CLASSES": 1000})
    assert_names(line, "MODEL.NUM_CLASSES=1000", "8 classes", "--data-path")


def test_error_names_the_held_out_folder_when_it_is_missing(refused, tmp_path):
    line = refused(PRETRAIN_MAIN, settings={"DATA.VAL_PATH": tmp_path / "nowhere"})
    assert_names(line, tmp_path / "nowhere", "does not exist", "DATA.VAL_PATH")


@pytest.mark.parametrize("kind", ["cut", "text"])
@pytest.mark.parametrize("workers", [0, 2])
def test_error_names_the_broken_image_where_none_may_be(kind, workers, forks, cfg, images, output, tmp_path):
    shutil.copytree(images / "train", tmp_path / "images")
    broken = tmp_path / "images" / "bee" / "1.jpg"
    if kind == "cut":
        truncate(broken)
    else:
        broken.write_text("<html>404</html>")
    result = forks.run(PRETRAIN_MAIN, "--cfg", cfg.pretrain, "--data-path", tmp_path / "images", "--output", output,
                       *opts({"TRAIN.EPOCHS": 1, "DATA.NUM_WORKERS": workers, "DATA.MAX_BAD_FRACTION": 0}))
    assert_names(error_line(result), broken, "1 of 24 training images can't be read", "Repair or remove", "DATA.SKIP_LIST")
    assert checkpoint_names(output) == []


# ---- settings -----------------------------------------------------------------------------------------------------

def test_error_names_the_recipe_file_when_it_is_missing(refused, tmp_path):
    line = refused(PRETRAIN_MAIN, "--cfg", tmp_path / "recipe.yaml")
    assert_names(line, tmp_path / "recipe.yaml", "does not exist", "configs/")


def test_error_suggests_the_closest_key_when_the_recipe_has_an_unknown_one(refused, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", {**PRETRAIN, "MODEL.SWIN.EMBED_DIMS": 8})
    line = refused(PRETRAIN_MAIN, "--cfg", recipe)
    assert_names(line, recipe, "'MODEL.SWIN.EMBED_DIMS'", "closest valid key is MODEL.SWIN.EMBED_DIM.")


def test_error_names_the_recipe_when_it_is_no_yaml(refused, tmp_path):
    (tmp_path / "recipe.yaml").write_text("MODEL: [swin\nDATA: }")
    assert_names(refused(PRETRAIN_MAIN, "--cfg", tmp_path / "recipe.yaml"), tmp_path / "recipe.yaml", "not valid YAML")


def test_error_suggests_the_closest_key_when_opts_has_an_unknown_one(refused):
    line = refused(PRETRAIN_MAIN, settings={"TRAIN.EPOCH": 3})
    assert_names(line, "--opts", "'TRAIN.EPOCH'", "closest valid key is TRAIN.EPOCHS")


def test_error_says_what_kind_of_value_a_key_takes(refused):
    assert_names(refused(PRETRAIN_MAIN, settings={"TRAIN.EPOCHS": "many"}), "TRAIN.EPOCHS='many'", "a whole number")


def test_error_says_that_opts_come_in_pairs(refused):
    assert_names(refused(PRETRAIN_MAIN, "--opts", "TRAIN.EPOCHS"), "--opts", "pairs KEY VALUE", "TRAIN.EPOCHS")


@pytest.mark.parametrize("script", [PRETRAIN_MAIN, FINETUNE_MAIN])
@pytest.mark.parametrize("key, value, valid", [
    ("MODEL.TYPE", "swim", ("swin", "vit")),
    ("DATA.DATASET", "imagenot", ("demo", "folder", "imagenet")),
    ("TRAIN.OPTIMIZER.NAME", "adam", ("adamw", "sgd")),
    ("TRAIN.LR_SCHEDULER.NAME", "cosinus", ("cosine", "linear", "multistep", "step")),
])
def test_error_lists_the_valid_names_when_a_name_is_unknown(key, value, valid, script, refused):
    assert_names(refused(script, settings={key: value}), f"{key}='{value}'", "valid:", *valid)


@pytest.mark.parametrize("key, value, valid", [("MODEL.METHOD", "simim", "simmim"), ("DATA.MASK_TYPE", "randm", "random")])
def test_pretraining_error_lists_the_valid_names_when_a_name_is_unknown(key, value, valid, refused):
    assert_names(refused(PRETRAIN_MAIN, settings={key: value}), f"{key}='{value}'", "valid:", valid)


@pytest.mark.parametrize("key, value, words", [
    ("TAG", "a/../../../x", "below OUTPUT"), ("TAG", "/tmp/x", "below OUTPUT"), ("MODEL.NAME", "../../x", "below OUTPUT"),
    ("DATA.IMG_SIZE", 10 ** 9, "between 1 and 16384"), ("TRAIN.BASE_LR", "1e400", "not finite"),
    ("DATA.NUM_WORKERS", 10 ** 6, "between 0 and 1024"), ("TRAIN.EPOCHS", "9" * 5000, "a whole number")])
def test_error_says_what_is_possible_when_a_value_is_absurd(key, value, words, refused):
    assert_names(refused(PRETRAIN_MAIN, settings={key: value}), f"{key}=", words)


def test_error_suggests_a_mask_patch_that_divides_the_image(refused):
    line = refused(PRETRAIN_MAIN, settings={"DATA.MASK_PATCH_SIZE": 12})
    assert_names(line, "DATA.MASK_PATCH_SIZE=12", "DATA.IMG_SIZE=32", "Use DATA.MASK_PATCH_SIZE")


def test_error_suggests_a_mask_patch_that_is_a_multiple_of_the_patch(refused):
    line = refused(PRETRAIN_MAIN, settings={"DATA.MASK_PATCH_SIZE": 2})
    assert_names(line, "DATA.MASK_PATCH_SIZE=2", "MODEL.SWIN.PATCH_SIZE=4", "Use DATA.MASK_PATCH_SIZE 4")


def test_error_suggests_a_window_that_fits_the_image(refused):
    line = refused(FINETUNE_MAIN, settings={"MODEL.SWIN.WINDOW_SIZE": 3})
    assert_names(line, "MODEL.SWIN.WINDOW_SIZE=3", "DATA.IMG_SIZE=32", "Use DATA.IMG_SIZE")


@pytest.mark.parametrize("script", [PRETRAIN_MAIN, FINETUNE_MAIN])
@pytest.mark.parametrize("settings, part, instead", [
    ({"AMP_BACKEND": "apex"}, "apex.amp", "AMP_BACKEND native"),
    ({"TRAIN.OPTIMIZER.NAME": "fused_adam"}, "FusedAdam", "adamw"),
    ({"TRAIN.OPTIMIZER.NAME": "fused_lamb"}, "FusedLAMB", "adamw"),
])
def test_error_names_an_alternative_when_apex_is_not_installed(settings, part, instead, script, refused):
    assert_names(refused(script, settings=settings), part, "not installed", instead)


# ---- checkpoints --------------------------------------------------------------------------------------------------

WAYS_TO_LOAD = [["--resume"], ["--pretrained"], ["--eval", "--resume"], ["--eval", "--pretrained"]]
WIDER = {"MODEL.SWIN.EMBED_DIM": 16}


@pytest.mark.parametrize("script", [PRETRAIN_MAIN, FINETUNE_MAIN])
def test_error_asks_for_weights_when_eval_has_none(script, refused):
    assert_names(refused(script, "--eval"), "--eval needs weights", "--resume", "--pretrained")


def test_error_asks_for_held_out_images_when_a_pretrained_model_is_evaluated_without(refused, pretrained_run):
    line = refused(PRETRAIN_MAIN, "--eval", "--resume", pretrained_run / "ckpt_epoch_0.pth")
    assert_names(line, "held-out images", "DATA.VAL_PATH")


@pytest.mark.parametrize("script", [PRETRAIN_MAIN, FINETUNE_MAIN])
@pytest.mark.parametrize("flags", WAYS_TO_LOAD, ids=" ".join)
def test_error_names_the_checkpoint_when_it_is_missing(flags, script, refused, images, tmp_path):
    settings = {"DATA.VAL_PATH": images / "val"} if script == PRETRAIN_MAIN else {}
    line = refused(script, *flags, tmp_path / "weights.pth", settings=settings)
    assert_names(line, tmp_path / "weights.pth", "does not exist")


@pytest.mark.parametrize("script", [PRETRAIN_MAIN, FINETUNE_MAIN])
@pytest.mark.parametrize("flags", WAYS_TO_LOAD, ids=" ".join)
def test_error_names_the_checkpoint_when_it_is_truncated(flags, script, refused, pretrained_run, images, tmp_path):
    shutil.copy(pretrained_run / "ckpt_epoch_0.pth", tmp_path / "weights.pth")
    truncate(tmp_path / "weights.pth")
    settings = {"DATA.VAL_PATH": images / "val"} if script == PRETRAIN_MAIN else {}
    line = refused(script, *flags, tmp_path / "weights.pth", settings=settings)
    assert_names(line, tmp_path / "weights.pth", "not a readable checkpoint", "broken")


@pytest.mark.parametrize("flags", [["--resume"], ["--eval", "--resume"]], ids=" ".join)
@pytest.mark.parametrize("script", [PRETRAIN_MAIN, FINETUNE_MAIN])
def test_error_says_what_does_not_fit_when_a_checkpoint_of_another_model_is_resumed(
        flags, script, refused, images, pretrained_run, finetuned_run):
    pretrains = script == PRETRAIN_MAIN
    weights = (pretrained_run if pretrains else finetuned_run) / "ckpt_epoch_0.pth"
    settings = {**WIDER, "DATA.VAL_PATH": images / "val"} if pretrains else WIDER
    line = refused(script, *flags, weights, settings=settings)
    assert_names(line, weights, "is of another model", "of another shape", "instead of", "--cfg")


@pytest.mark.parametrize("flags", [["--pretrained"], ["--eval", "--pretrained"]], ids=" ".join)
@pytest.mark.parametrize("script", [PRETRAIN_MAIN, FINETUNE_MAIN])
def test_error_says_what_does_not_fit_when_a_model_starts_from_another_one(flags, script, refused, images, pretrained_run):
    settings = {**WIDER, "DATA.VAL_PATH": images / "val"} if script == PRETRAIN_MAIN else WIDER
    line = refused(script, *flags, pretrained_run / "ckpt_epoch_0.pth", settings=settings)
    assert_names(line, pretrained_run / "ckpt_epoch_0.pth", "holds another encoder", "EMBED_DIM", "--cfg")


def test_error_says_so_when_a_swin_checkpoint_meets_a_vit(refused, cfg, pretrained_run):
    line = refused(FINETUNE_MAIN, "--cfg", cfg.finetune_vit, "--pretrained", pretrained_run / "ckpt_epoch_0.pth")
    assert_names(line, "holds another encoder", "MODEL.TYPE")


@pytest.mark.parametrize("flags", [["--resume"], ["--eval", "--resume"]], ids=" ".join)
def test_error_points_to_pretrained_when_a_pretraining_checkpoint_is_resumed_in_finetuning(flags, refused, pretrained_run):
    line = refused(FINETUNE_MAIN, *flags, pretrained_run / "ckpt_epoch_0.pth")
    assert_names(line, pretrained_run / "ckpt_epoch_0.pth", "another model", "--pretrained")


def test_error_says_that_there_is_no_head_when_a_pretraining_checkpoint_is_evaluated(refused, pretrained_run):
    line = refused(FINETUNE_MAIN, "--eval", "--pretrained", pretrained_run / "ckpt_epoch_0.pth")
    assert_names(line, "ckpt_epoch_0.pth", "no head for 8 classes", "fine-tuned checkpoint")


def test_error_says_that_there_is_no_decoder_when_an_encoder_file_is_evaluated(refused, images, pretrained_run):
    line = refused(PRETRAIN_MAIN, "--eval", "--pretrained", pretrained_run / "encoder.pth",
                   settings={"DATA.VAL_PATH": images / "val"})
    assert_names(line, "encoder.pth", "has no decoder", "ckpt_epoch_N.pth")


def test_error_points_to_pretrained_when_a_file_without_optimizer_is_resumed(refused, finetuned_run):
    line = refused(FINETUNE_MAIN, "--resume", finetuned_run / "ckpt_best.pth")
    assert_names(line, "ckpt_best.pth", "no optimizer", "--pretrained")


def test_error_says_that_a_checkpoint_holds_no_weights(refused, tmp_path):
    torch.save({"note": "nothing"}, tmp_path / "weights.pth")
    line = refused(FINETUNE_MAIN, "--pretrained", tmp_path / "weights.pth")
    assert_names(line, tmp_path / "weights.pth", "no weights", "note")


def test_error_says_how_to_get_the_file_when_an_address_can_not_be_reached(refused, tmp_path):
    address = f"http://127.0.0.1:{free_port()}/weights.pth"
    line = refused(FINETUNE_MAIN, "--pretrained", address, TORCH_HOME=str(tmp_path / "cache"))
    assert_names(line, address, "could not be downloaded", "pass its path", tmp_path / "cache")
    assert checkpoint_names(tmp_path / "cache") == []


# ---- run folders that exist ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_error_refuses_to_start_anew_over_checkpoints(stage, forks, cfg, images, pretrained_run, finetuned_run, tmp_path):
    folder = tmp_path / stage / "default"
    shutil.copytree(pretrained_run if stage == "pretrain" else finetuned_run, folder)
    before = snapshot(tmp_path)
    script, data = (PRETRAIN_MAIN, images / "train") if stage == "pretrain" else (FINETUNE_MAIN, images)
    result = forks.run(script, "--cfg", getattr(cfg, stage), "--data-path", data, "--output", tmp_path,
                       *opts({"TRAIN.AUTO_RESUME": False}))
    assert_names(error_line(result), folder, "already holds ckpt_epoch_0.pth", "--tag", "TRAIN.AUTO_RESUME True")
    assert changed(before, snapshot(tmp_path)) == []


def test_error_refuses_to_continue_the_run_folder_of_another_model(forks, cfg, images, pretrained_run, tmp_path):
    shutil.copytree(pretrained_run, tmp_path / "pretrain" / "default")
    before = snapshot(tmp_path)
    result = forks.run(PRETRAIN_MAIN, "--cfg", cfg.pretrain, "--data-path", images / "train", "--output", tmp_path,
                       *opts(WIDER))
    assert_names(error_line(result), "ckpt_epoch_0.pth", "is of another model", "--cfg", "--tag")
    assert changed(before, snapshot(tmp_path)) == []


def test_error_says_what_helps_when_the_only_checkpoint_is_truncated(forks, cfg, images, pretrained_run, tmp_path):
    folder = tmp_path / "pretrain" / "default"
    shutil.copytree(pretrained_run, folder)
    truncate(folder / "ckpt_epoch_0.pth")
    before = snapshot(tmp_path)
    result = forks.run(PRETRAIN_MAIN, "--cfg", cfg.pretrain, "--data-path", images / "train", "--output", tmp_path)
    line = error_line(result)
    assert_names(line, "ckpt_epoch_0.pth", "move")
    assert "TRAIN.AUTO_RESUME True" not in line  # it is on already
    assert changed(before, snapshot(tmp_path)) == []


# ---- the same through real processes ------------------------------------------------------------------------------

def test_real_processes_end_with_one_line_and_an_exit_code(forks, cfg, images, output, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 1]
    alone = start(FINETUNE_MAIN, "--cfg", cfg.finetune, "--data-path", images, "--output", output, "--eval")
    result = forks.run(*torchrun, PRETRAIN_MAIN, "--cfg", cfg.pretrain, "--data-path", tmp_path / "nowhere", "--output", output)
    assert_names(error_line(finish(alone)), "--eval needs weights")
    assert result.code != 0
    ours = [line for line in result.err.splitlines() if "error: data folder" in line]  # beside what the launcher says
    assert len(ours) == 1 and "nowhere does not exist" in ours[0]
    assert not output.exists()


def test_traceback_is_shown_when_asked_for(forks, cfg, output, tmp_path):
    result = forks.run(PRETRAIN_MAIN, "--cfg", cfg.pretrain, "--data-path", tmp_path / "nowhere", "--output", output,
                       SIMMIM_TRACEBACK="1")
    assert result.code != 0
    assert "Traceback" in result.err and "nowhere does not exist" in result.err
