"""Speed and memory, measured as interleaved ratios: everything that is compared runs in turn within one process.

  python tools/benchmark.py step --cfg A.yaml B.yaml [--batch-size 64] [--rounds 20]
  python tools/benchmark.py mixing --cfg <pre-training recipe of MixMIM> [--batch-size 64] [--rounds 20]
  python tools/benchmark.py safety --cfg <recipe> [--batch-size 64] [--rounds 20] [--save-steps 100]
  python tools/benchmark.py traffic [--batch-size 8] [--kernels] [--compiled]
  python tools/benchmark.py data --cfg <pre-training recipe> [--data-path FOLDER] [--workers 2] [--rounds 5]
  python tools/benchmark.py epoch --cfg <pre-training recipe> [--data-path FOLDER] [--workers 2] [--stand-in 1.5]
  python tools/benchmark.py peers --cfg <pre-training recipe> [--batch-size 8] [--amp-opt-level O1] [--compiled]
  python tools/benchmark.py scale --cfg <recipe> [--processes 1 2] [--batch-size 64]
  python tools/benchmark.py gpu [--batch-size 128] [--output FOLDER]

`step` times the whole training step (forward, backward, clipping, optimizer) on random images, without data loading, and says
which share of the fastest matrix product of the same run it computes with. `mixing` times the attention of one block of each
stage, forward and backward, on maps of two images that are kept apart beside the same maps of one image. `safety` times what
guards a run: steps as a run makes them (between two of them it looks for signals, NaN, bad images and checkpoints that are due,
while a thread renews its lock) beside bare ones, and writing a checkpoint. `traffic` counts what a step in bfloat16 moves and
keeps, beside transformers and timm: no machine is fast or busy in it. `data` times what makes batches of JPEG files (those
of a folder, or drawn ones), beside the official pipeline as users of torchvision write it: what one core computes, and what
loader processes give in all. `epoch` says which share of a step waits for them: where the device is a stand-in that takes 1.5
times as many images as the official pipeline gives, and in training. `peers` times ours beside transformers and timm, once
their losses with the same weights are equal. `scale` launches the step on several processes (ddp). `gpu` is for one: compiled
and eager steps, peers, the longest kernels of a compiled step, and the losses of compiled bf16 beside eager fp32, as JSON and a
picture in a folder.

Each prints one table, under the machine, the versions and the date that belong to it; with --json FILE it is also written down.
"""
import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import positive, run

_HOMES = {"step": "tools.benchmarks.step", "mixing": "tools.benchmarks.mixing", "safety": "tools.benchmarks.safety",
          "traffic": "tools.benchmarks.traffic", "data": "tools.benchmarks.data", "epoch": "tools.benchmarks.epoch",
          "peers": "tools.benchmarks.peers", "scale": "tools.benchmarks.scale", "gpu": "tools.benchmarks.gpu"}

TRAFFIC = ["configs/swin_base/simmim_pretrain__swin_base__img192_window6__100ep.yaml",
           "configs/vit_base/simmim_pretrain__vit_base__img224__800ep.yaml",
           "configs/mae/mae_pretrain__vit_base__img224__800ep.yaml"]
SPARSE = "configs/sparse/greenmim_pretrain__swin_base__img192_window6__800ep.yaml"


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, text, cfg="recipe", several=False, rounds="timed rounds"):
        """A command with what all of them take."""
        part = commands.add_parser(name, help=text)
        part.add_argument("--cfg", nargs="+" if several else None, required=True, metavar="FILE", help=cfg)
        part.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings, see config.py")
        part.add_argument("--batch-size", type=positive(int), help="images a step (default: the recipe's DATA.BATCH_SIZE)")
        part.add_argument("--rounds", type=positive(int), default=20, help=f"{rounds} (default: %(default)s)")
        part.add_argument("--json", metavar="FILE", help="also write the figures to a file")
        return part

    step = command("step", "images/s and peak memory of the training step", several=True, rounds="timed steps of each",
                   cfg="recipes to compare; the first is the baseline of the ratios")
    add_training(step)
    step.add_argument("--warmup", type=int, default=3, help="untimed steps of each (default: %(default)s)")
    step.add_argument("--compiled", action="store_true", help="each recipe twice: as it is, and with TRAIN.COMPILE True")
    step.add_argument("--formats", nargs="+", choices=("O0", "O1"), metavar="LEVEL",
                      help="each recipe in each of these AMP_OPT_LEVELs, e.g. O0 O1")
    command("mixing", "what it costs MixMIM's attention to keep two images apart", cfg="pre-training recipe of MixMIM")
    safety = command("safety", "what it costs that a run can't be lost", rounds="timed rounds of 10 steps each")
    add_training(safety)
    safety.add_argument("--save-steps", type=positive(int), default=100, help="between checkpoints (default: %(default)s)")
    peers = command("peers", "the step beside those of transformers and timm, with the same weights", cfg="pre-training recipe",
                    rounds="timed steps of each")
    add_training(peers)
    peers.add_argument("--warmup", type=int, default=3, help="untimed steps of each (default: %(default)s)")
    peers.add_argument("--compiled", action="store_true", help="ours also with TRAIN.COMPILE True")
    scale = command("scale", "the step on several processes beside one", rounds="timed steps of each launch")
    add_training(scale)
    scale.add_argument("--processes", nargs="+", type=positive(int), default=[1, 2], metavar="N", help="default: 1 2")
    scale.add_argument("--warmup", type=int, default=3, help="untimed steps of each (default: %(default)s)")
    scale.add_argument("--worker", metavar="FILE", help=argparse.SUPPRESS)  # of one of the processes that it starts
    gpu = commands.add_parser("gpu", help="all of a GPU in one run: steps, peers, longest kernels, losses in both formats")
    gpu.add_argument("--cfg", nargs="+", default=[*TRAFFIC, SPARSE], metavar="FILE",
                     help="recipes (default: Swin-B, ViT-B, MAE's ViT-B and GreenMIM's Swin-B)")
    gpu.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings, see config.py")
    gpu.add_argument("--batch-size", type=positive(int), default=128, help="images a step (default: %(default)s)")
    gpu.add_argument("--rounds", type=positive(int), default=20, help="timed steps of each (default: %(default)s)")
    gpu.add_argument("--steps", type=positive(int), default=200, help="of which losses are compared (default: %(default)s)")
    gpu.add_argument("--output", default="output/benchmark_gpu", metavar="FOLDER", help="for figures (default: %(default)s)")
    traffic = commands.add_parser("traffic", help="kernels, and bytes moved and kept, of a step in bfloat16, counted")
    traffic.add_argument("--cfg", nargs="+", default=TRAFFIC, metavar="FILE",
                         help="pre-training recipes (default: Swin-B, ViT-B and MAE's ViT-B)")
    traffic.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings, see config.py")
    traffic.add_argument("--batch-size", type=positive(int), default=8, help="images (default: %(default)s)")
    traffic.add_argument("--kernels", action="store_true", help="also by kernel")
    traffic.add_argument("--compiled", action="store_true",
                         help="also with TRAIN.COMPILE, which takes minutes: g++ is needed")
    traffic.add_argument("--json", metavar="FILE", help="also write the figures to a file")
    data = command("data", "what makes batches of image files, beside the official pipeline", cfg="pre-training recipe")
    add_files(data)
    epoch = command("epoch", "what share of a step waits for data", cfg="pre-training recipe")
    add_files(epoch)
    epoch.add_argument("--stand-in", type=float, default=1.5, metavar="FACTOR",
                       help="what a stand-in for a device takes, of the official pipeline's images/s (default: %(default)s)")
    epoch.add_argument("--steps", type=positive(int), default=40, help="of each round (default: %(default)s)")
    epoch.add_argument("--no-training", action="store_true", help="the stand-in only")
    epoch.add_argument("--amp-opt-level", choices=("O0", "O1", "O2"), help="default: the recipe's")
    return parser.parse_args(argv)


def add_files(parser):
    """The flags of commands that read images."""
    parser.add_argument("--data-path", metavar="FOLDER", help="images (default: JPEGs like photographs, drawn)")
    parser.add_argument("--images", type=positive(int), default=64, help="at most, of each size (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes (default: %(default)s)")
    parser.set_defaults(rounds=5, stage="pretrain")


def add_training(parser):
    """The flags of commands that make training steps."""
    parser.add_argument("--amp-opt-level", choices=("O0", "O1", "O2"), help="default: the recipe's")
    parser.add_argument("--stage", choices=("auto", "pretrain", "finetune"), default="auto",
                        help="what to train; auto: fine-tuning where MODEL.NAME says finetune")


def main(args):
    name = args.command
    importlib.import_module(_HOMES[name]).main(args)  # takes seconds, unlike --help


if __name__ == "__main__":
    run(main, parse_arguments())
