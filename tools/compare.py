"""Compare pre-training methods on equal terms: pre-train, probe, find neighbours, fine-tune; one table at the end.

  python tools/compare.py                       every pre-training recipe of configs/demo, on drawn images, on a CPU
  python tools/compare.py --recipes configs/demo/mae_pretrain__vit_nano__img64.yaml <another> ...

A recipe <method>_pretrain__<model>.yaml is probed by linprobe__<model>.yaml beside it, and fine-tuned by
<method>_finetune__<model>.yaml or, without one, by that of the method for this model whose encoder is most like its own.
Starting again continues where it stopped.
"""
import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the repository is cloned, not installed

from utils.cli import run


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", type=Path, help="pre-training recipes (default: all of configs/demo)")
    parser.add_argument("--output", default="output/compare", help="where the runs go (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings for every step, see config.py")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

from config import encoder_config, flatten, load_config, run_folder
from utils.tables import aligned

NEIGHBOURS = 20
NOTE = f"""linear, kNN (k = {NEIGHBOURS}), fine-tuned: top-1 on the validation images, in percent
loss: on held-out images, in units of the method, so not to be compared between methods; minutes: of pre-training"""


def main(args):
    recipes = args.recipes or sorted((ROOT / "configs" / "demo").glob("*_pretrain__*.yaml"))
    rows = [compare(Path(recipe).resolve(), args) for recipe in recipes]
    print(f"\n{table(rows)}\n\n{NOTE}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def compare(recipe, args):
    """Run the steps of one pre-training recipe; returns its row of the table."""
    method, _, model = recipe.stem.partition("_pretrain__")
    probe = recipe.with_name(f"linprobe__{model}.yaml")
    if not model or not probe.is_file():
        raise ValueError(f"{recipe} can't be compared: it must be named <method>_pretrain__<model>.yaml, and beside it there "
                         f"must be linprobe__<model>.yaml.")
    config = load_config(recipe, args.opts)
    section = f"MODEL.{config.MODEL.TYPE.upper()}"
    encoder = [word for key, value in flatten(encoder_config(config)).items() for word in (f"{section}.{key}", str(value))]

    pretrained = step("main_simmim.py", recipe, args, recipe.stem)
    weights = ["--pretrained", str(pretrained / "encoder.pth")]
    probed = step("main_linprobe.py", probe, args, f"{recipe.stem}__linear", *weights, opts=encoder)
    voted = step("main_linprobe.py", probe, args, f"{recipe.stem}__knn", *weights, "--knn", opts=encoder)
    tuned = step("main_finetune.py", finetuning_of(recipe, method, model, config), args, f"{recipe.stem}__finetuned", *weights)

    held_out = records(pretrained, "val")
    return {"recipe": recipe.stem, "loss": held_out[-1]["loss"] if held_out else None,
            "linear": records(probed, "val")[-1]["top1"],
            "kNN": [record["top1"] for record in records(voted, "eval") if record["k"] == NEIGHBOURS][-1],
            "fine-tuned": records(tuned, "val")[-1]["top1"], "minutes": minutes(records(pretrained, "train"))}


def finetuning_of(recipe, method, model, config):
    """The fine-tuning recipe of a pre-training recipe, see the beginning of the file."""
    own = recipe.with_name(f"{method}_finetune__{model}.yaml")
    if own.is_file():
        return own
    mine = flatten(encoder_config(config))

    def likeness(path):
        other = load_config(path)
        return other.MODEL.TYPE == config.MODEL.TYPE and sum(
            mine[key] == value for key, value in flatten(encoder_config(other)).items())

    others = sorted(recipe.parent.glob(f"*_finetune__{model}.yaml"), key=likeness)
    if not others:
        raise ValueError(f"{own} does not exist, nor a fine-tuning recipe of another method for {model} beside it.")
    return others[-1]


def step(program, recipe, args, tag, *more, opts=()):
    """Run one command of the repository; returns its run folder. Stops at the first that fails."""
    opts = [*opts, *args.opts]
    command = [program, "--cfg", str(recipe), "--output", args.output, "--tag", tag, *more]
    command += ["--opts", *opts] if opts else []
    print(f"\n$ python {shlex.join(command)}", flush=True)
    result = subprocess.run([sys.executable, *command], cwd=ROOT)
    if result.returncode:
        sys.exit(result.returncode)
    return ROOT / run_folder(load_config(recipe, [*opts, "OUTPUT", args.output, "TAG", tag]))


def records(folder, kind):
    """Records of one kind in a run's metrics, in order."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def minutes(train):
    """Time of training from its records: each has the seconds an iteration took since the one before."""
    steps = [-1, *(record["step"] for record in train)]
    return sum(record["time"] * (step - before) for record, before, step in zip(train, steps, steps[1:], strict=False)) / 60


def table(rows):
    """Aligned columns; one row a recipe."""
    def text(name, value):
        if value is None or isinstance(value, str):
            return value or "-"
        return f"{value:.4f}" if name == "loss" else f"{value:.1f}"

    return "\n".join(aligned([list(rows[0]), *([text(name, value) for name, value in row.items()] for row in rows)]))


if __name__ == "__main__":
    run(main, ARGUMENTS)
