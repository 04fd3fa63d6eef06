"""What training of a recipe costs on CUDA, counted without memory and without a GPU; tools/estimate.py says what is counted."""
from itertools import pairwise

import torch
from torch.nn import functional as F

from config import encoder_config, image_size, mask_preparation
from data.masks import draw_mask_array
from models import build_model
from models.freezing import freeze, train_mode
from utils.costs import (
    AsOnCuda,
    empty_copies,
    no_memory,
    num_bytes,
    num_parameters,
    num_parameters_of_part,
    training_flops,
    training_memory,
)
from utils.registry import pick
from utils.seeding import rng_for

MOMENTS = {"adamw": 2, "sgd": 1, "lars": 1, "fused_adam": 2, "fused_lamb": 2}  # fp32 values of the optimizer for each parameter
MIXED = torch.bfloat16  # where a GPU has float16 only, sizes are the same
FP32 = 4                # bytes
RESERVE = 1.15          # memory of the CUDA context, NCCL buffers, fragmentation: a rule of thumb


def count_model(config, is_pretrain):
    """Run a step of a recipe without memory.

    Args:
        config: from load_config.
        is_pretrain: of a pre-training method, or of a classifier.
    Returns: (parameters and FLOPs of an image, what memory_rows needs), two dicts of numbers and lists.
    """
    moments = pick(MOMENTS, config.TRAIN.OPTIMIZER.NAME, "TRAIN.OPTIMIZER.NAME") + bool(config.TRAIN.EMA_DECAY)
    with torch.device("meta"):
        model = build_model(config, is_pretrain)
    freeze(model, config.TRAIN.FREEZE)
    parameters = list(model.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    total, units = num_parameters(parameters), [num_parameters(unit.parameters()) for unit in model.units()]
    encoder = num_parameters(model.encoder.parameters()) if is_pretrain else total - num_parameters(model.head.parameters())
    mixed = format_of(config)
    with no_memory(), AsOnCuda():
        train_mode(empty_copies(model))
        compute_loss = training_loss(config, model, is_pretrain)
        whole = training_memory(model, compute_loss)
        # sharded parameters are gathered in 16 bit, so autocast need not copy them
        sharded = training_memory(empty_copies(model, mixed), compute_loss) if mixed else whole
    forward, training = count_flops(config, is_pretrain)
    compute = {"parameters": total, "encoder_parameters": encoder, "head_parameters": total - encoder,
               "forward_flops": forward, "forward_multiply_adds": forward / 2,
               "training_flops": training}
    return compute, {"all": parameters, "trainable": trainable, "moments": moments, "units": units,
                     "buffers": num_bytes(model.buffers()), "bytes": mixed.itemsize if mixed else FP32,
                     "activations": {"ddp": whole, "fsdp": sharded}}


def count_flops(config, is_pretrain):
    """FLOPs of matrix products, convolutions and attention for one image of a step: (forward, forward and backward)."""
    with torch.device("meta"):
        model = build_model(config, is_pretrain)
    freeze(model, config.TRAIN.FREEZE)
    with no_memory(), AsOnCuda():
        train_mode(empty_copies(model))
        counts = training_flops(training_loss(config, model, is_pretrain))
    return tuple(count / config.DATA.BATCH_SIZE for count in counts)


def format_of(config):
    """Reduced format of a run on CUDA, None for fp32 throughout."""
    return None if config.AMP_OPT_LEVEL == "O0" else MIXED


def training_loss(config, model, is_pretrain):
    """Function of nothing: the loss of a batch, as the mains compute it."""
    batch, (height, width) = config.DATA.BATCH_SIZE, image_size(config)
    block, dtype = encoder_config(config), format_of(config)
    masks = draw_mask_array(config, batch, rng_for(config.SEED)) if is_pretrain else None
    prepare = mask_preparation(config) if is_pretrain else None
    prepared = [prepare(masks)] if prepare else []  # its sizes depend on the masks
    if hasattr(model, "num_visible"):  # it looks into the mask, which has no content here
        step = model.encoder.stride // model.encoder.patch_size
        visible = int((~masks[0, ::step, ::step]).sum())
        model.num_visible = lambda mask: visible
    for check in ("check_mask", "check_cells"):
        if hasattr(model, check):
            setattr(model, check, lambda *mask: None)

    def compute():
        images = torch.empty(batch, block.IN_CHANS, height, width)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            if not is_pretrain:
                return F.cross_entropy(model(images).float(), torch.empty(batch, config.MODEL.NUM_CLASSES))  # mixup's labels
            mask = torch.empty(batch, height // block.PATCH_SIZE, width // block.PATCH_SIZE, dtype=torch.bool)
            return model(images, mask, *prepared)
    return compute


def memory_rows(gpus, model):
    """Bytes that each of `gpus` needs, under ddp and under fsdp; the same for one, which holds everything."""
    for parallel in ("ddp", "fsdp"):
        share = gpus if parallel == "fsdp" else 1
        weights = FP32 * num_parameters_of_part(model["all"], share)
        gradients = FP32 * num_parameters_of_part(model["trainable"], share)
        row = {"weights": weights, "gradients": gradients, "moments": model["moments"] * gradients,
               "gathered": gathered(model) if share > 1 else 0, "buffers": model["buffers"],
               "activations": model["activations"][parallel if gpus > 1 else "ddp"]}
        yield {"gpus": gpus, "parallel": parallel, **row, "total": sum(row.values())}


def gathered(model):
    """Bytes in flight under fsdp, see tools/estimate.py."""
    size, units = model["bytes"], model["units"]
    rest = num_parameters(model["all"]) - sum(units)
    neighbours = max(map(sum, pairwise(units)), default=units[0])
    return size * (2 * rest + neighbours + max(units)) + FP32 * max(units)
