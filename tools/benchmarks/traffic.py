"""What a training step in bfloat16 moves: counts that follow from the program and the sizes, on any machine the same."""
import math
from contextlib import nullcontext
from pathlib import Path

import torch

from config import encoder_config, image_size, load_config
from models import build_model
from models.freezing import train_mode
from planning.costs import MIXED, training_loss
from tools.benchmarks.compiled_traffic import compiled_bytes
from tools.benchmarks.peer_models import peers_of
from tools.benchmarks.report import report
from utils.costs import AsOnCuda, empty_copies, no_memory, step_traffic

COLUMNS = {"recipe": ("recipe", ""), "model": ("model", ""), "as_on": ("as on", ""), "kernels": ("kernels", ""),
           "moved_gib": ("GiB moved an image", ".3f"), "saved_mib": ("MiB kept for backward an image", ".1f"),
           "of_best_peer": ("kernels, moved, kept / best peer", "")}
KEYS = ("kernels", "moved_gib", "saved_mib")


def main(args):
    rows = []
    for path in args.cfg:
        config = load_config(path, [*args.opts, "DATA.BATCH_SIZE", args.batch_size, "AMP_OPT_LEVEL", "O1"])
        for as_on in ("cpu", "cuda"):
            counted = rows_of(config, Path(path).stem, as_on, args.kernels)
            ours, peers = counted[0], counted[1:]
            if peers:
                ratios = [ours[key] / min(peer[key] for peer in peers) for key in KEYS]
                ours["of_best_peer"] = " ".join(f"{ratio:.2f}" for ratio in ratios)
            rows += counted
            if args.compiled and as_on == "cpu":
                rows.append(compiled_row(config, ours))
    report(args, torch.device("cpu"), COLUMNS, rows, batch=args.batch_size)
    for row in rows:
        if args.kernels and "by_kernel" in row:
            print(f"\n{row['recipe']}, {row['model']}, as on {row['as_on']}: kernels, MiB moved an image")
            print("\n".join(f"{count:6d} {moved:9.1f}  {name}" for name, (count, moved) in row["by_kernel"].items()))


def rows_of(config, name, as_on, by_kernel=False):
    """Counts of our model and its peers: forward and backward of a batch, with what autocast casts."""
    with torch.device("meta"):
        model = build_model(config)
    models = {"ours": model, **peers_of(config, model.state_dict(), empty=True)}
    return [{"recipe": name, "model": who, "as_on": as_on, **counts(config, module, as_on, by_kernel), "of_best_peer": ""}
            for who, module in models.items()]


def compiled_row(config, ours):
    """Of our model with TRAIN.COMPILE: what is moved, also as a share of what the row of `ours` moves without."""
    moved = compiled_bytes(config) / config.DATA.BATCH_SIZE / 2 ** 30
    return {"recipe": ours["recipe"], "as_on": ours["as_on"], "model": "ours, compiled", "kernels": "", "moved_gib": moved,
            "saved_mib": math.nan,
            "of_best_peer": f"moved / eager {moved / ours['moved_gib']:.2f}"}


def counts(config, module, as_on, by_kernel=False):
    """{key: number} for one model.

    Args:
        as_on: cpu: kernels as they are dispatched there, where attention with a bias that learns is several; cuda: attention as
            one kernel, and fp32 where autocast has it on CUDA.
        by_kernel: also what each kind of kernel moves.
    """
    batch = config.DATA.BATCH_SIZE
    with no_memory(), AsOnCuda() if as_on == "cuda" else nullcontext():
        train_mode(empty_copies(module))
        traffic = step_traffic(module, loss_of(config, module))
    found = {"kernels": sum(traffic.kernels.values()), "moved_gib": sum(traffic.moved.values()) / batch / 2 ** 30,
             "saved_mib": traffic.saved / batch / 2 ** 20}
    if by_kernel:
        found["by_kernel"] = {name: (count, traffic.moved[name] / batch / 2 ** 20)
                              for name, count in traffic.kernels.most_common()}
    return found


def loss_of(config, module):
    """Function of nothing: the loss of a batch, of our model or a peer."""
    if hasattr(module, "encoder"):
        return training_loss(config, module, is_pretrain=True)
    batch, (height, width), patch = config.DATA.BATCH_SIZE, image_size(config), encoder_config(config).PATCH_SIZE

    def compute():
        images = torch.empty(batch, encoder_config(config).IN_CHANS, height, width)
        mask = torch.empty(batch, height // patch, width // patch, dtype=torch.bool)
        with torch.autocast("cpu", dtype=MIXED):
            return module(images, mask)
    return compute
