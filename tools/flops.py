"""Parameters and floating point operations of models, counted without a GPU and without memory for the weights.

  python tools/flops.py --cfg configs/swin_base/simmim_finetune__swin_base__img192_window6__100ep.yaml
  python tools/flops.py --all                                                       every recipe under configs/
  python tools/flops.py --cfg <recipe> --img-size 448 --opts MODEL.VIT.DEPTH 24     other settings
  python tools/flops.py --cfg <recipe> <recipe> --convention mmpretrain             as its model zoo counts
  python tools/flops.py --cfg <recipe> --json                                       for programs: whole numbers, by operator

There is one image in each count. Conventions:

  torch       what torch.utils.flop_counter finds in a forward pass of the whole model (in pre-training encoder, decoder and
              loss of a masked image): matrix products, convolutions and attention, a multiply-add as two. Papers mostly print
              multiply-adds and call them FLOPs, so both are here.
  mmpretrain  multiply-adds, 5 for each element of a LayerNorm and 2 of a BatchNorm (1 without scale), of the features only: no
              head, no decoder, in pre-training of an image that is not masked. Parameters are those of the whole model.

Two numbers stand under mmpretrain: what this model costs, and what mmpretrain lists for it, or would list. The second is a
formula, because its models compute some things differently; each difference is a note. Sources: Swin (arXiv 2103.14030), ViT
(arXiv 2010.11929), and mmpretrain's configs and metafiles of SimMIM and MAE.
"""
import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the repository is cloned, not installed

from utils.cli import run

STAGES = ("pretrain", "finetune", "linprobe")


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--cfg", nargs="+", metavar="FILE", help="recipes, see configs/, or checkpoints")
    which.add_argument("--all", action="store_true", help="every recipe under configs/")
    parser.add_argument("--img-size", metavar="N", help="pixels, N or \"[H,W]\" (DATA.IMG_SIZE)")
    parser.add_argument("--stage", choices=STAGES, help="default: as MODEL.NAME says, pretrain if it says nothing")
    parser.add_argument("--convention", choices=("torch", "mmpretrain"), default="torch", help="how to count (default: torch)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="other settings, see config.py")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import torch

from config import encoder_config, image_size, load_config, with_values
from models import build_model
from models.probe import build_probe
from planning.costs import training_loss
from tools.estimate import table
from utils.costs import MATRIX_KINDS, AsOnCuda, empty_copies, forward_costs, no_memory, num_parameters

ZOO_SIZE = (224, 224)  # pixels at which mmpretrain's tool measures a pre-training model, whatever it is trained at


def main(args):
    size = [] if args.img_size is None else ["DATA.IMG_SIZE", args.img_size]
    results = []
    for path in recipes() if args.all else args.cfg:
        config = load_config(path, [*args.opts, *size])
        result = describe(config, args.stage or stage_of(config), args.convention, fixed_size=bool(size))
        results.append({"recipe": Path(path).stem, **result})
    print(json.dumps(results, indent=1) if args.json else as_text(results, args.convention))


def recipes():
    return sorted(ROOT.glob("configs/**/*.yaml"))


def stage_of(config):
    return next((stage for stage in STAGES if stage in config.MODEL.NAME), "pretrain")


def describe(config, stage, convention, fixed_size=False):
    """Parameters and costs of the model of a recipe, as a dict of numbers.

    Args:
        config: from load_config.
        stage: pretrain, finetune or linprobe.
        convention: torch or mmpretrain, see the beginning of the file.
        fixed_size: the zoo's number, too, is for the image size of the config.
    """
    parameters, costs = count(config, stage, convention)
    result = {"stage": stage, "encoder": config.MODEL.TYPE, "image_size": image_size(config), "parameters": parameters}
    if convention == "torch":
        total = sum(costs[kind] for kind in costs if kind in MATRIX_KINDS)
        return {**result, "flops": 2 * total, "multiply_adds": total}
    return {**result, "flops": sum(costs.values()), "by_operator": costs,
            "zoo": zoo_row(config, stage, parameters, fixed_size)}


# ---- counting -----------------------------------------------------------------------------------------------------

def count(config, stage, convention):
    """(number of parameters, forward_costs) of the model of a recipe; nothing is computed."""
    config = with_values(config, DATA__BATCH_SIZE=1, AMP_OPT_LEVEL="O0")
    with torch.device("meta"):
        model = None if stage == "linprobe" else build_model(config, is_pretrain=stage == "pretrain")
    with no_memory(), AsOnCuda():  # a probe runs its encoder once when it is built
        model = (build_probe(config, config.MODEL.NUM_CLASSES) if model is None else empty_copies(model)).eval()
        images = torch.empty(1, encoder_config(config).IN_CHANS, *image_size(config))
        if convention == "mmpretrain":
            costs = forward_costs(lambda: features(model, images, stage))
        elif stage == "pretrain":
            costs = forward_costs(training_loss(config, model, is_pretrain=True))
        else:
            costs = forward_costs(lambda: model(images))
        return num_parameters(model.parameters()), costs


def features(model, images, stage):
    """What the zoo measures; the BatchNorm of a linear probe belongs to it."""
    if stage != "linprobe":
        return model.extract_feat(images)
    return [head[0](feature) for head, feature in zip(model.heads, model.features(images), strict=True)]


# ---- formulas -----------------------------------------------------------------------------------------------------

def swin_costs(grid, patch_size, in_chans, embed_dim, depths, windows, mlp_ratio=4.0, patch_norm=True):
    """Costs of Swin's feature map, or of another encoder of windows, such as MixMIM's.

    Args:
        grid: (h, w) patches of the image.
        embed_dim: width of the first stage; it doubles with each.
        windows: of each stage, (h, w) tokens; maps are padded to whole windows.
    Returns: as forward_costs.
    """
    (height, width), dim = grid, embed_dim
    costs = {"conv": patch_size ** 2 * in_chans * height * width * dim, "layer_norm": 0, "linear": 0, "matmul": 0}
    if patch_norm:
        costs["layer_norm"] += 5 * height * width * dim
    for stage, (depth, window) in enumerate(zip(depths, windows, strict=True)):
        tokens = height * width
        padded = -(-height // window[0]) * window[0] * -(-width // window[1]) * window[1]
        costs["linear"] += depth * (4 * padded * dim ** 2 + 2 * tokens * dim * int(dim * mlp_ratio))
        costs["matmul"] += depth * 2 * padded * window[0] * window[1] * dim
        costs["layer_norm"] += depth * 2 * 5 * tokens * dim
        if stage < len(depths) - 1:  # four tokens of C become one of 2C, normalised before
            height, width = -(-height // 2), -(-width // 2)
            costs["layer_norm"] += 5 * height * width * 4 * dim
            costs["linear"] += height * width * 4 * dim * 2 * dim
            dim *= 2
    costs["layer_norm"] += 5 * height * width * dim
    return costs


def vit_costs(grid, patch_size, in_chans, dim, depth, mlp_ratio=4.0, normalised_tokens=None):
    """Costs of a ViT with a class token.

    Args:
        grid: (h, w) patches of the image.
        normalised_tokens: that go through a LayerNorm after the blocks; None = all, as in pre-training.
    Returns: as forward_costs.
    """
    patches = grid[0] * grid[1]
    tokens = patches + 1
    last = tokens if normalised_tokens is None else normalised_tokens
    return {"conv": patch_size ** 2 * in_chans * patches * dim, "layer_norm": 5 * dim * (2 * depth * tokens + last),
            "linear": depth * tokens * (4 * dim ** 2 + 2 * dim * int(dim * mlp_ratio)), "matmul": depth * 2 * tokens ** 2 * dim}


# ---- what mmpretrain lists ----------------------------------------------------------------------------------------

def zoo_row(config, stage, parameters, fixed_size=False):
    """What mmpretrain lists, or would list, for a recipe; None for encoders of other kinds than its SimMIM and MAE have.

    Returns: {image_size, parameters, flops, by_operator, notes}.
    """
    rows = {"swin": (_zoo_swin, _more_in_swin), "vit": (_zoo_vit, _more_in_vit)}
    block, size, notes = encoder_config(config), image_size(config), []
    if config.MODEL.TYPE not in rows or block.get("USE_RPB") or block.get("USE_SHARED_RPB"):
        return None
    if stage == "pretrain" and config.MODEL.TYPE == "swin" and config.MODEL.METHOD != "simmim":
        return None
    more_parameters = rows[config.MODEL.TYPE][1](block, grid_of(config, size), stage)
    if stage == "pretrain" and size != ZOO_SIZE and not fixed_size:
        notes.append(f"measured at {ZOO_SIZE[0]} px, the default of its tool")
        size = ZOO_SIZE
    costs = rows[config.MODEL.TYPE][0](block, grid_of(config, size), stage, notes)
    return {"image_size": size, "parameters": parameters + more_parameters, "flops": sum(costs.values()), "by_operator": costs,
            "notes": notes}


def grid_of(config, size):
    """(h, w) patches of an image of `size` pixels."""
    return tuple(side // encoder_config(config).PATCH_SIZE for side in size)


def _maps(swin, grid):
    """(h, w) tokens of each stage."""
    return [tuple(-(-side // 2 ** stage) for side in grid) for stage in range(len(swin.DEPTHS))]


def _zoo_swin(swin, grid, stage, notes):
    """Its windows never shrink to smaller maps: those are padded, too."""
    window, maps = swin.WINDOW_SIZE, _maps(swin, grid)
    padded = [f"{height}x{width}" for height, width in maps if height % window or width % window]
    if padded:
        notes.append(f"maps of {', '.join(padded)} are padded to whole windows of {window}")
    costs = swin_costs(grid, swin.PATCH_SIZE, swin.IN_CHANS, swin.EMBED_DIM, swin.DEPTHS, [(window, window)] * len(maps),
                       swin.MLP_RATIO, swin.PATCH_NORM)
    if stage != "pretrain":
        costs["adaptive_avg_pool2d"] = maps[-1][0] * maps[-1][1] * swin.EMBED_DIM * 2 ** (len(maps) - 1)
        notes.append("its average pooling counts 1 an element")
    return costs


def _more_in_swin(swin, grid, stage):
    """Rows of position tables that ours lacks, because its windows shrink."""
    window, more = swin.WINDOW_SIZE, 0
    for (height, width), depth, heads in zip(_maps(swin, grid), swin.DEPTHS, swin.NUM_HEADS, strict=True):
        own = (2 * min(window, height) - 1) * (2 * min(window, width) - 1)
        more += depth * heads * ((2 * window - 1) ** 2 - own)
    return more


def _zoo_vit(vit, grid, stage, notes):
    bare = _lacks_norm(vit, stage)
    costs = vit_costs(grid, vit.PATCH_SIZE, vit.IN_CHANS, vit.EMBED_DIM, vit.DEPTH, vit.MLP_RATIO,
                      normalised_tokens=0 if bare else None)
    if stage == "linprobe":
        costs["batch_norm"] = vit.EMBED_DIM
    if bare:
        notes.append("without the LayerNorm after the mean, which its code has today")
    notes.append("its tool of today does not see attention (matmul in --json), which torch fuses: measured again, it has less")
    return costs


def _more_in_vit(vit, grid, stage):
    return -2 * vit.EMBED_DIM if _lacks_norm(vit, stage) else 0


def _lacks_norm(vit, stage):
    """Its classifiers of the mean were measured when they had no norm."""
    return stage == "finetune" and vit.USE_MEAN_POOLING


# ---- printing -----------------------------------------------------------------------------------------------------

def as_text(results, convention):
    head = ("recipe", "stage", "pixels", "parameters")
    rows = [(*head, "FLOPs", "multiply-adds") if convention == "torch" else (*head, "FLOPs", "mmpretrain's", "at", "with")]
    notes = {}
    for result in results:
        row = [result["recipe"], result["stage"], pixels(result["image_size"]), millions(result["parameters"])]
        if convention == "torch":
            rows.append((*row, billions(result["flops"]), billions(result["multiply_adds"])))
            continue
        row.append(billions(result["flops"]))
        zoo = result["zoo"]
        rows.append((*row, billions(zoo["flops"]), pixels(zoo["image_size"]), millions(zoo["parameters"])) if zoo
                    else (*row, "-", "-", "-"))
        for note in zoo["notes"] if zoo else ():
            notes.setdefault(note, []).append(result["recipe"])
    lines = table(rows)
    for note, names in notes.items():
        lines += ["", f"mmpretrain's: {note}", *(f"    {name}" for name in names)]
    return "\n".join(lines)


def pixels(size):
    return f"{size[0]} x {size[1]}"


def millions(number):
    return f"{number / 1e6:,.2f} M"


def billions(number):
    return f"{number / 1e9:,.2f} G"


if __name__ == "__main__":
    run(main, ARGUMENTS)
