"""Access to the recorded numbers of MAE and its relatives, and from their settings and names to ours."""
import json
import re

import torch
from safetensors import safe_open

from config import load_config
from models import build_model

from .recorded import SIMMIM, opts_of

MIM = SIMMIM.parent / "mim"
MAE_VIT = {"MODEL.TYPE": "vit", "MODEL.VIT.K_BIAS": True, "MODEL.VIT.USE_SINCOS_APE": True, "MODEL.VIT.USE_SHARED_RPB": False,
           "MODEL.VIT.INIT_VALUES": None, "MODEL.DROP_PATH_RATE": 0.0}
SIZES = {"base": (768, 12, 12, 16), "large": (1024, 24, 16, 16), "huge": (1280, 32, 16, 14)}  # width, depth, heads, patch


def mim_names(*patterns):
    """Names of the recorded cases, without suffix; none is an error, because pytest would only skip."""
    names = sorted(path.stem for pattern in patterns for path in MIM.glob(f"{pattern}.safetensors"))
    if not names:
        raise FileNotFoundError(f"no {patterns} in {MIM}: recorded numbers are missing from the checkout")
    return names


def load_mim(name):
    """(recorded settings, {name: tensor})."""
    with safe_open(MIM / f"{name}.safetensors", "pt") as file:
        return json.loads((file.metadata() or {}).get("config", "{}")), {key: file.get_tensor(key) for key in file.keys()}


def load_mim_json(name):
    return json.loads((MIM / f"{name}.json").read_text(encoding="utf-8"))


def part(tensors, prefix):
    """The tensors whose name starts with `prefix/`, under the rest of their name."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")}


def our_name(official):
    """The name in our pre-training model of a parameter of the official one."""
    if official.startswith("decoder_"):
        return f"decoder.{official.removeprefix('decoder_')}"
    return f"decoder.{official}" if official == "mask_token" else f"encoder.{official}"


def our_names(state):
    return {our_name(name): value for name, value in state.items()}


def vit_opts(record, size_key="img_size"):
    """Settings of the recorded encoder."""
    return MAE_VIT | {
        "DATA.IMG_SIZE": record[size_key], "DATA.MASK_PATCH_SIZE": record["patch_size"],
        "MODEL.VIT.PATCH_SIZE": record["patch_size"], "MODEL.VIT.EMBED_DIM": record["embed_dim"],
        "MODEL.VIT.DEPTH": record["depth"], "MODEL.VIT.NUM_HEADS": record["num_heads"],
        "MODEL.VIT.USE_MEAN_POOLING": record.get("global_pool", False), "MODEL.NUM_CLASSES": record.get("num_classes", 1000)}


def pretrain_config(record, **overrides):
    """Config of the recorded pre-training model; a `radius` makes it PixMIM."""
    opts = vit_opts(record) | {
        "MODEL.METHOD": "mae", "MODEL.MAE.DECODER_EMBED_DIM": record["decoder_embed_dim"],
        "MODEL.MAE.DECODER_DEPTH": record["decoder_depth"], "MODEL.MAE.DECODER_NUM_HEADS": record["decoder_num_heads"],
        "MODEL.MAE.NORM_PIX_LOSS": record["norm_pix_loss"]}
    if "radius" in record:
        opts |= {"MODEL.PIXMIM.ENABLE": True, "MODEL.PIXMIM.CUTOFF_RADIUS": record["radius"]}
    return load_config(opts=opts_of(opts | overrides))


def pretrain_model(record, state):
    """The recorded pre-training model with weights of official names."""
    model = build_model(pretrain_config(record))
    model.load_state_dict(our_names(state), strict=True)
    return model


def noise_to_mask(noise, ratio, grid):
    """(B, L) uniform noise -> (B, h, w) bool: the first int(L(1 - ratio)) of the ascending order stay visible."""
    num_visible = int(noise.shape[1] * (1 - ratio))
    rank = noise.argsort(dim=1).argsort(dim=1)
    return (rank >= num_visible).unflatten(1, grid)


def patches_of(images, patch):
    """(B, C, H, W) -> (B, h*w, patch*patch*C), in a patch by row, column, channel; written with slices."""
    rows, cols = images.shape[2] // patch, images.shape[3] // patch
    return torch.stack([images[:, :, y * patch:(y + 1) * patch, x * patch:(x + 1) * patch].permute(0, 2, 3, 1).flatten(1)
                        for y in range(rows) for x in range(cols)], dim=1)


def wrong_gradients(named_parameters, tensors, rename=str):
    """{name: error / tolerance} of those beyond 1e-5 + 1e-4 of the value; recorded in full, or every 8th row."""
    ours, wrong = dict(named_parameters), {}
    for prefix, step in (("grad", 1), ("grad_every8", 8)):
        for name, expected in part(tensors, prefix).items():
            actual = ours[rename(name)].grad[::step]
            assert actual.shape == expected.shape
            error = ((actual - expected).abs() / (1e-5 + 1e-4 * expected.abs())).max().item()
            if not error <= 1:
                wrong[name] = error
    return wrong


def transformers_rules(depth, decoder_depth):
    """From official MAE to ViTMAE of transformers: [(official name, their name, third of the rows or None)].

    The recorded rules are those of the first blocks.
    """
    def counted(name, i):
        return re.sub(r"(blocks|layer|decoder_layers)\.0\.", rf"\g<1>.{i}.", name)

    thirds, rules = {"rows_third_0": 0, "rows_third_1": 1, "rows_third_2": 2}, []
    for rule in load_mim_json("mapping_mae_official_to_hf_vitmae")["first_blocks"]:
        blocks = 1 if "blocks." not in rule["src"] else decoder_depth if rule["src"].startswith("decoder") else depth
        rules += [(counted(rule["src"], i), counted(rule["dst"], i), thirds.get(rule["op"])) for i in range(blocks)]
    return rules


def to_transformers(official, rules):
    return {theirs: official[name] if third is None else official[name].chunk(3)[third] for name, theirs, third in rules}


def to_official(theirs, rules):
    parts = {}
    for name, their_name, third in rules:
        parts.setdefault(name, {})[third or 0] = theirs[their_name]
    return {name: torch.cat([pieces[i] for i in sorted(pieces)]) for name, pieces in parts.items()}
