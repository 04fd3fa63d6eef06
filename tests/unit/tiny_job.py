"""A tiny job: a linear model with dropout on batches of numbers."""
from types import SimpleNamespace

import torch

from config import load_config
from data.bad_images import BadImages
from engine import Job, Updater, build_average, fit
from lr_scheduler import build_scheduler
from optimizer import _adamw
from resume import resume
from utils.precision import build_precision

from .helpers import opts_of

CPU = torch.device("cpu")


class Batches(list):
    """Batches with a sampler, as a loader has one; notes the epochs it is set to."""

    def __init__(self, number):
        generator = torch.Generator().manual_seed(0)
        super().__init__([torch.randn(4, 3, generator=generator)] for _ in range(number))
        self.epochs = []
        self.sampler = SimpleNamespace(set_epoch=self._set)
        self.start = 0
        self.bad = BadImages(4 * number)

    def _set(self, epoch, start=0):
        self.epochs.append(epoch)
        self.start = start

    def __iter__(self):
        return iter(self[self.start:])


class Metrics(list):
    """In place of MetricWriter: records (kind, step, numbers)."""

    def write(self, kind, step, **values):
        self.append((kind, step, values))

    def draw(self, step, curves):
        pass

    def position(self):
        return {}


def make_job(folder, num_batches=6, compute_loss=None, validate=None, score=None, seed=1, **overrides):
    """Keys are written with double underscores; resumed from what the folder holds, like the mains do."""
    settings = {"TRAIN.EPOCHS": 3, "TRAIN.WARMUP_EPOCHS": 1, "TRAIN.BASE_LR": 0.05, "PRINT_FREQ": 2}
    settings |= {key.replace("__", "."): value for key, value in overrides.items()}
    config = load_config(opts=opts_of(settings))
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Dropout(0.5), torch.nn.Linear(5, 2))
    optimizer = _adamw([{"params": list(model.parameters()), "lr": config.TRAIN.BASE_LR,
                         "weight_decay": config.TRAIN.WEIGHT_DECAY}], config.TRAIN.OPTIMIZER)
    loader = Batches(num_batches)
    job = Job(config=config, task="pretrain", device=CPU, model=model, loader=loader,
              updater=Updater(model, optimizer, build_precision("O0", "native", CPU), config.TRAIN.CLIP_GRAD,
                              build_average(config, model)),
              scheduler=build_scheduler(config, optimizer, num_batches), folder=str(folder), metrics=Metrics(), score=score,
              compute_loss=compute_loss or (lambda model, batch: model(batch[0]).square().mean()),
              validate=validate or (lambda epoch: {}))
    resume(job)
    return job


def fitted(folder, **settings):
    job = make_job(folder, **settings)
    fit(job)
    return job


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())
