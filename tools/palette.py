"""Fit the colours of MODEL.SIMMIM.TARGET clusters: k-means over pixels of training images.

  python tools/palette.py --cfg configs/swin_base/simmim_pretrain__swin_base__img192_window6__100ep.yaml \\
    --data-path <folder of images> palette.npy [--colours 512] [--images 1000]
  python main_simmim.py --cfg <the same> --data-path <the same> --opts MODEL.SIMMIM.TARGET clusters \\
    MODEL.SIMMIM.PALETTE palette.npy

Images are read and cropped as in pre-training. The file is a NumPy array (colours, channels) of pixels from 0 (black) to 1.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import add_data, positive, run


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser)
    parser.add_argument("target", type=Path, metavar="OUT.npy", help="file to write")
    parser.add_argument("--colours", type=positive(int), default=512, help="default: %(default)s")
    parser.add_argument("--images", type=positive(int), default=1000, help="whose pixels are taken (default: %(default)s)")
    parser.add_argument("--pixels", type=positive(int), default=200, help="of each image, at random (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from config import load_config, pixel_statistics
from data.loader import build_loader
from utils.files import refuse_existing, replacing
from utils.seeding import rng_for


def main(args):
    if args.target.suffix != ".npy":
        raise ValueError(f"{args.target} must end in .npy: it is a NumPy array.")
    refuse_existing(args.target)
    opts = ["DATA.DATA_PATH", args.data_path] if args.data_path else []
    config = load_config(args.cfg, [*args.opts, *opts, "DATA.BATCH_SIZE", 1], "pretrain")
    pixels = pixels_of(config, args.images, args.pixels)
    if len(np.unique(pixels, axis=0)) < args.colours:
        raise ValueError(f"the images have fewer than {args.colours} different colours: use a smaller --colours.")
    colours, _ = kmeans2(pixels, args.colours, iter=20, minit="++", rng=rng_for(config.SEED))
    with replacing(args.target) as part, open(part, "wb") as file:
        np.save(file, np.clip(colours, 0, 1).astype(np.float32))
    print(f"{args.target}: {args.colours} colours of {len(pixels)} pixels. To use it: --opts MODEL.SIMMIM.TARGET clusters "
          f"MODEL.SIMMIM.PALETTE {args.target}")


def pixels_of(config, images, pixels):
    """Random pixels of the first images that training sees, (n, channels) float, from 0 to 1."""
    mean, std = (torch.tensor(values).view(1, -1) for values in pixel_statistics(config))
    rng, found = rng_for(config.SEED), []
    for batch, *_ in build_loader(config, is_pretrain=True).train:
        values = batch[0].flatten(1).T * std + mean
        found.append(values[torch.from_numpy(rng.randint(len(values), size=pixels))])
        if len(found) == images:
            break
    return torch.cat(found).double().numpy()


if __name__ == "__main__":
    run(main, ARGUMENTS)
