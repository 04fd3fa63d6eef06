"""Write a checkpoint as one ordinary file: of a sharded run (a folder), or only the part that is wanted.

  python tools/consolidate.py output/simmim_pretrain/giant/ckpt_epoch_799 giant.pth           everything, resumes under ddp
  python tools/consolidate.py output/simmim_pretrain/giant/ckpt_epoch_799 giant.safetensors --encoder
  python tools/consolidate.py output/simmim_finetune/base/ckpt_best_ema.pth base.safetensors --ema    the average of the weights
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import add_ema, run


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder ckpt_epoch_N of a sharded run, or any checkpoint file")
    parser.add_argument("target", type=Path, help=".pth, or .safetensors (weights alone)")
    parser.add_argument("--encoder", action="store_true", help="only the weights of the encoder, for --pretrained")
    add_ema(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

from utils.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint, weights_in
from utils.files import refuse_existing


def main(args):
    if args.target.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"{args.target} must end in .pth or .safetensors.")
    refuse_existing(args.target)
    if CHECKPOINT.fullmatch(args.target.name):
        raise ValueError(f"{args.target} is named like a checkpoint of a run, which would go on from it: choose another name.")
    weights_alone = args.encoder or args.PRETRAINED_KEY or args.target.suffix == ".safetensors"
    content = load_checkpoint(args.source, moments=not weights_alone)
    weights = weights_in(content, args.source, args.PRETRAINED_KEY or "")
    if args.encoder:
        weights = {name.removeprefix("encoder."): tensor for name, tensor in weights.items() if name.startswith("encoder.")}
        if not weights:
            raise ValueError(f"{args.source} has no encoder inside a pre-training model: --encoder does not apply.")
    if weights_alone:
        kept = ("epoch", "config") if args.encoder else ("epoch", "config", "classes")
        content = {"model": weights, **{key: content[key] for key in kept if key in content}}
    save_checkpoint(args.target, content)
    print(f"{args.target}: {len(weights)} tensors, {args.target.stat().st_size / 2 ** 20:.1f} MiB")


if __name__ == "__main__":
    run(main, ARGUMENTS)
