"""Run a study: a YAML of axes becomes runs, with several seeds each, and one table of them.

  python tools/ablate.py tools/studies/masks.yaml [--jobs 2] [--seeds 0 1 2] [--plot]
  python tools/ablate.py tools/studies/masks.yaml --list     the rows, and how many commands they are; nothing is run

A study names recipes, what is measured, axes, and settings:

  recipes:                                    # without pretrain all is measured from scratch
    pretrain: configs/demo/simmim_pretrain__swin_nano__img64.yaml
    finetune: configs/demo/simmim_finetune__swin_nano__img64.yaml
    probe: configs/demo/linprobe__swin_nano__img64.yaml
  measures: [loss, finetune, linear, knn]     # some of these
  seeds: [0, 1, 2]
  settings: {TRAIN.EPOCHS: 4, finetune TRAIN.EPOCHS: 6}   # of all rows
  axes:
    unit: {DATA.MASK_PATCH_SIZE: [4, 8, 16]}  # one row for each value and each of the other axes
    head:                                     # or values with names, of several settings each
      linear: {}
      mlp: {MODEL.SIMMIM.HEAD: mlp}
      scratch: {pretrain: no}                 # no pre-training in this row

A setting is for pre-training; for fine-tuning and probing where pre-training does not read it, or `finetune` or `probe` stands
in front of it; for all where it is one of the encoder, of what images are, or `all` stands in front. Rows that pre-train alike
share a run. Starting again continues where it stopped: what is done is in <output>/results.jsonl. The tables are table.md and
table.csv (mean, spread, seeds, minutes of pre-training), the plot is plot.png, the output of each command is in logs/.
"""
import argparse
import itertools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the repository is cloned, not installed

from utils.cli import positive, run


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="STUDY.yaml")
    parser.add_argument("--output", type=Path, help="where the runs go (default: output/ablate/<name of the study>)")
    parser.add_argument("--jobs", type=positive(int), default=1, metavar="N", help="commands at a time, which share the cores "
                        "(default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="default: those of the study")
    parser.add_argument("--list", action="store_true", help="print the rows and run nothing")
    parser.add_argument("--plot", action="store_true", help="also plot.png (needs matplotlib)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings for every command, see config.py")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

from config import find_recipe
from defaults import settings
from tools.grids import COLUMNS, MEASURES, Grid, Row, plot, write_tables
from tools.plots import check_plot
from utils.registry import pick
from utils.yaml_files import read_tree

JOBS = ("pretrain", "finetune", "probe")
KEYS = ("recipes", "measures", "seeds", "settings", "axes")
IMAGES = ("DATA.IMG_SIZE", "DATA.MEAN", "DATA.STD", "DATA.WHITE", "DATA.EXIF", "DATA.BACKGROUND", "DATA.DATA_PATH",
          "DATA.DATASET", "DATA.NUM_WORKERS", "MODEL.TYPE")  # what all jobs must have alike


def main(args):
    study = read_study(args.study)
    rows, axes = rows_of(study), list(study["axes"])
    seeds = args.seeds or study["seeds"]
    output = args.output or ROOT / "output" / "ablate" / args.study.stem
    if args.list:
        return print_rows(rows, study["measures"], seeds)
    output.mkdir(parents=True, exist_ok=True)
    if args.plot:
        check_plot(output / "plot.png", "--plot")
    grid = Grid(rows, study["measures"], seeds, output, args.opts, args.jobs)
    errors = grid.run()
    table = grid.table()
    print("\n" + write_tables(output, table, axes, study["measures"]))
    print(f"\ntop-1 in percent on the validation images, loss on held-out images, minutes of pre-training; ± one standard "
          f"deviation over seeds: {output / 'table.md'}")
    if args.plot:
        plot(output / "plot.png", table, axes, study["measures"])
    if errors:
        raise ValueError(f"{len(errors)} of {len(rows) * len(seeds)} runs failed, start again to repeat them. The first: "
                         f"{errors[0]}")


def print_rows(rows, measures, seeds):
    for row in rows:
        told = [f"{job}: " + ", ".join(f"{key} {value}" for key, value in of.items()) for job, of in row.settings.items() if of]
        print(f"{row.name}\n    {'; '.join(told)}")
    pretrained = len({str(sorted(row.settings["pretrain"].items())) for row in rows if "pretrain" in row.recipes})
    measured = len(rows) * sum(name in MEASURES for name in measures)
    print(f"{len(rows)} rows, {len(seeds)} seeds: {pretrained * len(seeds)} commands of pre-training, "
          f"{measured * len(seeds)} of measuring")


def read_study(path):
    """The content of a study, complete. Raises: ValueError that says what is wrong with it."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no study {path}: those of the repository are in tools/studies.")
    study = read_tree(path)
    for key in study:
        pick(dict.fromkeys(KEYS), key, f"a key of {path}")
    study = {"settings": {}, "axes": {}, "seeds": [0], **study}
    for name, of in (("recipes", study.get("recipes")), ("settings", study["settings"]), ("axes", study["axes"])):
        if not isinstance(of, dict) or (name == "recipes" and not of):
            raise ValueError(f"{path}: {name} must be a mapping, see tools/ablate.py --help.")
    for job in study["recipes"]:
        pick(dict.fromkeys(JOBS), job, f"a key of recipes in {path}")
    if not isinstance(study.get("measures"), list) or not study["measures"]:
        raise ValueError(f"{path}: measures must be a list of some of {', '.join(COLUMNS)}.")
    for measure in study["measures"]:
        pick(dict.fromkeys(COLUMNS), measure, f"measures in {path}")
        job = MEASURES[measure][1] if measure in MEASURES else "pretrain"
        if job not in study["recipes"]:
            raise ValueError(f"{path} measures {measure}, which needs a recipe for {job}: name one under recipes.")
    if not isinstance(study["seeds"], list) or not all(type(seed) is int for seed in study["seeds"]) or not study["seeds"]:
        raise ValueError(f"{path}: seeds must be a list of whole numbers.")
    return study


def rows_of(study):
    """The rows of a study, each combination of the values of its axes."""
    recipes = {job: str(find_recipe(path)) for job, path in study["recipes"].items()}
    axes = {name: values_of(name, values) for name, values in study["axes"].items()}
    rows = []
    for labels in itertools.product(*axes.values()):
        chosen = [axes[name][label] for name, label in zip(axes, labels, strict=True)]
        own, scratch = {job: {} for job in JOBS}, False
        for settings_of_one in (study["settings"], *chosen):
            for key, value in settings_of_one.items():
                if key == "pretrain":
                    scratch = value is False
                    continue
                for job in jobs_of(key):
                    own[job][key.rpartition(" ")[2]] = value
        used = {job: path for job, path in recipes.items() if not (scratch and job == "pretrain")}
        named = [f"{name}={label}" for name, label in zip(axes, labels, strict=True)]
        rows.append(Row("__".join(named).replace(" ", "_") or "all", used, {job: own[job] for job in used},
                        dict(zip(axes, labels, strict=True))))
    return rows


def values_of(name, values):
    """{label: {key: value}} of an axis: of one setting with a list, or of named values."""
    if isinstance(values, dict) and len(values) == 1 and isinstance(next(iter(values.values())), list):
        ((key, items),) = values.items()
        return {str(item): {key: item} for item in items}
    if isinstance(values, dict) and values and all(isinstance(of, dict) or of is None for of in values.values()):
        return {str(label): of or {} for label, of in values.items()}
    raise ValueError(f"the axis {name} must be one setting with a list of values, or named values with the settings of each, "
                     f"see tools/ablate.py --help.")


def jobs_of(key):
    """The jobs that a setting of a study is for, see the beginning of the file."""
    job, _, name = key.rpartition(" ")
    declared = pick(settings(), name, "a setting of the study")
    if job:
        return JOBS if job == "all" else (pick(dict.fromkeys(JOBS), job, f"what stands before {name}") or job,)
    if name.startswith("MODEL.") and name.count(".") == 2 and not declared.jobs or name in IMAGES:
        return JOBS
    readers = declared.jobs or JOBS
    return ("pretrain",) if "pretrain" in readers else tuple(job for job in JOBS if job in readers)


if __name__ == "__main__":
    run(main, ARGUMENTS)
