"""What it costs MixMIM's attention to keep the two images of a mixture apart."""
import statistics
import time

import torch

from config import load_config
from data.masks import draw_masks
from models import build_model
from models.encoders.mixmim import BLOCKED
from models.encoders.swin import keep_apart
from tools.benchmarks.report import report
from utils import distributed
from utils.devices import wait_for
from utils.precision import build_precision
from utils.seeding import rng_for

COLUMNS = {"stage": ("stage", "d"), "map": ("map", ""), "window": ("window", ""), "width": ("width", "d"),
           "one_ms": ("one, ms", ".1f"), "two_ms": ("two, ms", ".1f"), "ratio": ("ratio", ".2f")}


def main(args):
    device = distributed.start()
    config = load_config(args.cfg, args.opts)
    if config.MODEL.METHOD != "mixmim":
        raise ValueError(f"{args.cfg} has MODEL.METHOD {config.MODEL.METHOD}: `mixing` is for pre-training recipes of MixMIM.")
    batch, precision = args.batch_size or config.DATA.BATCH_SIZE, build_precision(config.AMP_OPT_LEVEL, "native", device)
    encoder = build_model(config).encoder.to(device)
    mask, rows = draw_masks(config, 1, rng_for(config.SEED))[0].to(device), []
    for stage, layer in enumerate(encoder.layers):
        block, step = layer.blocks[0], 2 ** stage
        apart = keep_apart(mask[::step, ::step].to(torch.uint8), block.window, BLOCKED)
        x = torch.randn(batch, *block.grid, *block.norm1.normalized_shape, device=device, requires_grad=True)
        times = [(attention_seconds(block, x, None, precision), attention_seconds(block, x, apart, precision))
                 for _ in range(args.rounds + 1)][1:]  # the first round warms up
        one, two = (statistics.median(seconds) * 1e3 for seconds in zip(*times, strict=True))
        rows.append({"stage": stage, "map": "x".join(map(str, block.grid)), "window": "x".join(map(str, block.window)),
                     "width": x.shape[-1], "one_ms": one, "two_ms": two,
                     "ratio": statistics.median(b / a for a, b in times)})
    report(args, device, COLUMNS, rows, batch=batch, format=str(precision))


def attention_seconds(block, x, mask, precision):
    """Forward and backward of the attention of a block."""
    wait_for(x.device)
    begin = time.perf_counter()
    with precision.autocast():
        out = block.attend(x, mask)
    out.float().square().mean().backward()
    wait_for(x.device)
    return time.perf_counter() - begin
