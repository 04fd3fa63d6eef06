"""Give the weights of a checkpoint the names of another project.

  python tools/convert.py output/simmim_pretrain/swin/encoder.pth swin.safetensors --to timm
  python tools/convert.py mae_pretrain_vit_base.pth mae.pth --to mmpretrain
  python tools/convert.py pytorch_model.safetensors ours.pth --to ours --from transformers
  python tools/convert.py --list                                layouts, and the encoders that each takes
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import add_ema, run


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="checkpoint: .pth, .safetensors, or the folder of a sharded run")
    parser.add_argument("target", nargs="?", type=Path, help=".pth or .safetensors file to write")
    parser.add_argument("--to", metavar="LAYOUT", help="whose names the target has, see --list")
    parser.add_argument("--from", dest="from_layout", metavar="LAYOUT", help="what the file has to be; told by its names if "
                                                                             "left out")
    parser.add_argument("--force", action="store_true", help="write over an existing file")
    add_ema(parser)
    parser.add_argument("--list", action="store_true", help="show layouts and the encoders that each takes")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

from models.encoders.encoder import REBUILT_BUFFERS
from models.weights.layouts import KINDS, LAYOUTS, read_layout, write_layout
from utils.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint, weights_in
from utils.classes import kept_classes
from utils.finite import check_finite

WRAPPED = {"ours": "model", "official": "model", "detectron2": "model",  # where the weights of a .pth file stand
           "mmpretrain": "state_dict", "mmdetection": "state_dict", "mmsegmentation": "state_dict"}


def list_layouts():
    for layout, targets in LAYOUTS.items():
        print(layout)
        for kind, target in targets.items():
            print(f"  {KINDS[kind]:56} {target.model}")


def check_target(path, force):
    if path.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"{path} must end in .pth or .safetensors.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: choose another name.")
    if path.exists() and not force:
        raise ValueError(f"{path} exists and is not written over: choose another name, or give --force.")
    if CHECKPOINT.fullmatch(path.name):
        raise ValueError(f"{path} is named like a checkpoint of a run, which would go on from it: choose another name.")


def convert(source, target, to, from_layout=None, force=False, key=""):
    """Convert a file; see the flags, `key` is PRETRAINED_KEY. Returns the lines that say what was done."""
    check_target(target, force)
    if target.resolve() == Path(source).resolve():
        raise ValueError(f"{target} is the file that is read: choose another name.")
    content = load_checkpoint(source, moments=False)
    weights, classes = weights_in(content, source, key), kept_classes(content)
    ours, kind, unknown = read_layout(weights, source, from_layout)
    # a mask of attention may be -inf where it hides
    check_finite({name: value for name, value in ours.items() if not name.endswith(REBUILT_BUFFERS)}, source)
    theirs, dropped, model = write_layout(ours, to)
    named = {"classes": classes} if classes and (to in WRAPPED or target.suffix == ".safetensors") else {}
    save_checkpoint(target, {WRAPPED[to]: theirs, **named} if to in WRAPPED else {**theirs, **named})
    lines = [f"{source}: {kind.name}, {len(weights)} tensors",
             f"{target}: {len(theirs)} tensors for {model.model}, {target.stat().st_size / 2 ** 20:.1f} MiB"]
    if classes and not named:
        lines.append(f"left out, because {target.suffix} files of {to} hold weights alone: names of {len(classes)} classes")
    for names, reason in ((dropped, "there is nothing like it there"), (unknown, "it is not known what it is")):
        if names:
            more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
            lines.append(f"left out, because {reason}: {', '.join(names[:8])}{more}")
    return lines


def main(args):
    if args.list:
        return list_layouts()
    if args.source is None or args.target is None or args.to is None:
        raise ValueError("give a file to read, a file to write and --to LAYOUT, or --list for the layouts.")
    print("\n".join(convert(args.source, args.target, args.to, args.from_layout, args.force,
                            args.PRETRAINED_KEY or "")))


if __name__ == "__main__":
    run(main, ARGUMENTS)
