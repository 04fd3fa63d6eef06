"""The data path beside the official pipeline, as users of torchvision write it: per core and with loader processes."""
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms

from config import load_config, pixel_statistics, with_values
from data import decoding, reading
from data.bad_images import Reader
from data.datasets import MaskedImageDataset
from data.folders import image_files
from data.image_loader import ImageLoader
from data.masks import build_mask_generator
from data.samplers import EpochSampler
from data.transforms import RATIO, mode_of, pretrain_transform, rules_of
from models.inputs import image_size
from tools.benchmarks.photographs import photographs
from tools.benchmarks.report import report

KINDS = {"500x375": ((500, 375), 48, 100), "2000x1500": ((2000, 1500), 12, None)}  # size, number, kilobytes (None: quality 85)
OFFICIAL, OURS, PILLOW = "official", "ours", "ours, DECODER pillow"
COLUMNS = {"images": ("images", ""), "kilobytes": ("KB", ".0f"), "pipeline": ("pipeline", ""), "decode": ("decode, ms", ".2f"),
           "crop": ("crop", ".2f"), "rest": ("rest", ".2f"), "per_core": ("images/s a core", ".0f"), "ratio": ("ratio", ".2f"),
           "all": ("in all", ".0f"), "ratio_of_all": ("ratio", ".2f")}


def main(args):
    torch.set_num_threads(1)  # as loader processes have
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(args)
        for name, paths in sets_of_files(args, folder).items():
            rows += rows_of(name, paths, config, args)
    report(args, torch.device("cpu"), COLUMNS, rows, recipe=args.cfg, batch=config.DATA.BATCH_SIZE, workers=args.workers)


def config_of(args):
    """The config of a pre-training recipe, and what the flags say. Raises ValueError of another recipe."""
    opts = [*args.opts, "DATA.NUM_WORKERS", args.workers, *(["DATA.BATCH_SIZE", args.batch_size] if args.batch_size else [])]
    config = load_config(args.cfg, opts)
    if "finetune" in config.MODEL.NAME or config.DATA.CROP != "rrc" or isinstance(mode_of(config), int):
        raise ValueError(f"{args.cfg} has MODEL.NAME {config.MODEL.NAME} and DATA.CROP {config.DATA.CROP}: what is measured "
                         f"here is pre-training on random crops of pictures (DATA.CROP rrc).")
    return config


def sets_of_files(args, folder, kinds=tuple(KINDS)):
    """{name: paths} of the folder that --data-path names, or drawn into another one."""
    if args.data_path:
        return {args.data_path: image_files(args.data_path)[:args.images]}
    found = {}
    for name in kinds:
        size, count, kilobytes = KINDS[name]
        place = tempfile.mkdtemp(dir=folder)
        found[name] = photographs(place, min(count, args.images), size, kilobytes)
    return found


def rows_of(name, paths, config, args):
    """One row for each pipeline."""
    sets = {OFFICIAL: Official(paths, config), OURS: own(paths, config, "fast"), PILLOW: own(paths, config, "pillow")}
    stages, seconds, rates = defaultdict(lambda: defaultdict(float)), defaultdict(list), defaultdict(list)
    for dataset in sets.values():
        one_pass(dataset, paths)  # files come into memory, code is warm
    for _ in range(args.rounds):
        for kind, dataset in sets.items():  # in turn, so that a busy moment of the machine hits all
            seconds[kind].append(one_pass(dataset, paths) / len(paths))
    for kind, dataset in sets.items():
        with measured(stages[kind]):  # apart: looking at the clock takes time
            stages[kind]["all"] = one_pass(dataset, paths)
    if args.workers:
        loaders = {kind: loader_of(dataset, config) for kind, dataset in sets.items()}
        for number in range(args.rounds + 1):
            for kind, loader in loaders.items():
                rate = images_per_second(loader, config)
                rates[kind] += [rate] if number else []  # the first starts processes
    found = []
    for kind in sets:
        decode, crop, whole = (1e3 * stages[kind][stage] / len(paths) for stage in ("decode", "crop", "all"))
        found.append({
            "images": name, "kilobytes": np.mean([len(open(path, "rb").read()) for path in paths]) / 1e3, "pipeline": kind,
            "decode": decode, "crop": crop, "rest": whole - decode - crop, "per_core": 1 / statistics.median(seconds[kind]),
            "ratio": statistics.median(a / b for a, b in zip(seconds[OFFICIAL], seconds[kind], strict=True)),
            "all": statistics.median(rates[kind] or [0]),
            "ratio_of_all": statistics.median([b / a for a, b in zip(rates[OFFICIAL], rates[kind], strict=True)] or [0])})
    return found


# ---- the official pipeline ----------------------------------------------------------------------------------------

class Official(Dataset):
    """As the official code has it: everything in float on the CPU, a mask drawn by numpy.

    Args:
        paths: of the files.
        config: from load_config.
    """

    def __init__(self, paths, config):
        self.paths, self.masks = paths, build_mask_generator(config)
        interpolation = transforms.InterpolationMode(config.DATA.CROP_INTERPOLATION)
        self.colours = mode_of(config)
        self.crop = transforms.RandomResizedCrop(image_size(config), config.DATA.CROP_SCALE, RATIO, interpolation)
        self.rest = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.ToTensor(),
                                        transforms.Normalize(*pixel_statistics(config))])

    def __len__(self):
        return len(self.paths)

    def decode(self, path):
        with open(path, "rb") as file:
            return Image.open(file).convert(self.colours)

    def __getitem__(self, index):
        picture = self.crop_of(self.decode(self.paths[index % len(self.paths)]))
        return self.rest(picture), self.masks()

    def crop_of(self, picture):
        return self.crop(picture)

    collate = staticmethod(default_collate)


def own(paths, config, decoder):
    """Our Reader of the same files."""
    rules = replace(rules_of(config), decoder=decoding.available(decoder))
    return Reader(MaskedImageDataset([(path, -1) for path in paths], pretrain_transform(config), build_mask_generator(config),
                                     mode_of(config), config.SEED, config.DATA.MASK_SHARED, rules), replaces=True)


# ---- measuring ----------------------------------------------------------------------------------------------------

def one_pass(dataset, paths):
    """Seconds that this process computes for all images and the batch of them."""
    begin = time.process_time()
    dataset.collate([dataset[i] for i in range(len(paths))])
    return time.process_time() - begin


@contextmanager
def measured(stages):
    """While this lasts, seconds of decoding and cropping are added up: {decode, crop}."""
    def timed(function, stage):
        def wrapped(*given, **named):
            begin = time.process_time()
            try:
                return function(*given, **named)
            finally:
                stages[stage] += time.process_time() - begin
        return wrapped

    places = [(Official, "decode", "decode"), (Official, "crop_of", "crop"), (decoding, "_decoded", "decode"),
              (decoding, "_resized", "crop"), (reading, "_opened", "decode"), (reading, "picture_image", "decode"),
              (decoding.View, "of", "crop")]
    with ExitStack() as stack:
        for owner, name, stage in places:
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name), stage)))
        yield


def loader_of(dataset, config):
    """Batches of a data set from DATA.NUM_WORKERS processes, without end: each image comes again and again."""
    if isinstance(dataset, Official):
        return iter(DataLoader(Again(dataset), config.DATA.BATCH_SIZE, num_workers=config.DATA.NUM_WORKERS))
    keys = Endless(EpochSampler(len(dataset), 1, 0, 1, config.SEED))
    return iter(ImageLoader(with_values(config, DATA__TIMEOUT_MINUTES=0.0), dataset, keys, persistent=False).packed())


class Again(Dataset):
    """A data set over and over."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return 10 ** 9

    def __getitem__(self, index):
        return self.dataset[index]


class Endless:
    """Keys of one epoch of a sampler after the other."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __len__(self):
        return 10 ** 9

    def __iter__(self):
        epoch = 0
        while True:
            self.sampler.set_epoch(epoch)
            yield from self.sampler
            epoch += 1


def images_per_second(batches, config, number=8):
    """Of so many batches, after those that were made while nobody took any."""
    for _ in islice(batches, 2 * config.DATA.NUM_WORKERS + 1):
        pass
    begin = time.perf_counter()
    for _ in islice(batches, number):
        pass
    return number * config.DATA.BATCH_SIZE / (time.perf_counter() - begin)
