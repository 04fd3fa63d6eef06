"""tools/estimate.py: its sums against measured ones, and its command line."""
import json
from itertools import accumulate

import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from optimizer import build_optimizer
from planning.costs import count_model, memory_rows, training_loss
from tests.integration.processes import in_process
from tests.unit.helpers import PATCH, TINY, tiny_config, tiny_model
from tools import estimate as tool
from tools.estimate import IMAGENET_TRAIN
from utils.costs import empty_copies, no_memory, num_bytes, training_memory

SWIN_B = "configs/swin_base/simmim_{}__swin_base__img{}__100ep.yaml"
DEMO = "configs/demo/simmim_pretrain__vit_nano__img64.yaml"
SIZE = 64
SQUARE = {"DATA.IMG_SIZE": SIZE, "DATA.BATCH_SIZE": 8, "AMP_OPT_LEVEL": "O0"}


def estimate(*arguments):
    return in_process(tool, *arguments)


def numbers_of(*arguments):
    return json.loads(estimate(*arguments, "--json").checked().out)


def losses(encoder, overrides, model):
    config = tiny_config(encoder, overrides)
    images = torch.randn(config.DATA.BATCH_SIZE, 3, SIZE, SIZE)
    return model(images, torch.rand(len(images), SIZE // PATCH[encoder], SIZE // PATCH[encoder]) < 0.5)


# ---- sums ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("encoder", TINY)
def test_state_of_training_is_that_of_a_real_step(encoder, optimizer):
    overrides = SQUARE | {"TRAIN.OPTIMIZER.NAME": optimizer}
    model = tiny_model(encoder, overrides)
    updates = build_optimizer(tiny_config(encoder, overrides), model)
    losses(encoder, overrides, model).backward()
    updates.step()
    row, _ = memory_rows(4, count_model(tiny_config(encoder, overrides), is_pretrain=True)[1])
    state = [value for values in updates.state.values() for value in values.values()
             if isinstance(value, torch.Tensor) and value.ndim]  # not the counts of steps
    assert row["weights"] == num_bytes(model.parameters()) and row["moments"] == num_bytes(state)
    assert row["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert row["buffers"] == num_bytes(model.buffers()) and row["gathered"] == 0


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="this torch shards on CUDA only")
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("encoder", TINY)
def test_memory_under_fsdp_bounds_that_of_a_real_step(encoder, steps):
    """One of three processes whose collectives do nothing, with the attention of the CPU, which keeps its scores."""
    config = tiny_config(encoder, SQUARE | {"TRAIN.ACCUMULATION_STEPS": steps})
    model = tiny_model(encoder, SQUARE).train()
    _, row = memory_rows(3, count_model(config, is_pretrain=True)[1])
    copy = tiny_model(encoder, SQUARE).train()
    with no_memory():
        empty_copies(copy)
        activations = training_memory(copy, training_loss(config, copy, is_pretrain=True))
    dist.init_process_group("fake", rank=0, world_size=3, store=FakeStore())
    try:
        for unit in [*model.units(), model]:
            fully_shard(unit, mesh=init_device_mesh("cpu", (3,)))
        losses(encoder, SQUARE, model).backward()  # the first step sets up memory that stays
        model.zero_grad()
        with torch.profiler.profile(profile_memory=True) as profiler:
            for step in range(steps):
                model.set_requires_gradient_sync(step == steps - 1)  # as engine.Updater
                losses(encoder, SQUARE, model).backward()
    finally:
        dist.destroy_process_group()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    measured = max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    bound = activations + row["gathered"] + row["gradients"]
    assert 0.6 * bound < measured < bound


def test_fsdp_shares_the_state_and_one_process_holds_all():
    model = count_model(tiny_config("vit", SQUARE), is_pretrain=True)[1]
    alone, same = memory_rows(1, model)
    assert same == alone | {"parallel": "fsdp"}
    ddp, fsdp = memory_rows(8, model)
    assert ddp == alone | {"gpus": 8} and fsdp["activations"] == ddp["activations"]
    for kind in ("weights", "gradients", "moments"):
        assert ddp[kind] / 8 < fsdp[kind] < ddp[kind] / 4  # tensors of fewer than 8 rows do not divide
    assert fsdp["total"] == sum(size for kind, size in fsdp.items() if kind not in ("gpus", "parallel", "total"))


# ---- command line -------------------------------------------------------------------------------------------------

def test_swin_base_has_the_published_parameters_and_operations():
    """Swin (arXiv 2103.14030), table 1: 88M parameters, 15.4G FLOPs, which are multiply-adds, at 224 pixels."""
    numbers = numbers_of("--cfg", SWIN_B.format("finetune", "224_window7"), "--opts", "DATA.BATCH_SIZE", 4,
                         "AMP_OPT_LEVEL", "O0")
    assert numbers["stage"] == "finetune" and round(numbers["parameters"] / 1e6) == 88
    assert numbers["forward_multiply_adds"] / 1e9 == pytest.approx(15.4, abs=0.05)
    assert numbers["forward_flops"] == 2 * numbers["forward_multiply_adds"]
    assert numbers["head_parameters"] == 1024 * 1000 + 1000


def test_mae_encodes_a_quarter_of_the_patches():
    """Its mask is known by its number of hidden patches only: 49 and a class token of 196 + 1 go through the encoder."""
    name = "configs/mae/mae_pretrain__vit_base__img224__1600ep.yaml"
    numbers = numbers_of("--cfg", name, "--opts", "DATA.BATCH_SIZE", 1, "MODEL.VIT.DEPTH", 3, "MODEL.MAE.DECODER_DEPTH", 2)
    tokens, width, depth = 50, 768, 3
    encoder = depth * (12 * tokens * width ** 2 + 2 * tokens ** 2 * width) + 196 * 768 * 768
    tokens, width, depth = 197, 512, 2
    decoder = depth * (12 * tokens * width ** 2 + 2 * tokens ** 2 * width) + 50 * 768 * 512 + 197 * 512 * 768
    assert numbers["forward_multiply_adds"] == pytest.approx(encoder + decoder, rel=0.001)


def test_low_frequency_target_is_estimated_and_costs_next_to_nothing():
    shallow = ["--opts", "DATA.BATCH_SIZE", 1, "MODEL.VIT.DEPTH", 2, "MODEL.MAE.DECODER_DEPTH", 1]
    mae, pixmim = (numbers_of("--cfg", f"configs/{name}/{name}_pretrain__vit_base__img224__800ep.yaml", *shallow)
                   for name in ("mae", "pixmim"))
    assert pixmim["training_flops"] == pytest.approx(mae["training_flops"], rel=0.001)


def test_schedule_follows_from_throughput():
    numbers = numbers_of("--cfg", DEMO, "--gpus", 2, 16, "--throughput", 500, "--opts", "DATA.BATCH_SIZE", 64,
                         "TRAIN.EPOCHS", 10, "TRAIN.ACCUMULATION_STEPS", 4, "TRAIN.BASE_LR", 1e-3, "AMP_OPT_LEVEL", "O0")
    two, sixteen = numbers["schedule"]
    assert two["hours"] == pytest.approx(10 * IMAGENET_TRAIN / 1000 / 3600)
    assert two["gpu_hours"] == pytest.approx(2 * two["hours"]) == pytest.approx(16 * sixteen["hours"])
    assert sixteen["effective_batch"] == 64 * 16 * 4 and sixteen["learning_rate"] == pytest.approx(1e-3 * 64 * 16 * 4 / 512)
    assert sixteen["updates_per_epoch"] == 313  # 1251 whole batches of all GPUs, the last three a smaller update
    assert numbers["run_flops"] == pytest.approx(numbers["training_flops"] * 10 * IMAGENET_TRAIN)
    assert numbers["precision"] == "float32" and numbers["stage"] == "pretrain"


def test_tables_name_what_hours_need_and_assume_nothing():
    result = estimate("--cfg", DEMO, "--gpus", 1, 8, "--opts", "DATA.BATCH_SIZE", 2)
    assert result.code == 0, result.err
    assert "hours need --throughput" in result.out and "estimate" in result.out
    rows = [line.split() for line in result.out.splitlines()]
    assert [row[:2] for row in rows if "fsdp" in row or "ddp" in row] == [["8", "ddp"], ["8", "fsdp"]]
    assert [row[-2:] for row in rows if row[:2] == ["8", "16"]] == [["-", "-"]]


def test_hours_follow_from_an_assumed_share_of_the_peak():
    numbers = numbers_of("--cfg", DEMO, "--peak-tflops", 100, "--utilization", 0.25, "--gpus", 4)
    assert numbers["schedule"][0]["gpu_hours"] == pytest.approx(numbers["run_flops"] / 25e12 / 3600)


@pytest.mark.parametrize("arguments, message", [
    (["--peak-tflops", 100], "--peak-tflops needs --utilization"),
    (["--images", 100, "--gpus", 64], "--images 100 are less than one batch"),
    (["--opts", "MODEL.TYPE", "swim"], "MODEL.TYPE='swim' is unknown"),
    (["--opts", "MODEL.NAME", "linprobe"], "is a linear probe"),
    (["--finetune", "--opts", "TRAIN.OPTIMIZER.NAME", "lion"], "TRAIN.OPTIMIZER.NAME='lion' is unknown")])
def test_error_is_one_line(arguments, message):
    result = estimate("--cfg", DEMO, *arguments)
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1
