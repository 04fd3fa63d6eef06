"""Train a small tokenizer for MODEL.SIMMIM.TARGET tokens: a vector-quantised autoencoder (VQ-VAE, arXiv 1711.00937).

  python tools/tokenizer.py --cfg configs/demo/simmim_pretrain__swin_nano__img64.yaml tokenizer.pth [--tokens 128] [--cell 8]
  python main_simmim.py --cfg configs/demo/simmim_pretrain__swin_nano__img64.yaml --opts MODEL.SIMMIM.TARGET tokens \\
    MODEL.SIMMIM.TOKENIZER tokenizer.pth

Images are read and cropped as in pre-training; without --data-path those of the recipe. It is meant for small images. Another
tokenizer is used by MODEL.SIMMIM.TOKENIZER package.module:Class, a torch module that gives (B, h, w) classes.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import add_data, positive, run


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser)
    parser.add_argument("target", type=Path, metavar="OUT.pth", help="file to write")
    parser.add_argument("--tokens", type=positive(int), default=128, help="classes (default: %(default)s)")
    parser.add_argument("--cell", type=positive(int), default=8, help="pixels per side of a token (default: %(default)s)")
    parser.add_argument("--steps", type=positive(int), default=600, help="of training (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import torch
from torch.nn import functional as F

from config import encoder_config, image_size, load_config
from data.loader import build_loader
from models.methods.class_targets import Tokenizer
from utils.checkpoint import save_checkpoint
from utils.files import refuse_existing
from utils.seeding import seed_globals

BATCH, RATE = 16, 2e-3
COMMITMENT = 0.25  # of the encoder to its codes, as in the paper
REVIVAL = 50       # steps after which codes that nothing was near to become vectors of the batch


def main(args):
    if args.target.suffix != ".pth":
        raise ValueError(f"{args.target} must end in .pth: it holds weights.")
    refuse_existing(args.target)
    opts = ["DATA.DATA_PATH", args.data_path] if args.data_path else []
    config = load_config(args.cfg, [*args.opts, *opts, "DATA.BATCH_SIZE", BATCH], "pretrain")
    if any(side % args.cell for side in image_size(config)):
        raise ValueError(f"--cell {args.cell} does not divide DATA.IMG_SIZE={config.DATA.IMG_SIZE}.")
    seed_globals(config.SEED)
    tokenizer = Tokenizer(args.tokens, args.cell, encoder_config(config).IN_CHANS)
    error, used = train(tokenizer, build_loader(config, is_pretrain=True).train, args.steps)
    save_checkpoint(args.target, {"model": tokenizer.state_dict(), "tokenizer": tokenizer.sizes()})
    print(f"{args.target}: {used} of {args.tokens} tokens are used, which leave {error:.0%} of the variance of the images. To "
          f"use it: --opts MODEL.SIMMIM.TARGET tokens MODEL.SIMMIM.TOKENIZER {args.target}")


def train(tokenizer, loader, steps):
    """Train it. Returns: (squared error over variance, tokens used), of the last REVIVAL steps."""
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=RATE, weight_decay=0.0)
    counts, errors = torch.zeros(tokenizer.num_tokens), []
    for step, images in enumerate(endless(loader, steps)):
        vectors = tokenizer.embed(images).movedim(1, -1)
        if step == 0:
            revive(tokenizer, vectors, torch.ones(tokenizer.num_tokens, dtype=torch.bool))
        ids = tokenizer.nearest(vectors)
        codes = tokenizer.codes[ids]
        passed = vectors + (codes - vectors).detach()  # the gradient of the picture goes around the choice of a code
        error = F.mse_loss(tokenizer.decode(passed.movedim(-1, 1)), images)
        loss = error + F.mse_loss(codes, vectors.detach()) + COMMITMENT * F.mse_loss(vectors, codes.detach())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        counts += torch.bincount(ids.flatten(), minlength=tokenizer.num_tokens)
        errors.append(error.item() / images.var().item())
        if (step + 1) % REVIVAL == 0 and step + 1 < steps - REVIVAL:
            revive(tokenizer, vectors, counts == 0)
            counts.zero_()
    return sum(errors[-REVIVAL:]) / len(errors[-REVIVAL:]), int((counts > 0).sum())


def endless(loader, steps):
    """Images of so many batches, epoch after epoch."""
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        for images, *_ in loader:
            if not steps:
                return
            yield images
            steps -= 1
        epoch += 1


@torch.no_grad()
def revive(tokenizer, vectors, dead):
    """Give dead codes the places of vectors of a batch (B, h, w, dim)."""
    flat = vectors.flatten(0, -2)
    tokenizer.codes[dead] = flat[torch.randint(len(flat), (int(dead.sum()),))]


if __name__ == "__main__":
    run(main, ARGUMENTS)
