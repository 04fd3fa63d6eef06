"""A recipe for your images and your machine: looks at both, times some steps, writes a YAML file with a reason for each value.

  python tools/recipe.py --data-path <folder of images>                   pre-training, of an hour on a CPU and 8 on a GPU
  python tools/recipe.py --data-path <folder> --hours 2 --encoder vit
  python tools/recipe.py --data-path <folder of classes> --for finetune --pretrained <encoder.pth>
  python tools/recipe.py --data-path <folder> --output my.yaml --opts DATA.IMG_SIZE 96

The folder is read and never written. `main_simmim.py --data-path <folder>` without --cfg chooses the same, and starts.
Several GPUs: start it as the training, `torchrun --nproc_per_node 8 tools/recipe.py ...`.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import positive, run


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", required=True, metavar="FOLDER", help="of the images")
    parser.add_argument("--hours", type=positive(float), metavar="H",
                        help="what the run may take (default: 1 on a CPU, else 8)")
    parser.add_argument("--encoder", choices=("swin", "swinv2", "vit"), help="default: swin")
    parser.add_argument("--for", dest="job", choices=("pretrain", "finetune"), default="pretrain", help="default: pretrain")
    parser.add_argument("--pretrained", metavar="FILE", help="checkpoint to fine-tune, whose encoder and image size are taken")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the recipe (default: <job>_<folder>.yaml, here)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE",
                        help="what is settled: DATA.IMG_SIZE, MODEL.SWIN.IN_CHANS, TAG")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

from logger import create_logger
from planning.recipe import PROGRAMS, command
from planning.start import NAMES, default_tag, keep_out, plan
from utils import distributed
from utils.files import write_text

SETTLED = ("DATA.IMG_SIZE", "IN_CHANS", "TAG")  # ends of the keys that --opts may have


def main(args):
    given = given_of(args)
    tag = given.get("TAG") or default_tag(args.data_path, args.job, given)
    path = args.output or Path(f"{args.job}_{tag}.yaml")
    keep_out(path.absolute().parent, args.data_path, "--output")
    if path.exists():
        raise ValueError(f"{path} exists, and nothing is written over: remove it, or name another file with --output.")
    device = distributed.start()
    create_logger(distributed.rank())
    if distributed.rank():
        return distributed.barrier()  # rank 0 times the steps of all
    found = plan(args.data_path, args.job, given, args.hours, device)
    found.name_run(tag, NAMES[args.job])
    write_text(path, found.text(path))
    more = ["--pretrained", args.pretrained] if args.pretrained else []
    commands = [("start", command(PROGRAMS[args.job], "--cfg", path, *more)), *found.commands("output")]
    print("\n".join([f"\n{path}: each value with its reason", *found.lines(), "", *(f"{line}    # {title}" for title, line in
                                                                                   commands)]))
    distributed.barrier()


def given_of(args):
    """{key: value} that the user has settled. Raises: ValueError on --opts that change nothing here."""
    words = args.opts
    if len(words) % 2:
        raise ValueError(f"--opts takes pairs KEY VALUE, but {len(words)} words were given: {' '.join(words)}.")
    given = dict(zip(words[::2], words[1::2], strict=True))
    others = [key for key in given if not key.endswith(SETTLED)]
    if others:
        raise ValueError(f"--opts {others[0]}: the choice reckons with {', '.join(SETTLED)} alone. Other values can be changed "
                         f"in the recipe, or with --opts of the program that it is for.")
    if args.pretrained and args.job != "finetune":
        raise ValueError("--pretrained is what fine-tuning begins with: add --for finetune.")
    return given | ({"MODEL.TYPE": args.encoder} if args.encoder else {}) | (
        {"PRETRAINED": args.pretrained} if args.pretrained else {})


if __name__ == "__main__":
    run(main, ARGUMENTS)
