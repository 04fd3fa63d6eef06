"""Semantic segmentation on one of our encoders: a class for each pixel of drawn images.

  python examples/segmentation.py                                                        small Swin, untrained
  python examples/segmentation.py --pretrained output/simmim_pretrain/swin_nano/encoder.pth --freeze
  python examples/segmentation.py --cfg configs/demo/mae_pretrain__vit_nano__img64.yaml  a ViT, which has one map

The maps of all stages are brought to one width and size, added up, and classified: the semantic branch of the panoptic feature
pyramid network (arXiv 1901.02446) in short. With --freeze only this head learns.
"""
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the repository is cloned, not installed

from utils.cli import positive, run

RECIPE = ROOT / "configs/demo/simmim_pretrain__swin_nano__img64.yaml"


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default=RECIPE, metavar="FILE", help="recipe of the encoder (default: a small Swin)")
    parser.add_argument("--pretrained", default="", metavar="FILE", help="checkpoint of the encoder")
    parser.add_argument("--freeze", action="store_true", help="train the head only")
    parser.add_argument("--size", type=int, default=128, help="pixels per side of the images (default: 128)")
    parser.add_argument("--steps", type=positive(int), default=120, help="of training (default: 120)")
    parser.add_argument("--batch-size", type=positive(int), default=8, help="images of a step (default: 8)")
    parser.add_argument("--lr", type=float, default=2e-3, help="of AdamW (default: 2e-3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="other settings, see config.py")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from config import image_size, pixel_statistics
from examples.pyramid import StageMaps, load_encoder
from examples.shapes import SHAPES, class_map, draw_scene

CHANNELS = 64


class Segmenter(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> scores of the classes (B, num_classes, H, W).

    Args:
        encoder, config: from load_encoder.
        num_classes: with that of the background.
        freeze: leave the encoder as it is.
    """

    def __init__(self, encoder, config, num_classes, freeze):
        super().__init__()
        self.stages = StageMaps(encoder.requires_grad_(not freeze), image_size(config))
        self.lateral = nn.ModuleList(nn.Conv2d(width, CHANNELS, 1) for width in self.stages.widths)
        self.classify = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.GELU(),
                                      nn.Conv2d(CHANNELS, num_classes, 1))
        self.frozen = freeze
        for name, values in zip(("mean", "std"), pixel_statistics(config), strict=True):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.stages.encoder.eval()  # no stochastic depth in what does not learn
        return self

    def forward(self, images):
        maps = [lateral(features) for lateral, features in
                zip(self.lateral, self.stages((images - self.mean) / self.std), strict=True)]
        finest = maps[0].shape[2:]
        summed = sum(F.interpolate(features, finest, mode="bilinear") for features in maps)
        return F.interpolate(self.classify(summed), images.shape[2:], mode="bilinear")


def main(args):
    torch.manual_seed(args.seed)
    model = Segmenter(*load_encoder(args.cfg, args.size, args.pretrained, args.opts), len(SHAPES), args.freeze)
    train(model, args)
    overlaps = evaluate(model, args)
    print("held-out images: IoU " + ", ".join(f"{name} {iou:.3f}" for name, iou in zip(SHAPES, overlaps, strict=True))
          + f", mean {np.mean(overlaps):.3f}")


def draw_batch(rng, size, count):
    """Images (count, 3, size, size) and classes (count, size, size)."""
    scenes = [draw_scene(rng, size) for _ in range(count)]
    return torch.stack([image for image, _ in scenes]), torch.stack([class_map(target) for _, target in scenes])


def train(model, args):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.05)
    rng = np.random.default_rng(args.seed)
    model.train()
    for step in range(1, args.steps + 1):
        images, classes = draw_batch(rng, args.size, args.batch_size)
        loss = F.cross_entropy(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step in (1, args.steps):
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def evaluate(model, args, num_images=32):
    """Intersection over union of each class, over the pixels of images that training has not seen."""
    images, classes = draw_batch(np.random.default_rng((args.seed, 1)), args.size, num_images)
    model.eval()
    found = model(images).argmax(dim=1)
    pairs = [(found == i, classes == i) for i in range(len(SHAPES))]
    return [((ours & theirs).sum() / (ours | theirs).sum()).item() for ours, theirs in pairs]


if __name__ == "__main__":
    run(main, ARGUMENTS)
