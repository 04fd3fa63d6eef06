"""What share of a step waits for data: of a device that takes more images than the official pipeline gives, and of training."""
import statistics
import tempfile
import time

from tools.benchmarks.data import (
    KINDS,
    OFFICIAL,
    OURS,
    Official,
    config_of,
    images_per_second,
    loader_of,
    own,
    sets_of_files,
)
from tools.benchmarks.report import report
from tools.benchmarks.step import Candidate
from utils import distributed
from utils.devices import to_device, wait_for

COLUMNS = {"pipeline": ("pipeline", ""), "device": ("device", ""), "ms_per_step": ("ms/step", ".1f"),
           "images_per_second": ("images/s", ".0f"), "waiting": ("waits for data", ".1%"), "starved": ("steps that waited", "")}
LATE = 0.01  # of a step: a batch that comes later than that was waited for


def main(args):
    device = distributed.start()
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(args)
        (name, paths), = sets_of_files(args, folder, list(KINDS)[:1]).items()
        sets = {OFFICIAL: Official(paths, config), OURS: own(paths, config, config.DATA.DECODER)}
        loaders = {kind: loader_of(dataset, config) for kind, dataset in sets.items()}
        rates, rows, batch = [], [], config.DATA.BATCH_SIZE
        found = {kind: [] for kind in sets}
        for _ in range(args.rounds):  # the machine may be faster now and slower then: the pace is that of the moment
            rates.append(images_per_second(loaders[OFFICIAL], config))
            for kind, batches in loaders.items():
                seconds = batch / (args.stand_in * rates[-1])
                found[kind].append(paced(batches, args.steps, config, lambda _, seconds=seconds: time.sleep(seconds)))
        for kind, rounds in found.items():
            rows.append(row_of(kind, f"stand-in, {args.stand_in:g} x official", rounds, batch))
        if not args.no_training:
            candidate = Candidate(args.cfg, args, device)
            candidate.step()
            rounds = [paced(loaders[OURS], args.steps, config, lambda one: train(candidate, one))]
            rows.append(row_of(OURS, f"training, {device.type}", rounds, batch))
    report(args, device, COLUMNS, rows, recipe=args.cfg, images=name, batch=batch, workers=args.workers, steps=args.steps,
           official_images_per_second=statistics.median(rates))


def paced(batches, steps, config, step):
    """(seconds of waiting, seconds of the step) of each step, after those whose batches were made while nobody took any."""
    for _ in range(2 * config.DATA.NUM_WORKERS + 1):
        step(next(batches))
    found = []
    for _ in range(steps):
        begin = time.perf_counter()
        batch = next(batches)
        arrived = time.perf_counter()
        step(batch)
        found.append((arrived - begin, time.perf_counter() - arrived))
    return found


def train(candidate, batch):
    """A training step; returns when the device is done."""
    candidate.updater.update([lambda model: model(*to_device(batch, candidate.device))])
    wait_for(candidate.device)


def row_of(kind, device, rounds, batch):
    """What all rounds of (waiting, step) amount to."""
    steps = [step for one in rounds for step in one]
    whole = sum(waiting + working for waiting, working in steps)
    starved = sum(waiting > LATE * (waiting + working) for waiting, working in steps)
    return {"pipeline": kind, "device": device, "ms_per_step": 1e3 * whole / len(steps),
            "images_per_second": batch * len(steps) / whole, "waiting": sum(waiting for waiting, _ in steps) / whole,
            "starved": f"{starved} of {len(steps)}"}
