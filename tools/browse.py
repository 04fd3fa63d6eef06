"""What a recipe will do, before it trains: the images and masks that its first epochs get, and its learning rates.

  python tools/browse.py --cfg <recipe> --data-path photos --out seen.png                      or seen.html
  python tools/browse.py --cfg <recipe> --data-path photos --out seen.png --epochs 5 --opts DATA.MASK_PATCH_SIZE 16
  python tools/browse.py --cfg <recipe> --rates --images 1281167 --gpus 8                      a table of the rates
  python tools/browse.py --cfg <recipe> --rates rates.png --images 1281167 --gpus 8            and their curve

Images are read, cropped, turned and masked as the run does it, with its seed: epoch by epoch the same pictures. Masks that
images share (DATA.MASK_SHARED, DATA.MASK_GROUPS) are drawn for each by itself here, and mixtures (AUG.MIXUP) not at all.
Rates are those in effect at each iteration, of the recipe's batch on so many GPUs; with layer decay of the head and of the
patch embedding.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import positive, run

POINTS = 1000  # of a drawn curve
SHARES = (0, 0.25, 0.5, 0.75, 1)  # of a run, where the table has a line


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="recipe, see configs/, or a checkpoint")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="other settings, see config.py")
    parser.add_argument("--stage", choices=("pretrain", "finetune", "probe"), help="what it is for, if it does not tell")
    parser.add_argument("--data-path", metavar="FOLDER", help="as of training (DATA.DATA_PATH)")
    images = parser.add_argument_group("images")
    images.add_argument("--out", metavar="FILE", help=".png or another picture, or .html; one that exists is replaced")
    images.add_argument("--number", type=positive(int), default=4, metavar="N", help="of images (default: %(default)s)")
    images.add_argument("--epochs", type=positive(int), default=3, metavar="N", help="from the first (default: %(default)s)")
    images.add_argument("--cell", type=positive(int), default=128, metavar="PIXELS", help="of a picture (default: %(default)s)")
    rates = parser.add_argument_group("learning rates")
    rates.add_argument("--rates", nargs="?", const="", metavar="FILE.png", help="print them; with a file draw them, too, which "
                                                                             "needs requirements-plots.txt")
    rates.add_argument("--images", type=positive(int), metavar="N", help="of an epoch (default: those of the data)")
    rates.add_argument("--gpus", type=positive(int), default=1, metavar="N", help="default: %(default)s")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import torch
from PIL import Image

from checks import check_job
from config import load_config, pixel_statistics, scaled_config, with_values
from data.datasets import MaskedImageDataset
from data.loader import build_loader, build_probe_loaders
from data.reading import BadImage, read_image
from lr_scheduler import build_scheduler
from models.build import build_encoder
from models.layers import lift_mask
from recipes import TASK_OF_JOB, task_of
from tools.plots import check_plot, panels, save
from utils.names import shown
from utils.pictures import as_pictures
from utils.sheets import check_sheet, write_sheet
from utils.tables import aligned


def main(args):
    if args.out is None and args.rates is None:
        raise ValueError("nothing to do: pass --out <file.png or .html> for the images, or --rates for the learning rates.")
    if args.out:
        check_sheet(args.out)
    if args.rates:
        check_plot(args.rates, "--rates")
    config = load_config(args.cfg, [*args.opts, *(["DATA.DATA_PATH", args.data_path] if args.data_path else [])])
    job = args.stage or job_of(config, args.cfg)
    check_job(with_values(config, PRETRAINED="", PROBE__RANDOM_ENCODER=True), job)  # no weights are looked at here
    dataset, classes = training_data(config, job) if args.out or not args.images else (None, [])
    if args.out:
        rows = image_rows(dataset, classes, config, args)
        write_sheet(args.out, rows, Path(args.cfg).stem, args.cell)
        print(f"{args.out}: {len(rows)} of {len(dataset)} training images in {args.epochs} epochs")
    if args.rates is not None:
        curves = rates_of(config, job, args.images or len(dataset), args.gpus)
        print(as_text(curves))
        if args.rates:
            save(figure_of(curves), args.rates)


def job_of(config, name):
    """pretrain, finetune or probe. Raises ValueError where the recipe does not tell."""
    try:
        task = task_of(config, name)
    except ValueError as error:
        raise ValueError(f"{name} does not tell what it is for: pass --stage pretrain, finetune or probe.") from error
    return next(job for job, its_task in TASK_OF_JOB.items() if its_task == task)


def training_data(config, job):
    """(data set as training has it, names of its classes). Raises ValueError where there is none."""
    config = with_values(config, DATA__BATCH_SIZE=2, DATA__NUM_WORKERS=0)  # a few images will do; no masks depend on it
    loaders = build_probe_loaders(config) if job == "probe" else build_loader(config, is_pretrain=job == "pretrain")
    return (loaders.train or loaders.plain).dataset, loaders.classes


# ---- images -------------------------------------------------------------------------------------------------------

def image_rows(dataset, classes, config, args):
    """A row for each image: as it is in its file, then epoch by epoch as training gets it, and under its mask."""
    number = min(args.number, len(dataset))
    rows = []
    for index in (i * len(dataset) // number for i in range(number)):
        path, label = dataset.samples[index]
        columns = {}
        try:
            picture = read_image(path, dataset.mode, rules=dataset.rules)
            if isinstance(picture, Image.Image):  # of many channels there is none
                columns["file"] = picture.convert("RGB")
            for epoch in range(args.epochs):
                image, other = dataset[epoch, index]
                columns[f"epoch {epoch}"] = seen(image, config)
                if isinstance(dataset, MaskedImageDataset):
                    hidden = lift_mask(other.unsqueeze(0), image.shape[1:])
                    columns[f"epoch {epoch}, masked"] = seen(image.masked_fill(hidden, torch.nan), config)
        except BadImage as error:
            raise ValueError(f"{error} Training passes over such images; tools/check_data.py finds all.") from error
        name = Path(str(path)).name
        rows.append((name if not classes else f"{name}\n{shown(classes[label])}", columns))
    return rows


def seen(image, config):
    """(C, H, W), normalised -> PIL image; NaN is grey."""
    return as_pictures(image.unsqueeze(0), *pixel_statistics(config))[0]


# ---- learning rates -----------------------------------------------------------------------------------------------

def rates_of(config, job, num_images, gpus):
    """Learning rates in effect over a run.

    Args:
        num_images: of an epoch.
        gpus: processes, which share a batch of DATA.BATCH_SIZE x gpus.
    Returns: {name of a group: list of (epochs done, iteration, rate)}, all at the same places.
    Raises: ValueError if the images do not fill a batch.
    """
    length = num_images // (config.DATA.BATCH_SIZE * gpus)
    if not length:
        raise ValueError(f"{num_images} images do not fill one batch of {config.DATA.BATCH_SIZE} x {gpus} GPUs. Use --opts "
                         f"DATA.BATCH_SIZE {max(num_images // gpus, 1)}, or fewer --gpus.")
    scaled = scaled_config(config, gpus)
    groups = {"all": 1.0}
    if job == "finetune" and config.TRAIN.LAYER_DECAY != 1:
        with torch.device("meta"):
            layers = build_encoder(config).num_layers
        groups = {"head": 1.0, "patch embedding": config.TRAIN.LAYER_DECAY ** (layers + 1)}
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight.clone().detach()], "lr": scaled.TRAIN.BASE_LR * scale, "lr_scale": scale}
                                 for scale in groups.values()])
    scheduler = build_scheduler(scaled, optimizer, length)
    curves = {name: [] for name in groups}
    for step in places(config.TRAIN.EPOCHS * length, config.TRAIN.WARMUP_EPOCHS * length):
        if step:
            scheduler.step_update(step - 1)  # what it sets is in effect in the next iteration
        for name, group in zip(groups, optimizer.param_groups, strict=True):
            curves[name].append((step / length, step, group["lr"]))
    return curves


def places(total, warmup):
    """Iterations at which a curve is drawn: evenly spread ones, those of SHARES and where the warm-up ends."""
    spread = {i * total // POINTS for i in range(POINTS)}
    return sorted(step for step in spread | {round(share * (total - 1)) for share in SHARES} | {1, warmup, warmup + 1}
                  if step < total)


def as_text(curves):
    """A line for the first and last iteration, the highest rate, and quarters of the run between them."""
    points = next(iter(curves.values()))
    last = points[-1][1]
    peak = max(points, key=lambda point: point[2])[1]
    steps = sorted({*(round(share * last) for share in SHARES), peak})
    rows = [("epoch", "iteration", *(f"rate, {name}" if len(curves) > 1 else "rate" for name in curves))]
    for i, (epoch, step, _) in enumerate(points):
        if step in steps:
            rows.append((f"{epoch:.2f}", str(step), *(f"{curve[i][2]:.4g}" for curve in curves.values())))
    return "\n".join(aligned(rows, num_left=0))


def figure_of(curves):
    """A line for each group of parameters."""
    figure, (axis,) = panels(1, size=(6, 3.2))
    for name, points in curves.items():
        axis.plot([point[0] for point in points], [point[2] for point in points], label=name)
    axis.set(xlabel="epochs", ylabel="learning rate")
    axis.set_ylim(bottom=0)
    if len(curves) > 1:
        axis.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    run(main, ARGUMENTS)
