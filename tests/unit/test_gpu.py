"""What only a CUDA device can show: bf16 steps, no waiting for the device, skipping on the device."""
import pytest
import torch
from torch import distributed as dist

from engine import Updater, build_average
from models.build import METHODS, build_sharded
from optimizer import build_optimizer
from utils.precision import build_precision

from ..contracts.tiny import CASES, build, make_config, make_images, make_mask
from .helpers import TINY, largest_difference, random_images, random_mask, state_of, tiny_config, tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICE = torch.device("cuda", 0)


def make_updater(encoder, level="O1", overrides=None):
    model = tiny_model(encoder, overrides).to(DEVICE).train()
    optimizer = build_optimizer(tiny_config(encoder, overrides), model)
    average = build_average(tiny_config(encoder, overrides), model)
    return Updater(model, optimizer, build_precision(level, "native", DEVICE), clip=5.0, average=average)


def losses_of(encoder, factor=1.0, micro_batches=1):
    images, mask = random_images(4).to(DEVICE), random_mask(encoder, 4).to(DEVICE)
    parts = zip(images.chunk(micro_batches), mask.chunk(micro_batches), strict=True)
    return [lambda model, i=i, m=m: model(i, m) * factor for i, m in parts]


@pytest.mark.parametrize("encoder", TINY)
def test_default_precision_is_bf16_and_trains_like_fp32(encoder):
    mixed, fp32 = make_updater(encoder, ""), make_updater(encoder, "O0")
    assert str(mixed.precision) == "mixed bfloat16"
    for _ in range(3):
        (loss, norm), (expected, expected_norm) = (updater.update(losses_of(encoder)) for updater in (mixed, fp32))
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=0.02)
        assert norm.item() == pytest.approx(expected_norm.item(), rel=0.1)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in mixed.model.parameters())


@pytest.mark.parametrize("level", ["O0", "O1"])
@pytest.mark.parametrize("encoder", TINY)
def test_update_never_waits_for_the_device(encoder, level):
    """Nor does the average of the weights."""
    updater = make_updater(encoder, level, {"MODEL.DROP_PATH_RATE": 0.2, "TRAIN.EMA_DECAY": 0.75})
    losses = losses_of(encoder, micro_batches=2)
    updater.update(losses)  # allocations and state of the first step
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            updater.update(losses)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(updater.skipped) == 0


def test_skipped_step_leaves_the_average_on_the_device():
    updater = make_updater("vit", overrides={"TRAIN.EMA_DECAY": 0.75})
    updater.update(losses_of("vit"))
    before = {name: value.clone() for name, value in updater.average.tensors().items()}
    updater.update(losses_of("vit", factor=torch.nan))
    assert all(torch.equal(value, before[name]) for name, value in updater.average.tensors().items())
    updater.update(losses_of("vit"))
    assert not all(torch.equal(value, before[name]) for name, value in updater.average.tensors().items())


@pytest.mark.parametrize("method", METHODS)
def test_update_of_every_method_never_waits_for_the_device(method):
    """After the first step, which may look at the mask."""
    name, variant, _, kind = next(case for case in CASES if case[2] == method)
    config = make_config(name, variant, method, kind)
    model = build(config, is_pretrain=True).to(DEVICE).train()
    images, mask = make_images(config).to(DEVICE), make_mask(config).to(DEVICE)
    updater = Updater(model, build_optimizer(config, model), build_precision("O1", "native", DEVICE), clip=5.0)
    updater.update([lambda model: model(images, mask)])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, _ = updater.update([lambda model: model(images, mask)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite() and int(updater.skipped) == 0


@pytest.mark.parametrize("good_before", [0, 1])
def test_nonfinite_step_is_skipped_on_the_device(good_before):
    skipping, straight = make_updater("vit", "O0"), make_updater("vit", "O0")
    assert skipping.optimizer.defaults["fused"]
    for updater in (skipping, straight):
        for _ in range(good_before):
            updater.update(losses_of("vit"))
    before = state_of(skipping.model)
    skipping.update(losses_of("vit", float("nan")))
    assert largest_difference(state_of(skipping.model), before) == 0 and int(skipping.skipped) == 1
    for updater in (skipping, straight):
        updater.update(losses_of("vit"))
    assert largest_difference(state_of(skipping.model), state_of(straight.model)) < 1e-6


@pytest.mark.parametrize("encoder", TINY)
def test_device_agrees_with_the_cpu(encoder):
    model, images, mask = tiny_model(encoder).eval(), random_images(), random_mask(encoder)
    with torch.no_grad():
        expected = model(images, mask)
        actual = model.to(DEVICE)(images.to(DEVICE), mask.to(DEVICE))
    assert actual.item() == pytest.approx(expected.item(), rel=1e-3)  # convolutions may use TF32


@pytest.mark.parametrize("encoder", TINY)
def test_another_image_size_works_on_the_device(encoder):
    with torch.no_grad():
        features, = tiny_model(encoder).eval().to(DEVICE)(random_images(2, 3, 40, 72).to(DEVICE))
    assert features.device == DEVICE and features.shape[2:] == (5, 9) and features.isfinite().all()


@pytest.fixture
def process_group():
    """One process in a group of one."""
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("encoder", TINY)
def test_sharded_model_trains_as_the_whole_one(encoder, process_group):
    """In fp32 equal, in bfloat16 near; the norm is a plain tensor."""
    for level, tolerance in (("O0", 1e-5), ("O1", 0.02)):
        whole = make_updater(encoder, level)
        torch.manual_seed(1)
        precision = build_precision(level, "native", DEVICE)
        model = build_sharded(tiny_config(encoder), True, DEVICE, precision.dtype).train()
        sharded = Updater(model, build_optimizer(tiny_config(encoder), model), precision, clip=5.0)
        for _ in range(3):
            (loss, norm), (expected, expected_norm) = (updater.update(losses_of(encoder)) for updater in (sharded, whole))
            assert type(norm) is torch.Tensor and norm.item() == pytest.approx(expected_norm.item(), rel=10 * tolerance)
            assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
