"""Every setting of a run and its default, declared once; config.py loads, merges and checks them.

The tree, its names and its defaults are those of microsoft/SimMIM; `+` marks keys of our own. What an encoder or a method
is set by is declared in its own file (models/encoders, models/methods).
"""
from functools import cache
from pathlib import PurePath

from models.encoders import ENCODERS
from models.encoders.checks import LARGEST_SIDE
from models.methods import METHODS, SHARED
from utils.policies import problem_of_policy
from utils.settings import (
    FINETUNE,
    IMAGES,
    LABELLED,
    NUMBERS,
    PAIR,
    PATH,
    PRETRAIN,
    PROBE,
    SIZE,
    START,
    TASK,
    TEXTS,
    WHOLES,
    Setting,
    joined,
    parse,
)

INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest")


# ---- rules about single values ------------------------------------------------------------------------------------

def _below_the_output(name):
    """Of the levels of the run folder: no run writes outside of --output."""
    parts = PurePath(name).parts
    if not parts or ".." in parts or PurePath(name).is_absolute() or parts[0].startswith("~"):
        return "must name a folder below OUTPUT, like vit/first, not one outside of it: choose where with --output"
    return None


def _share_of_area(scale):
    fits = 0 < scale[0] <= scale[1] <= 1
    return None if fits else "must be [smallest, largest] share of the image's area, e.g. [0.08, 1.0]"


def _share_of_sides(minmax):
    return None if 0 < minmax[0] <= minmax[1] <= 1 else "must be [smallest, largest] share of the sides, e.g. [0.2, 0.8]"


def _of_shares(values):
    if all(0 <= value <= 1 for value in values):
        return None
    if min(values) < 0:
        return "must not be below 0: pixels lie between 0 and 1"
    if max(values) <= 255:
        return f"is of pixels from 0 to 255, and here they are from 0 to 1: use {[round(value / 255, 4) for value in values]}"
    return "is of pixels on another scale, and here they are from 0 (black) to 1 (white): divide by what white is, e.g. 65535"


def _spread(values):
    if all(value >= 1e-4 for value in values):
        return _of_shares(values)
    return "must be above 0 for every channel (at least 0.0001): images are divided by it"


def _moments(betas):
    if not all(0 <= beta < 1 for beta in betas):
        return "must lie in [0, 1), e.g. [0.9, 0.999]"
    swapped = f"are swapped: the second moment is to last longer than the first. Use {betas[::-1]}"
    return swapped if betas[0] > betas[1] else None


def _factor(rate):
    return None if 0 < rate <= 1 else "must be above 0 and at most 1, e.g. 0.1: rates are multiplied by it"


def _keeps_most(decay):
    if decay == 0 or 0.5 <= decay < 1:
        return None
    return f"is the share of the average that stays: expected 0, or 0.5 and more but below 1, e.g. {1 - decay or 0.9999:g}"


def _block(layer):
    named = layer == "last" or type(parse(layer)) is int
    return None if named else "(--layer) must be the number of a block, from 1 or, from the end, -1; or last"


def _neighbours(numbers):
    return None if numbers and min(numbers) >= 1 else "must be numbers of neighbours, at least 1, e.g. [10, 20, 100]"


def _colour(text):
    from PIL import ImageColor  # here, so that --help is fast

    try:
        return None if text == "mean" or len(ImageColor.getrgb(text)) == 3 else "has a transparency of its own, e.g. use white"
    except ValueError:
        return "is no colour: expected e.g. white, #808080, rgb(10,20,30), or mean"


# ---- declarations -------------------------------------------------------------------------------------------------

DATA = {
    "BATCH_SIZE": Setting(128, "per process and micro-batch", "images", low=1),
    "DATA_PATH": Setting("", "folder of the data; pre-training: any folder of images, labels not needed",
                         kind=PATH, learnt=IMAGES),
    "DATASET": Setting("imagenet", "imagenet (train/, val/) | folder (any labelled tree) | demo (without DATA_PATH: drawn)",
                       learnt=IMAGES),
    "IMG_SIZE": Setting(224, "one number, or [height, width]", "pixels", kind=SIZE, low=1,
                        high=LARGEST_SIDE, learnt=TASK),
    "INTERPOLATION": Setting("bicubic", "resizing in fine-tuning and evaluation", choices=INTERPOLATIONS, jobs=LABELLED,
                             learnt=TASK),
    "PIN_MEMORY": Setting(True, "page-locked batches for faster copies to a GPU"),
    "NUM_WORKERS": Setting(8, "loader processes per training process", low=0, high=1024),
    "TIMEOUT_MINUTES": Setting(10.0, "+ loader processes that give nothing for so long end the run; 0 = never", "minutes",
                               low=0),
    "DECODER": Setting("fast", "+ of training images: fast (JPEG files as far as a crop needs them; Pillow the others) | "
                       "pillow (as always in evaluation, features and inference: so are the numbers of released models)",
                       choices=("fast", "pillow")),
    "MAX_PIXELS": Setting(89478485, "+ larger pictures count as unreadable, like broken files", "pixels", low=1, high=10 ** 10),
    "BACKGROUND": Setting("white", "+ behind transparency: a colour, as name, #rrggbb or rgb(r,g,b), or mean (DATA.MEAN)",
                          rule=_colour, learnt=TASK),
    "WHITE": Setting(0.0, "+ white in files of more than 8 bits, e.g. 4095 of 12 bits in 16; 0 = as the format says",
                     low=0, high=2 ** 32, learnt=TASK),
    "EXIF": Setting(False, "+ turn pictures upright as their EXIF says; without it as torchvision's ImageFolder", learnt=TASK),
    "MAX_BAD_FRACTION": Setting(0.01, "+ share of the training images that may be unreadable, at least one; 0 = none", low=0,
                                high=1),
    "SKIP_LIST": Setting("", "+ list of unreadable training images, as tools/check_data.py writes: passed over unopened",
                         kind=PATH),
    "LIST_CACHE": Setting("auto", "+ folder of lists of large data, checked by the times of its folders: "
                          "auto (the user's cache) | none | a path", kind=PATH,
                          rule=lambda place: None if place.strip() else "is empty: none keeps no list"),
    "MASK_TYPE": Setting("random", "+ random (SimMIM, MAE) | square (one, at a random place) | block (BEiT: rectangles) | "
                         "blockwise (LSMAE: units may be cut) | file (DATA.MASK_FILE, for all images)", jobs=PRETRAIN,
                         learnt=TASK),
    "MASK_FILE": Setting("", "+ of MASK_TYPE file: a picture, white where it hides, or an array (.npy); of pixels, patches or "
                         "units. It says the ratio", kind=PATH, jobs=PRETRAIN, learnt=TASK),
    "MASK_PATCH_SIZE": Setting(32, "side of the square unit that is hidden or visible as a whole", "pixels", low=1,
                               jobs=PRETRAIN, learnt=TASK),
    "MASK_RATIO": Setting(0.6, "share of hidden units", low=0, high=1, jobs=PRETRAIN, learnt=TASK),
    "MASK_ROUND": Setting("up", "+ to whole units: up (SimMIM) | down | visible_down (what stays visible, MAE)",
                          choices=("up", "down", "visible_down"), jobs=PRETRAIN, learnt=TASK),
    "MASK_SHARED": Setting(False, "+ one mask for all images of a batch (MixMIM)", jobs=PRETRAIN, learnt=TASK),
    "MASK_GROUPS": Setting(0, "+ in training, masks of a global batch: image i of it has mask i modulo this; 0 = its own",
                           low=0, high=2 ** 20, jobs=PRETRAIN),
    "CROP": Setting("rrc", "+ pre-training: rrc (random area and shape) | src (short side resized, PixMIM)",
                    choices=("rrc", "src"), jobs=PRETRAIN, learnt=TASK),
    "CROP_SCALE": Setting([0.67, 1.0], "+ area of the random crop in pre-training, as a share of the image", kind=PAIR,
                          rule=_share_of_area, jobs=PRETRAIN, learnt=TASK),
    "CROP_INTERPOLATION": Setting("bilinear", "+ resizing in pre-training", choices=INTERPOLATIONS, jobs=PRETRAIN, learnt=TASK),
    "VAL_PATH": Setting("", "+ validation images: held-out loss in pre-training, accuracy in fine-tuning", kind=PATH),
    "VAL_FRACTION": Setting(0.1, "+ `folder` without val/ and VAL_PATH: share of each class held out", low=0, high=0.9,
                            jobs=LABELLED, learnt=IMAGES),
    "IMAGES_PER_CLASS": Setting(0, "+ train on this many images of each class (0 = all)", "images", low=0, high=10 ** 9,
                                jobs=LABELLED, learnt=IMAGES),
    "LIMIT": Setting(0, "+ pre-train on this many of the images, evenly spread, for a quick try (0 = all)", "images", low=0,
                     high=10 ** 9, jobs=PRETRAIN, learnt=IMAGES),
    "MEAN": Setting([], "+ per channel, of pixels in [0, 1]; [] = ImageNet's for RGB, 0.5 otherwise", kind=NUMBERS,
                    rule=_of_shares, learnt=TASK),
    "STD": Setting([], "+ as MEAN", kind=NUMBERS, rule=_spread, learnt=TASK),
    "DEMO_TRAIN_PER_CLASS": Setting(600, "+ size of the drawn data set", "images", low=1, learnt=IMAGES),
    "DEMO_VAL_PER_CLASS": Setting(100, "+ size of its validation part", "images", low=1),
}
MODEL = {
    "METHOD": Setting("simmim", "+ pre-training method, see models/methods", choices=tuple(sorted(METHODS)), jobs=PRETRAIN,
                      learnt=TASK),
    "TYPE": Setting("swin", "encoder, see models/encoders", choices=tuple(sorted(ENCODERS)), learnt=TASK),
    "NAME": Setting("swin_tiny_patch4_window7_224", "second level of the run folder OUTPUT/NAME/TAG",
                    rule=_below_the_output),
    "RESUME": Setting("", "checkpoint to continue from, or to evaluate; path or https address", kind=PATH),
    "NUM_CLASSES": Setting(1000, "taken from the data unless set", low=1, jobs=LABELLED),
    "DROP_RATE": Setting(0.0, "dropout", low=0, high=0.99, jobs=PRETRAIN + FINETUNE, learnt=TASK),
    "DROP_PATH_RATE": Setting(0.1, "stochastic depth of the last block, rising linearly from 0", low=0, high=0.99,
                              jobs=PRETRAIN + FINETUNE, learnt=TASK),
    "LABEL_SMOOTHING": Setting(0.1, "share of the label given to all classes", low=0, high=0.99, jobs=FINETUNE, learnt=TASK),
}
TRAIN = {
    "START_EPOCH": Setting(0, "first epoch of a run that resumes nothing", low=0),
    "EPOCHS": Setting(300, "length of the training", "epochs", low=1),
    "WARMUP_EPOCHS": Setting(20, "while the learning rate rises", "epochs", low=0),
    "WEIGHT_DECAY": Setting(0.05, "of weights; vectors do not decay", low=0),
    "BASE_LR": Setting(5e-4, "peak; the three rates are for LR_SCALE_BATCH images per step, the mains scale them", low=0),
    "LR_SCALE_BATCH": Setting(512, "+ 256 in the recipes of MAE and its relatives", "images", low=1),
    "WARMUP_LR": Setting(5e-7, "learning rate at the start", low=0),
    "MIN_LR": Setting(5e-6, "learning rate at the end", low=0),
    "CLIP_GRAD": Setting(5.0, "largest gradient norm; 0 or None = no clipping", low=0, high=10 ** 9, optional=True),
    "AUTO_RESUME": Setting(True, "continue from the newest good checkpoint of the run folder"),
    "ALLOW_CHANGES": Setting(False, "+ go on from a checkpoint though data, masks, model, method or augmentation were others"),
    "ACCUMULATION_STEPS": Setting(0, "micro-batches per optimizer step (0 and 1: no accumulation)", low=0),
    "PARALLEL": Setting("ddp", "+ several processes: ddp (each holds the model) | fsdp (each holds a part of it)",
                        choices=("ddp", "fsdp")),
    "FREEZE": Setting("none", "+ what stays as it is: none | encoder | N (embedding and first N blocks) | parts of names, as "
                      "patch_embed,layers.0", rule=lambda what: None if what.strip() else "is empty: none trains everything",
                      jobs=PRETRAIN + FINETUNE),
    "USE_CHECKPOINT": Setting(False, "recompute activations in the backward pass to save memory"),
    "COMPILE": Setting(False, "+ blocks are compiled (torch.compile), which takes a while at the start of a run",
                       jobs=PRETRAIN + FINETUNE),
    "EMA_DECAY": Setting(0.0, "+ share that an average of the weights keeps in a step, e.g. 0.9999; 0 = no average",
                         low=0, high=1, rule=_keeps_most),
    "NONFINITE_LIMIT": Setting(20, "+ stop after this many steps in a row with a NaN or infinite gradient", "steps", low=1,
                               high=10 ** 9),
    "LR_SCHEDULER.NAME": Setting("cosine", "course of the learning rate", choices=("cosine", "linear", "step", "multistep")),
    "LR_SCHEDULER.DECAY_EPOCHS": Setting(30, "step: epochs between decays, counted from epoch 0", "epochs", low=1),
    "LR_SCHEDULER.DECAY_RATE": Setting(0.1, "step: factor, above 0 and at most 1", rule=_factor),
    "LR_SCHEDULER.GAMMA": Setting(0.1, "multistep: factor, above 0 and at most 1", rule=_factor),
    "LR_SCHEDULER.MULTISTEPS": Setting([], "multistep: counted from epoch 0", "epochs", kind=WHOLES, low=1),
    "LR_SCHEDULER.LAG": Setting(True, "+ a step has the rate of the iteration before it (SimMIM); False: its own (MAE)"),
    "LR_SCHEDULER.SCALE_ALL": Setting(False, "+ layer decay scales the warm-up start and the minimum, too (MAE)"),
    "LR_SCHEDULER.WARMUP_PREFIX": Setting(False, "cosine starts at the end of the warm-up instead of at epoch 0"),
    "OPTIMIZER.NAME": Setting("adamw", "the last two need apex", choices=("adamw", "sgd", "lars", "fused_adam", "fused_lamb")),
    "OPTIMIZER.EPS": Setting(1e-8, "added to the root of the second moment", low=1e-20),
    "OPTIMIZER.BETAS": Setting([0.9, 0.999], "decay of the two moments", kind=PAIR, rule=_moments),
    "OPTIMIZER.MOMENTUM": Setting(0.9, "sgd, lars", low=0, high=0.9999),
    "OPTIMIZER.TRUST_COEFFICIENT": Setting(0.001, "+ lars: length of a step of rate 1, as a share of the weight's", low=1e-9,
                                           high=1),
    "LAYER_DECAY": Setting(1.0, "factor on the learning rate per layer, from the head down", low=1e-6, high=1, jobs=FINETUNE),
}
AUG = {
    "CROP_SCALE": Setting([0.08, 1.0], "+ area of the random crop, as a share of the image", kind=PAIR, rule=_share_of_area,
                          jobs=LABELLED),
    "COLOR_JITTER": Setting(0.4, "no effect while AUTO_AUGMENT is set (timm)", low=0, high=10),
    "AUTO_AUGMENT": Setting("rand-m9-mstd0.5-inc1", "timm's policy name, or none", optional=True,
                            rule=problem_of_policy),
    "REPROB": Setting(0.25, "random erasing: probability", low=0, high=1),
    "REMODE": Setting("pixel", "random erasing: what fills the hole", choices=("const", "rand", "pixel")),
    "RECOUNT": Setting(1, "random erasing: number of holes", low=1, high=100),
    "MIXUP": Setting(0.8, "mixup alpha, 0 = off", low=0),
    "CUTMIX": Setting(1.0, "cutmix alpha, 0 = off", low=0),
    "CUTMIX_MINMAX": Setting(None, "cutmix [min, max] ratio; replaces alpha", kind=PAIR, optional=True, rule=_share_of_sides),
    "MIXUP_PROB": Setting(1.0, "probability of mixing a batch at all", low=0, high=1),
    "MIXUP_SWITCH_PROB": Setting(0.5, "probability of cutmix where both are on", low=0, high=1),
    "MIXUP_MODE": Setting("batch", "what shares a ratio", choices=("batch", "pair", "elem")),
}
LINEAR_PROBE = {
    "LAYER": Setting("last", "block whose output is probed, from 1 or, from the end, -1; last = normalised output",
                     rule=_block),
    "SWEEP": Setting(False, "probe every block and the normalised output, each with a head of its own"),
    "FEATURE": Setting("mean", "mean of the patch tokens, or the class token", choices=("mean", "cls")),
    "BATCH_NORM": Setting(True, "normalise features, without learned scale, before the linear layer"),
    "AUGMENT": Setting(False, "train on random crops and flips: the encoder runs in every epoch"),
    "CACHE": Setting("", 'folder of extracted features; "" = features/ in the run folder', kind=PATH),
    "RANDOM_ENCODER": Setting(False, "probe an encoder that was never trained, to compare with"),
    "KNN": Setting(False, "classify by the nearest neighbours instead of training a head"),
    "KNN_K": Setting([10, 20, 100], "numbers of neighbours", rule=_neighbours),
    "TEMPERATURE": Setting(0.07, "of their votes, exp(cosine similarity / temperature)", low=1e-3),
}
TEST = {
    "CROP": Setting(True, "resize the short side, then centre crop; False: squeeze the image to the size"),
    "CROP_RATIO": Setting(0.875, "+ side of the crop as a share of the resized short side: 224 of 256; 1.0 = no margin",
                          low=0.05, high=1),
}
RUN = {
    "AMP_OPT_LEVEL": Setting("", 'O0 fp32 | O1 mixed precision | O2 = O1 | "" = O1 on CUDA, O0 elsewhere',
                             choices=("", "O0", "O1", "O2")),
    "AMP_BACKEND": Setting("native", "+ native (torch.amp) | apex (an apex that still has apex.amp)",
                           choices=("native", "apex")),
    "OUTPUT": Setting("", 'first level of the run folder; "" = output', kind=PATH),
    "TAG": Setting("default", "third level of the run folder", rule=_below_the_output),
    "SAVE_FREQ": Setting(1, "between checkpoints", "epochs", low=1, high=10 ** 9),
    "SAVE_STEPS": Setting(0, "+ between checkpoints within an epoch (0 = none)", "optimizer steps", low=0, high=10 ** 9),
    "SAVE_MINUTES": Setting(0.0, "+ likewise, by the clock (0 = none)", "minutes", low=0),
    "SAVE_KEEP": Setting(0, "+ epochs whose checkpoints are kept, the last ones, beside the best (0 = all)", "epochs", low=0),
    "SAVE_KEEP_EVERY": Setting(0, "+ with SAVE_KEEP: epochs that this number divides are kept for good (0 = none)", "epochs",
                               low=0),
    "SAVE_ASYNC": Setting(False, "+ write checkpoints behind the training, from a copy in the memory of the host"),
    "PRINT_FREQ": Setting(10, "between log lines", "iterations", low=1, high=10 ** 9),
    "VIS_FREQ": Setting(1, "+ between reconstruction grids (0 = none)", "epochs", low=0, high=10 ** 9, jobs=PRETRAIN),
    "VIS_IMAGES": Setting(8, "+ in the grid", "images", low=1, high=1024, jobs=PRETRAIN),
    "SEED": Setting(0, "of weights, order, augmentation and masks; what is held out is the same for all, its masks, too", low=0,
                    high=2 ** 63 - 1, learnt=TASK),
    "EVAL_MODE": Setting(False, "evaluate and stop; never trains"),
    "THROUGHPUT_MODE": Setting(False, "measure inference images/s and stop"),
    "LOCAL_RANK": Setting(0, "device index on this machine, where no launcher sets the environment", low=0),
    "DIST_TIMEOUT_MINUTES": Setting(30.0, "+ a process that is silent, or waited for, longer ends the job with an error",
                                    "minutes", low=0.05),
    "PRETRAINED": Setting("", "checkpoint that initialises the model; path or https address", kind=PATH, learnt=START),
    "PRETRAINED_KEY": Setting("", '+ which weights of it (with --eval of MODEL.RESUME, too), where it has several: "" = the '
                              'likeliest | ema (the average, wherever it stands, --ema) | a key, e.g. teacher', learnt=START),
}
TITLES = {"DATA": "Images, masks and batches", "MODEL": "The model", "TRAIN": "Training",
          "AUG": "Augmentation of labelled images", "PROBE": "Linear probe and nearest neighbours",
          "TEST": "Evaluation", "": "The run"}


@cache
def settings():
    """{key: Setting} of all, e.g. "TRAIN.BASE_LR", section by section."""
    base = {"BASE": Setting([""], "YAML files to inherit from, relative to the file that names them", kind=TEXTS)}
    return joined(base, joined(DATA, prefix="DATA."), joined(MODEL, prefix="MODEL."), _model_sections(),
                  joined(TRAIN, prefix="TRAIN."), joined(AUG, prefix="AUG.", jobs=FINETUNE, learnt=TASK),
                  joined(LINEAR_PROBE, prefix="PROBE.", jobs=PROBE), joined(TEST, prefix="TEST.", jobs=LABELLED), RUN)


def _model_sections():
    """What the files of encoders and methods declare: MODEL.SWIN.DEPTHS, ..."""
    found = {}
    for name in dict.fromkeys([*ENCODERS, *METHODS, *SHARED]):
        encoder, method = (table[name].settings if name in table else {} for table in (ENCODERS, METHODS))
        prefix = f"MODEL.{name.upper()}."
        found |= joined(joined(encoder, prefix=prefix),
                        joined(method, SHARED.get(name, {}), prefix=prefix, jobs=PRETRAIN), learnt=TASK)
    return found
