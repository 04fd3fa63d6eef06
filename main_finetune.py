"""Fine-tune a classification model, or evaluate one (--eval).

  torchrun --nproc_per_node 8 main_finetune.py --batch-size 128 --data-path <folder with train/ and val/> \\
      --cfg configs/swin_base/simmim_finetune__swin_base__img224_window7__100ep.yaml --pretrained <checkpoint>
  python main_finetune.py --pretrained <checkpoint of ours> --data-path <folder of classes>     (settings are chosen)
  python main_finetune.py --eval --resume <fine-tuned checkpoint> --data-path <folder with val/>
"""
import logging
from functools import partial

from utils.cli import CHOOSING, parse_arguments, run

if __name__ == "__main__":
    ARGUMENTS = parse_arguments(__doc__, flags=CHOOSING)  # before the imports that take seconds

from torch.nn import functional as F

from checks import check_job
from config import load_config, run_folder, scaled_config
from data import build_loader
from data.loader import build_mixup, with_classes
from engine import Job, build_for_training, build_updater, fit, report_best, running, start
from evaluation import accuracy_line, evaluate, record_evaluation, report_classes, report_throughput
from lr_scheduler import build_scheduler
from models import build_model, load_pretrained
from models.weights.heads import read_head
from optimizer import build_optimizer
from planning.start import with_recipe
from utils import distributed
from utils.checkpoint import load_checkpoint, load_weights, weights_of
from utils.classes import head_of
from utils.confusion import Confusion

log = logging.getLogger("simmim.main")


def main(cfg, opts):
    cfg, opts = with_recipe(cfg, opts, "finetune")
    config = load_config(cfg, opts, "finetune")
    check_job(config, "finetune")
    if config.EVAL_MODE and not config.MODEL.RESUME and not config.PRETRAINED:
        raise ValueError("--eval needs weights: pass --resume <checkpoint> or --pretrained <checkpoint>.")
    device, precision = start(config)
    if config.THROUGHPUT_MODE:
        return report_throughput(build_model(config, is_pretrain=False).to(device), config, device, precision)
    head = evaluated_head(config) if config.EVAL_MODE else None
    loaders = build_loader(config, is_pretrain=False, train=not config.EVAL_MODE, head=head)
    config = with_classes(config, loaders.classes, head.path if head else "the data")
    if config.EVAL_MODE:
        return evaluate_only(build_model(config, is_pretrain=False).to(device), loaders, config, device, precision)
    model = build_for_training(config, False, device, precision)
    if config.PRETRAINED:
        load_pretrained(model, config.PRETRAINED, config.PRETRAINED_KEY, loaders.classes)
    elif not config.MODEL.RESUME:
        log.info("no --pretrained checkpoint: training from scratch, unless the run folder holds a checkpoint to resume")
    train(model, loaders, config, device, precision)


def evaluated_head(config):
    """utils.classes.Head of the checkpoint that --eval names: whose classes its labels are."""
    if config.MODEL.RESUME:
        content = load_checkpoint(config.MODEL.RESUME, moments=False)
        return head_of(content, weights_of(content, config.PRETRAINED_KEY), config.MODEL.RESUME)
    return read_head(config.PRETRAINED, config.PRETRAINED_KEY)


def evaluate_only(model, loaders, config, device, precision):
    """Accuracy of a checkpoint on the validation images, of all and of each class."""
    if config.MODEL.RESUME:
        content = load_checkpoint(config.MODEL.RESUME, moments=False)
        load_weights(model, content, config.MODEL.RESUME, key=config.PRETRAINED_KEY)
    else:
        report = load_pretrained(model, config.PRETRAINED, config.PRETRAINED_KEY, loaders.classes)
        if any(name.startswith("head.") for name in report.missing):
            raise ValueError(f"{config.PRETRAINED} has no head for {len(loaders.classes)} classes: there is nothing to "
                             f"evaluate. Fine-tune first, or pass a fine-tuned checkpoint.")
    confusion = Confusion()
    numbers = evaluate(model, loaders.val, device, precision, confusion)
    log.info("%s", accuracy_line(numbers))
    record_evaluation(config, numbers)
    report_classes(config, numbers, confusion, loaders.classes)


def finetuning_loss(model, batch, mixup, smoothing):
    """Cross entropy of a batch.

    Args:
        batch: images (B, C, H, W), labels (B,).
        mixup: from build_mixup, or None; its soft labels contain the smoothing.
        smoothing: of labels that are not mixed.
    """
    images, labels = mixup(*batch) if mixup else batch
    return F.cross_entropy(model(images).float(), labels, label_smoothing=0.0 if mixup else smoothing)


def train(model, loaders, config, device, precision):
    scaled = scaled_config(config, distributed.world_size())
    optimizer = build_optimizer(scaled, model, is_pretrain=False)
    model, optimizer = precision.prepare(model, optimizer)
    scheduler = build_scheduler(scaled, optimizer, len(loaders.train))
    mixup = build_mixup(config, len(loaders.classes))

    def validate(epoch):
        confusion = Confusion()
        numbers = evaluate(model, loaders.val, device, precision, confusion)
        log.info("%s", accuracy_line(numbers))
        if epoch == config.TRAIN.EPOCHS - 1:
            average = job.updater.average
            name = f"epoch_{epoch}" + ("_ema" if average is not None and average.is_in_place else "")
            report_classes(config, numbers, confusion, loaders.classes, name)
        return numbers

    job = Job(config=config, task="finetune", device=device, model=model, loader=loaders.train, scheduler=scheduler,
              updater=build_updater(config, model, optimizer, precision, device),
              compute_loss=partial(finetuning_loss, mixup=mixup, smoothing=config.MODEL.LABEL_SMOOTHING), validate=validate,
              folder=run_folder(config), group=-1, score="top1",
              classes=loaders.classes, fixed=("TRAIN.FREEZE",), images=loaders.train.dataset.samples.mark())
    with running(job, scaled, len(loaders.train.dataset), len(loaders.val.dataset)):
        fit(job)
        report_best(job)


if __name__ == "__main__":
    run(main, *ARGUMENTS)
