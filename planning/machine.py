"""Facts about this machine, and what training costs on it, measured."""
import math
import os
import statistics
import time

import torch
from torch.nn import functional as F

from config import encoder_config, image_size, mask_preparation, with_values
from data.masks import draw_masks
from engine import Updater
from models import build_model
from models.freezing import train_mode
from optimizer import build_optimizer
from planning.costs import FP32, count_model
from planning.facts import Cost, Machine
from utils import distributed
from utils.costs import num_bytes, num_parameters
from utils.devices import to_device, wait_for
from utils.precision import build_precision
from utils.seeding import rng_for, seed_globals

CGROUP = "/sys/fs/cgroup/memory.max"
MEMINFO = "/proc/meminfo"
LONGEST = 4.0  # seconds that are spent on timing steps of one model
MOST_STEPS = 10
BATCHES = {"cuda": 64}  # images of a step that is timed
FILLED = 0.5  # share of the memory that a step which is timed may take
COUNTED = 4  # images of the step whose memory is counted


def look_at_machine(device):
    """The planning.facts.Machine of this process and those that train with it; `device` is that of distributed.start."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = distributed.world_size()
    local = min(int(os.environ.get("LOCAL_WORLD_SIZE", processes)), processes)
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        return Machine("cuda", about.name, about.total_memory, cores, processes, local)
    return Machine(device.type, {"mps": "the GPU of this Mac"}.get(device.type, "CPU"), free_memory(), cores, processes, local)


def free_memory():
    """Bytes that programs may still take here: those of the system, and of a container that allows fewer."""
    found = []
    for path, read in ((MEMINFO, _available), (CGROUP, int)):
        try:
            with open(path, encoding="ascii") as file:
                found.append(read(file.read()))
        except (OSError, ValueError):  # another system; no limit, which is written as "max"
            continue
    return min(found, default=8 * 2 ** 30)


def _available(text):
    (line,) = [line for line in text.splitlines() if line.startswith("MemAvailable:")]
    return int(line.split()[1]) * 1024


def measured(config, is_pretrain, device, machine, longest=LONGEST):
    """The planning.facts.Cost of a config here: steps are made on random images, memory is counted.

    Args:
        config: from load_config; its batch does not count.
        is_pretrain: of a pre-training method, or of a classifier.
        machine: from look_at_machine; what does not fit into its memory has a Cost without end.
        longest: seconds that steps are timed for.
    """
    each = activations(config, is_pretrain, device)
    fits = int((FILLED * machine.memory) / each)
    config = with_values(config, DATA__BATCH_SIZE=max(min(fits, BATCHES.get(device.type, 16)), 1))
    seed_globals(config.SEED)
    model = build_model(config, is_pretrain).to(device)
    train_mode(model)
    precision = build_precision(config.AMP_OPT_LEVEL, config.AMP_BACKEND, device)
    trained = num_parameters(p for p in model.parameters() if p.requires_grad)
    fixed = num_bytes([*model.parameters(), *model.buffers()]) + 3 * FP32 * trained  # gradients and AdamW's moments
    if fixed + each > FILLED * machine.memory:
        return Cost(math.inf, fixed, each)
    model, optimizer = precision.prepare(model, build_optimizer(config, model, is_pretrain))
    updater = Updater(model, optimizer, precision, config.TRAIN.CLIP_GRAD)  # alone: other processes wait for the choice
    compute_loss, times = _loss(config, is_pretrain, device), []
    begin = time.monotonic()
    while len(times) < 2 + MOST_STEPS and (len(times) < 3 or time.monotonic() - begin < longest):
        wait_for(device)
        start = time.perf_counter()
        updater.update([compute_loss])
        wait_for(device)
        times.append(time.perf_counter() - start)
    del model, optimizer, updater, compute_loss
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Cost(statistics.median(times[2:]) / config.DATA.BATCH_SIZE, fixed, each)


def _loss(config, is_pretrain, device):
    batch = config.DATA.BATCH_SIZE
    images = torch.randn(batch, encoder_config(config).IN_CHANS, *image_size(config), device=device)
    if not is_pretrain:
        labels = torch.randint(config.MODEL.NUM_CLASSES, (batch,), device=device)
        return lambda model: F.cross_entropy(model(images).float(), labels)
    masks, prepare = draw_masks(config, batch, rng_for(config.SEED)), mask_preparation(config)
    others = to_device([masks, *([prepare(masks)] if prepare else [])], device)
    return lambda model: model(images, *others)


def activations(config, is_pretrain, device):
    """Bytes of an image in training, counted: in the format of CUDA or, elsewhere, in fp32."""
    counted = with_values(config, DATA__BATCH_SIZE=COUNTED, AMP_OPT_LEVEL=config.AMP_OPT_LEVEL or
                          ("O1" if device.type == "cuda" else "O0"))
    return count_model(counted, is_pretrain)[1]["activations"]["ddp"] / COUNTED
