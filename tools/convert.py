"""Give the weights of a checkpoint the names of another project.

  python tools/convert.py output/simmim_pretrain/swin/encoder.pth swin.safetensors --to timm
  python tools/convert.py mae_pretrain_vit_base.pth mae.pth --to mmpretrain
  python tools/convert.py pytorch_model.safetensors ours.pth --to ours --from transformers
  python tools/convert.py output/<run>/ckpt_best.pth swin/model.safetensors --to transformers      for from_pretrained("swin")
  python tools/convert.py --list                                layouts, and the encoders that each takes
"""
import argparse
import json
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
    parser.add_argument("--cfg", metavar="FILE", help="recipe of the model, for the config.json of transformers (default: what "
                                                      "the checkpoint keeps)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="other settings of it, see config.py")
    parser.add_argument("--force", action="store_true", help="write over an existing file")
    add_ema(parser)
    parser.add_argument("--list", action="store_true", help="show layouts and the encoders that each takes")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import torch

from config import image_size, load_config, pixel_statistics
from models import build_model
from models.encoders.encoder import REBUILT_BUFFERS
from models.weights.layouts import KINDS, LAYOUTS, kind_of, read_layout, write_layout
from models.weights.transformers_files import image_description, model_description
from models.weights.usage import image_facts, loading_lines, transform_lines
from utils.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint, weights_in
from utils.classes import kept_classes
from utils.finite import check_finite
from utils.kept import is_checkpoint, read_kept

WRAPPED = {"ours": "model", "official": "model", "detectron2": "model",  # where the weights of a .pth file stand
           "mmpretrain": "state_dict", "mmdetection": "state_dict", "mmsegmentation": "state_dict"}


BESIDE = ("config.json", "preprocessor_config.json")  # what from_pretrained of transformers wants as well
FOR_FROM_PRETRAINED = "model.safetensors"  # the name that it looks for


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


def check_config(config, weights):
    """Refuse a config of another model than the weights, of our pre-training names, are of. Raises ValueError."""
    is_pretrain = any(name.startswith("decoder.") for name in weights)
    with torch.device("meta"):
        model = build_model(config, is_pretrain)
    own = {name if is_pretrain else f"encoder.{name}": value for name, value in model.state_dict().items()}
    free = ("encoder.head.", "encoder.mask_token")
    for name in own.keys() | weights.keys():
        there, here = (tuple(of[name].shape) if name in of else "missing" for of in (weights, own))
        if there != here and not name.endswith(REBUILT_BUFFERS) and not name.startswith(free):
            raise ValueError(f"the config is of another model: {name} is {there} in the file and {here} by the config. Give "
                             f"the recipe it was made with as --cfg, and --opts.")


def describe_for_transformers(source, ours, target, cfg, opts, classes):
    """Write BESIDE the target. Returns the line that says so, or why not."""
    if not cfg and not read_kept(source).settings:
        return f"{' and '.join(BESIDE)} were not written: the file keeps no settings. Give the recipe of the model as --cfg."
    config = load_config(cfg or source, opts)
    check_config(config, ours)
    size = image_size(config)
    for name, described in zip(BESIDE, (model_description(ours, config, size, classes),
                                        image_description(config, size, *pixel_statistics(config))), strict=True):
        (target.parent / name).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    calls = "" if target.name == FOR_FROM_PRETRAINED else f"; from_pretrained looks for weights in {FOR_FROM_PRETRAINED}"
    return f"{target.parent}: {' and '.join(BESIDE)} for from_pretrained{calls}"


def convert(source, target, to, from_layout=None, force=False, key="", cfg=None, opts=()):
    """Convert a file; see the flags, `key` is PRETRAINED_KEY. Returns the lines that say what was done."""
    check_target(target, force)
    for path in (target.parent / name for name in BESIDE) if to == "transformers" and not force else ():
        if path.exists():
            raise ValueError(f"{path} exists and is not written over: choose another folder, or give --force.")
    if to != "transformers" and (cfg or opts):
        raise ValueError(f"--cfg and --opts are for the config.json of --to transformers: leave them out with --to {to}.")
    if target.resolve() == Path(source).resolve():
        raise ValueError(f"{target} is the file that is read: choose another name.")
    content = load_checkpoint(source, moments=False)
    weights, classes = weights_in(content, source, key), kept_classes(content)
    ours, kind, unknown = read_layout(weights, source, from_layout)
    # a mask of attention may be -inf where it hides
    check_finite({name: value for name, value in ours.items() if not name.endswith(REBUILT_BUFFERS)}, source)
    theirs, dropped, model = write_layout(ours, to)
    named = {"classes": classes} if classes and (to in WRAPPED or target.suffix == ".safetensors") else {}
    if to == "ours" and isinstance(content.get("config"), str):
        named["config"] = content["config"]
    kept = to != "transformers" and is_checkpoint(source) and read_kept(source).settings and load_config(source)
    if kept and target.suffix == ".safetensors":
        named["image"] = json.dumps(facts_of(kept))
    beside = ([describe_for_transformers(source, ours, target, cfg, opts, classes)] if to == "transformers" else [])
    save_checkpoint(target, {WRAPPED[to]: theirs, **named} if to in WRAPPED else {**theirs, **named})
    lines = [f"{source}: {kind.name}, {len(weights)} tensors",
             f"{target}: {len(theirs)} tensors for {model.model}, {target.stat().st_size / 2 ** 20:.1f} MiB",
             *beside]
    if classes and "classes" not in named:
        lines.append(f"left out, because {target.suffix} files of {to} hold weights alone: names of {len(classes)} classes")
    for names, reason in ((dropped, "there is nothing like it there"), (unknown, "it is not known what it is")):
        if names:
            more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
            lines.append(f"left out, because {reason}: {', '.join(names[:8])}{more}")
    loading = loading_lines(to, kind_of(ours), ours, kept, image_size(kept), target) if kept else []
    return lines + (["to load it there:", *loading, *transform_lines(facts_of(kept))] if loading else [])


def facts_of(config):
    return image_facts(config, image_size(config), *pixel_statistics(config))


def main(args):
    if args.list:
        return list_layouts()
    if args.source is None or args.target is None or args.to is None:
        raise ValueError("give a file to read, a file to write and --to LAYOUT, or --list for the layouts.")
    print("\n".join(convert(args.source, args.target, args.to, args.from_layout, args.force,
                            args.PRETRAINED_KEY or "", args.cfg, args.opts)))


if __name__ == "__main__":
    run(main, ARGUMENTS)
