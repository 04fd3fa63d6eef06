"""Images and settings of the runs: small enough for a second a run, odd enough to show mistakes."""
import numpy as np
from PIL import Image

from tests.contracts.tiny import CASES, METHOD_VARIANTS, VARIANTS, settings_of
from utils.yaml_files import nested

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")
TRAIN_PER_CLASS, VAL_IMAGES = 3, 11  # 24 training images: three batches of 8; 11 do not divide by 2 processes

SWIN = {"MODEL.TYPE": "swin", "MODEL.SWIN.EMBED_DIM": 8, "MODEL.SWIN.DEPTHS": "[1,1]", "MODEL.SWIN.NUM_HEADS": "[1,2]",
        "MODEL.SWIN.WINDOW_SIZE": 4, "DATA.IMG_SIZE": 32}
VIT = {"MODEL.TYPE": "vit", "MODEL.VIT.PATCH_SIZE": 8, "MODEL.VIT.EMBED_DIM": 16, "MODEL.VIT.DEPTH": 2,
       "MODEL.VIT.NUM_HEADS": 2, "DATA.IMG_SIZE": 32}
# rates are for 512 images: x 8 / 512 the peak is 1e-2, high enough that a few steps change the weights visibly
SHORT = {"DATA.BATCH_SIZE": 8, "DATA.NUM_WORKERS": 0, "TRAIN.WARMUP_EPOCHS": 1, "TRAIN.BASE_LR": 0.64,
         "TRAIN.WARMUP_LR": 0.064, "TRAIN.MIN_LR": 0.0064, "PRINT_FREQ": 1}
PRETRAIN = {**SHORT, **SWIN, "MODEL.NAME": "pretrain", "DATA.MASK_PATCH_SIZE": 8, "MODEL.DROP_PATH_RATE": 0.0, "VIS_IMAGES": 3}
# strengths of 10 and more have a test of their own (test_other_data.py)
FINETUNE = {**SHORT, **SWIN, "MODEL.NAME": "finetune", "AUG.AUTO_AUGMENT": "rand-m7-mstd0.5-inc1"}
PROBE = {**SHORT, **SWIN, "MODEL.NAME": "linprobe", "TRAIN.EPOCHS": 3, "TRAIN.LR_SCALE_BATCH": 8, "TRAIN.BASE_LR": 2.0,
         "TRAIN.WARMUP_LR": 0.0, "TRAIN.MIN_LR": 0.0, "TRAIN.WEIGHT_DECAY": 0.0, "TRAIN.CLIP_GRAD": 0.0,
         "TRAIN.LR_SCHEDULER.LAG": "False", "TRAIN.OPTIMIZER.NAME": "lars"}


def make_images(root):
    """root/train and root/val with a folder for each class; sizes, formats and colours vary."""
    rng = np.random.RandomState(7)
    for label, name in enumerate(CLASSES):
        for index in range(TRAIN_PER_CLASS):
            save_image(root / "train" / name / f"{index}.jpg", rng, label)
    for index in range(VAL_IMAGES):
        label = index % len(CLASSES)
        save_image(root / "val" / CLASSES[label] / f"{index}.png", rng, label)


def save_image(path, rng, label, size=None):
    """A gradient of a colour that belongs to the label, with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size or rng.randint(36, 90, size=2)
    slope = np.linspace(0, 90, width)[None, :, None]
    colour = np.array([label % 2, label // 2 % 2, label // 4]) * 120.0
    pixels = colour + slope + rng.uniform(0, 45, size=(height, width, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def write_recipe(path, settings):
    """A YAML file with dotted settings nested into sections; returns its path."""
    tree = nested(settings)
    lines = []

    def add(node, indent):
        for key, value in node.items():
            if isinstance(value, dict):
                lines.append(f"{indent}{key}:")
                add(value, indent + "  ")
            else:
                lines.append(f"{indent}{key}: {value}")
    add(tree, "")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def method_settings(method):
    """Settings that make a recipe one of `method`, with a tiny encoder that it takes; any registered method will do."""
    encoder, variant, _, kind = next(case for case in CASES if case[2] == method)
    return {"MODEL.TYPE": encoder, "MODEL.METHOD": method, **settings_of(VARIANTS, encoder, variant),
            **settings_of(METHOD_VARIANTS, method, kind)}
