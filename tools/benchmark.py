"""Speed and memory, measured as interleaved ratios: everything that is compared runs in turn within one process.

  python tools/benchmark.py step --cfg A.yaml B.yaml [--batch-size 64] [--rounds 20]
  python tools/benchmark.py mixing --cfg <pre-training recipe of MixMIM> [--batch-size 64] [--rounds 20]
  python tools/benchmark.py safety --cfg <recipe> [--batch-size 64] [--rounds 20] [--save-steps 100]

`step` times the whole training step (forward, backward, clipping, optimizer) on random images, without data loading. `mixing`
times the attention of one block of each stage, forward and backward, on maps of two images that are kept apart beside the
same maps of one image. `safety` times what guards a run: steps as a run makes them (between two of them it looks for signals,
NaN, bad images and checkpoints that are due, while a thread renews its lock) beside bare ones, and writing a checkpoint.
"""
import argparse
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import positive, run


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step", help="images/s and peak memory of the training step")
    step.add_argument("--cfg", nargs="+", required=True, help="recipes to compare; the first is the baseline of the ratios")
    step.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings for all of them")
    step.add_argument("--batch-size", type=positive(int), help="images a step (default: each recipe's DATA.BATCH_SIZE)")
    step.add_argument("--amp-opt-level", choices=("O0", "O1", "O2"), help="default: each recipe's")
    step.add_argument("--stage", choices=("auto", "pretrain", "finetune"), default="auto",
                      help="what to train; auto: fine-tuning where MODEL.NAME says finetune")
    step.add_argument("--rounds", type=positive(int), default=20, help="timed steps of each (default: %(default)s)")
    step.add_argument("--warmup", type=int, default=3, help="untimed steps of each (default: %(default)s)")
    step.add_argument("--json", metavar="FILE", help="also write the figures to a file")
    mixing = commands.add_parser("mixing", help="what it costs MixMIM's attention to keep two images apart")
    mixing.add_argument("--cfg", required=True, help="pre-training recipe of MixMIM")
    mixing.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings, see config.py")
    mixing.add_argument("--batch-size", type=positive(int), help="images (default: the recipe's DATA.BATCH_SIZE)")
    mixing.add_argument("--rounds", type=positive(int), default=20, help="timed rounds (default: %(default)s)")
    safety = commands.add_parser("safety", help="what it costs that a run can't be lost")
    safety.add_argument("--cfg", required=True, help="recipe")
    safety.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings, see config.py")
    safety.add_argument("--batch-size", type=positive(int), help="images a step (default: the recipe's DATA.BATCH_SIZE)")
    safety.add_argument("--amp-opt-level", choices=("O0", "O1", "O2"), help="default: the recipe's")
    safety.add_argument("--stage", choices=("auto", "pretrain", "finetune"), default="auto", help="as of step")
    safety.add_argument("--rounds", type=positive(int), default=20, help="timed rounds of 10 steps each (default: %(default)s)")
    safety.add_argument("--save-steps", type=positive(int), default=100, help="between checkpoints (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import torch
from torch.nn import functional as F

from config import encoder_config, image_size, load_config, with_values
from data.bad_images import BadImages
from data.masks import draw_masks
from engine import Job, Updater, build_average
from logger import MetricWriter
from lr_scheduler import build_scheduler
from models import build_model
from models.encoders.mixmim import BLOCKED
from models.encoders.swin import keep_apart
from models.freezing import freeze, train_mode
from optimizer import build_optimizer
from resume import save
from utils import distributed
from utils.devices import wait_for
from utils.heartbeat import Heartbeat
from utils.lock import FolderLock
from utils.meters import peak_memory_mb
from utils.precision import build_precision
from utils.seeding import rng_for, seed_globals
from watch import Watch


def main(args):
    {"step": benchmark_step, "mixing": benchmark_mixing, "safety": benchmark_safety}[args.command](args)


class Candidate:
    """One recipe, ready to make training steps on fixed random images."""

    def __init__(self, path, args, device):
        opts = list(args.opts)
        opts += ["DATA.BATCH_SIZE", args.batch_size] if args.batch_size else []
        opts += ["AMP_OPT_LEVEL", args.amp_opt_level] if args.amp_opt_level else []
        self.name, self.config = Path(path).stem, load_config(path, opts)
        config = self.config
        self.device = device
        self.is_pretrain = args.stage == "pretrain" or (args.stage == "auto" and "finetune" not in config.MODEL.NAME)
        seed_globals(config.SEED)
        start = self._allocated()
        model = build_model(config, is_pretrain=self.is_pretrain).to(device)
        freeze(model, config.TRAIN.FREEZE)
        train_mode(model)
        precision = build_precision(config.AMP_OPT_LEVEL, config.AMP_BACKEND, device)
        model, optimizer = precision.prepare(model, build_optimizer(config, model, self.is_pretrain))
        self.updater = Updater(model, optimizer, precision, config.TRAIN.CLIP_GRAD, build_average(config, model))
        self.precision = str(precision)
        size = (config.DATA.BATCH_SIZE, encoder_config(config).IN_CHANS, *image_size(config))
        self.images = torch.randn(size, device=device)
        self.compute_loss = self._masked() if self.is_pretrain else self._classified()
        self.own, self.first = self._allocated() - start, True
        self.seconds, self.memory = [], 0.0

    def _masked(self):
        mask = draw_masks(self.config, len(self.images), rng_for(self.config.SEED)).to(self.device)
        return lambda model: model(self.images, mask)

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


def benchmark_step(args):
    device = distributed.start()
    candidates = [Candidate(path, args, device) for path in args.cfg]
    for candidate in candidates:
        for _ in range(args.warmup):
            candidate.step()
    for _ in range(args.rounds):
        for candidate in candidates:  # in turn, so that a busy moment of the machine hits all
            candidate.seconds.append(candidate.step())
    name = describe(device, args)
    print(f"{'recipe':58s} {'batch':>5s} {'format':>15s} {'ms/step':>9s} {'images/s':>9s} {'ratio':>6s} {'peak MB':>8s}")
    rows = []
    for candidate in candidates:
        seconds, batch = statistics.median(candidate.seconds), len(candidate.images)
        base = candidates[0]  # ratio of images/s, round by round
        ratio = statistics.median(b / c * batch / len(base.images)
                                  for b, c in zip(base.seconds, candidate.seconds, strict=True))
        rows.append({"recipe": candidate.name, "batch": batch, "format": candidate.precision, "ms_per_step": seconds * 1e3,
                     "images_per_second": batch / seconds, "ratio": ratio, "peak_mb": candidate.memory})
        print(f"{candidate.name:58s} {batch:5d} {candidate.precision:>15s} {seconds * 1e3:9.1f} {batch / seconds:9.1f} "
              f"{ratio:6.2f} {candidate.memory:8.0f}")
    if device.type != "cuda":
        print("peak MB is the process's on this device: shared by all recipes")
    if args.json:
        Path(args.json).write_text(json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1) + "\n")


def benchmark_mixing(args):
    device = distributed.start()
    config = load_config(args.cfg, args.opts)
    if config.MODEL.METHOD != "mixmim":
        raise ValueError(f"{args.cfg} has MODEL.METHOD {config.MODEL.METHOD}: `mixing` is for pre-training recipes of MixMIM.")
    batch, precision = args.batch_size or config.DATA.BATCH_SIZE, build_precision(config.AMP_OPT_LEVEL, "native", device)
    encoder = build_model(config).encoder.to(device)
    mask = draw_masks(config, 1, rng_for(config.SEED))[0].to(device)
    describe(device, args)
    print(f"batch {batch}, {precision}")
    print(f"{'stage':>5s} {'map':>9s} {'window':>7s} {'width':>6s} {'one, ms':>8s} {'two, ms':>8s} {'ratio':>6s}")
    for stage, layer in enumerate(encoder.layers):
        block, step = layer.blocks[0], 2 ** stage
        apart = keep_apart(mask[::step, ::step].to(torch.uint8), block.window, BLOCKED)
        x = torch.randn(batch, *block.grid, *block.norm1.normalized_shape, device=device, requires_grad=True)
        times = [(attention_seconds(block, x, None, precision), attention_seconds(block, x, apart, precision))
                 for _ in range(args.rounds + 1)][1:]  # the first round warms up
        one, two = (statistics.median(seconds) * 1e3 for seconds in zip(*times, strict=True))
        print(f"{stage:5d} {'x'.join(map(str, block.grid)):>9s} {'x'.join(map(str, block.window)):>7s} {x.shape[-1]:6d} "
              f"{one:8.1f} {two:8.1f} {statistics.median(b / a for a, b in times):6.2f}")


def benchmark_safety(args):
    device = distributed.start()
    candidate = Candidate(args.cfg, args, device)
    first = distributed.rank() == 0  # under torchrun all processes do the same, and the first says what it found
    with redirect_stdout(sys.stdout if first else io.StringIO()), tempfile.TemporaryDirectory() as folder:
        describe(device, args)
        job = guarded(candidate, distributed.from_rank0(folder), device)
        for _ in range(3):
            ten_steps(candidate)
        times = []
        for _ in range(args.rounds):
            bare = ten_steps(candidate)
            job.heart = Heartbeat(job.lock, 1800)
            job.heart.start()
            safe = ten_steps(candidate, Watch(job))
            job.heart.end()
            times.append((bare, safe))
        saves = {name: [save_seconds(job, candidate, behind) for _ in range(args.rounds)]
                 for name, behind in (("in place", False), ("SAVE_ASYNC", True))}
        size = max((path.stat().st_size for path in Path(folder).glob("*.pth")), default=0) / 2 ** 20
        if first:
            job.lock.release()
            report_safety(args, candidate, times, saves, size)


def report_safety(args, candidate, times, saves, size):
    """Print what `benchmark_safety` measured: (bare, guarded) seconds of ten steps; seconds lost to checkpoints; MB of one."""
    step = statistics.median(bare for bare, _ in times) / 10
    print(f"batch {len(candidate.images)}, {candidate.precision}: {step * 1e3:.1f} ms a bare step")
    print(f"steps of a run / bare steps: {statistics.median(safe / bare for bare, safe in times):.4f}")
    for name, seconds in saves.items():
        lost = statistics.median(seconds)
        print(f"a checkpoint of {size:.0f} MB, {name}: {lost * 1e3:.0f} ms of training, "
              f"{100 * lost / (args.save_steps * step):.2f} % of {args.save_steps} steps")


class Endless:
    """In place of a loader: as long as none is, and nothing in it is bad."""

    bad = BadImages(10 ** 6)

    def __len__(self):
        return 10 ** 6


def guarded(candidate, folder, device):
    """A Job around a candidate: all that a run has beside its data."""
    loader, optimizer, first = Endless(), candidate.updater.optimizer, distributed.rank() == 0
    job = Job(config=candidate.config, task="pretrain" if candidate.is_pretrain else "finetune", device=device,
              model=candidate.updater.model, loader=loader, updater=candidate.updater,
              scheduler=build_scheduler(candidate.config, optimizer, len(loader)), compute_loss=None, validate=None,
              folder=folder, metrics=MetricWriter(folder if first else None), lock=FolderLock(folder, print) if first else None)
    job.place.meters = [[0.0, 0.0]] * 3
    return job


def ten_steps(candidate, watch=None):
    """Seconds of ten steps; with a Watch they are looked at as those of a run."""
    wait_for(candidate.device)
    begin = time.perf_counter()
    for i in range(10):
        candidate.updater.update([candidate.compute_loss])
        if watch:
            watch.at("iteration {} of epoch {}", i, 0)
            watch.step_done(0, i + 1, ())
    wait_for(candidate.device)
    return time.perf_counter() - begin


def save_seconds(job, candidate, behind):
    """Seconds by which a checkpoint makes ten steps longer; of one that is written behind them, what it takes from them."""
    job.config = with_values(job.config, SAVE_ASYNC=behind)
    bare = ten_steps(candidate)
    begin = time.perf_counter()
    save(job, scheduled=False)
    blocked = time.perf_counter() - begin
    with_it = blocked + ten_steps(candidate)
    job.writer.wait()
    return with_it - bare


def attention_seconds(block, x, mask, precision):
    """Forward and backward of the attention of a block."""
    wait_for(x.device)
    begin = time.perf_counter()
    with precision.autocast():
        out = block.attend(x, mask)
    out.float().square().mean().backward()
    wait_for(x.device)
    return time.perf_counter() - begin


def describe(device, args):
    """Print where this is measured; returns the name of the device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{name}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}, {args.rounds} interleaved rounds")
    return name


if __name__ == "__main__":
    run(main, ARGUMENTS)
