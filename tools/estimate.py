"""Does this model fit, and how long will it take? Answered without a GPU and without memory for the weights.

  python tools/estimate.py --cfg configs/swin_base/simmim_pretrain__swin_base__img192_window6__100ep.yaml
  python tools/estimate.py --cfg <recipe> --gpus 8 16 --opts DATA.BATCH_SIZE 256 TRAIN.USE_CHECKPOINT True
  python tools/estimate.py --cfg <recipe> --gpus 16 --throughput 1200               images/s a GPU, as measured by you
  python tools/estimate.py --cfg <recipe> --peak-tflops 400 --utilization 0.3       or as assumed by you
  python tools/estimate.py --cfg <recipe> --json                                    for programs: bytes, FLOPs, hours

A training step on CUDA of the recipe's batch is run with tensors that have a size but no content, and counted. FLOPs are those
of matrix products, convolutions and attention, a multiply-add as two; papers mostly print multiply-adds and call them FLOPs.
Memory, for each GPU:

  weights, gradients, moments   fp32, whole under ddp (16 bytes a parameter with AdamW), a share of each under fsdp;
                                TRAIN.EMA_DECAY counts as a moment
  gathered                      fsdp: weights of two neighbouring units and of what belongs to no unit, with the gradients of
                                the latter and of one unit, in the format that is multiplied in, and one unit's fp32 gradients
                                on their way to the other GPUs
  activations                   largest sum during the step of all that forward and backward make: images, activations, 16-bit
                                copies of the weights, gradients of activations
  buffers                       masks and index tables of the model

It is an estimate. The total adds up what rarely peaks at the same moment, but lacks what only the machine knows: the CUDA
context, NCCL buffers, workspaces of the kernels, fragmentation. The last column therefore adds 15%, a rule of thumb.
"""
import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import positive, run

IMAGENET_TRAIN = 1281167


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="recipe, see configs/")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="other settings, see config.py")
    parser.add_argument("--gpus", nargs="+", type=positive(int), default=[1, 8, 16], metavar="N", help="default: 1 8 16")
    parser.add_argument("--images", type=positive(int), default=IMAGENET_TRAIN, help="of an epoch (default: ImageNet-1K's)")
    parser.add_argument("--throughput", type=positive(float), metavar="IMAGES/S", help="of one GPU in training")
    parser.add_argument("--peak-tflops", type=positive(float), metavar="X", help="of one GPU, with --utilization")
    parser.add_argument("--utilization", type=positive(float), metavar="SHARE", help="of that peak, above 0 and up to 1")
    stage = parser.add_mutually_exclusive_group()
    stage.add_argument("--pretrain", dest="stage", action="store_const", const="pretrain",
                       help="default, unless MODEL.NAME says finetune")
    stage.add_argument("--finetune", dest="stage", action="store_const", const="finetune")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import torch

from config import image_size, images_per_step, load_config, scaled_config
from planning.costs import RESERVE, count_model, format_of, memory_rows


def main(args):
    config = load_config(args.cfg, args.opts)
    if args.stage is None and "linprobe" in config.MODEL.NAME:
        raise ValueError(f"{args.cfg} is a linear probe: it trains a head on features, and its encoder costs one forward pass, "
                         f"see tools/flops.py. For training of the encoder pass --pretrain or --finetune.")
    check_arguments(args, config)
    is_pretrain = "finetune" not in config.MODEL.NAME if args.stage is None else args.stage == "pretrain"
    compute, memory = count_model(config, is_pretrain)
    rate = images_per_second(args, compute)
    result = {
        "recipe": Path(args.cfg).stem, "stage": "pretrain" if is_pretrain else "finetune", "encoder": config.MODEL.TYPE,
        "image_size": image_size(config), "precision": str(format_of(config) or torch.float32).removeprefix("torch."),
        "batch_size": config.DATA.BATCH_SIZE, **compute,
        "epochs": config.TRAIN.EPOCHS, "images": args.images,
        "run_flops": compute["training_flops"] * config.TRAIN.EPOCHS * args.images,
        "memory": [row for gpus in args.gpus for row in memory_rows(gpus, memory)],
        "schedule": [schedule_row(config, gpus, args.images, rate) for gpus in args.gpus]}
    print(json.dumps(result, indent=1) if args.json else as_text(result))


def check_arguments(args, config):
    """Before anything is counted, which takes a while."""
    assumed = (args.peak_tflops, args.utilization)
    if assumed != (None, None) and (None in assumed or args.throughput or args.utilization > 1):
        raise ValueError("--peak-tflops needs --utilization, a share between 0 and 1, and the other way round; --throughput "
                         "replaces both.")
    batch, gpus = config.DATA.BATCH_SIZE, max(args.gpus)
    if args.images < batch * gpus:
        raise ValueError(f"--images {args.images} are less than one batch: {gpus} GPUs x {batch} images. Use fewer --gpus or a "
                         f"smaller DATA.BATCH_SIZE.")


def images_per_second(args, compute):
    """Of one GPU, measured or assumed by the user; None if neither."""
    if args.peak_tflops is None:
        return args.throughput
    return args.peak_tflops * 1e12 * args.utilization / compute["training_flops"]


def schedule_row(config, gpus, images, rate):
    """How training goes on `gpus`, each with `rate` images a second (or None)."""
    batches = images // (config.DATA.BATCH_SIZE * gpus)
    hours = rate and config.TRAIN.EPOCHS * images / (rate * gpus) / 3600
    return {"gpus": gpus, "effective_batch": images_per_step(config, gpus),
            "updates_per_epoch": math.ceil(batches / max(config.TRAIN.ACCUMULATION_STEPS, 1)),
            "learning_rate": scaled_config(config, gpus).TRAIN.BASE_LR, "images_per_second": rate and rate * gpus,
            "hours": hours, "gpu_hours": hours and hours * gpus}


# ---- printing -----------------------------------------------------------------------------------------------------

def as_text(result):
    part = "decoder" if result["stage"] == "pretrain" else "head"
    height, width = result["image_size"]
    lines = [
        f"{result['recipe']}: {result['stage']}, {result['encoder']}, {height} x {width} pixels, {result['precision']}", "",
        f"parameters  {result['parameters'] / 1e6:,.2f} M (encoder {result['encoder_parameters'] / 1e6:,.2f} M, {part} "
        f"{result['head_parameters'] / 1e6:,.2f} M)",
        f"an image    forward {result['forward_flops'] / 1e9:,.1f} GFLOPs = {result['forward_multiply_adds'] / 1e9:,.1f} G "
        f"multiply-adds, training {result['training_flops'] / 1e9:,.1f} GFLOPs "
        f"({result['training_flops'] / result['forward_flops']:.2f} x forward)",
        f"the run     {result['epochs']} epochs x {result['images']:,} images = {result['run_flops']:.2e} FLOPs", "",
        f"memory of a GPU in GiB, {result['batch_size']} images each (an estimate, see --help)"]
    kinds = ("weights", "gradients", "moments", "gathered", "buffers", "activations", "total")
    rows = [("GPUs", "", *kinds, f"+ {RESERVE - 1:.0%}")]
    for row in result["memory"]:
        alone = row["gpus"] == 1
        if not alone or row["parallel"] == "ddp":  # for one GPU both are the same
            sizes = [*(row[kind] for kind in kinds), row["total"] * RESERVE]
            name = "" if alone else row["parallel"]
            rows.append((f"{row['gpus']:,}", name, *(f"{size / 2 ** 30:,.2f}" for size in sizes)))
    lines += [*table(rows), "", "schedule"]
    rows = [("GPUs", "images an update", "updates an epoch", "learning rate", "images/s", "hours", "GPU-hours")]
    for row in result["schedule"]:
        times = [f"{row[key]:,.1f}" if row[key] else "-" for key in ("images_per_second", "hours", "gpu_hours")]
        rows.append((f"{row['gpus']:,}", f"{row['effective_batch']:,}", f"{row['updates_per_epoch']:,}",
                     f"{row['learning_rate']:.2e}", *times))
    lines += table(rows)
    if not result["schedule"][0]["hours"]:
        lines.append("hours need --throughput, or --peak-tflops and --utilization")
    return "\n".join(lines)


def table(rows):
    """Lines of right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


if __name__ == "__main__":
    run(main, ARGUMENTS)
