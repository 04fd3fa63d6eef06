"""Every setting of a run: declaring, loading, merging, checking. The only module that knows yacs.

The tree, its names and its defaults are those of microsoft/SimMIM; `+` marks keys of our own. What an encoder or a method
is set by is declared in its own file (models/encoders, models/methods). A config that was loaded is frozen. Nothing is ever
written back into it: what depends on the machine (learning rates scaled by the global batch, the number of classes of the
data) lives in clones made by `scaled_config` and `with_values`.

  python config.py              all settings: default, valid values, which program reads them, meaning
  python config.py mask         those with `mask` in their name; shell wildcards work, too
"""
import logging
import os
import sys
from fnmatch import fnmatchcase
from functools import cache, reduce
from operator import getitem
from pathlib import Path, PurePath

if __name__ == "__main__" and (set(sys.argv[1:]) & {"-h", "--help"} or len(sys.argv) > 2):
    sys.exit(__doc__)  # before the imports that take a second

from yacs.config import CfgNode

from models.encoders import ENCODERS
from models.encoders.checks import LARGEST_SIDE
from models.inputs import (  # what a config says of images; from here for all above
    check_model,
    check_pretraining,  # noqa: F401
    encoder_config,  # noqa: F401
    image_size,  # noqa: F401
    mask_preparation,  # noqa: F401
    pixel_statistics,  # noqa: F401
)
from models.methods import METHODS, SHARED
from utils.cli import run
from utils.files import expanded, write_text
from utils.kept import is_checkpoint, read_kept
from utils.policies import problem_of_policy
from utils.settings import (
    FINETUNE,
    IMAGES,
    JOBS,
    LABELLED,
    NUMBERS,
    PAIR,
    PATH,
    PRETRAIN,
    PROBE,
    SIZE,
    START,
    TASK,
    TASKS,
    TEXTS,
    WHOLES,
    Setting,
    check,
    closest,
    convert,
    joined,
    parse,
    shown,
)
from utils.tables import aligned
from utils.yaml_files import flatten, nested, parse_tree, read_tree, text_of, tree_text

log = logging.getLogger("simmim.config")

ROOT = Path(__file__).resolve().parent
PROBE_RECIPE = "configs/probe/linprobe__any_encoder.yaml"  # what a probe without --cfg is trained by
# what a run was started with, which is not what its weights are: not taken from a checkpoint
OF_A_START = {"BASE", "MODEL.RESUME", "PRETRAINED", "PRETRAINED_KEY", "OUTPUT", "LOCAL_RANK", "EVAL_MODE", "THROUGHPUT_MODE",
              "TRAIN.START_EPOCH", "TRAIN.AUTO_RESUME"}
# what an encoder's images are like, beside the settings of its own
OF_IMAGES = ("DATA.IMG_SIZE", "DATA.MEAN", "DATA.STD", "DATA.BACKGROUND", "DATA.WHITE", "DATA.EXIF")
WITHOUT_SHAPE = ("NUM_HEADS", "QK_SCALE")  # settings of an encoder that its weights mean nothing without, and do not show
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest")
MOVED = {  # former folders of configs/; the recipes of the last two have the new name in their own names as well
    "swin_base__100ep": "swin_base", "swin_base__800ep": "swin_base", "swin_large__800ep": "swin_large",
    "swinv2_base__800ep": "swinv2_base", "vit_base__800ep": "vit_base", "swinv2_giant": "swinv2_giant_1b",
    "swinv2_g": "swinv2_giant_3b"}


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
    "MASK_TYPE": Setting("random", "+ random (SimMIM, MAE) | blockwise (LSMAE: units may be cut)", jobs=PRETRAIN, learnt=TASK),
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


class Config(CfgNode):
    """A yacs node that also remembers which keys the user set, under `given` (only on the root)."""

    given = frozenset()


@cache
def _defaults():
    root = Config(nested({key: setting.default for key, setting in settings().items()}))
    root.freeze()
    return root


# ---- loading ------------------------------------------------------------------------------------------------------

def load_config(path=None, opts=(), job=None):
    """Defaults, then the YAML file with what it inherits, or the settings of a checkpoint, then `opts`; checked and frozen.

    Args:
        path: YAML file, see find_recipe; or a checkpoint that keeps its settings; None for the defaults alone.
        opts: ['KEY', value, 'KEY', value, ...]; values may be strings as typed on a command line.
        job: name in JOBS of the program that will use it: what it leaves open is then looked for in its checkpoint, see
            recipe_of_job and _follow_checkpoint.
    Returns: frozen Config; `config.given` holds the keys that were set by file or opts.
    Raises: ValueError on an unknown key, a value of the wrong kind, an impossible combination or unreadable YAML;
        FileNotFoundError when a file is missing.
    """
    config = _defaults().clone()
    config.defrost()
    given, opts = set(), list(opts or ())
    if len(opts) % 2:
        raise ValueError(f"--opts takes pairs KEY VALUE, but {len(opts)} words were given: {' '.join(map(str, opts))}.")
    from_checkpoint = bool(path) and is_checkpoint(path)
    if job and not path:
        path = recipe_of_job(dict(zip(opts[::2], opts[1::2], strict=True)), job)
        from_checkpoint = path != PROBE_RECIPE
    if from_checkpoint:
        _merge_checkpoint(config, path, given)
    elif path:
        place = _merge_file(config, path, given, chain=())
        if config.TAG == place.stem:  # a run that was begun under a former name of the recipe goes on in its folder
            config.TAG = Path(path).stem
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _set(config, str(key), value, given, source="--opts")
    if job:
        _follow_checkpoint(config, given, path, job)
    config.__dict__["given"] = frozenset(given)
    config.freeze()
    _check(config)
    return config


def find_recipe(path):
    """Where a recipe is: as named from here, else from the root of the repository, else under the name it has today, else the
    one of configs/ of that name.

    Returns: absolute Path, of a file that may not exist.
    """
    path = Path(expanded(path))
    places = [path, ROOT / path]
    if path.parent.name in MOVED:
        old, new = path.parent.name, MOVED[path.parent.name]
        name = path.name.replace(f"__{old}__", f"__{new}__")
        places += [folder.parent / new / name for folder in (path.parent, ROOT / path.parent)]
    place = next((place for place in places if place.is_file()), named_recipe(path) or path)
    if place in places[2:]:
        log.warning("%s is %s now", path, place.relative_to(ROOT) if place.is_relative_to(ROOT) else place)
    return Path(os.path.abspath(place))


def named_recipe(name):
    """Path of the recipe of configs/ that is called so, without its folder and with or without its ending; or None."""
    name = str(name).removesuffix(".yaml")
    return next((path for path in sorted((ROOT / "configs").glob("*/*.yaml")) if path.stem == name), None)


def _merge_file(config, path, given, chain):
    path = find_recipe(path)
    if path in chain:
        raise ValueError(f"{path} inherits from itself through BASE: {' -> '.join(map(str, (*chain, path)))}.")
    if not path.is_file():
        named = f" (named by BASE in {chain[-1]})" if chain else ""
        if path.is_dir():
            raise FileNotFoundError(f"config file {path} is a folder{named}: name a recipe in it, e.g. "
                                    f"{next((found.name for found in sorted(path.rglob('*.yaml'))), 'one of configs/')}.")
        raise FileNotFoundError(f"config file {path} does not exist{named}; the recipes are under configs/.")
    tree = read_tree(path)
    bases = tree.pop("BASE", None) or []
    for base in convert("BASE", settings()["BASE"], [bases] if isinstance(bases, str) else bases, path):
        if base:
            _merge_file(config, path.parent / base, given, (*chain, path))
    for key, value in flatten(tree).items():
        _set(config, key, value, given, source=path)
    return path


# ---- what a checkpoint says ---------------------------------------------------------------------------------------

def recipe_of_job(named, job):
    """What stands in for the recipe of a program that was given none: a checkpoint that keeps its settings, or PROBE_RECIPE.

    Args:
        named: {key: value} of the command line.
        job: name in JOBS.
    Raises: ValueError if there is none, or it is of another program.
    """
    resumed, pretrained = named.get("MODEL.RESUME"), named.get("PRETRAINED")
    if pretrained and not resumed and job == "probe":
        return PROBE_RECIPE
    path = resumed or (pretrained if {"EVAL_MODE", "THROUGHPUT_MODE"} & named.keys() else None)
    if not path:
        raise ValueError("--cfg is missing: name a recipe, see configs/ and docs/recipes.md. Without one --resume <checkpoint> "
                         "goes on, or with --eval evaluates, by the settings that the checkpoint keeps.")
    task = read_kept(path).task
    if task and task != TASKS[list(JOBS).index(job)]:
        program = dict(zip(TASKS, JOBS.values(), strict=True))[task]
        raise ValueError(f"{path} is of {program}, not of {JOBS[job]}: use that, or --pretrained {path} with a --cfg.")
    return path


def _merge_checkpoint(config, path, given):
    """The settings that a checkpoint keeps, but for those of its start."""
    kept = read_kept(path).settings
    if not kept:
        raise ValueError(f"{path} keeps no settings of its model, as files of this repository do: name the recipe that it was "
                         f"made with as well (--cfg; --model of inference.py).")
    unknown = [key for key in kept if key not in settings()]
    if unknown:
        log.info("%s keeps %d settings that are not known here: %s", path, len(unknown), ", ".join(unknown[:4]))
    for key in kept.keys() - OF_A_START - {*unknown}:
        _set(config, key, kept[key], given, source=path)
    folder, own = Path(os.path.abspath(path)).parent, Path(config.MODEL.NAME, config.TAG)
    if folder.parts[-len(own.parts):] == own.parts:  # it lies in the folder of its run
        config.OUTPUT = str(Path(*folder.parts[:-len(own.parts)]))


def _follow_checkpoint(config, given, path, job):
    """Take from the checkpoint of a program what its settings leave open of the encoder, and refuse what contradicts it.

    A probe gets all that is not set; fine-tuning and pre-training do where they name no encoder. A file that keeps no settings,
    or is of another MODEL.TYPE that is set, changes nothing: loading tells whether it fits.
    """
    source = (config.MODEL.RESUME if config.EVAL_MODE else "") or config.PRETRAINED
    if not source or source == path or config.PROBE.RANDOM_ENCODER:
        return
    kept = read_kept(source).settings
    kind = kept.get("MODEL.TYPE")
    section = f"MODEL.{str(kind).upper()}."
    names_encoder = any(key == "MODEL.TYPE" or key.startswith(tuple(f"MODEL.{name.upper()}." for name in ENCODERS))
                        for key in given)
    if kind not in ENCODERS or (names_encoder and kind != config.MODEL.TYPE):
        return
    if job == "probe" or not names_encoder:
        for key, value in kept.items():
            if key not in given and key in settings() and (key in ("MODEL.TYPE", *OF_IMAGES) or key.startswith(section)):
                _set(config, key, value, given, source)
    if path == PROBE_RECIPE and "TAG" not in given:  # a run for each encoder
        config.TAG = "/".join([*(str(kept[key]) for key in ("MODEL.NAME", "TAG") if key in kept), Path(source).stem])
    check_heads(config, kept, source)


def check_heads(config, kept, path):
    """Refuse an encoder whose weights would mean something else, though their shapes are the same.

    Args:
        kept: {key: value} that the checkpoint of the weights keeps.
        path: of it.
    Raises: ValueError.
    """
    section = f"MODEL.{config.MODEL.TYPE.upper()}"
    for key in (f"{section}.{name}" for name in WITHOUT_SHAPE if name in config.MODEL[config.MODEL.TYPE.upper()]):
        now = encoder_config(config)[key.rpartition(".")[2]]
        then = convert(key, settings()[key], kept[key], path) if kept.get(key) is not None else now
        if then != now and kept.get("MODEL.TYPE") == config.MODEL.TYPE:
            raise ValueError(f"{key}={now}, and {path} was made with {then}, which the shapes of its weights do not show: use "
                             f"{key} {then}, or the recipe it was made with.")


def _set(config, key, value, given, source):
    if key == "BASE":
        raise ValueError(f"{source}: BASE names the files a YAML file inherits from; it can't be set otherwise.")
    if key not in settings():
        below = [name for name in settings() if name.startswith(f"{key}.")]
        if below:
            raise ValueError(f"{source}: {key} is a section, not a value; set one of "
                             f"{', '.join(name.removeprefix(f'{key}.') for name in below)}.")
        near = closest(key, settings())
        hint = f"; the closest valid key is {near}" if near else "; `python config.py` lists the valid keys"
        raise ValueError(f"{source}: unknown key {shown(key)}{hint}.")
    *sections, name = key.split(".")
    reduce(getitem, sections, config)[name] = convert(key, settings()[key], value, source)
    given.add(key)


# ---- checking -----------------------------------------------------------------------------------------------------

def _check(config):
    """Refuse what can't work, whatever the job; checks.py and `check_pretraining` know more."""
    for key, value in flatten(config).items():
        check(key, settings()[key], value)
    check_model(config)


# ---- what follows from a config -----------------------------------------------------------------------------------

def with_values(config, **values):
    """A frozen clone with other values; keys are written with double underscores: `TRAIN__BASE_LR=1e-3`."""
    clone = config.clone()
    clone.defrost()
    for key, value in values.items():
        _set(clone, key.replace("__", "."), value, set(), source="with_values")
    clone.freeze()
    return clone


def scaled_config(config, world_size):
    """A frozen clone whose three learning rates fit the global batch: rate x images per step / LR_SCALE_BATCH.

    The config itself keeps the raw rates, so that a saved config can be fed back (the official code overwrites them).
    Source: SimMIM (arXiv 2111.09886), official main_simmim.py.
    """
    factor = images_per_step(config, world_size) / config.TRAIN.LR_SCALE_BATCH
    return with_values(config, TRAIN__BASE_LR=config.TRAIN.BASE_LR * factor,
                       TRAIN__WARMUP_LR=config.TRAIN.WARMUP_LR * factor, TRAIN__MIN_LR=config.TRAIN.MIN_LR * factor)


def images_per_step(config, world_size):
    """Images of one optimizer step over all processes."""
    return config.DATA.BATCH_SIZE * world_size * max(config.TRAIN.ACCUMULATION_STEPS, 1)


def run_folder(config):
    """OUTPUT/MODEL.NAME/TAG, as in the official code."""
    return os.path.join(config.OUTPUT or "output", config.MODEL.NAME, config.TAG)


# ---- config.yaml of a run -----------------------------------------------------------------------------------------

def keys_of(config, job):
    """The keys that a job reads with this encoder and method, in the order of `settings`."""
    chosen = {config.MODEL.TYPE, *([config.MODEL.METHOD, *SHARED] if job == "pretrain" else [])}
    others = tuple(f"MODEL.{name.upper()}." for name in {*ENCODERS, *METHODS, *SHARED} - chosen)
    return [key for key, setting in settings().items()
            if key != "BASE" and job in (setting.jobs or JOBS) and not key.startswith(others)]


def dump(config, job):
    """The config as YAML: what the job reads, and whatever else has another value than its default, section by section."""
    leaves, read = flatten(config), keys_of(config, job)
    unread = [key for key, setting in settings().items() if key not in {"BASE", *read} and leaves[key] != setting.default]
    lines = [f"# What {JOBS[job]} reads; all settings: docs/settings.md. As --cfg, with another --tag, it repeats the run."]
    if unread:
        lines.append(f"# Set, but not read by it: {', '.join(unread)}")
    tree = nested({key: leaves[key] for key in settings() if key in {*read, *unread}})
    top = {name: tree.pop(name) for name in list(tree) if not isinstance(tree[name], dict)}
    for section, node in [*((name, {name: node}) for name, node in tree.items()), ("", top)]:
        lines += ["", f"# {TITLES[section]}", tree_text(node).rstrip()]
    return "\n".join(lines) + "\n"


def save_config(config, folder, job):
    """Write the config as <folder>/config.yaml; one that is there and differs, or is broken, is kept as config_<n>.yaml."""
    path = Path(folder) / "config.yaml"
    if path.exists():
        problem = _problem_of(path)
        if not problem and not differences(config, text_of(path)):
            return
        kept = next(name for n in range(1, 10 ** 6) if not (name := path.with_name(f"config_{n}.yaml")).exists())
        os.rename(path, kept)
        if problem:
            log.warning("%s; it is kept as %s, and written anew", problem, kept.name)
    os.makedirs(folder, exist_ok=True)
    write_text(path, dump(config, job))


def _problem_of(path):
    """Why a config.yaml is not what a run has written, or None. A run needs none to go on, so this does not stop it."""
    try:
        unknown = [key for key in flatten(read_tree(path)) if key not in settings()]
    except ValueError as error:
        return str(error).rstrip(".")
    return f"{path} has a key that is not known, {shown(unknown[0])}" if unknown else None


def differences(config, text):
    """What changed between a config stored as YAML text and this one: {key: (stored, now)}; what is not stored is default."""
    stored = flatten(_defaults()) | flatten(parse_tree(text))
    return {key: (stored.get(key), value) for key, value in flatten(config).items() if stored.get(key) != value}


# ---- the table of settings ----------------------------------------------------------------------------------------

def matching(pattern):
    """The keys whose name has `pattern` in it, or is it with shell wildcards; case does not matter. Raises: ValueError."""
    wanted = pattern.upper()
    found = [key for key in settings() if fnmatchcase(key, wanted if set("*?[") & set(wanted) else f"*{wanted}*")]
    if not found:
        near = closest(pattern, settings())
        raise ValueError(f"no setting has {pattern!r} in its name{f'; the closest is {near}' if near else ''}.")
    return found


def main(pattern):
    rows = [["key", "default", "valid", "read by", "meaning"]]
    for key in matching(pattern):
        rows.append([key, *settings()[key].row])
    print("\n".join(aligned(rows, num_left=5)))


if __name__ == "__main__":
    run(main, "".join(sys.argv[1:]))
