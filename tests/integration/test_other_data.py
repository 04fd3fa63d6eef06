"""Data and images other than ImageNet's: from pre-training through fine-tuning to evaluation."""
import pytest
import torch
from PIL import Image

from .processes import opts
from .recipes import CLASSES, TRAIN_PER_CLASS
from .runs import accuracies, checkpoint, losses

KINDS = {  # kind: (encoder, settings of both stages)
    "grey": ("swin", {"MODEL.SWIN.IN_CHANS": 1}),
    "grey_vit": ("vit", {"MODEL.VIT.IN_CHANS": 1}),
    "wide": ("swin", {"DATA.IMG_SIZE": "[32,64]"}),
    "tall_vit": ("vit", {"DATA.IMG_SIZE": "[64,32]"}),
}
STAGES = {"swin": ("pretrain", "finetune"), "vit": ("pretrain_vit", "finetune_vit")}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, train, tmp_path_factory):
    """(kind, pre-training folder, fine-tuning folder, console of the fine-tuning)"""
    encoder, settings = KINDS[request.param]
    output = tmp_path_factory.mktemp(request.param)
    pretrain, _ = train(STAGES[encoder][0], output, settings={**settings, "TRAIN.EPOCHS": 2})
    finetune, out = train(STAGES[encoder][1], output, "--pretrained", pretrain / "ckpt_epoch_1.pth",
                          settings={**settings, "TRAIN.EPOCHS": 2})
    return request.param, pretrain, finetune, out


def test_other_images_train_through_both_stages(kind):
    _, pretrain, finetune, _ = kind
    for folder, highest in ((pretrain, 3), (finetune, 4)):
        assert len(losses(folder)) == 6
        assert all(0 < loss < highest for loss in losses(folder))
        assert all(torch.isfinite(value).all() for value in checkpoint(folder, 1)["model"].values())


def test_finetuning_takes_every_encoder_weight_when_images_are_of_another_kind(kind):
    assert "2 missing (head.weight, head.bias)" in kind[3]


def test_first_layer_has_the_channels_of_the_images(kind):
    channels = 1 if kind[0].startswith("grey") else 3
    assert checkpoint(kind[2], 1)["model"]["patch_embed.proj.weight"].shape[1] == channels


def test_reconstruction_pictures_have_the_shape_of_the_images(kind):
    name, pretrain, _, _ = kind
    height, width = {"wide": (64, 128), "tall_vit": (128, 64)}.get(name, (128, 128))  # the longer side is shown at 128
    with Image.open(pretrain / "reconstructions" / "epoch_0001.png") as picture:
        assert picture.size == (4 * (width + 4) - 4, 16 + 3 * (height + 4) - 4)


def test_evaluation_gives_the_accuracy_of_training_when_images_are_of_another_kind(kind, forks, images, tmp_path):
    _, _, finetune, out = kind
    result = forks.run("main_finetune.py", "--cfg", finetune / "config.yaml", "--data-path", images, "--output", tmp_path,
                       "--eval", "--resume", finetune / "ckpt_epoch_1.pth").checked()
    assert accuracies(result.out) == accuracies(out)[1:]


def test_images_with_transparency_train_through_both_stages(train, tmp_path):
    settings = {"MODEL.SWIN.IN_CHANS": 4, "TRAIN.EPOCHS": 1, "AUG.AUTO_AUGMENT": "none"}
    pretrain, _ = train("pretrain", tmp_path, settings=settings)
    finetune, _ = train("finetune", tmp_path, "--pretrained", pretrain / "ckpt_epoch_0.pth", settings=settings)
    assert checkpoint(finetune, 0)["model"]["patch_embed.proj.weight"].shape[1] == 4


# ---- folders ------------------------------------------------------------------------------------------------------

def test_labelled_folder_holds_out_images_of_each_class_when_it_has_no_train_and_val(forks, cfg, images, tmp_path):
    result = forks.run("main_finetune.py", "--cfg", cfg.finetune, "--data-path", images / "train", "--output", tmp_path,
                       *opts({"DATA.DATASET": "folder", "TRAIN.EPOCHS": 1})).checked()
    held_out = len(CLASSES)  # a tenth of three images, but at least one of each class
    assert f"{len(CLASSES) * TRAIN_PER_CLASS - held_out} training images in 2 iterations an epoch" in result.out
    assert [line[0] for line in accuracies(result.out)] == [str(held_out)]


def test_labelled_folder_evaluates_on_the_images_that_training_held_out(forks, cfg, images, tmp_path):
    command = ["main_finetune.py", "--cfg", cfg.finetune, "--data-path", images / "train", "--output", tmp_path]
    settings = opts({"DATA.DATASET": "folder", "TRAIN.EPOCHS": 1})
    trained = forks.run(*command, *settings).checked()
    weights = tmp_path / "finetune" / "default" / "ckpt_epoch_0.pth"
    evaluated = forks.run(*command, "--eval", "--resume", weights, *settings).checked()
    assert accuracies(evaluated.out) == accuracies(trained.out)


def test_labelled_folder_validates_on_val_path_when_given(forks, cfg, images, tmp_path):
    settings = {"DATA.DATASET": "folder", "DATA.VAL_PATH": images / "val", "TRAIN.EPOCHS": 1}
    result = forks.run("main_finetune.py", "--cfg", cfg.finetune, "--data-path", images / "train", "--output", tmp_path,
                       *opts(settings)).checked()
    assert "24 training images in 3 iterations an epoch, 11 validation images" in result.out


@pytest.mark.parametrize("layout", ["flat", "nested"])
def test_pretraining_reads_all_images_below_a_folder_without_labels(layout, forks, cfg, images, tmp_path):
    folder = images / "train"
    if layout == "flat":
        folder = tmp_path / "flat"
        folder.mkdir()
        for number, path in enumerate(sorted(images.rglob("*.*"))):
            (folder / f"{number}{path.suffix.upper()}").symlink_to(path)
    result = forks.run("main_simmim.py", "--cfg", cfg.pretrain, "--data-path", folder, "--output", tmp_path / "out",
                       *opts({"DATA.DATASET": "folder", "TRAIN.EPOCHS": 1})).checked()
    assert f"{24 if layout == 'nested' else 35} training images in" in result.out  # 24 in train, 11 in val


# ---- augmentation -------------------------------------------------------------------------------------------------

def test_finetuning_trains_with_the_official_augmentation_at_its_strongest(train, tmp_path):
    """The official policy draws strengths around 9; those of 10 and above are the ones libraries disagree about."""
    folder, _ = train("finetune", tmp_path, settings={"AUG.AUTO_AUGMENT": "rand-m10-mstd0-inc1", "TRAIN.EPOCHS": 5})
    assert len(losses(folder)) == 15


@pytest.mark.parametrize("mixup, cutmix", [(0.0, 0.0), (0.8, 0.0), (0.0, 1.0)])
def test_finetuning_trains_when_only_some_mixing_is_on(mixup, cutmix, train, tmp_path):
    folder, _ = train("finetune", tmp_path, settings={"AUG.MIXUP": mixup, "AUG.CUTMIX": cutmix, "TRAIN.EPOCHS": 1})
    assert all(0 < loss < 4 for loss in losses(folder))


def test_finetuning_trains_on_as_many_images_of_each_class_as_asked_for(forks, cfg, images, tmp_path):
    result = forks.run("main_finetune.py", "--cfg", cfg.finetune, "--data-path", images, "--output", tmp_path,
                       *opts({"DATA.IMAGES_PER_CLASS": 2, "TRAIN.EPOCHS": 1})).checked()
    assert "16 training images in 2 iterations an epoch" in result.out
