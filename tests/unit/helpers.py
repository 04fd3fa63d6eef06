"""Tiny configs, models and inputs. Height and width differ everywhere, so that a transposition shows."""
import torch
from PIL import Image

from config import load_config
from models import build_model

HEIGHT, WIDTH = 32, 64
COMMON = {"DATA.IMG_SIZE": [HEIGHT, WIDTH], "DATA.MASK_PATCH_SIZE": 8, "MODEL.DROP_PATH_RATE": 0.0,
          "MODEL.NUM_CLASSES": 5}
TINY = {
    "swin": COMMON | {"MODEL.TYPE": "swin", "MODEL.SWIN.PATCH_SIZE": 4, "MODEL.SWIN.EMBED_DIM": 8,
                      "MODEL.SWIN.DEPTHS": [2, 2], "MODEL.SWIN.NUM_HEADS": [1, 2], "MODEL.SWIN.WINDOW_SIZE": 4},
    "swinv2": COMMON | {"MODEL.TYPE": "swinv2", "MODEL.SWINV2.PATCH_SIZE": 4, "MODEL.SWINV2.EMBED_DIM": 8,
                        "MODEL.SWINV2.DEPTHS": [2, 2], "MODEL.SWINV2.NUM_HEADS": [1, 2],
                        "MODEL.SWINV2.WINDOW_SIZE": 4},
    "vit": COMMON | {"MODEL.TYPE": "vit", "MODEL.VIT.PATCH_SIZE": 8, "MODEL.VIT.EMBED_DIM": 16,
                     "MODEL.VIT.DEPTH": 3, "MODEL.VIT.NUM_HEADS": 2},
}
PATCH = {"swin": 4, "swinv2": 4, "vit": 8}


def opts_of(overrides):
    """{'KEY': value} -> ['KEY', value, ...], the form `load_config` takes."""
    return [item for pair in overrides.items() for item in pair]


def tiny_config(encoder, overrides=None):
    return load_config(opts=opts_of(TINY[encoder] | (overrides or {})))


def tiny_model(encoder, overrides=None, is_pretrain=True, seed=1):
    torch.manual_seed(seed)
    return build_model(tiny_config(encoder, overrides), is_pretrain)


def random_images(batch=3, channels=3, height=HEIGHT, width=WIDTH, seed=2):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def random_mask(encoder, batch=3, height=HEIGHT, width=WIDTH, seed=3):
    """(batch, rows, cols) bool on the patch grid, half of each image hidden."""
    rows, cols = height // PATCH[encoder], width // PATCH[encoder]
    order = torch.rand(batch, rows * cols, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return (order < rows * cols // 2).view(batch, rows, cols)


def perturb(model, seed=4, scale=0.2):
    """Move every parameter away from zeros, ones and small starts, so that each one matters to the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def largest_difference(one, other):
    """Of two state dicts with the same names."""
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def write_image(path, colour=(200, 100, 50), size=(40, 32), mode="RGB"):
    """An image file of one colour; size is (width, height) as PIL has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path
