"""The command lines of the official repository with the recipes of published models; only --opts makes the models small."""
from types import SimpleNamespace

import pytest
import torch

from config import load_config

from .processes import ROOT, free_port, launcher_environments, opts
from .runs import accuracies, checkpoint, losses, records

SMALL = {"TRAIN.EPOCHS": 1, "TRAIN.WARMUP_EPOCHS": 0, "TRAIN.LR_SCHEDULER.NAME": "cosine",
         "DATA.NUM_WORKERS": 0, "PRINT_FREQ": 1, "VIS_IMAGES": 2}
SMALL_SWIN = {**SMALL, "MODEL.SWIN.EMBED_DIM": 8, "MODEL.SWIN.DEPTHS": "[1,1]", "MODEL.SWIN.NUM_HEADS": "[1,2]"}
SMALL_VIT = {**SMALL, "MODEL.VIT.EMBED_DIM": 16, "MODEL.VIT.DEPTH": 2, "MODEL.VIT.NUM_HEADS": 2, "DATA.IMG_SIZE": 64}
SMALL_MAE = {**SMALL_VIT, "MODEL.MAE.DECODER_EMBED_DIM": 16, "MODEL.MAE.DECODER_DEPTH": 1, "MODEL.MAE.DECODER_NUM_HEADS": 2}
SMALL_CONVMAE = {**SMALL, "MODEL.CONVMAE.EMBED_DIM": "[4,8,16]", "MODEL.CONVMAE.DEPTHS": "[1,1,2]",
                 "MODEL.CONVMAE.NUM_HEADS": 2, "DATA.IMG_SIZE": 64}
SMALL_MIXMIM = {**SMALL, "MODEL.MIXMIM.EMBED_DIM": 8, "MODEL.MIXMIM.DEPTHS": "[1,1]", "MODEL.MIXMIM.NUM_HEADS": "[1,2]"}
SMALL_GREENMIM = {**SMALL, "MODEL.SWIN.EMBED_DIM": 8, "MODEL.SWIN.DEPTHS": "[1,1,1,1]", "MODEL.SWIN.NUM_HEADS": "[1,2,4,8]",
                  "MODEL.MAE.DECODER_EMBED_DIM": 16, "MODEL.MAE.DECODER_NUM_HEADS": 2, "DATA.IMG_SIZE": 96}
MIXMIM_PRETRAIN = {**SMALL_MIXMIM, "MODEL.MIXMIM.WINDOW_SIZES": "[14,14]", "MODEL.MIXMIM.DECODER_EMBED_DIM": 16,
                   "MODEL.MIXMIM.DECODER_DEPTH": 1, "MODEL.MIXMIM.DECODER_NUM_HEADS": 2, "DATA.IMG_SIZE": 112,
                   "DATA.MASK_PATCH_SIZE": 56}
MIXMIM_FINETUNE = {**SMALL_MIXMIM, "MODEL.MIXMIM.WINDOW_SIZES": "[14,14]", "DATA.IMG_SIZE": 112}
SMALL_SWINV2 = {**SMALL, "MODEL.SWINV2.EMBED_DIM": 8, "MODEL.SWINV2.DEPTHS": "[1,1]", "MODEL.SWINV2.NUM_HEADS": "[1,2]"}
V2_PRETRAIN = {**SMALL_SWINV2, "DATA.IMG_SIZE": 96}
V2_FINETUNE = {**SMALL_SWINV2, "DATA.IMG_SIZE": 112, "MODEL.SWINV2.PRETRAINED_WINDOW_SIZES": "[12,12]"}
# windows keep the sizes of the recipes; images of 96 px = 24 and 12 tokens, of 56 px = 14 and 7, of 112 px = 28 and 14
PRETRAIN = {
    "swin_base/simmim_pretrain__swin_base__img192_window6__100ep": {**SMALL_SWIN, "DATA.IMG_SIZE": 96},
    "swin_base/simmim_pretrain__swin_base__img192_window6__800ep": {**SMALL_SWIN, "DATA.IMG_SIZE": 96},
    "swin_large/simmim_pretrain__swin_large__img192_window12__800ep": {**SMALL_SWIN, "DATA.IMG_SIZE": 96},
    "vit_base/simmim_pretrain__vit_base__img224__800ep": SMALL_VIT,
    "swinv2_small/simmim_pretrain__swinv2_small__img192_window12__800ep": V2_PRETRAIN,
    "swinv2_base/simmim_pretrain__swinv2_base__img192_window12__800ep": V2_PRETRAIN,
    "swinv2_large/simmim_pretrain__swinv2_large__img192_window12__800ep": V2_PRETRAIN,
    "swinv2_huge/simmim_pretrain__swinv2_huge__img192_window12__800ep": V2_PRETRAIN,
    "swinv2_giant_1b/simmim_pretrain__swinv2_giant_1b__img192_window12__800ep": V2_PRETRAIN,
    "swinv2_giant_3b/simmim_pretrain__swinv2_giant_3b__img192_window12__20ep": V2_PRETRAIN,
    "mae/mae_pretrain__vit_base__img224__800ep": SMALL_MAE,
    "mae/mae_pretrain__vit_base__img224__1600ep": SMALL_MAE,
    "mae/mae_pretrain__vit_large__img224__1600ep": SMALL_MAE,
    "mae/mae_pretrain__vit_huge__img224__1600ep": {**SMALL_MAE, "DATA.IMG_SIZE": 56},
    "pixmim/pixmim_pretrain__vit_base__img224__300ep": SMALL_MAE,
    "pixmim/pixmim_pretrain__vit_base__img224__800ep": SMALL_MAE,
    "convmae/mae_pretrain__convmae_base__img224__1600ep": {
        **SMALL_CONVMAE, "MODEL.MAE.DECODER_EMBED_DIM": 16, "MODEL.MAE.DECODER_DEPTH": 1, "MODEL.MAE.DECODER_NUM_HEADS": 2},
    "lsmae/lsmae_pretrain__vit_base__img448__800ep": {**SMALL_MAE, "DATA.IMG_SIZE": 80},  # blocks of 2x2 patches, cut
    "lsmae/lsmae_pretrain__vit_large__img448__800ep": SMALL_MAE,
    "sparse/greenmim_pretrain__swin_base__img192_window6__800ep": SMALL_GREENMIM,
    "sparse/greenmim_pretrain__swin_base__img224_window7__800ep": {**SMALL_GREENMIM, "DATA.IMG_SIZE": 224},
    "sparse/greenmim_pretrain__swin_large__img224_window14__800ep": {**SMALL_GREENMIM, "DATA.IMG_SIZE": 224},
    "mixmim/mixmim_pretrain__mixmim_base__img224__300ep": MIXMIM_PRETRAIN,
    "mixmim/mixmim_pretrain__mixmim_base__img224__600ep": MIXMIM_PRETRAIN,
    "mixmim/mixmim_pretrain__mixmim_large__img224__600ep": MIXMIM_PRETRAIN,
    "mixmim/mixmim_pretrain__mixmim_huge__img224__600ep": MIXMIM_PRETRAIN,
}
FINETUNE = {
    "swin_base/simmim_finetune__swin_base__img192_window6__100ep": {**SMALL_SWIN, "DATA.IMG_SIZE": 48},
    "swin_base/simmim_finetune__swin_base__img224_window7__100ep": {**SMALL_SWIN, "DATA.IMG_SIZE": 56},
    "swin_base/simmim_finetune__swin_base__img224_window7__800ep": {**SMALL_SWIN, "DATA.IMG_SIZE": 56},
    "swin_large/simmim_finetune__swin_large__img224_window14__800ep": {**SMALL_SWIN, "DATA.IMG_SIZE": 56},
    "vit_base/simmim_finetune__vit_base__img224__800ep": SMALL_VIT,
    "swinv2_small/simmim_finetune__swinv2_small__img224_window14__800ep": V2_FINETUNE,
    "swinv2_base/simmim_finetune__swinv2_base__img224_window14__800ep": V2_FINETUNE,
    "swinv2_large/simmim_finetune__swinv2_large__img224_window14__800ep": V2_FINETUNE,
    "swinv2_huge/simmim_finetune__swinv2_huge__img224_window14__800ep": V2_FINETUNE,
    "swinv2_huge/simmim_finetune__swinv2_huge__img512_window32__800ep": {**V2_FINETUNE, "DATA.IMG_SIZE": 128},
    "swinv2_giant_1b/simmim_finetune__swinv2_giant_1b__img224_window14__800ep": V2_FINETUNE,
    "swinv2_giant_3b/simmim_finetune__swinv2_giant_3b__img224_window14__20ep": V2_FINETUNE,
    "mae/mae_finetune__vit_base__img224": SMALL_VIT,
    "mae/mae_finetune__vit_large__img224": SMALL_VIT,
    "mae/mae_finetune__vit_huge__img224": {**SMALL_VIT, "DATA.IMG_SIZE": 56},
    "mae/mae_finetune__vit_huge__img448": {**SMALL_VIT, "DATA.IMG_SIZE": 84},
    "pixmim/pixmim_finetune__vit_base__img224__300ep": SMALL_VIT,
    "pixmim/pixmim_finetune__vit_base__img224__800ep": SMALL_VIT,
    "convmae/mae_finetune__convmae_base__img224__1600ep": SMALL_CONVMAE,
    "lsmae/lsmae_finetune__vit_base__img224__800ep": {**SMALL_VIT, "DATA.IMG_SIZE": 48},
    "lsmae/lsmae_finetune__vit_base__img448__800ep": {**SMALL_VIT, "DATA.IMG_SIZE": 80},
    "mixmim/mixmim_finetune__mixmim_base__img224__300ep": MIXMIM_FINETUNE,
    "mixmim/mixmim_finetune__mixmim_base__img224__600ep": MIXMIM_FINETUNE,
    "mixmim/mixmim_finetune__mixmim_base__img384__600ep": {
        **MIXMIM_FINETUNE, "MODEL.MIXMIM.WINDOW_SIZES": "[16,16]", "DATA.IMG_SIZE": 128},
    "mixmim/mixmim_finetune__mixmim_large__img224__600ep": MIXMIM_FINETUNE,
    "mixmim/mixmim_finetune__mixmim_large__img384__600ep": {
        **MIXMIM_FINETUNE, "MODEL.MIXMIM.WINDOW_SIZES": "[16,16]", "DATA.IMG_SIZE": 128},
    "mixmim/mixmim_finetune__mixmim_huge__img224__600ep": MIXMIM_FINETUNE,
}
QUICK = ("swin_base__img192_window6__100ep", "vit_base__img224__800ep", "swinv2_base", "mae_pretrain__vit_base__img224__800ep",
         "convmae_base", "greenmim_pretrain__swin_base__img192",
         "mixmim_base__img224__600ep")  # of each encoder and method, trained on every occasion
RELEASED = "swin_base/simmim_finetune__swin_base__img224_window7__800ep"
PRETRAINED = "swin_base/simmim_pretrain__swin_base__img192_window6__800ep"


def marked(names):
    """Names for parametrize; those of other sizes and lengths than QUICK are slow."""
    return [pytest.param(name, id=name.split("/")[1], marks=[] if any(part in name for part in QUICK) else [pytest.mark.slow])
            for name in names]


def recipe(name):
    return f"configs/{name}.yaml"


def run_name(name):
    """The last two folders of the runs of a recipe, MODEL.NAME/TAG."""
    tag = name.split("/")[1]
    return f"{tag.split('__')[0]}/{tag}"


def size_of(name):
    """What recipes of one encoder have in common: ("mae", "vit_huge")."""
    folder, tag = name.split("/")
    return folder, tag.split("__")[1]


def test_recipe_files_of_this_test_are_all_that_there_are():
    files = {str(path.relative_to(ROOT / "configs").with_suffix("")) for path in (ROOT / "configs").glob("*/*.yaml")
             if path.parent.name not in ("demo", "small") and "linprobe" not in path.name}
    assert files == PRETRAIN.keys() | FINETUNE.keys()


# ---- the three commands of the official README, under torch.distributed.launch -------------------------------------

@pytest.fixture(scope="module")
def readme(forks, images, tmp_path_factory):
    """Pre-training, fine-tuning, evaluation, as the README has them; the last two as the launcher starts its process."""
    def launched(script, *arguments):
        return forks.run(script, "--local-rank=0", *arguments, **launcher_environments(1)[0]).checked()

    output = tmp_path_factory.mktemp("readme")
    small = [opts(PRETRAIN[PRETRAINED]), opts(FINETUNE[RELEASED])]
    pretrain = forks.run("-m", "torch.distributed.launch", "--nproc_per_node", 1, "--master_port", free_port(),
                         "main_simmim.py", "--cfg", recipe(PRETRAINED), "--batch-size", 8, "--data-path", images / "train",
                         "--output", output, "--tag", "job", *small[0]).checked()
    weights = output / "simmim_pretrain" / "job" / "ckpt_epoch_0.pth"
    finetune = launched("main_finetune.py", "--cfg", recipe(RELEASED), "--batch-size", 8, "--data-path", images,
                        "--pretrained", weights, "--output", output, "--tag", "job", *small[1])
    folder = output / "simmim_finetune" / "job"
    evaluate = launched("main_finetune.py", "--eval", "--cfg", recipe(RELEASED), "--resume", folder / "ckpt_epoch_0.pth",
                        "--data-path", images, "--output", output / "eval", *small[1])
    return SimpleNamespace(pretrain=pretrain, finetune=finetune, evaluate=evaluate, folder=folder, output=output)


def test_official_pretraining_command_writes_its_run_folder(readme):
    folder = readme.output / "simmim_pretrain" / "job"
    assert len(losses(folder)) == 3
    assert load_config(folder / "config.yaml").TRAIN.LR_SCHEDULER.MULTISTEPS == [700]


def test_official_finetuning_command_starts_from_the_pretrained_windows(readme):
    assert "2 of them resized" in readme.finetune.out  # a table for each block, window 6 to 7
    assert len(records(readme.folder, "val")) == 1


def test_official_evaluation_command_prints_the_accuracy_of_training(readme):
    assert len(accuracies(readme.evaluate.out)) == 1
    assert accuracies(readme.evaluate.out) == accuracies(readme.finetune.out)


def test_official_commands_train_in_fp32_on_a_cpu(readme):
    assert "cpu, fp32" in readme.pretrain.out and "cpu, fp32" in readme.finetune.out


# ---- every recipe, by plain python ---------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def pretrained(forks, images, tmp_path_factory):
    """Run folders of the official pre-training recipes by name, each trained once."""
    folders = {}

    def run(name):
        if name not in folders:
            output = tmp_path_factory.mktemp("official")
            forks.run("main_simmim.py", "--cfg", recipe(name), "--batch-size", 8, "--data-path", images / "train",
                      "--output", output, *opts(PRETRAIN[name])).checked()
            folders[name] = output / run_name(name)
        return folders[name]
    return run


@pytest.mark.parametrize("name", marked(PRETRAIN))
def test_official_pretraining_recipe_trains(name, pretrained):
    assert all(0 < loss < 3 for loss in losses(pretrained(name)))
    assert len(losses(pretrained(name))) == 3


@pytest.mark.parametrize("name", marked(FINETUNE))
def test_official_finetuning_recipe_takes_every_weight_of_its_pretraining(name, pretrained, forks, images, tmp_path):
    source = next(other for other in PRETRAIN if size_of(other) == size_of(name))
    weights = pretrained(source) / "ckpt_epoch_0.pth"
    result = forks.run("main_finetune.py", "--cfg", recipe(name), "--batch-size", 8, "--data-path", images, "--pretrained",
                       weights, "--output", tmp_path, *opts(FINETUNE[name])).checked()
    report = next(line for line in result.out.splitlines() if "tensors matched" in line)
    missing = report.partition("missing (")[2].partition(")")[0].split(", ")
    # mean pooling replaces the final norm of ViT by one that the pre-training had not trained
    assert set(missing) <= {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}
    assert len(records(tmp_path / run_name(name), "val")) == 1


def test_pretraining_recipe_trains_in_mixed_precision_when_asked_for(forks, images, tmp_path):
    name = "swin_base/simmim_pretrain__swin_base__img192_window6__100ep"
    result = forks.run("main_simmim.py", "--cfg", recipe(name), "--batch-size", 8, "--data-path", images / "train", "--output",
                       tmp_path, "--amp-opt-level", "O1", "--use-checkpoint", *opts(PRETRAIN[name])).checked()
    assert "mixed bfloat16" in result.out
    folder = tmp_path / run_name(name)
    assert all(value.dtype != torch.bfloat16 for value in checkpoint(folder, 0)["model"].values())


def test_local_rank_flags_of_old_launchers_are_accepted(forks, images, tmp_path):
    name = "vit_base/simmim_pretrain__vit_base__img224__800ep"
    for flag in ("--local_rank=0", "--local-rank=0"):
        forks.run("main_simmim.py", flag, "--cfg", recipe(name), "--batch-size", 8, "--throughput", *opts(SMALL_VIT)).checked()


@pytest.mark.parametrize("script", ["main_simmim.py", "main_finetune.py"])
def test_help_lists_the_official_flags(script, forks):
    text = forks.run(script, "--help").checked().out
    for flag in ("--cfg", "--opts", "--batch-size", "--data-path", "--resume", "--pretrained", "--accumulation-steps",
                 "--use-checkpoint", "--amp-opt-level", "--output", "--tag", "--eval", "--throughput"):
        assert flag in text
