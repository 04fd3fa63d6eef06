"""How far hidden pixels lie from visible ones: AvgDist of SimMIM's paper, by strategy, unit size and ratio.

  python tools/avgdist.py                                                   the table of the paper's axes, 192 px
  python tools/avgdist.py --out avgdist.png                                 and its figure
  python tools/avgdist.py --kinds random --units 8 16 32 --ratios 0.4 0.6 --img-size 224
  python tools/avgdist.py --cfg configs/swin_base/simmim_pretrain__swin_base__img192_window6__100ep.yaml
                                                                            of the masks that a recipe draws

For each hidden pixel the distance to the nearest visible one, centre to centre; the mean over the hidden pixels of a mask, then
over masks. In the paper (arXiv 2111.09886, figure 3) accuracy is best where it lies between 10 and 20 pixels: nearer, pixels
are copied from their neighbours; farther, they can't be told. A dash: such a mask hides nothing, or everything.
"""
import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import positive, run

BAND = (10, 20)  # pixels
KINDS = ("random", "square", "block")
UNITS = (4, 8, 16, 32, 64)
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PATCH = 4  # pixels per side of a cell of a mask: that of Swin


def share(text):
    """A ratio on the command line."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0, which hides nothing, and 1, which hides all")
    return value


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help=f"of DATA.MASK_TYPE (default: {' '.join(KINDS)})")
    parser.add_argument("--units", nargs="+", type=positive(int), metavar="PIXELS", help="sides of a unit (default: "
                                                                                         f"{' '.join(map(str, UNITS))})")
    parser.add_argument("--ratios", nargs="+", type=share, metavar="SHARE", help="hidden shares (default: 0.1 to 0.9)")
    parser.add_argument("--img-size", type=positive(int), metavar="PIXELS", help="side of the image (default: 192)")
    parser.add_argument("--cfg", metavar="FILE", help="recipe, or a checkpoint: its masks instead of all these")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="other settings of --cfg, see config.py")
    parser.add_argument("--masks", type=positive(int), default=40, metavar="N", help="in each mean (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the masks (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE.png", help="draw the figure; needs requirements-plots.txt")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import numpy as np

from config import encoder_config, load_config
from data.masks import MASKS, build_mask_generator
from tools.plots import check_plot, panels, save
from utils.distances import average_distance
from utils.registry import pick
from utils.tables import aligned


def main(args):
    check_arguments(args)
    if args.cfg:
        return print_recipe(args)
    rows = measure(args.kinds or KINDS, args.units or UNITS, args.ratios or RATIOS, args.img_size or 192, args.masks, args.seed)
    print(json.dumps(rows, indent=1) if args.json else as_text(rows))
    if args.out:
        save(figure_of(rows), args.out)


def check_arguments(args):
    """Refuse what contradicts itself, before anything is measured. Raises ValueError."""
    unheard = [flag for flag in ("kinds", "units", "ratios", "img_size", "out") if args.cfg and getattr(args, flag)]
    if unheard:
        raise ValueError(f"--cfg measures the masks of a recipe alone: leave out --{unheard[0].replace('_', '-')}. Other ones "
                         f"by --opts DATA.MASK_PATCH_SIZE 16, say.")
    if args.opts and not args.cfg:
        raise ValueError("--opts changes settings of a recipe: add --cfg <recipe>.")
    for kind in args.kinds or ():
        if pick(MASKS, kind, "--kinds") is MASKS["file"]:
            raise ValueError("--kinds file: one mask has no ratio to draw it against. Its distance: --cfg <recipe> --opts "
                             "DATA.MASK_TYPE file DATA.MASK_FILE <file>.")
    if args.out:
        check_plot(args.out)


def measure(kinds, units, ratios, size, num_masks, seed):
    """AvgDist of every strategy, unit size and ratio.

    Args:
        kinds: names in data.masks.MASKS.
        units: pixels per side, multiples of PATCH that divide the image.
        ratios: hidden shares.
        size: pixels per side of the image.
        num_masks: of each mean, drawn anew from `seed`.
    Returns: list of {kind, unit, ratio, avgdist: pixels, or None where masks hide nothing or everything}.
    Raises: ValueError on units that do not fit.
    """
    rows = []
    for kind in kinds:
        for unit in units:
            for ratio in ratios:
                generator = MASKS[kind](size, unit, PATCH, ratio, "up")
                rows.append({"kind": kind, "unit": unit, "ratio": ratio,
                             "avgdist": mean_distance(generator, PATCH, num_masks, seed)})
    return rows


def mean_distance(generator, patch, num_masks, seed):
    """Mean AvgDist of masks in pixels, drawn from a seed on a grid of patches; None where there is none."""
    rng = np.random.RandomState(seed)
    distance = float(np.mean([average_distance(generator(rng), patch) for _ in range(num_masks)]))
    return None if math.isnan(distance) else distance


def print_recipe(args):
    """AvgDist of the masks of --cfg."""
    config = load_config(args.cfg, args.opts)
    distance = mean_distance(build_mask_generator(config), encoder_config(config).PATCH_SIZE, args.masks, args.seed)
    data = config.DATA
    if args.json:
        return print(json.dumps({"kind": data.MASK_TYPE, "unit": data.MASK_PATCH_SIZE, "ratio": data.MASK_RATIO,
                                 "avgdist": distance}, indent=1))
    ratio = "" if data.MASK_TYPE == "file" else f", ratio {data.MASK_RATIO:g}"
    place = "within" if BAND[0] <= distance <= BAND[1] else "outside of"
    print(f"AvgDist {distance:.1f} px: {data.MASK_TYPE} masks of {data.MASK_PATCH_SIZE} px{ratio}, {place} the {BAND[0]} to "
          f"{BAND[1]} px that the paper found best")


def as_text(rows):
    """A line for each strategy and unit size, a column for each ratio."""
    ratios = sorted({row["ratio"] for row in rows})
    found = {(row["kind"], row["unit"], row["ratio"]): row["avgdist"] for row in rows}
    lines = [("masks", "unit, px", *(f"{ratio:g}" for ratio in ratios))]
    for kind, unit in dict.fromkeys((row["kind"], row["unit"]) for row in rows):
        distances = (found[kind, unit, ratio] for ratio in ratios)
        lines.append((kind, str(unit), *("-" if distance is None else f"{distance:.1f}" for distance in distances)))
    return "\n".join(aligned(lines))


def figure_of(rows):
    """A panel for each strategy, a line for each unit size, and the band of the paper."""
    kinds, units = list(dict.fromkeys(row["kind"] for row in rows)), sorted({row["unit"] for row in rows})
    figure, axes = panels(len(kinds), sharey=True)
    for axis, kind in zip(axes, kinds, strict=True):
        axis.axhspan(*BAND, color="tab:green", alpha=0.15, label=f"{BAND[0]} to {BAND[1]} px")
        for i, unit in enumerate(units):
            points = [(row["ratio"], row["avgdist"]) for row in rows
                      if (row["kind"], row["unit"]) == (kind, unit) and row["avgdist"] is not None]
            axis.plot(*zip(*points, strict=True) if points else ((), ()), marker="o", markersize=3, color=f"C{i}",
                      label=f"units of {unit} px")
        axis.set(title=f"{kind} masks", xlabel="hidden share of the image")
    axes[0].set_ylabel("AvgDist, pixels")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(fontsize="small", loc="upper left")
    return figure


if __name__ == "__main__":
    run(main, ARGUMENTS)
