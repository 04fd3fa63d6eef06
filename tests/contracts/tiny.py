"""A tiny config of every registered encoder and method, in every layout of parameters it can have."""
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from config import dump, encoder_config, image_size, load_config
from models import build_model
from models.build import ENCODERS, METHODS
from utils.checkpoint import save_checkpoint

HEIGHT, WIDTH, BATCH, CLASSES = 32, 64, 3, 5
COMMON = {"DATA.IMG_SIZE": [HEIGHT, WIDTH], "DATA.MASK_PATCH_SIZE": 8, "MODEL.NUM_CLASSES": CLASSES,
          "MODEL.DROP_PATH_RATE": 0.0}

MAE_VIT = {"MODEL.VIT.K_BIAS": True, "MODEL.VIT.USE_SINCOS_APE": True, "MODEL.VIT.USE_SHARED_RPB": False,
           "MODEL.VIT.INIT_VALUES": None}
LOW_PASS = {"MODEL.PIXMIM.ENABLE": True, "MODEL.PIXMIM.CUTOFF_RADIUS": 6}
# encoder: {variant: settings}; the first variant is the base, the others add to it
VARIANTS = {
    "convmae": {
        "plain": {"MODEL.CONVMAE.PATCH_SIZE": 8, "MODEL.CONVMAE.EMBED_DIM": [4, 8, 16], "MODEL.CONVMAE.DEPTHS": [1, 2, 3],
                  "MODEL.CONVMAE.NUM_HEADS": 2, "MODEL.CONVMAE.MLP_RATIO": [2.0, 3.0, 4.0]},
        "no_qkv_bias": {"MODEL.CONVMAE.QKV_BIAS": False},
    },
    "mixmim": {
        "plain": {"MODEL.MIXMIM.PATCH_SIZE": 4, "MODEL.MIXMIM.EMBED_DIM": 8, "MODEL.MIXMIM.DEPTHS": [2, 2],
                  "MODEL.MIXMIM.NUM_HEADS": [1, 2], "MODEL.MIXMIM.WINDOW_SIZES": [4, 2]},
        "global_windows": {"MODEL.MIXMIM.WINDOW_SIZES": [4, 16], "MODEL.MIXMIM.MLP_RATIO": 3.0},
    },
    "swin": {
        "plain": {"MODEL.SWIN.PATCH_SIZE": 4, "MODEL.SWIN.EMBED_DIM": 8, "MODEL.SWIN.DEPTHS": [2, 2],
                  "MODEL.SWIN.NUM_HEADS": [1, 2], "MODEL.SWIN.WINDOW_SIZE": 4},
        "ape": {"MODEL.SWIN.APE": True, "MODEL.SWIN.PATCH_NORM": False},
        "no_qkv_bias": {"MODEL.SWIN.QKV_BIAS": False, "MODEL.SWIN.QK_SCALE": 0.5},
    },
    "swinv2": {
        "plain": {"MODEL.SWINV2.PATCH_SIZE": 4, "MODEL.SWINV2.EMBED_DIM": 8, "MODEL.SWINV2.DEPTHS": [2, 2],
                  "MODEL.SWINV2.NUM_HEADS": [1, 2], "MODEL.SWINV2.WINDOW_SIZE": 4},
        "ape": {"MODEL.SWINV2.APE": True, "MODEL.SWINV2.PATCH_NORM": False, "MODEL.SWINV2.QKV_BIAS": False},
        "other_window": {"MODEL.SWINV2.PRETRAINED_WINDOW_SIZES": [6, 3]},
        "extra_norm": {"MODEL.SWINV2.EXTRA_NORM_EVERY": 2},
    },
    "vit": {
        "plain": {"MODEL.VIT.PATCH_SIZE": 8, "MODEL.VIT.EMBED_DIM": 16, "MODEL.VIT.DEPTH": 3, "MODEL.VIT.NUM_HEADS": 2},
        "all_tables": {"MODEL.VIT.USE_APE": True, "MODEL.VIT.USE_RPB": True},
        "no_tables": {"MODEL.VIT.USE_SHARED_RPB": False, "MODEL.VIT.INIT_VALUES": None, "MODEL.VIT.QKV_BIAS": False},
        "mean_pooling": {"MODEL.VIT.USE_MEAN_POOLING": True},
        "mae": MAE_VIT,
    },
}
METHOD_VARIANTS = {
    "simmim": {"pixels": {}, "normalised": {"MODEL.SIMMIM.NORM_TARGET.ENABLE": True,
                                            "MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE": 5}, "low_pass": LOW_PASS},
    "mae": {"pixels": {"MODEL.METHOD": "mae", "MODEL.MAE.DECODER_EMBED_DIM": 16, "MODEL.MAE.DECODER_DEPTH": 1,
                       "MODEL.MAE.DECODER_NUM_HEADS": 2},
            "normalised": {"MODEL.MAE.NORM_PIX_LOSS": True}, "low_pass": LOW_PASS},
    "mixmim": {"pixels": {"MODEL.METHOD": "mixmim", "DATA.MASK_SHARED": True, "MODEL.MIXMIM.DECODER_EMBED_DIM": 16,
                          "MODEL.MIXMIM.DECODER_DEPTH": 1, "MODEL.MIXMIM.DECODER_NUM_HEADS": 2},
               "normalised": {"MODEL.MIXMIM.NORM_PIX_LOSS": True}, "low_pass": LOW_PASS},
}
# SimMIM's ablations, each around one encoder: {(encoder, kind): settings}; None = what depends on the images, see axis_settings
AXES = {("swin", kind): {f"MODEL.SIMMIM.{key}": value for key, value in settings.items()} for kind, settings in {
    "patch_norm": {"TARGET": "patch_norm"}, "bins": {"TARGET": "bins", "BINS": 5},
    "clusters": {"TARGET": "clusters", "PALETTE": None},
    "tokens": {"TARGET": "tokens", "TOKENIZER": "tests.contracts.tiny:Levels"}, "hog": {"TARGET": "hog"},
    "features": {"TARGET": "features", "TEACHER": None}, "small": {"TARGET_SIZE": None},
    "small_bins": {"TARGET": "bins", "TARGET_SIZE": None}, "mlp": {"HEAD": "mlp"}, "inverse_swin_t": {"HEAD": "inverse_swin_t"},
    "smooth_l1": {"LOSS": "smooth_l1"}, "l2": {"LOSS": "l2"}, "all": {"LOSS_AREA": "all"}, "weighted": {"LOSS_AREA": "0.3"},
}.items()} | {("vit", "inverse_swin_b"): {"MODEL.SIMMIM.HEAD": "inverse_swin_b"},
              ("swin", "low_bins"): LOW_PASS | {"MODEL.SIMMIM.TARGET": "bins"}}
# what a method needs of an encoder: {method: [(encoder, variant)]}; without an entry any will do that has a mask token
NEEDS = {"mae": [("convmae", "plain"), ("convmae", "no_qkv_bias"), ("swin", "plain"), ("swinv2", "plain"),
                 ("vit", "no_tables"), ("vit", "mae")],
         "mixmim": [("mixmim", "plain"), ("mixmim", "global_windows")]}
NO_MASK_TOKEN = {"convmae"}
DROPS_CELLS = {"swin", "swinv2"}  # of several patches
HEAD_LIKE_LAST_BLOCK = {"mixmim"}  # official layer decay
FIXED_IN_CLASSIFIER = {"mixmim": {"absolute_pos_embed"}}
# parts of an encoder that only pre-training has, and that only classification has, besides the head
OWN_PARTS = {"convmae": ({"norm", "stage1_output_decode", "stage2_output_decode"}, {"fc_norm"})}

ENCODER_CASES = [(name, variant) for name in ENCODERS for variant in VARIANTS.get(name, ["tiny"])]
MASKED_CASES = [(name, variant) for name, variant in ENCODER_CASES if name not in NO_MASK_TOKEN]


def kinds_of(name, variant, method):
    """What a method is tried with around an encoder: everything once, around the first variant that it can be; targets never
    see the encoder.
    """
    variants = [of for encoder, of in NEEDS.get(method, MASKED_CASES) if encoder == name]
    if variant not in variants:
        return []
    if method == "mae" and name in DROPS_CELLS:
        return ["normalised"]  # the target of the widest patches
    return list(METHOD_VARIANTS.get(method, ["tiny"]))[:None if variant == variants[0] else 1]


CASES = [(name, variant, method, kind) for name, variant in ENCODER_CASES for method in METHODS
         for kind in kinds_of(name, variant, method)]
AXIS_CASES = [(name, "plain", "simmim", kind) for name, kind in AXES]
METHOD_CASES = [case for i, case in enumerate(CASES) if case[:3] not in {other[:3] for other in CASES[:i]}]  # one kind of each


def settings_of(table, name, variant):
    """{KEY: value} of a variant; of an encoder or a method that is not in its table, the settings it calls tiny itself."""
    if name not in table:
        component = (ENCODERS if table is VARIANTS else METHODS)[name]
        chosen = {} if table is VARIANTS else {"MODEL.METHOD": name}
        return chosen | {f"MODEL.{name.upper()}.{key}": value for key, value in component.tiny.items()}
    base = next(iter(table[name].values()))
    return base | table[name][variant]


class Levels(nn.Module):
    """A tokenizer: how bright a cell of 4 pixels is."""

    num_tokens, cell = 6, 4

    def forward(self, images):
        return (nn.functional.avg_pool2d(images.mean(dim=1), self.cell) * 4 + 3).floor().clamp(0, 5).long()


def axis_settings(name, kind, channels, size):
    """AXES, completed for images of these channels and (height, width)."""
    made = {"MODEL.SIMMIM.TARGET_SIZE": [side // 4 for side in size]}
    settings = AXES[name, kind]
    if "MODEL.SIMMIM.PALETTE" in settings:
        made["MODEL.SIMMIM.PALETTE"] = palette(channels)
    if "MODEL.SIMMIM.TEACHER" in settings:
        made["MODEL.SIMMIM.TEACHER"] = teacher(channels)
    return {key: made[key] if value is None else value for key, value in settings.items()}


@cache
def folder():
    """For what configs name by a path; removed at the end of the process."""
    return tempfile.TemporaryDirectory()


@cache
def palette(channels):
    path = Path(folder().name) / f"palette_{channels}.npy"
    np.save(path, np.random.RandomState(0).rand(7, channels).astype(np.float32))
    return str(path)


@cache
def teacher(channels):
    path = Path(folder().name) / f"teacher_{channels}.pth"
    config = make_config("vit", "no_tables", channels=channels)
    save_checkpoint(path, {"model": build(config, is_pretrain=True, seed=4).state_dict(), "config": dump(config, "pretrain")})
    return str(path)


def make_config(name, variant, method=None, kind="pixels", channels=3, size=(HEIGHT, WIDTH)):
    """Without a method: one that the encoder can be pre-trained by."""
    method = method or ("mae" if name in NO_MASK_TOKEN else "simmim")
    overrides = COMMON | {"MODEL.TYPE": name, "MODEL.METHOD": method, "DATA.IMG_SIZE": list(size),
                          f"MODEL.{name.upper()}.IN_CHANS": channels}
    overrides |= settings_of(VARIANTS, name, variant)
    overrides |= (axis_settings(name, kind, channels, size) if (name, kind) in AXES
                  else settings_of(METHOD_VARIANTS, method, kind))
    return load_config(opts=[item for pair in overrides.items() for item in pair])


def build(config, is_pretrain, seed=1):
    """The model with every parameter away from zeros, ones and small starts, so that each one matters."""
    torch.manual_seed(seed)
    model = build_model(config, is_pretrain)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.eval()


def make_images(config, batch=BATCH, size=None, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, encoder_config(config).IN_CHANS, *(size or image_size(config)), generator=generator)


def make_mask(config, batch=BATCH, size=None, seed=3):
    """(batch, rows, cols) bool on the patch grid, about half hidden, in every image another number where the method can."""
    patch = encoder_config(config).PATCH_SIZE
    height, width = size or image_size(config)
    generator = torch.Generator().manual_seed(seed)
    if config.MODEL.METHOD in NEEDS and config.MODEL.TYPE in DROPS_CELLS or config.MODEL.SIMMIM.TARGET in ("hog", "features"):
        unit = config.DATA.MASK_PATCH_SIZE
        order = torch.rand(batch, height // unit * (width // unit), generator=generator).argsort(dim=1)
        mask = (order < order.shape[1] // 2).view(batch, height // unit, width // unit)
        return mask.repeat_interleave(unit // patch, 1).repeat_interleave(unit // patch, 2)
    if config.DATA.MASK_SHARED:
        unit = config.DATA.MASK_PATCH_SIZE
        order = torch.rand(height // unit * (width // unit), generator=generator).argsort()
        mask = (order < len(order) // 2).view(1, height // unit, width // unit)
        return mask.repeat_interleave(unit // patch, 1).repeat_interleave(unit // patch, 2).expand(batch, -1, -1)
    noise = torch.rand(batch, height // patch, width // patch, generator=generator)
    if config.MODEL.METHOD in NEEDS:
        order = noise.flatten(1).argsort(dim=1).argsort(dim=1)
        return (order < order.shape[1] // 2).view_as(noise)
    mask = noise < 0.5
    assert mask.any() and not mask.all()
    return mask


def predicted_pixels(config, mask):
    """Where the prediction is for what is hidden there, (batch, 1, H, W) bool, or (1, 1, 1, 1) for all: with MixMIM visible
    ones are hidden in another mixture, and predicted from what is hidden here.
    """
    return hidden_pixels(config, mask) if config.MODEL.METHOD == "mixmim" else torch.ones(1, 1, 1, 1, dtype=torch.bool)


def hidden_pixels(config, mask):
    """(batch, 1, H, W) bool."""
    patch = encoder_config(config).PATCH_SIZE
    return mask.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2).unsqueeze(1)
