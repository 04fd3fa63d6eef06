"""Compare pre-training methods on equal terms: pre-train, probe, find neighbours, fine-tune; one table at the end.

  python tools/compare.py                       every pre-training recipe of configs/demo, on drawn images, on a CPU
  python tools/compare.py --recipes configs/demo/mae_pretrain__vit_nano__img64.yaml <another> ...

A recipe <method>_pretrain__<model>.yaml is probed by linprobe__<model>.yaml beside it, and fine-tuned by
<method>_finetune__<model>.yaml or, without one, by that of the method for this model whose encoder is most like its own.
Starting again continues where it stopped. Other studies: tools/ablate.py.
"""
import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the repository is cloned, not installed

from utils.cli import positive, run


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", type=Path, help="pre-training recipes (default: all of configs/demo)")
    parser.add_argument("--output", default="output/compare", help="where the runs go (default: %(default)s)")
    parser.add_argument("--jobs", type=positive(int), default=1, metavar="N", help="commands at a time, which share the cores "
                        "(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings for every step, see config.py")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

from config import encoder_config, flatten, load_config
from tools.grids import NEIGHBOURS, Grid, Row, encoder_settings, write_tables

MEASURES = ("loss", "linear", "knn", "finetune")
NOTE = f"""linear, knn (k = {NEIGHBOURS}), finetune: top-1 on the validation images, in percent
loss: on held-out images, in units of the method, so not to be compared between methods; minutes: of pre-training"""


def main(args):
    recipes = args.recipes or sorted((ROOT / "configs" / "demo").glob("*_pretrain__*.yaml"))
    rows = [row_of(Path(recipe).resolve(), args.opts) for recipe in recipes]
    grid = Grid(rows, MEASURES, [None], args.output, args.opts, args.jobs)
    errors, table = grid.run(), grid.table()
    print(f"\n{write_tables(grid.output, table, [], MEASURES)}\n\n{NOTE}")
    if args.json:
        only = [{name: (value or [None])[0] if isinstance(value, list) else value for name, value in row.items()}
                for row in table]
        args.json.write_text(json.dumps(only, indent=1) + "\n", encoding="utf-8")
    if errors:
        raise ValueError(f"{len(errors)} of {len(rows)} recipes failed, start again to repeat them. The first: {errors[0]}")


def row_of(recipe, opts):
    """The row of a pre-training recipe."""
    method, _, model = recipe.stem.partition("_pretrain__")
    probe = recipe.with_name(f"linprobe__{model}.yaml")
    if not model or not probe.is_file():
        raise ValueError(f"{recipe} can't be compared: it must be named <method>_pretrain__<model>.yaml, and beside it there "
                         f"must be linprobe__<model>.yaml.")
    config = load_config(recipe, opts)
    recipes = {"pretrain": recipe, "probe": probe, "finetune": finetuning_of(recipe, method, model, config)}
    return Row(recipe.stem, recipes, {"probe": encoder_settings(config)})


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


if __name__ == "__main__":
    run(main, ARGUMENTS)
