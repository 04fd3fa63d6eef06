"""Linear probe and nearest neighbours on a frozen encoder.

  torchrun --nproc_per_node 8 main_linprobe.py --batch-size 512 --accumulation-steps 4 --data-path <train/ and val/> \\
      --cfg configs/mae/mae_linprobe__vit_base__img224__1600ep.yaml --pretrained <checkpoint>
  python main_linprobe.py --pretrained <checkpoint> --data-path <labelled images>    # of ours, which knows what it is
  python main_linprobe.py --cfg <recipe> --pretrained <checkpoint> --layer 8     # average-pooled output of the eighth block
  python main_linprobe.py --cfg <recipe> --pretrained <checkpoint> --sweep       # every block, a table at the end
  python main_linprobe.py --cfg <recipe> --pretrained <checkpoint> --knn         # no training; with --sweep of every block
  python main_linprobe.py --eval --resume <checkpoint of a probe>
"""
import logging

from utils.cli import parse_arguments, run

FLAGS = {
    "--layer": ("PROBE.LAYER", str, "block to probe: from 1, or from the end -1; last = normalised output"),
    "--feature": ("PROBE.FEATURE", str, "mean of the patch tokens, or cls"),
    "--cache": ("PROBE.CACHE", str, "folder of extracted features"),
}
SWITCHES = {
    "--sweep": ("PROBE.SWEEP", "probe every layer"),
    "--augment": ("PROBE.AUGMENT", "train on random crops and flips"),
    "--knn": ("PROBE.KNN", "classify by nearest neighbours, train nothing"),
    "--random-encoder": ("PROBE.RANDOM_ENCODER", "probe an untrained encoder, to compare with"),
}

if __name__ == "__main__":
    ARGUMENTS = parse_arguments(__doc__, flags=FLAGS, switches=SWITCHES)  # before the imports that take seconds

import numpy as np
import torch
from torch.nn import functional as F

from checks import check_job
from config import encoder_config, load_config, run_folder, scaled_config
from data.features import FeatureCache, checksum, parts_of, unreadable_rows
from data.loader import build_probe_loaders, feature_loader, with_classes
from engine import Job, build_updater, fit, report_best, running, start
from evaluation import accuracy_line, append_records, evaluate, record_evaluation, report_classes, report_throughput
from lr_scheduler import build_scheduler
from models import load_pretrained
from models.probe import build_probe, check_batch_norm
from optimizer import build_optimizer
from resume import check_fixed
from utils import distributed
from utils.checkpoint import load_checkpoint, load_weights, weights_of
from utils.classes import head_of
from utils.confusion import Confusion
from utils.knn import count_correct

log = logging.getLogger("simmim.main")

FIXED = ("PROBE.LAYER", "PROBE.SWEEP", "PROBE.FEATURE")  # a head is worth nothing on other features


def main(cfg, opts):
    config = load_config(cfg, opts, "probe")
    check_job(config, "probe")
    device, precision = start(config)
    if config.THROUGHPUT_MODE:
        return report_throughput(build_probe(config, config.MODEL.NUM_CLASSES).to(device), config, device, precision)
    content = head = None
    if config.EVAL_MODE and not config.PROBE.KNN:
        content = load_checkpoint(config.MODEL.RESUME, moments=False)
        head = head_of(content, weights_of(content, config.PRETRAINED_KEY), config.MODEL.RESUME)
    loaders = build_probe_loaders(config, train=config.PROBE.KNN or not config.EVAL_MODE, head=head)
    config = with_classes(config, loaders.classes, head.path if head else "the data")
    model = build_probe(config, len(loaders.classes))
    if config.PRETRAINED:
        load_pretrained(model.encoder, config.PRETRAINED, config.PRETRAINED_KEY)
    probe = Probe(config, model.to(device), loaders, device, precision)
    if config.PROBE.KNN:
        return probe.nearest_neighbours()
    probe.evaluate_only(content) if config.EVAL_MODE else probe.train()


def neighbours(ks, num_images):
    """The numbers of neighbours that so many training images allow, or all images where none does; what is left out is said."""
    fit = [k for k in ks if k <= num_images] or [num_images]
    if fit != list(ks):
        log.warning("PROBE.KNN_K=%s: there are %d training images, so %s vote", list(ks), num_images,
                    " or ".join(map(str, fit)))
    return fit


class Probe:
    """A model with its images: features, training, evaluation."""

    def __init__(self, config, model, loaders, device, precision):
        self.config, self.model, self.loaders, self.device, self.precision = config, model, loaders, device, precision

    def features(self, split):
        """[(N, C) array, ...] of the images of val or plain, one for each layer."""
        config, model = self.config, self.model.eval()
        cache = FeatureCache(config.PROBE.CACHE or f"{run_folder(config)}/features", {
            "weights": checksum(model.encoder.state_dict()), "encoder": f"{config.MODEL.TYPE}\n{encoder_config(config).dump()}",
            "feature": config.PROBE.FEATURE, "precision": str(self.precision)})

        @torch.no_grad()
        def extract(images, layers):
            with self.precision.autocast():
                return model.encoder.forward_layers(images, layers, config.PROBE.FEATURE)

        return cache.get({"plain": "train"}.get(split, split), getattr(self.loaders, split), model.layers, extract, self.device)

    def accuracies(self, val, confusion=None):
        """[{layer, feature, and what `evaluate` gives}, ...] of the features of all validation images.

        Args:
            confusion: counts what images were taken for, where one layer is probed.
        """
        numbers = []
        for layer, head, array in zip(self.model.layers, self.model.heads, val, strict=True):
            loader = feature_loader(self.config, self.loaders.val, shuffled=False)
            loader.open([array])
            found = evaluate(head, loader, self.device, self.precision, confusion if len(val) == 1 else None)
            log.log(logging.DEBUG if len(val) > 1 else logging.INFO,  # of a sweep people read the table
                    "%s (layer %s, %s)", accuracy_line(found), layer, self.model.feature)
            numbers.append({"layer": str(layer), "feature": self.model.feature, **found})
        return numbers

    def evaluate_only(self, content):
        path = self.config.MODEL.RESUME
        check_fixed(self.config, content, path, FIXED)
        load_weights(self.model, content, path, key=self.config.PRETRAINED_KEY)
        confusion = Confusion()
        records = self.accuracies(self.features("val"), confusion)
        if len(records) > 1:
            report(records)
        record_evaluation(self.config, *records)
        if len(records) == 1:
            report_classes(self.config, records[0], confusion, self.loaders.classes)

    def nearest_neighbours(self):
        """Accuracy of the votes of neighbours, for each layer and number of them; each image counted once."""
        config, records = self.config, []
        labels, bank_labels = (torch.from_numpy(loader.dataset.samples.labels)
                               for loader in (self.loaders.val, self.loaders.plain))
        ks = neighbours(config.PROBE.KNN_K, len(bank_labels))
        for layer, bank, val in zip(self.model.layers, self.features("plain"), self.features("val"), strict=True):
            left_out, unread = set(unreadable_rows(val).tolist()), unreadable_rows(bank)
            own = np.array([i for i in self.loaders.val.sampler.indices if i not in left_out], dtype=np.int64)
            kept = torch.ones(len(bank_labels), dtype=torch.bool)
            kept[unread] = False
            counts = count_correct(
                torch.from_numpy(val[own]).to(self.device), labels[own].to(self.device), parts_of(bank), bank_labels[kept],
                ks, config.PROBE.TEMPERATURE, len(self.loaders.classes))
            counts = distributed.sum_over_processes(counts.to(self.device)).tolist()
            number = len(labels) - len(left_out)
            if not number or len(unread) == len(bank):
                raise ValueError("none of the training or none of the validation images can be read: check --data-path.")
            for k, (first, five) in zip(ks, counts, strict=True):
                records.append({"layer": str(layer), "feature": self.model.feature, "k": k, "top1": 100 * first / number,
                                "images": number} | ({"top5": 100 * five / number} if len(self.loaders.classes) > 5 else {})
                               | ({"unreadable": len(left_out)} if left_out else {}))
        report(records)
        record_evaluation(config, *records)

    def train(self):
        config, device, model = self.config, self.device, self.model
        check_batch_norm(config)
        scaled = scaled_config(config, distributed.world_size())
        optimizer = build_optimizer(scaled, model)
        model, optimizer = self.precision.prepare(model, optimizer)
        loader = self.loaders.train or feature_loader(config, self.loaders.plain, shuffled=True)
        val = []

        def compute_loss(model, batch):
            *inputs, labels = batch
            losses = [F.cross_entropy(logits.float(), labels) for logits in model(*inputs)]
            return torch.stack(losses).sum()  # heads share nothing, so each trains as if alone

        def validate(epoch):
            numbers = self.accuracies(val)
            best = max(numbers, key=lambda found: found["top1"])
            each = {f"top1_layer_{found['layer']}": found["top1"] for found in numbers} if len(numbers) > 1 else {}
            if each:
                log.info("epoch %d: top-1 %.3f%% of layer %s, the best of %d", epoch, best["top1"], best["layer"], len(numbers))
            return {name: value for name, value in best.items() if name not in ("layer", "feature")} | each

        job = Job(config=config, task="probe", device=device, model=model, loader=loader, fixed=FIXED,
                  scheduler=build_scheduler(scaled, optimizer, len(loader)),
                  updater=build_updater(config, model, optimizer, self.precision, device),
                  compute_loss=compute_loss, validate=validate, folder=run_folder(config), score="top1",
                  classes=self.loaders.classes, images=self.loaders.plain.dataset.samples.mark())
        with running(job, scaled, len(self.loaders.plain.dataset), len(self.loaders.val.dataset)):
            if not job.was_finished:
                val += self.features("val")  # of the weights that a resumed run brought along
                if not config.PROBE.AUGMENT:
                    loader.open(self.features("plain"))
            fit(job)
            report_best(job)
            if config.PROBE.SWEEP and not job.was_finished:
                records = self.accuracies(val)
                report(records)
                append_records(config, "probe", records)


def report(records):
    """Log a table of accuracies, one line a layer (and number of neighbours)."""
    lines = [f"layer {record['layer']:>4}  {record['feature']}" + (f"  k {record['k']:>4}" if "k" in record else "")
             + f"  top-1 {record['top1']:6.2f}%" + (f"  top-5 {record['top5']:6.2f}%" if "top5" in record else "")
             for record in records]
    log.info("accuracy on %d images:\n%s", records[0]["images"], "\n".join(lines))


if __name__ == "__main__":
    run(main, *ARGUMENTS)
