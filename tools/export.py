"""Write a trained model as a program that runs without this repository: ONNX, or torch.export.

  python tools/export.py --weights <fine-tuned checkpoint> --to onnx classifier.onnx
  python tools/export.py --weights encoder.pth --features --to torch encoder.pt2 --dynamic-batch
  python tools/export.py --cfg <recipe> --weights <checkpoint that keeps no settings> --to onnx classifier.onnx

The program takes `images`, (B, channels, height, width) float32, normalised as in training, of the recipe's DATA.IMG_SIZE. It
gives `logits` (B, classes) or, with --features, the encoder's feature map, (B, channels, height/stride, width/stride). B is 1,
or anything with --dynamic-batch. The written file is run on random images; it is kept only if it gives what the model gives.
It holds as JSON how images are prepared, `image`, and of a classifier the names of its classes in the order of the logits,
`classes`, where the checkpoint keeps them. The lines that use it are printed.

  onnx   needs pip install onnx onnxscript onnxruntime; run it with onnxruntime.InferenceSession(path);
         the names are get_modelmeta().custom_metadata_map["classes"]
  torch  run it with torch.export.load(path).module(); the names are what extra_files={"classes": ""} of load gets
"""
import argparse
import importlib.util
import io
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import add_ema, run

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, metavar="OUT", help="file to write: .onnx or .pt2")
    parser.add_argument("--cfg", metavar="FILE", help="recipe, see configs/ (default: what the checkpoint keeps)")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint, as for --pretrained of the mains")
    parser.add_argument("--to", required=True, choices=tuple(SUFFIXES), help="format")
    parser.add_argument("--features", action="store_true", help="the encoder's feature map instead of a classifier's logits")
    parser.add_argument("--dynamic-batch", action="store_true", help="batches of any size (default: of one image)")
    parser.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators (default: torch's choice)")
    parser.add_argument("--tolerance", type=float, default=1e-4, metavar="X", help="allowed difference from the model, as a "
                        "share of its largest output (default: 1e-4)")
    parser.add_argument("--force", action="store_true", help="write over a file that exists")
    add_ema(parser)
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="other settings, see config.py")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import torch

from config import encoder_config, image_size, load_config, pixel_statistics, with_values
from models.build import build_encoder, build_model, materialize
from models.weights.heads import read_head
from models.weights.pretrained import load_pretrained
from models.weights.usage import image_facts, metadata, transform_lines

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LARGEST_FILE = 2 ** 31 - 2 ** 24  # bytes of weights: an ONNX file ends at 2 GiB, what is larger has them in a second one
LARGEST_BATCH = 2 ** 31 - 1  # torch 2.6 wants a limit
OF_PRETRAINING = ("mask_token", "stage1_output_decode.", "stage2_output_decode.")  # in no feature, so a file may lack them


def main(args):
    check_target(args)
    key = ["PRETRAINED_KEY", args.PRETRAINED_KEY] if args.PRETRAINED_KEY else []
    config = load_config(args.cfg or args.weights, [*args.opts, *key])
    model, classes = load_model(config, args.weights, args.features)
    model, facts = model.eval(), image_facts(config, image_size(config), *pixel_statistics(config))
    batch = 2 if args.dynamic_batch else 1  # torch.export takes a batch of one as a fact
    images = random_images(config, batch)
    with tempfile.TemporaryDirectory(dir=args.target.parent, prefix=".export_") as folder, torch.no_grad():
        path = Path(folder) / args.target.name
        write = {"onnx": write_onnx, "torch": write_torch}[args.to]
        write(model, images, path, args, metadata(facts, classes))
        difference = largest_difference(model, random_images(config, 3 if args.dynamic_batch else 1), path)
        if not difference <= args.tolerance:  # NaN is a failure, too
            raise ValueError(f"the exported program differs from the model by {difference:.1e} of its largest output, more "
                             f"than --tolerance {args.tolerance:.1e}: nothing was written.")
        parts = sorted(Path(folder).iterdir())
        size = sum(part.stat().st_size for part in parts)
        for part in parts:
            os.replace(part, args.target.parent / part.name)
    print(f"{args.target}: {size / 2 ** 20:.1f} MiB{' in two files' if len(parts) > 1 else ''}; differs from the model by "
          f"{difference:.1e} of its largest output" + ("" if args.features else f"; {named(classes)}"))
    print("\n".join(["to use it:", *transform_lines(facts), *USES[args.to](str(args.target), bool(classes))]))


def onnx_lines(path, has_classes):
    return [f"import onnxruntime; session = onnxruntime.InferenceSession({path!r})",
            "(output,) = session.run(None, {'images': transform(picture).unsqueeze(0).numpy()})  # of a PIL image",
            *(["import json",
               "names = json.loads(session.get_modelmeta().custom_metadata_map['classes'])"] if has_classes else [])]


def torch_lines(path, has_classes):
    kept = dict.fromkeys(["image", "classes"] if has_classes else ["image"], "")
    return [f"import torch; kept = {kept}",
            f"program = torch.export.load({path!r}, extra_files=kept).module()",
            "output = program(transform(picture).unsqueeze(0))  # of a PIL image",
            *(["import json; names = json.loads(kept['classes'])"] if has_classes else [])]


USES = {"onnx": onnx_lines, "torch": torch_lines}  # what to type for a written file


def named(classes):
    """What the file says of its classes, in words."""
    return (f"with the names of its {len(classes)} classes" if classes else
            "the checkpoint keeps no names of its classes, so it holds none")


def check_target(args):
    """Refuse what can be known to fail before a model is built. Raises ValueError."""
    target, suffix = args.target, SUFFIXES[args.to]
    if target.suffix != suffix:
        raise ValueError(f"{target} must end in {suffix} for --to {args.to}: use {target.with_suffix(suffix)}.")
    if not target.parent.is_dir():
        raise ValueError(f"the folder {target.parent} does not exist: make it first.")
    if target.is_dir():
        raise ValueError(f"{target} is a folder: choose another name.")
    existing = [path for path in (target, data_of(target)) if path.exists()]
    if existing and not args.force:
        raise ValueError(f"{existing[0]} exists and is not written over: choose another name, or add --force.")
    if args.to == "onnx":
        missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"--to onnx needs {', '.join(missing)}: pip install {' '.join(missing)}.")
    elif args.opset is not None:
        raise ValueError(f"--opset {args.opset} is of ONNX: leave it out with --to {args.to}.")


def data_of(path):
    """Where the weights of a large ONNX model stand."""
    return path.with_name(f"{path.name}.data")


def load_model(config, path, features):
    """The encoder of a checkpoint, with the head of a classifier unless `features`, and the names of its classes, or [].

    Raises: ValueError if the file lacks weights that the output depends on.
    """
    classes = []
    with torch.device("meta"):
        if features:
            model = build_encoder(config)
        else:
            head = read_head(path, config.PRETRAINED_KEY)
            if head.size is None:
                raise ValueError(f"{path} has no classification head: pass a fine-tuned checkpoint, or --features for the "
                                 f"encoder.")
            classes = head.names
            model = build_model(with_values(config, MODEL__NUM_CLASSES=head.size), is_pretrain=False)
    report = load_pretrained(materialize(model), path, config.PRETRAINED_KEY)
    print(report)
    missing = [name for name in report.missing if not name.startswith(OF_PRETRAINING)]
    if missing:
        raise ValueError(f"{path} has no weights for {', '.join(missing[:4])}, which the output depends on. Use the recipe "
                         f"that the checkpoint was made with.")
    return model, classes


def random_images(config, batch):
    return torch.randn(batch, encoder_config(config).IN_CHANS, *image_size(config))


# ---- formats ------------------------------------------------------------------------------------------------------

def write_torch(model, images, path, args, metadata):
    program = torch.export.export(model, (images,), dynamic_shapes=batch_sizes(args))
    content = io.BytesIO()  # given a path, or a file, torch aborts the process where the disk is full
    torch.export.save(program, content, extra_files=metadata)
    path.write_bytes(content.getbuffer())


def write_onnx(model, images, path, args, metadata):
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    program = torch.onnx.export(model, (images,), dynamo=True, opset_version=args.opset, dynamic_shapes=batch_sizes(args),
                                input_names=["images"], output_names=["features" if args.features else "logits"], verbose=False)
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=weights > LARGEST_FILE)


def batch_sizes(args):
    return ({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},) if args.dynamic_batch else None


def largest_difference(model, images, path):
    """Between a model and its exported file, as a share of the model's largest output."""
    if path.suffix == ".onnx":
        import onnxruntime  # optional
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        output = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    else:
        output = torch.export.load(path).module()(images)
    expected = model(images)
    return ((output - expected).abs().max() / expected.abs().max()).item()


if __name__ == "__main__":
    run(main, ARGUMENTS)
