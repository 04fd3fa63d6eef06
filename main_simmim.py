"""Pre-train by masked image modeling.

  torchrun --nproc_per_node 8 main_simmim.py --batch-size 128 --data-path <folder of images> \\
      --cfg configs/swin_base/simmim_pretrain__swin_base__img192_window6__100ep.yaml
  python main_simmim.py --data-path <folder of images> --hours 2       (settings are chosen by the images and the machine)
  python main_simmim.py --cfg configs/demo/simmim_pretrain__swin_nano__img64.yaml     (one process, no data needed)
"""
import logging

from utils.cli import CHOOSING, parse_arguments, run

if __name__ == "__main__":
    ARGUMENTS = parse_arguments(__doc__, flags=CHOOSING)  # before the imports that take seconds

import torch

from checks import check_job
from config import load_config, pixel_statistics, run_folder, scaled_config
from data import build_loader
from engine import Job, build_for_training, build_updater, fit, last_iteration, running, start
from evaluation import heldout_loss, record_evaluation, report_throughput
from lr_scheduler import build_scheduler
from models import build_model, load_pretrained
from optimizer import build_optimizer
from planning.start import with_recipe
from saving import save_encoder
from utils import distributed
from utils.checkpoint import load_checkpoint, load_weights
from utils.pictures import picture_grid
from utils.sharding import gathered, is_sharded

log = logging.getLogger("simmim.main")


def main(cfg, opts):
    cfg, opts = with_recipe(cfg, opts, "pretrain")
    config = load_config(cfg, opts, "pretrain")
    check_job(config, "pretrain")
    device, precision = start(config)
    if config.THROUGHPUT_MODE:
        return report_throughput(build_model(config, is_pretrain=True).to(device), config, device, precision)
    if config.EVAL_MODE:
        return evaluate_only(build_model(config, is_pretrain=True).to(device), config, device, precision)
    model = build_for_training(config, True, device, precision)
    loaders = build_loader(config, is_pretrain=True)
    if config.PRETRAINED:
        load_pretrained(model, config.PRETRAINED, config.PRETRAINED_KEY)
    train(model, loaders, config, device, precision)


def evaluate_only(model, config, device, precision):
    """Held-out reconstruction loss of a checkpoint."""
    if not config.MODEL.RESUME and not config.PRETRAINED:
        raise ValueError("--eval needs weights: pass --resume <checkpoint> or --pretrained <checkpoint>.")
    loaders = build_loader(config, is_pretrain=True, train=False)
    if loaders.val is None:
        raise ValueError("--eval of a pre-training model needs held-out images: pass --opts DATA.VAL_PATH <folder>.")
    if config.MODEL.RESUME:
        content = load_checkpoint(config.MODEL.RESUME, moments=False)
        load_weights(model, content, config.MODEL.RESUME, key=config.PRETRAINED_KEY)
    else:
        report = load_pretrained(model, config.PRETRAINED, config.PRETRAINED_KEY)
        if any(name.startswith("decoder.") for name in report.missing):
            raise ValueError(f"{config.PRETRAINED} has no decoder that fits: without one there is no reconstruction to "
                             f"evaluate. {report.misfit or 'Use a full checkpoint (ckpt_epoch_N.pth).'}")
    result = heldout_loss(model, loaders.val, device, precision)
    log.info("held-out loss %.4f on %d images", result["loss"], result["images"])
    record_evaluation(config, result)


def train(model, loaders, config, device, precision):
    scaled = scaled_config(config, distributed.world_size())
    optimizer = build_optimizer(scaled, model, is_pretrain=True)
    model, optimizer = precision.prepare(model, optimizer)
    scheduler = build_scheduler(scaled, optimizer, len(loaders.train))
    job = Job(config=config, task="pretrain", device=device, model=model, loader=loaders.train, scheduler=scheduler,
              updater=build_updater(config, model, optimizer, precision, device),
              compute_loss=lambda model, batch: model(*batch),
              validate=lambda epoch: validate(job, loaders, epoch), draw=lambda epoch: draw(job, loaders, epoch),
              folder=run_folder(config), fixed=("TRAIN.FREEZE",), images=loaders.train.dataset.samples.mark())
    with running(job, scaled, len(loaders.train.dataset), loaders.val and len(loaders.val.dataset)):
        fit(job)
        save_encoder(job)


def draw(job, loaders, epoch):
    """The fixed grid of reconstructions, every VIS_FREQ epochs."""
    config = job.config
    if config.VIS_FREQ and (epoch % config.VIS_FREQ == 0 or epoch == config.TRAIN.EPOCHS - 1):
        job.metrics.picture("reconstructions", epoch, last_iteration(job, epoch), picture(job, loaders.pictures))


def validate(job, loaders, epoch):
    """Held-out loss."""
    if loaders.val is None:
        return {}
    numbers = heldout_loss(job.model, loaders.val, job.device, job.updater.precision)
    log.info("epoch %d: held-out loss %.4f on %d images", epoch, numbers["loss"], numbers["images"])
    return numbers


@torch.no_grad()
def picture(job, dataset):
    """Reconstructions of the first VIS_IMAGES images, evenly spread over the data, always with the same masks."""
    number = min(job.config.VIS_IMAGES, len(dataset))
    samples = [dataset[i * len(dataset) // number] for i in range(number)]
    images, masks = (part.to(job.device) for part in dataset.collate(samples))
    job.model.eval()
    if is_sharded(job.model):  # must be called as a whole before any part of it
        with job.updater.precision.autocast():
            job.model(images, masks)
    with job.updater.precision.autocast(), gathered(job.model):
        columns = job.model.pictures(images, masks)
    return picture_grid(columns, *pixel_statistics(job.config))


if __name__ == "__main__":
    run(main, *ARGUMENTS)
