"""Mask R-CNN on one of our encoders: torchvision's detector, drawn images with boxes and masks.

  python examples/detection.py                                                        small Swin, untrained
  python examples/detection.py --pretrained output/simmim_pretrain/swin_nano/encoder.pth
  python examples/detection.py --cfg configs/demo/mae_pretrain__vit_nano__img64.yaml  a ViT, with the pyramid of ViTDet

It shows the wiring; for numbers on COCO put its images into `batches` and take a larger encoder, --size and --steps.
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
    parser.add_argument("--size", type=int, default=128, help="pixels per side of the images (default: 128)")
    parser.add_argument("--steps", type=positive(int), default=60, help="of training (default: 60)")
    parser.add_argument("--batch-size", type=positive(int), default=4, help="images of a step (default: 4)")
    parser.add_argument("--lr", type=float, default=1e-3, help="of AdamW (default: 1e-3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="other settings, see config.py")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import numpy as np
import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from config import pixel_statistics
from examples.pyramid import Pyramid, load_encoder
from examples.shapes import SHAPES, draw_scene

CHANNELS = 64


def main(args):
    torch.manual_seed(args.seed)
    model = build_detector(*load_encoder(args.cfg, args.size, args.pretrained, args.opts), args.size)
    train(model, args)
    found, objects, wrong = evaluate(model, args)
    print(f"held-out images: {found} of {objects} objects found (mask IoU over 0.5), {wrong} detections wrong")


def build_detector(encoder, config, size):
    """Mask R-CNN for images in [0, 1] of one size; its heads are small, so that a CPU can train them."""
    backbone = Pyramid(encoder, config, CHANNELS)
    with torch.no_grad():
        maps = backbone(torch.zeros(1, encoder.in_chans, size, size))
    strides = [size // features.shape[-1] for features in maps.values()]
    names = [name for name in maps if name != "pool"]  # the coarsest is for proposals only
    mean, std = pixel_statistics(config)
    return MaskRCNN(
        backbone, min_size=size, max_size=size, image_mean=mean, image_std=std,
        size_divisible=encoder.stride,
        rpn_anchor_generator=AnchorGenerator(tuple((4 * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * len(maps)),
        rpn_post_nms_top_n_train=100, rpn_post_nms_top_n_test=100, box_batch_size_per_image=64,
        box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        mask_roi_pool=MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2),
        box_head=TwoMLPHead(CHANNELS * 7 ** 2, 128), box_predictor=FastRCNNPredictor(128, len(SHAPES)),
        mask_head=MaskRCNNHeads(CHANNELS, (CHANNELS, CHANNELS), 1),
        mask_predictor=MaskRCNNPredictor(CHANNELS, CHANNELS, len(SHAPES)))


def train(model, args):
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    rng = np.random.default_rng(args.seed)
    model.train()
    for step in range(1, args.steps + 1):
        images, targets = zip(*(draw_scene(rng, args.size) for _ in range(args.batch_size)), strict=True)
        losses = model(list(images), list(targets))
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if step % 10 == 0 or step in (1, args.steps):
            parts = ", ".join(f"{name.removeprefix('loss_')} {value.item():.3f}" for name, value in losses.items())
            print(f"step {step}: loss {loss.item():.3f} ({parts})", flush=True)


@torch.no_grad()
def evaluate(model, args, num_images=16, least_score=0.5):
    """(objects found, objects, detections that are none) on images that training has not seen."""
    rng, found, objects, wrong = np.random.default_rng((args.seed, 1)), 0, 0, 0
    model.eval()
    for _ in range(num_images):
        image, target = draw_scene(rng, args.size)
        output = model([image])[0]
        kept = output["scores"] >= least_score
        masks, truth = output["masks"][kept, 0] > 0.5, target["masks"].bool()
        overlap = (masks.unsqueeze(1) & truth).sum(dim=(2, 3)) / (masks.unsqueeze(1) | truth).sum(dim=(2, 3))
        hits = (overlap > 0.5) & (output["labels"][kept].unsqueeze(1) == target["labels"])  # (detections, objects)
        found, objects = found + int(hits.any(dim=0).sum()), objects + len(truth)
        wrong += int((~hits.any(dim=1)).sum())
    return found, objects, wrong


if __name__ == "__main__":
    run(main, ARGUMENTS)
