"""Curves as a picture, by matplotlib (requirements-plots.txt); not a program."""
import importlib.util
import logging
from pathlib import Path

from utils.files import replacing

ENDINGS = (".png", ".svg", ".pdf")


def check_plot(path, flag="--out"):
    """Refuse a file that no plot can be written to, before anything is computed. Raises ValueError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"{flag} {path} needs matplotlib, which is not installed: pip install -r requirements-plots.txt. "
                         f"Without {flag} the numbers are printed.")
    if Path(path).suffix.lower() not in ENDINGS:
        raise ValueError(f"{flag} {path} must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}.")
    if not Path(path).parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {Path(path).parent}. Make it, or choose another.")


def panels(number, columns=3, size=(3.4, 2.8), **options):
    """Empty panels side by side.

    Args:
        number: of panels.
        columns: at most in a row.
        size: (width, height) of each, inches of 100 pixels.
        options: as of matplotlib's Figure.subplots, e.g. sharey.
    Returns: (figure, list of its axes).
    """
    from matplotlib.figure import Figure  # takes a second, and --help does not wait for it

    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for unused in axes[number:]:
        unused.remove()
    for axis in axes[:number]:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[:number]


def save(figure, path):
    """Write a figure whole; one that is there is replaced."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:].lower(), dpi=100)
