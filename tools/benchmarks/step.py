"""The training step of several recipes, on random images that are on the device."""
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from config import encoder_config, image_size, load_config, mask_preparation
from data.masks import draw_masks
from engine import build_updater
from models import build_model
from models.compiling import compile_units
from models.freezing import freeze, train_mode
from optimizer import build_optimizer
from planning.costs import count_flops
from tools.benchmarks.report import MatrixPeak, report
from utils import distributed
from utils.devices import to_device, wait_for
from utils.meters import peak_memory_mb
from utils.precision import build_precision
from utils.seeding import rng_for, seed_globals

COLUMNS = {"recipe": ("recipe", ""), "batch": ("batch", "d"), "format": ("format", ""), "ms_per_step": ("ms/step", ".1f"),
           "images_per_second": ("images/s", ".1f"), "ratio": ("ratio", ".2f"), "gflops": ("GFLOP/s", ".1f"),
           "share_of_peak": ("of peak", ".1%"), "peak_mb": ("peak MB", ".0f")}


class Candidate:
    """One recipe, ready to make training steps on fixed random images.

    Args:
        path: of the recipe.
        args: with opts, batch_size, amp_opt_level and stage, see tools/benchmark.py.
        device: torch.device.
        more: further opts.
    """

    def __init__(self, path, args, device, more=()):
        opts = [*args.opts, *more]
        opts += ["DATA.BATCH_SIZE", args.batch_size] if args.batch_size else []
        opts += ["AMP_OPT_LEVEL", args.amp_opt_level] if args.amp_opt_level else []
        config = self.config = load_config(path, opts)
        self.name = Path(path).stem + (", compiled" if config.TRAIN.COMPILE else "")
        self.device = device
        self.is_pretrain = args.stage == "pretrain" or (args.stage == "auto" and "finetune" not in config.MODEL.NAME)
        seed_globals(config.SEED)
        start = self._allocated()
        model = build_model(config, is_pretrain=self.is_pretrain).to(device)
        freeze(model, config.TRAIN.FREEZE)
        train_mode(model)
        if config.TRAIN.COMPILE:
            compile_units(model)
        precision = build_precision(config.AMP_OPT_LEVEL, config.AMP_BACKEND, device)
        model, optimizer = precision.prepare(model, build_optimizer(config, model, self.is_pretrain))
        self.updater = build_updater(config, model, optimizer, precision, device)
        self.precision = str(precision)
        self.dtype = getattr(precision, "dtype", None) or torch.float32
        size = (config.DATA.BATCH_SIZE, encoder_config(config).IN_CHANS, *image_size(config))
        self.images = torch.randn(size, device=device)
        self.compute_loss = self._masked() if self.is_pretrain else self._classified()
        self.own, self.first = self._allocated() - start, True
        self.seconds, self.memory = [], 0.0

    def _masked(self):
        mask, prepare = draw_masks(self.config, len(self.images), rng_for(self.config.SEED)), mask_preparation(self.config)
        batch = to_device([mask, *([prepare(mask)] if prepare else [])], self.device)  # as the loader gives it
        return lambda model: model(self.images, *batch)

    def _classified(self):
        labels = torch.randint(self.config.MODEL.NUM_CLASSES, (len(self.images),), device=self.device)
        return lambda model: F.cross_entropy(model(self.images).float(), labels)

    def step(self):
        """One training step; returns its seconds, waiting for the device."""
        wait_for(self.device)
        before = self._allocated(reset=True)
        begin = time.perf_counter()
        self.updater.update([self.compute_loss])
        wait_for(self.device)
        seconds = time.perf_counter() - begin
        # on a GPU the other recipes' weights are resident too: count what this one owns and what its step adds
        self.memory = max(self.memory, self.own + peak_memory_mb(self.device) - before)
        if self.first:
            self.own += self._allocated() - before  # optimizer state appears with the first step
            self.first = False
        return seconds

    def _allocated(self, reset=False):
        """MB allocated on a GPU now, 0 elsewhere (where the peak is the process's)."""
        if self.device.type != "cuda":
            return 0.0
        if reset:
            torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device) / 2 ** 20


def main(args):
    device = distributed.start()
    formats = [["AMP_OPT_LEVEL", level] for level in args.formats or ()] or [[]]
    kinds = [["TRAIN.COMPILE", False], ["TRAIN.COMPILE", True]] if args.compiled else [[]]
    candidates = [Candidate(path, args, device, [*level, *kind]) for path in args.cfg for level in formats for kind in kinds]
    measure(candidates, args, device)


def measure(candidates, args, device):
    """Time the steps of several candidates in turn and report them; the first is the baseline of the ratios."""
    peaks = {dtype: MatrixPeak(device, dtype) for dtype in {candidate.dtype for candidate in candidates}}
    for candidate in candidates:
        for _ in range(args.warmup):
            candidate.step()
    for _ in range(args.rounds):
        for candidate in candidates:  # in turn, so that a busy moment of the machine hits all
            candidate.seconds.append(candidate.step())
            peaks[candidate.dtype].measure()
    rows = [row_of(candidate, candidates[0], peaks[candidate.dtype].best) for candidate in candidates]
    facts = {f"matrix_peak_GFLOPS_{str(dtype).removeprefix('torch.')}": peak.best / 1e9 for dtype, peak in peaks.items()}
    report(args, device, COLUMNS, rows, **facts)
    if device.type != "cuda":
        print("peak MB is the process's on this device: shared by all recipes")


def row_of(candidate, base, peak):
    """What was measured of a candidate, beside the first one, `base`; `peak` is the FLOP/s of a matrix product."""
    seconds, batch = statistics.median(candidate.seconds), len(candidate.images)
    ratio = statistics.median(b / c * batch / len(base.images)  # of images/s, round by round
                              for b, c in zip(base.seconds, candidate.seconds, strict=True))
    _, flops = count_flops(candidate.config, candidate.is_pretrain)
    return {"recipe": candidate.name, "batch": batch, "format": candidate.precision, "ms_per_step": seconds * 1e3,
            "images_per_second": batch / seconds, "ratio": ratio, "gflops": batch * flops / seconds / 1e9,
            "share_of_peak": batch * flops / seconds / peak, "peak_mb": candidate.memory}
