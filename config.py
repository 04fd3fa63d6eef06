"""Every setting of a run: defaults, loading, merging, checking. The only module that knows yacs.

The tree, its names and its defaults are those of microsoft/SimMIM; keys of our own are marked `+`.
A config that was loaded is frozen. Nothing is ever written back into it: what depends on the machine (learning rates
scaled by the global batch, the number of classes of the data) lives in clones made by `scaled_config` and `with_values`.
"""
import ast
import difflib
import math
import os

import yaml
from yacs.config import CfgNode

from utils.registry import pick


class Config(CfgNode):
    """A yacs node that also remembers which keys the user set, under `given` (only on the root)."""

    given = frozenset()


_C = Config()
_C.BASE = [""]                          # YAML files to inherit from, relative to the file that names them

_C.DATA = CfgNode()
_C.DATA.BATCH_SIZE = 128                # images per process and micro-batch
_C.DATA.DATA_PATH = ""                  # folder of the data; pre-training: any folder of images, labels not needed
_C.DATA.DATASET = "imagenet"            # imagenet (train/, val/) | folder (any labelled tree) | demo (drawn on first use)
_C.DATA.IMG_SIZE = 224                  # pixels: one number, or [height, width]
_C.DATA.INTERPOLATION = "bicubic"       # resizing in fine-tuning and evaluation: bicubic | bilinear | lanczos | nearest
_C.DATA.PIN_MEMORY = True               # page-locked batches for faster copies to a GPU
_C.DATA.NUM_WORKERS = 8                 # loader processes per training process
_C.DATA.MASK_TYPE = "random"            # + random (SimMIM, MAE) | blockwise (LSMAE: units may be cut)
_C.DATA.MASK_PATCH_SIZE = 32            # pixels: side of the square unit that is hidden or visible as a whole
_C.DATA.MASK_RATIO = 0.6                # share of hidden units, 0 to 1
_C.DATA.MASK_ROUND = "up"               # + to whole units: up (SimMIM) | down | visible_down (what stays visible, MAE)
_C.DATA.MASK_SHARED = False             # + one mask for all images of a batch (MixMIM)
_C.DATA.CROP = "rrc"                    # + pre-training: rrc (random area and shape) | src (short side resized, PixMIM)
_C.DATA.CROP_SCALE = [0.67, 1.0]        # + area of the random crop in pre-training, as a share of the image
_C.DATA.CROP_INTERPOLATION = "bilinear"  # + resizing in pre-training: bicubic | bilinear | lanczos | nearest
_C.DATA.VAL_PATH = ""                   # + validation images: held-out loss in pre-training, accuracy in fine-tuning
_C.DATA.VAL_FRACTION = 0.1              # + `folder` without val/ and VAL_PATH: share of each class held out
_C.DATA.IMAGES_PER_CLASS = 0            # + fine-tuning: train on this many images of each class (0 = all)
_C.DATA.MEAN = []                       # + per channel, of pixels in [0, 1]; [] = ImageNet's for RGB, 0.5 otherwise
_C.DATA.STD = []                        # + as MEAN
_C.DATA.DEMO_TRAIN_PER_CLASS = 600      # + size of the drawn data set
_C.DATA.DEMO_VAL_PER_CLASS = 100        # +

_C.MODEL = CfgNode()
_C.MODEL.METHOD = "simmim"              # + pre-training method; models/build.py lists them
_C.MODEL.TYPE = "swin"                  # encoder; models/build.py lists them
_C.MODEL.NAME = "swin_tiny_patch4_window7_224"  # second level of the run folder OUTPUT/NAME/TAG
_C.MODEL.RESUME = ""                    # checkpoint to continue from, or to evaluate; path or https address
_C.MODEL.NUM_CLASSES = 1000             # taken from the data unless set
_C.MODEL.DROP_RATE = 0.0                # dropout
_C.MODEL.DROP_PATH_RATE = 0.1           # stochastic depth of the last block, rising linearly from 0
_C.MODEL.LABEL_SMOOTHING = 0.1

_C.MODEL.SWIN = CfgNode()
_C.MODEL.SWIN.PATCH_SIZE = 4            # pixels
_C.MODEL.SWIN.IN_CHANS = 3
_C.MODEL.SWIN.EMBED_DIM = 96            # width of the first stage; doubles at each stage
_C.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]     # blocks per stage
_C.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
_C.MODEL.SWIN.WINDOW_SIZE = 7           # tokens; shrinks to the map where the map is smaller
_C.MODEL.SWIN.MLP_RATIO = 4.0
_C.MODEL.SWIN.QKV_BIAS = True
_C.MODEL.SWIN.QK_SCALE = None           # None = 1 / sqrt(head width)
_C.MODEL.SWIN.APE = False               # learned absolute position embedding
_C.MODEL.SWIN.PATCH_NORM = True         # LayerNorm after the patch embedding

_C.MODEL.SWINV2 = CfgNode()
_C.MODEL.SWINV2.PATCH_SIZE = 4          # pixels
_C.MODEL.SWINV2.IN_CHANS = 3
_C.MODEL.SWINV2.EMBED_DIM = 96          # width of the first stage; doubles at each stage
_C.MODEL.SWINV2.DEPTHS = [2, 2, 6, 2]   # blocks per stage
_C.MODEL.SWINV2.NUM_HEADS = [3, 6, 12, 24]
_C.MODEL.SWINV2.WINDOW_SIZE = 7         # tokens; shrinks to the map where the map is smaller
_C.MODEL.SWINV2.MLP_RATIO = 4.0
_C.MODEL.SWINV2.QKV_BIAS = True         # for query and value; the key has no bias
_C.MODEL.SWINV2.APE = False             # learned absolute position embedding
_C.MODEL.SWINV2.PATCH_NORM = True       # LayerNorm after the patch embedding
_C.MODEL.SWINV2.PRETRAINED_WINDOW_SIZES = [0, 0, 0, 0]  # per stage: window the position bias was trained in, 0 = this one
_C.MODEL.SWINV2.EXTRA_NORM_EVERY = 0    # + LayerNorm on the main branch after every so many blocks of a stage, 0 = none

_C.MODEL.VIT = CfgNode()
_C.MODEL.VIT.PATCH_SIZE = 16            # pixels
_C.MODEL.VIT.IN_CHANS = 3
_C.MODEL.VIT.EMBED_DIM = 768
_C.MODEL.VIT.DEPTH = 12
_C.MODEL.VIT.NUM_HEADS = 12
_C.MODEL.VIT.MLP_RATIO = 4.0
_C.MODEL.VIT.QKV_BIAS = True            # for query and value; the key has no bias
_C.MODEL.VIT.INIT_VALUES = 0.1          # start of the layer scale; None = no layer scale
_C.MODEL.VIT.K_BIAS = False             # + a bias for the key as well, all three in one parameter (MAE)
_C.MODEL.VIT.USE_APE = False            # learned absolute position embedding
_C.MODEL.VIT.USE_SINCOS_APE = False     # + one of sines and cosines, fixed in pre-training (MAE)
_C.MODEL.VIT.USE_RPB = False            # a relative position bias table in every block
_C.MODEL.VIT.USE_SHARED_RPB = True      # one table for all blocks
_C.MODEL.VIT.USE_MEAN_POOLING = False   # mean of the patch tokens instead of the class token

_C.MODEL.CONVMAE = CfgNode()            # + three stages of twice the stride each; lists have a value for each
_C.MODEL.CONVMAE.PATCH_SIZE = 16        # pixels: side of a cell of the last stage, a multiple of 4
_C.MODEL.CONVMAE.IN_CHANS = 3
_C.MODEL.CONVMAE.EMBED_DIM = [256, 384, 768]
_C.MODEL.CONVMAE.DEPTHS = [2, 2, 11]    # blocks; convolutions in the first two stages, attention in the third
_C.MODEL.CONVMAE.NUM_HEADS = 12         # of the third stage
_C.MODEL.CONVMAE.MLP_RATIO = [4.0, 4.0, 4.0]
_C.MODEL.CONVMAE.QKV_BIAS = True

_C.MODEL.MIXMIM = CfgNode()             # + encoder
_C.MODEL.MIXMIM.PATCH_SIZE = 4          # pixels
_C.MODEL.MIXMIM.IN_CHANS = 3
_C.MODEL.MIXMIM.EMBED_DIM = 128         # width of the first stage; doubles at each stage
_C.MODEL.MIXMIM.DEPTHS = [2, 2, 18, 2]  # blocks per stage
_C.MODEL.MIXMIM.NUM_HEADS = [4, 8, 16, 32]
_C.MODEL.MIXMIM.WINDOW_SIZES = [14, 14, 14, 7]  # tokens, per stage; a window shrinks to the map where the map is smaller
_C.MODEL.MIXMIM.MLP_RATIO = 4.0
_C.MODEL.MIXMIM.DECODER_EMBED_DIM = 512  # + and method
_C.MODEL.MIXMIM.DECODER_DEPTH = 8
_C.MODEL.MIXMIM.DECODER_NUM_HEADS = 16
_C.MODEL.MIXMIM.DECODER_NORM_EPS = 1e-5  # of the decoder's LayerNorms; 1e-6 in mmpretrain
_C.MODEL.MIXMIM.NORM_PIX_LOSS = False   # predict pixels normalised by their cell
_C.MODEL.MIXMIM.RANGE_MASK_RATIO = 0.0  # ratios of masks lie between DATA.MASK_RATIO and this much more

_C.MODEL.SIMMIM = CfgNode()
_C.MODEL.SIMMIM.TARGET = "pixels"       # + what is predicted; models/targets.py lists them
_C.MODEL.SIMMIM.NORM_TARGET = CfgNode()
_C.MODEL.SIMMIM.NORM_TARGET.ENABLE = False   # TARGET local_norm, as the official code says it
_C.MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE = 47  # pixels: odd side of that neighbourhood

_C.MODEL.MAE = CfgNode()                # +
_C.MODEL.MAE.DECODER_EMBED_DIM = 512
_C.MODEL.MAE.DECODER_DEPTH = 8
_C.MODEL.MAE.DECODER_NUM_HEADS = 16
_C.MODEL.MAE.NORM_PIX_LOSS = False      # predict pixels normalised by their patch

_C.MODEL.PIXMIM = CfgNode()             # + of any method that regresses pixels
_C.MODEL.PIXMIM.ENABLE = False          # predict the low frequencies only
_C.MODEL.PIXMIM.CUTOFF_RADIUS = 40.0    # largest frequency that stays, in cycles per image
_C.MODEL.PIXMIM.FILTER = "exact"        # exact (official, half a step off centre on even sizes) | centered

_C.TRAIN = CfgNode()
_C.TRAIN.START_EPOCH = 0                # first epoch of a run that resumes nothing
_C.TRAIN.EPOCHS = 300
_C.TRAIN.WARMUP_EPOCHS = 20
_C.TRAIN.WEIGHT_DECAY = 0.05
_C.TRAIN.BASE_LR = 5e-4                 # the three rates are for LR_SCALE_BATCH images per step; the mains scale them
_C.TRAIN.LR_SCALE_BATCH = 512           # + 256 in the recipes of MAE and its relatives
_C.TRAIN.WARMUP_LR = 5e-7
_C.TRAIN.MIN_LR = 5e-6
_C.TRAIN.CLIP_GRAD = 5.0                # largest gradient norm; 0 or None = no clipping
_C.TRAIN.AUTO_RESUME = True             # continue from the newest good checkpoint of the run folder
_C.TRAIN.ACCUMULATION_STEPS = 0         # micro-batches per optimizer step (0 and 1: no accumulation)
_C.TRAIN.PARALLEL = "ddp"               # + several processes: ddp (each holds the model) | fsdp (each holds a part of it)
_C.TRAIN.USE_CHECKPOINT = False         # recompute activations in the backward pass to save memory
_C.TRAIN.NONFINITE_LIMIT = 20           # + stop after this many steps in a row with a NaN or infinite gradient
_C.TRAIN.LR_SCHEDULER = CfgNode()
_C.TRAIN.LR_SCHEDULER.NAME = "cosine"   # cosine | linear | step | multistep
_C.TRAIN.LR_SCHEDULER.DECAY_EPOCHS = 30  # step: epochs between decays, counted from epoch 0
_C.TRAIN.LR_SCHEDULER.DECAY_RATE = 0.1   # step: factor
_C.TRAIN.LR_SCHEDULER.GAMMA = 0.1        # multistep: factor
_C.TRAIN.LR_SCHEDULER.MULTISTEPS = []    # multistep: epochs, counted from epoch 0
_C.TRAIN.LR_SCHEDULER.LAG = True         # + a step has the rate of the iteration before it (SimMIM); False: its own (MAE)
_C.TRAIN.LR_SCHEDULER.SCALE_ALL = False  # + layer decay scales the warm-up start and the minimum, too (MAE)
_C.TRAIN.LR_SCHEDULER.WARMUP_PREFIX = False  # cosine starts at the end of the warm-up instead of at epoch 0
_C.TRAIN.OPTIMIZER = CfgNode()
_C.TRAIN.OPTIMIZER.NAME = "adamw"       # adamw | sgd | lars | fused_adam | fused_lamb (the last two need apex)
_C.TRAIN.OPTIMIZER.EPS = 1e-8
_C.TRAIN.OPTIMIZER.BETAS = [0.9, 0.999]
_C.TRAIN.OPTIMIZER.MOMENTUM = 0.9       # sgd, lars
_C.TRAIN.OPTIMIZER.TRUST_COEFFICIENT = 0.001  # + lars: length of a step of rate 1, as a share of the weight's
_C.TRAIN.LAYER_DECAY = 1.0              # fine-tuning: factor on the learning rate per layer, from the head down

_C.AUG = CfgNode()                      # fine-tuning only
_C.AUG.CROP_SCALE = [0.08, 1.0]         # + area of the random crop, as a share of the image
_C.AUG.COLOR_JITTER = 0.4               # no effect while AUTO_AUGMENT is set (timm)
_C.AUG.AUTO_AUGMENT = "rand-m9-mstd0.5-inc1"  # timm's policy name, or none
_C.AUG.REPROB = 0.25                    # random erasing: probability
_C.AUG.REMODE = "pixel"                 # random erasing: const | rand | pixel
_C.AUG.RECOUNT = 1                      # random erasing: count
_C.AUG.MIXUP = 0.8                      # mixup alpha, 0 = off
_C.AUG.CUTMIX = 1.0                     # cutmix alpha, 0 = off
_C.AUG.CUTMIX_MINMAX = None             # cutmix [min, max] ratio; replaces alpha
_C.AUG.MIXUP_PROB = 1.0                 # probability of mixing a batch at all
_C.AUG.MIXUP_SWITCH_PROB = 0.5          # probability of cutmix where both are on
_C.AUG.MIXUP_MODE = "batch"             # batch | pair | elem

_C.PROBE = CfgNode()                    # + main_linprobe.py
_C.PROBE.LAYER = "last"                 # block whose output is probed, from 1 or, from the end, -1; last = normalised output
_C.PROBE.SWEEP = False                  # probe every block and the normalised output, each with a head of its own
_C.PROBE.FEATURE = "mean"               # mean (of the patch tokens) | cls (the class token)
_C.PROBE.BATCH_NORM = True              # normalise features, without learned scale, before the linear layer
_C.PROBE.AUGMENT = False                # train on random crops and flips: the encoder runs in every epoch
_C.PROBE.CACHE = ""                     # folder of extracted features; "" = features/ in the run folder
_C.PROBE.RANDOM_ENCODER = False         # probe an encoder that was never trained, to compare with
_C.PROBE.KNN = False                    # classify by the nearest neighbours instead of training a head
_C.PROBE.KNN_K = [10, 20, 100]          # numbers of neighbours
_C.PROBE.TEMPERATURE = 0.07             # of their votes, exp(cosine similarity / temperature)

_C.TEST = CfgNode()
_C.TEST.CROP = True                     # resize the short side, then centre crop; False: squeeze the image to the size
_C.TEST.CROP_RATIO = 0.875              # + side of the crop as a share of the resized short side: 224 of 256; 1.0 = no margin

_C.AMP_OPT_LEVEL = ""                   # O0 fp32 | O1 mixed precision | O2 = O1 | "" = O1 on CUDA, O0 elsewhere
_C.AMP_BACKEND = "native"               # + native (torch.amp) | apex (an apex that still has apex.amp)
_C.OUTPUT = ""                          # first level of the run folder; "" = output
_C.TAG = "default"                      # third level of the run folder
_C.SAVE_FREQ = 1                        # epochs between checkpoints
_C.PRINT_FREQ = 10                      # iterations between log lines
_C.VIS_FREQ = 1                         # + epochs between reconstruction grids (0 = none)
_C.VIS_IMAGES = 8                       # + images in the grid
_C.SEED = 0
_C.EVAL_MODE = False                    # evaluate and stop; never trains
_C.THROUGHPUT_MODE = False              # measure inference images/s and stop
_C.LOCAL_RANK = 0                       # device index on this machine, where no launcher sets the environment
_C.DIST_TIMEOUT_MINUTES = 30            # + a collective operation that waits longer ends the job with an error
_C.PRETRAINED = ""                      # checkpoint that initialises the model; path or https address
_C.freeze()

IMAGENET_STATISTICS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean, deviation of RGB in [0, 1]
_NULLABLE = {"MODEL.SWIN.QK_SCALE", "MODEL.VIT.INIT_VALUES", "AUG.CUTMIX_MINMAX", "AUG.AUTO_AUGMENT", "TRAIN.CLIP_GRAD"}
_NUMBER_OR_PAIR = {"DATA.IMG_SIZE"}
_PAIRS = {"DATA.IMG_SIZE": 0, "DATA.CROP_SCALE": 0.0, "AUG.CUTMIX_MINMAX": 0.0, "AUG.CROP_SCALE": 0.0,  # of what kind
          "TRAIN.OPTIMIZER.BETAS": 0.0}
_FLOAT_LISTS = {"DATA.MEAN", "DATA.STD"}  # empty by default, so the default does not tell the type
_WHOLE_UNITS = {"random"}  # mask types whose units must divide the image
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest")
_CHOICES = {
    "DATA.INTERPOLATION": INTERPOLATIONS,
    "DATA.CROP_INTERPOLATION": INTERPOLATIONS,
    "DATA.CROP": ("rrc", "src"),
    "DATA.MASK_ROUND": ("up", "down", "visible_down"),
    "MODEL.PIXMIM.FILTER": ("exact", "centered"),
    "PROBE.FEATURE": ("mean", "cls"),
    "TRAIN.LR_SCHEDULER.NAME": ("cosine", "linear", "step", "multistep"),
    "TRAIN.PARALLEL": ("ddp", "fsdp"),
    "TRAIN.OPTIMIZER.NAME": ("adamw", "sgd", "lars", "fused_adam", "fused_lamb"),
    "AUG.REMODE": ("const", "rand", "pixel"),
    "AUG.MIXUP_MODE": ("batch", "pair", "elem"),
    "AMP_OPT_LEVEL": ("", "O0", "O1", "O2"),
    "AMP_BACKEND": ("native", "apex"),
}
_RANGES = {  # key: (lowest, highest) allowed, None = open; NaN is refused
    "MODEL.MAE.DECODER_EMBED_DIM": (1, None), "MODEL.MAE.DECODER_DEPTH": (1, None), "MODEL.MAE.DECODER_NUM_HEADS": (1, None),
    "MODEL.MIXMIM.DECODER_EMBED_DIM": (1, None), "MODEL.MIXMIM.DECODER_DEPTH": (1, None),
    "MODEL.MIXMIM.DECODER_NUM_HEADS": (1, None), "MODEL.MIXMIM.DECODER_NORM_EPS": (0, None),
    "MODEL.MIXMIM.RANGE_MASK_RATIO": (0, 1), "MODEL.MIXMIM.MLP_RATIO": (1e-3, None),
    "MODEL.PIXMIM.CUTOFF_RADIUS": (0, None), "TRAIN.LR_SCALE_BATCH": (1, None),
    "SEED": (0, None), "LOCAL_RANK": (0, None), "MODEL.SWIN.MLP_RATIO": (1e-3, None),
    "MODEL.SWINV2.MLP_RATIO": (1e-3, None), "MODEL.VIT.MLP_RATIO": (1e-3, None),
    "TEST.CROP_RATIO": (0.05, 1), "AUG.REPROB": (0, 1),
    "AUG.MIXUP": (0, None), "AUG.CUTMIX": (0, None), "AUG.MIXUP_PROB": (0, 1),
    "AUG.MIXUP_SWITCH_PROB": (0, 1), "AUG.COLOR_JITTER": (0, None), "TRAIN.WARMUP_LR": (0, None),
    "TRAIN.MIN_LR": (0, None), "TRAIN.CLIP_GRAD": (0, None),
    "TRAIN.OPTIMIZER.EPS": (0, None), "TRAIN.OPTIMIZER.MOMENTUM": (0, 0.9999),
    "TRAIN.OPTIMIZER.TRUST_COEFFICIENT": (0, None), "PROBE.TEMPERATURE": (1e-3, None),
    "MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE": (3, None),
    "DATA.BATCH_SIZE": (1, None), "DATA.NUM_WORKERS": (0, None), "DATA.MASK_PATCH_SIZE": (1, None),
    "DATA.MASK_RATIO": (0, 1), "DATA.VAL_FRACTION": (0, 0.9), "DATA.IMAGES_PER_CLASS": (0, None),
    "MODEL.NUM_CLASSES": (1, None), "MODEL.DROP_RATE": (0, 0.99), "MODEL.DROP_PATH_RATE": (0, 0.99),
    "MODEL.LABEL_SMOOTHING": (0, 0.99), "TRAIN.START_EPOCH": (0, None), "TRAIN.EPOCHS": (1, None),
    "TRAIN.WARMUP_EPOCHS": (0, None), "TRAIN.ACCUMULATION_STEPS": (0, None), "TRAIN.LAYER_DECAY": (1e-6, 1),
    "TRAIN.NONFINITE_LIMIT": (1, None), "TRAIN.WEIGHT_DECAY": (0, None), "TRAIN.BASE_LR": (0, None),
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": (1, None), "SAVE_FREQ": (1, None), "PRINT_FREQ": (1, None),
    "VIS_FREQ": (0, None), "VIS_IMAGES": (1, None), "DIST_TIMEOUT_MINUTES": (1, None), "AUG.RECOUNT": (1, None),
    "DATA.DEMO_TRAIN_PER_CLASS": (1, None), "DATA.DEMO_VAL_PER_CLASS": (1, None),
    "MODEL.SWIN.PATCH_SIZE": (1, None), "MODEL.SWIN.IN_CHANS": (1, None), "MODEL.SWIN.EMBED_DIM": (1, None),
    "MODEL.SWIN.WINDOW_SIZE": (1, None),
    "MODEL.SWINV2.PATCH_SIZE": (1, None), "MODEL.SWINV2.IN_CHANS": (1, None), "MODEL.SWINV2.EMBED_DIM": (1, None),
    "MODEL.SWINV2.WINDOW_SIZE": (1, None), "MODEL.SWINV2.EXTRA_NORM_EVERY": (0, None),
    "MODEL.VIT.PATCH_SIZE": (1, None), "MODEL.VIT.IN_CHANS": (1, None),
    "MODEL.VIT.EMBED_DIM": (1, None), "MODEL.VIT.DEPTH": (1, None), "MODEL.VIT.NUM_HEADS": (1, None),
    "MODEL.MIXMIM.PATCH_SIZE": (1, None), "MODEL.MIXMIM.IN_CHANS": (1, None), "MODEL.MIXMIM.EMBED_DIM": (1, None),
    "MODEL.CONVMAE.PATCH_SIZE": (4, None), "MODEL.CONVMAE.IN_CHANS": (1, None), "MODEL.CONVMAE.NUM_HEADS": (1, None),
}


def load_config(path=None, opts=()):
    """Defaults, then the YAML file with what it inherits, then `opts`; checked and frozen.

    Args:
        path: YAML file, or None for the defaults alone.
        opts: ['KEY', value, 'KEY', value, ...]; values may be strings as typed on a command line.
    Returns: frozen Config; `config.given` holds the keys that were set by file or opts.
    Raises: ValueError on an unknown key, a value of the wrong kind, an impossible combination or unreadable YAML;
        FileNotFoundError when a file is missing.
    """
    config = _C.clone()
    config.defrost()
    given = set()
    if path:
        _merge_file(config, str(path), given, chain=())
    opts = list(opts or ())
    if len(opts) % 2:
        raise ValueError(f"--opts takes pairs KEY VALUE, but {len(opts)} words were given: {' '.join(map(str, opts))}.")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _set(config, str(key), value, given, source="--opts")
    config.__dict__["given"] = frozenset(given)
    config.freeze()
    _check(config)
    return config


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


def image_size(config):
    """DATA.IMG_SIZE as (height, width)."""
    size = config.DATA.IMG_SIZE
    return (size, size) if isinstance(size, int) else tuple(size)


def encoder_config(config):
    """The block of the chosen encoder, e.g. MODEL.SWIN."""
    blocks = {name.lower(): node for name, node in config.MODEL.items() if isinstance(node, CfgNode) and "IN_CHANS" in node}
    return pick(blocks, config.MODEL.TYPE, "MODEL.TYPE")


def pixel_statistics(config):
    """Mean and standard deviation per channel, of pixels in [0, 1]: ([...], [...])."""
    channels = encoder_config(config).IN_CHANS
    mean, std = IMAGENET_STATISTICS if channels == 3 else ([0.5] * channels, [0.5] * channels)
    return list(config.DATA.MEAN or mean), list(config.DATA.STD or std)


def run_folder(config):
    """OUTPUT/MODEL.NAME/TAG, as in the official code."""
    return os.path.join(config.OUTPUT or "output", config.MODEL.NAME, config.TAG)


def save_config(config, folder):
    """Write the config as <folder>/config.yaml; one of an earlier start that differs is kept as config_<n>.yaml."""
    path = os.path.join(folder, "config.yaml")
    text = config.dump()
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            if file.read() == text:
                return
        number = next(n for n in range(1, 10 ** 6) if not os.path.exists(os.path.join(folder, f"config_{n}.yaml")))
        os.rename(path, os.path.join(folder, f"config_{number}.yaml"))
    os.makedirs(folder, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def flatten(config, prefix=""):
    """{'SECTION.KEY': value} of all leaves."""
    leaves = {}
    for key, value in config.items():
        if not isinstance(key, str):
            raise ValueError(f"{prefix}{key} is {type(key).__name__}: keys of a config are names.")
        leaves.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return leaves


def differences(config, text):
    """What changed between a config stored as YAML text and this one: {key: (stored, now)}."""
    stored = flatten(yaml.safe_load(text) or {})
    return {key: (stored.get(key), value) for key, value in flatten(config).items() if stored.get(key) != value}


# ---- loading ------------------------------------------------------------------------------------------------------

class _UniqueKeys(yaml.SafeLoader):
    """Safe loading that refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _merge_file(config, path, given, chain):
    path = os.path.abspath(path)
    if path in chain:
        raise ValueError(f"{path} inherits from itself through BASE: {' -> '.join((*chain, path))}.")
    if not os.path.isfile(path):
        named = f" (named by BASE in {chain[-1]})" if chain else ""
        raise FileNotFoundError(f"config file {path} does not exist{named}; the recipes are under configs/.")
    with open(path, encoding="utf-8") as file:
        try:
            tree = _UniqueKeys(file).get_single_data()
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds {type(tree).__name__}, expected a tree of SECTION: {{KEY: value}}.")
    bases = tree.pop("BASE", None) or []
    for base in [bases] if isinstance(bases, str) else bases:
        if base:
            _merge_file(config, os.path.join(os.path.dirname(path), base), given, (*chain, path))
    for key, value in flatten(tree).items():
        _set(config, key, value, given, source=path)


def _set(config, key, value, given, source):
    if key == "BASE":
        raise ValueError(f"{source}: BASE names the files a YAML file inherits from; it can't be set otherwise.")
    node = config
    *sections, name = key.split(".")
    for section in sections:
        node = node.get(section) if isinstance(node, CfgNode) else None
    if not isinstance(node, CfgNode) or name not in node:
        raise ValueError(f"{source}: unknown key {key!r}{_closest_key(key)}.")
    if isinstance(node[name], CfgNode):
        raise ValueError(f"{source}: {key} is a section, not a value; set one of {', '.join(flatten(node[name]))}.")
    node[name] = _coerce(key, value, flatten(_C)[key], source)
    given.add(key)


def _closest_key(key):
    """The nearest valid key by spelling, or by its last part where the section is wrong."""
    valid = list(flatten(_C))
    close = difflib.get_close_matches(key.upper(), valid, n=1, cutoff=0.6)
    if not close:
        last = key.upper().rpartition(".")[2]
        by_name = {name.rpartition(".")[2]: name for name in reversed(valid)}
        close = [by_name[name] for name in difflib.get_close_matches(last, by_name, n=1, cutoff=0.5)]
    return f"; the closest valid key is {close[0]}" if close else "; config.py lists the valid keys"


def _coerce(key, value, default, source):
    """Bring a value from YAML, a command line or Python to the kind of its default, or say why it can't be."""
    if isinstance(value, str) and not isinstance(default, str):
        value = _parse(value)
    if value is None or (isinstance(value, str) and value.lower() == "none" and key in _NULLABLE):
        if key in _NULLABLE or default is None:
            return None
        raise ValueError(f"{source}: {key} is empty, expected {_kind(key, default)}.")
    try:
        if key in _PAIRS and (isinstance(value, (list, tuple)) or key not in _NUMBER_OR_PAIR):
            low, high = value
            return [_scalar(item, _PAIRS[key]) for item in (low, high)]
        if isinstance(default, list):
            if not isinstance(value, (list, tuple)):
                raise ValueError
            example = 0.0 if key in _FLOAT_LISTS else default[0] if default else 0
            return [_scalar(item, example) for item in value]
        return _scalar(value, 0.0 if default is None else default)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{source}: {key}={value!r} is {type(value).__name__}, "
                         f"expected {_kind(key, default)}.") from None


def _parse(text):
    """A typed word as a Python value: numbers, lists, True/true, None/null; anything else stays text."""
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _scalar(value, default):
    """`value` as the type of `default`; whole floats become ints, ints become floats, `2e-4` (text in YAML) a float."""
    if isinstance(default, str):
        if isinstance(value, (list, tuple, dict)):
            raise ValueError
        return str(value)
    if isinstance(value, str):
        value = _parse(value)
    if isinstance(default, bool) or isinstance(value, bool):
        if type(value) is not type(default):
            raise ValueError
        return value
    if not isinstance(value, (int, float)):
        raise ValueError
    if isinstance(default, float):
        return float(value)
    if int(value) != value:
        raise ValueError
    return int(value)


def _kind(key, default):
    if key in _NUMBER_OR_PAIR:
        return "a whole number or [height, width]"
    if key in _PAIRS:
        return "two numbers, [first, second]" + (" or None" if key in _NULLABLE else "")
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "text", type(None): "a number or None"}
    if isinstance(default, list):
        example = 0.0 if key in _FLOAT_LISTS else default[0] if default else 0
        return f"a list of {({int: 'whole numbers', float: 'numbers', str: 'texts'})[type(example)]}"
    return names[type(default)] + (" or None" if key in _NULLABLE and default is not None else "")


# ---- checking -----------------------------------------------------------------------------------------------------

def _check(config):
    """Refuse what can't work, whatever the stage; `check_pretraining` and `check_finetuning` know more."""
    leaves = flatten(config)
    for key, choices in _CHOICES.items():
        if leaves[key] not in choices:
            raise ValueError(f"{key}={leaves[key]!r} is unknown; valid: {', '.join(c or repr('') for c in choices)}.")
    for key, (low, high) in _RANGES.items():
        if leaves[key] is not None and not (low <= leaves[key] <= (math.inf if high is None else high)):
            allowed = f"between {low} and {high}" if high is not None else f"at least {low}"
            raise ValueError(f"{key}={leaves[key]} is out of range: it must be {allowed}.")
    if min(image_size(config)) < 1:
        raise ValueError(f"DATA.IMG_SIZE={config.DATA.IMG_SIZE} must be at least 1 pixel.")
    for section in ("AUG", "DATA"):
        low, high = config[section].CROP_SCALE
        if not 0 < low <= high <= 1:
            raise ValueError(f"{section}.CROP_SCALE={[low, high]} must be [smallest, largest] share of the image's area, e.g. "
                             f"[0.08, 1.0].")
    minmax = config.AUG.CUTMIX_MINMAX
    if minmax is not None and not 0 < minmax[0] <= minmax[1] <= 1:
        raise ValueError(f"AUG.CUTMIX_MINMAX={minmax} must be [smallest, largest] share of the sides, e.g. [0.2, 0.8].")
    if not all(value > 0 for value in config.DATA.STD):
        raise ValueError(f"DATA.STD={config.DATA.STD} must be above 0 for every channel.")
    if not all(0 <= beta < 1 for beta in config.TRAIN.OPTIMIZER.BETAS):
        raise ValueError(f"TRAIN.OPTIMIZER.BETAS={config.TRAIN.OPTIMIZER.BETAS} must lie in [0, 1), e.g. [0.9, 0.999].")
    _check_schedule(config.TRAIN)
    _check_probe(config.PROBE)
    if config.MODEL.TYPE in _ENCODER_CHECKS:  # unknown types are named, with the valid ones, where the model is built
        _ENCODER_CHECKS[config.MODEL.TYPE](config)
        channels = encoder_config(config).IN_CHANS
        for key in ("MEAN", "STD"):
            if len(config.DATA[key]) not in (0, channels):
                raise ValueError(f"DATA.{key} has {len(config.DATA[key])} values for IN_CHANS={channels}: give one each.")
    if config.MODEL.METHOD in ("mae", "mixmim"):
        section = config.MODEL.METHOD.upper()
        _check_decoder(f"MODEL.{section}", config.MODEL[section])
    if config.MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE % 2 == 0:
        raise ValueError(f"MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE={config.MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE} is even: the "
                         f"window is centred on a pixel. Use {config.MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE + 1}.")
    # fine-tuning needs no mask, and the default unit may not fit its image size
    if config.MODEL.TYPE in _ENCODER_CHECKS and config.DATA.MASK_PATCH_SIZE != _C.DATA.MASK_PATCH_SIZE:
        check_pretraining(config)


def check_pretraining(config):
    """Refuse mask settings that do not fit image and encoder. Raises ValueError."""
    unit = config.DATA.MASK_PATCH_SIZE
    height, width = image_size(config)
    patch = encoder_config(config).PATCH_SIZE
    whole = config.DATA.MASK_TYPE in _WHOLE_UNITS
    units = [u for u in range(patch, min(height, width) + 1, patch) if not whole or (height % u == 0 and width % u == 0)]
    fix = f"Use DATA.MASK_PATCH_SIZE {min(units, key=lambda u: abs(u - unit))}" if units else "Use another DATA.IMG_SIZE"
    if unit % patch:
        raise ValueError(f"DATA.MASK_PATCH_SIZE={unit} is not a multiple of MODEL.{config.MODEL.TYPE.upper()}.PATCH_SIZE="
                         f"{patch}: a patch is hidden or visible as a whole. {fix}.")
    if whole and (height % unit or width % unit):
        raise ValueError(f"DATA.MASK_PATCH_SIZE={unit} does not divide DATA.IMG_SIZE={config.DATA.IMG_SIZE}: the mask grid "
                         f"needs whole units. {fix} or a DATA.IMG_SIZE that is a multiple of {unit}.")
    if config.MODEL.METHOD == "mixmim" and config.MODEL.TYPE == "mixmim":
        _check_mixing(config)


def _check_mixing(config):
    """Refuse masks that do not tell two images apart on the last map of MixMIM."""
    stride = config.MODEL.MIXMIM.PATCH_SIZE * 2 ** (len(config.MODEL.MIXMIM.DEPTHS) - 1)
    data, ratios = config.DATA, config.DATA.MASK_RATIO + config.MODEL.MIXMIM.RANGE_MASK_RATIO
    if not data.MASK_SHARED:
        raise ValueError("DATA.MASK_SHARED=False: MODEL.METHOD mixmim mixes images, which needs one mask for all of a batch. "
                         "Use DATA.MASK_SHARED True.")
    if data.MASK_TYPE not in _WHOLE_UNITS or data.MASK_PATCH_SIZE % stride:
        raise ValueError(f"DATA.MASK_TYPE={data.MASK_TYPE} with DATA.MASK_PATCH_SIZE={data.MASK_PATCH_SIZE}: MODEL.METHOD "
                         f"mixmim hides whole cells of the last map, {stride} pixels wide. Use DATA.MASK_TYPE random and "
                         f"DATA.MASK_PATCH_SIZE {stride}.")
    if ratios > 1:
        raise ValueError(f"DATA.MASK_RATIO={data.MASK_RATIO} plus MODEL.MIXMIM.RANGE_MASK_RATIO="
                         f"{config.MODEL.MIXMIM.RANGE_MASK_RATIO} is above 1: a ratio lies between 0 and 1.")


def mixing_is_on(config):
    """Whether fine-tuning mixes images (mixup or cutmix), and so trains on soft labels."""
    return config.AUG.MIXUP > 0 or config.AUG.CUTMIX > 0 or config.AUG.CUTMIX_MINMAX is not None


def check_finetuning(config):
    """Refuse augmentation settings that do not fit the batch. Raises ValueError."""
    size = config.DATA.BATCH_SIZE
    if mixing_is_on(config) and config.AUG.MIXUP_MODE != "elem" and size % 2:
        raise ValueError(f"DATA.BATCH_SIZE={size} is odd: mixup and cutmix pair the images of a batch. Use {size + 1}, or "
                         f"switch both off with --opts AUG.MIXUP 0 AUG.CUTMIX 0.")


def check_probing(config):
    """Refuse what main_linprobe.py can't do. Raises ValueError."""
    if config.EVAL_MODE and not config.MODEL.RESUME and not config.PROBE.KNN:
        raise ValueError("--eval needs a trained head: pass --resume <checkpoint of a probe>; --knn needs none.")
    needs_weights = not (config.THROUGHPUT_MODE or config.PROBE.RANDOM_ENCODER)
    if needs_weights and not config.PRETRAINED and (config.PROBE.KNN or not config.MODEL.RESUME):
        raise ValueError("a probe needs an encoder: pass --pretrained <checkpoint>; --random-encoder probes one that was never "
                         "trained.")
    if config.PROBE.RANDOM_ENCODER and config.PRETRAINED:
        raise ValueError(f"--random-encoder and --pretrained {config.PRETRAINED} contradict each other: leave one out.")
    if config.TRAIN.PARALLEL != "ddp":
        raise ValueError(f"TRAIN.PARALLEL={config.TRAIN.PARALLEL} is for training encoders: a frozen one has neither gradients "
                         f"nor moments. Use TRAIN.PARALLEL ddp.")
    if config.PROBE.SWEEP and config.TRAIN.CLIP_GRAD:
        raise ValueError(f"TRAIN.CLIP_GRAD={config.TRAIN.CLIP_GRAD} would let the heads of --sweep slow each other down: use "
                         f"TRAIN.CLIP_GRAD 0.")


def _check_probe(probe):
    if probe.LAYER != "last" and type(_parse(probe.LAYER)) is not int:
        raise ValueError(f"PROBE.LAYER={probe.LAYER!r} (--layer) must be the number of a block, from 1 or, from the end, -1; "
                         f"or last.")
    if not probe.KNN_K or min(probe.KNN_K) < 1:
        raise ValueError(f"PROBE.KNN_K={probe.KNN_K} must be numbers of neighbours, at least 1, e.g. [10, 20, 100].")


def _check_schedule(train):
    schedule = train.LR_SCHEDULER
    if schedule.NAME != "multistep":
        return
    steps = schedule.MULTISTEPS
    if not steps or steps != sorted(steps):
        raise ValueError(f"TRAIN.LR_SCHEDULER.MULTISTEPS={steps}: a multistep schedule needs rising epochs, e.g. [700].")
    if train.WARMUP_EPOCHS > steps[0]:
        raise ValueError(f"TRAIN.WARMUP_EPOCHS={train.WARMUP_EPOCHS} is longer than the first of TRAIN.LR_SCHEDULER."
                         f"MULTISTEPS={steps}: use at most {steps[0]}.")


def _check_stages(config):
    """Depths and heads of an encoder with stages of twice the width each."""
    stages, section = encoder_config(config), f"MODEL.{config.MODEL.TYPE.upper()}"
    if not stages.DEPTHS or len(stages.DEPTHS) != len(stages.NUM_HEADS):
        raise ValueError(f"{section}.DEPTHS={stages.DEPTHS} and {section}.NUM_HEADS={stages.NUM_HEADS} must have one value "
                         f"for each stage, and so the same length.")
    if min(stages.DEPTHS) < 1 or min(stages.NUM_HEADS) < 1:
        raise ValueError(f"{section}.DEPTHS={stages.DEPTHS} and {section}.NUM_HEADS={stages.NUM_HEADS} must be at least 1.")
    for stage, heads in enumerate(stages.NUM_HEADS):
        width = stages.EMBED_DIM * 2 ** stage
        if width % heads:
            fit = _fitting_heads(heads, width)
            raise ValueError(f"{section}.NUM_HEADS={stages.NUM_HEADS}: {heads} heads do not divide the {width} channels of "
                             f"stage {stage} (EMBED_DIM={stages.EMBED_DIM} x {2 ** stage}). Use e.g. {fit} heads there.")


def _fitting_heads(heads, width):
    """The largest number, up to `heads`, that divides the width."""
    return max(h for h in range(1, heads + 1) if width % h == 0)


def _check_swin(config):
    _check_stages(config)
    swin, section = encoder_config(config), f"MODEL.{config.MODEL.TYPE.upper()}"

    def problem(size, window):
        return _window_problem(size, swin.PATCH_SIZE, [window] * len(swin.DEPTHS))

    sides = image_size(config)
    found = problem(sides[0], swin.WINDOW_SIZE) or problem(sides[1], swin.WINDOW_SIZE)
    if found:
        fitting = [s for s in range(1, 2 * max(sides) + 1024) if not problem(s, swin.WINDOW_SIZE)]
        nearest = [min(fitting, key=lambda s, side=side: abs(s - side)) for side in sides] if fitting else None
        fixes = [f"DATA.IMG_SIZE {nearest[0] if sides[0] == sides[1] else str(nearest).replace(' ', '')}"] if nearest else []
        windows = [w for w in range(1, max(sides)) if not any(problem(side, w) for side in sides)]
        if windows:
            fixes.append(f"{section}.WINDOW_SIZE {min(windows, key=lambda w: abs(w - swin.WINDOW_SIZE))}")
        raise ValueError(f"DATA.IMG_SIZE={config.DATA.IMG_SIZE} with {section}.WINDOW_SIZE={swin.WINDOW_SIZE}: {found}. "
                         f"Use {' or '.join(fixes)}.")


def _check_swinv2(config):
    _check_swin(config)
    swin = config.MODEL.SWINV2
    sizes = swin.PRETRAINED_WINDOW_SIZES
    if any(sizes) and (len(sizes) != len(swin.DEPTHS) or min(sizes) < 0):
        raise ValueError(f"MODEL.SWINV2.PRETRAINED_WINDOW_SIZES={sizes} must have one value, 0 or more, for each of the "
                         f"{len(swin.DEPTHS)} stages of MODEL.SWINV2.DEPTHS={swin.DEPTHS}.")


def _check_mixmim(config):
    _check_stages(config)
    mixmim, section = config.MODEL.MIXMIM, "MODEL.MIXMIM"
    windows = mixmim.WINDOW_SIZES
    if len(windows) != len(mixmim.DEPTHS) or min(windows) < 1:
        raise ValueError(f"{section}.WINDOW_SIZES={windows} must have one value of at least 1 for each of the "
                         f"{len(mixmim.DEPTHS)} stages of {section}.DEPTHS={mixmim.DEPTHS}.")
    _check_sincos(f"{section}.EMBED_DIM", mixmim.EMBED_DIM)
    sides, unit = image_size(config), mixmim.PATCH_SIZE * 2 ** (len(windows) - 1)
    problems = [_window_problem(side, mixmim.PATCH_SIZE, windows) for side in sorted(sides, key=lambda side: side % unit == 0)]
    found = next(filter(None, problems), None)  # a side of broken cells first
    if found and any(side % unit for side in sides):
        nearest = [max(round(side / unit), 1) * unit for side in sides]
        advice = f"DATA.IMG_SIZE {nearest[0] if sides[0] == sides[1] else nearest}"
    elif found:
        maps = [[side // mixmim.PATCH_SIZE // 2 ** stage for side in sides] for stage in range(len(windows))]
        fitting = [max(w for w in range(1, window + 1) if not any(side % min(w, side) for side in grid))
                   for window, grid in zip(windows, maps, strict=True)]
        advice = f"e.g. {section}.WINDOW_SIZES {fitting}"
    if found:
        raise ValueError(f"DATA.IMG_SIZE={config.DATA.IMG_SIZE} with {section}.WINDOW_SIZES={windows}: {found}. Use "
                         f"{advice.replace(', ', ',')}.")


def _window_problem(size, patch, windows):
    """Why a side of `size` pixels can't go through stages of these windows, or None. A window shrinks to a smaller map."""
    unit = patch * 2 ** (len(windows) - 1)
    if size % unit:
        return f"the image side must be a multiple of {unit} (PATCH_SIZE {patch} halved {len(windows) - 1} times)"
    for stage, window in enumerate(windows):
        side = size // patch // 2 ** stage
        if side % min(window, side):
            return f"the window does not divide the map of stage {stage}, {side} tokens wide"
    return None


def _check_decoder(section, decoder):
    width, heads = decoder.DECODER_EMBED_DIM, decoder.DECODER_NUM_HEADS
    if width % heads:
        fit = _fitting_heads(heads, width)
        raise ValueError(f"{section}.DECODER_NUM_HEADS={heads} does not divide {section}.DECODER_EMBED_DIM={width}. Use e.g. "
                         f"{fit} heads.")
    _check_sincos(f"{section}.DECODER_EMBED_DIM", width)


def _check_sincos(key, width):
    if width % 4:
        raise ValueError(f"{key}={width} must be a multiple of 4: a quarter each for sines and cosines of column and row. Use "
                         f"{-(-width // 4) * 4}.")


def _check_vit(config):
    vit = config.MODEL.VIT
    if vit.USE_APE and vit.USE_SINCOS_APE:
        raise ValueError("MODEL.VIT.USE_APE and USE_SINCOS_APE are both True: an encoder has one absolute position embedding.")
    if vit.USE_SINCOS_APE:
        _check_sincos("MODEL.VIT.EMBED_DIM", vit.EMBED_DIM)
    if vit.EMBED_DIM % vit.NUM_HEADS:
        fit = _fitting_heads(vit.NUM_HEADS, vit.EMBED_DIM)
        raise ValueError(f"MODEL.VIT.NUM_HEADS={vit.NUM_HEADS} does not divide MODEL.VIT.EMBED_DIM={vit.EMBED_DIM}. "
                         f"Use e.g. {fit} heads.")
    for size in image_size(config):
        if size % vit.PATCH_SIZE:
            raise ValueError(f"MODEL.VIT.PATCH_SIZE={vit.PATCH_SIZE} does not divide DATA.IMG_SIZE={config.DATA.IMG_SIZE}. "
                             f"Use DATA.IMG_SIZE {max(round(size / vit.PATCH_SIZE), 1) * vit.PATCH_SIZE}.")


def _check_convmae(config):
    convmae, section = config.MODEL.CONVMAE, "MODEL.CONVMAE"
    for key, lowest in (("EMBED_DIM", 1), ("DEPTHS", 1), ("MLP_RATIO", 1e-3)):
        if len(convmae[key]) != 3 or not min(convmae[key]) >= lowest:
            raise ValueError(f"{section}.{key}={convmae[key]} must have three values of at least {lowest}, one for each stage, "
                             f"e.g. {_C.MODEL.CONVMAE[key]}.")
    if convmae.PATCH_SIZE % 4:
        raise ValueError(f"{section}.PATCH_SIZE={convmae.PATCH_SIZE} must be a multiple of 4: the second and the third stage "
                         f"halve the map. Use {-(-convmae.PATCH_SIZE // 4) * 4}.")
    width, heads = convmae.EMBED_DIM[2], convmae.NUM_HEADS
    if width % 4:
        raise ValueError(f"{section}.EMBED_DIM={convmae.EMBED_DIM}: the {width} channels of the third stage must be a multiple "
                         f"of 4, a quarter each for sines and cosines of column and row. Use {-(-width // 4) * 4} there.")
    if width % heads:
        fit = _fitting_heads(heads, width)
        raise ValueError(f"{section}.NUM_HEADS={heads} does not divide the {width} channels of the third stage of {section}."
                         f"EMBED_DIM={convmae.EMBED_DIM}. Use e.g. {fit} heads.")
    for size in image_size(config):
        if size % convmae.PATCH_SIZE:
            raise ValueError(f"{section}.PATCH_SIZE={convmae.PATCH_SIZE} does not divide DATA.IMG_SIZE={config.DATA.IMG_SIZE}. "
                             f"Use DATA.IMG_SIZE {max(round(size / convmae.PATCH_SIZE), 1) * convmae.PATCH_SIZE}.")


_ENCODER_CHECKS = {"convmae": _check_convmae, "mixmim": _check_mixmim, "swin": _check_swin, "swinv2": _check_swinv2,
                   "vit": _check_vit}
