"""TRAIN.COMPILE: every method and encoder goes through torch.compile in whole blocks, once, and gives what it gives without."""
import pytest
import torch
from torch import distributed as dist
from torch._dynamo.utils import counters
from torch.testing._internal.distributed.fake_pg import FakeStore

from config import with_values
from models.compiling import compile_units
from utils.sharding import make_mesh, shard, whole

from .tiny import CASES, build, make_config, make_images, make_mask

FIRST = list({(name, method): (name, variant, method, kind) for name, variant, method, kind in reversed(CASES)}.values())
# packed tokens are those of Swin, whose test is below
WHOLE = [case for case in FIRST if (case[0], case[2]) != ("swinv2", "mae")]
STEPS = [(case, torch.float32) for case in WHOLE] + [(case, torch.bfloat16) for case in FIRST if case[0] in ("vit", "convmae")]


def step(model, images, masks, format):
    """Loss and gradients of a step, whose random draws are always the same."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    with torch.autocast("cpu", format, enabled=format is not torch.float32):
        loss = model(images, *masks)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize(("case", "format"), STEPS, ids=[f"{'-'.join(case)}-{format}" for case, format in STEPS])
def test_blocks_are_compiled_whole_and_once_and_give_the_same(case, format):
    """A break of a graph would be an error. Drop path and recomputation are on."""
    config = with_values(make_config(*case), MODEL__DROP_PATH_RATE=0.3, TRAIN__USE_CHECKPOINT=True)
    model, plain = (build(config, is_pretrain=True).train() for _ in range(2))
    compile_units(model, backend="eager")
    images, masks = make_images(config), [make_mask(config)]
    compiled = []
    for _ in range(3):
        loss, gradients = step(model, images, masks, format)
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled[0] > 0 and compiled[1] == compiled[2] and not counters["graph_break"]
    expected, expected_gradients = step(plain, images, masks, format)
    tolerance = 1e-5 if format is torch.float32 else 0.05
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    both, alone = (torch.cat([gradient.flatten() for gradient in of]) for of in (gradients, expected_gradients))
    assert (both - alone).norm() <= tolerance * alone.norm()


@pytest.mark.parametrize("encoder", ["swin", "swinv2"])
def test_visible_tokens_that_are_packed_otherwise_are_not_compiled_anew(encoder):
    """Nearly every batch has groups of other sizes, and PyTorch allows a limited number of graphs."""
    config = make_config(encoder, "plain", "mae", "normalised", size=(64, 64))
    model, plain = (build(config, is_pretrain=True).train() for _ in range(2))
    compile_units(model, backend="eager")
    images, sizes, compiled = make_images(config), set(), []
    for seed in range(6):
        mask = make_mask(config, seed=seed)
        sizes.add(tuple(table.shape for tables in model.encoder.packer(mask).tables for table in tables))
        loss, _ = step(model, images, [mask], torch.float32)
        assert loss.item() == pytest.approx(step(plain, images, [mask], torch.float32)[0].item(), rel=1e-5)
        compiled.append(counters["stats"]["unique_graphs"])
    assert len(sizes) > 3 and compiled[0] == compiled[-1]


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="this torch shards on CUDA only")
@pytest.mark.parametrize("case", [case for case in FIRST if (case[0], case[2]) in (("swin", "mae"), ("vit", "simmim"))],
                         ids="-".join)
def test_blocks_of_a_sharded_model_are_compiled_whole_and_once(case):
    """Under fsdp with accumulation: the first of two batches of a step does not share gradients. One process has all parts."""
    config = make_config(*case)
    model, plain = (build(config, is_pretrain=True).train() for _ in range(2))
    images, masks = make_images(config), [make_mask(config)]
    dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    try:
        mesh = make_mesh(torch.device("cpu"))
        for unit in [*model.units(), model]:
            shard(unit, mesh)
        compile_units(model, backend="eager")
        compiled = []
        for _ in range(3):
            for last in (False, True):
                model.set_requires_gradient_sync(last)
                loss, gradients = step(model, images, masks, torch.float32)
            compiled.append(counters["stats"]["unique_graphs"])
        both = torch.cat([whole(gradient).flatten() for gradient in gradients])
    finally:
        dist.destroy_process_group()
    assert compiled[0] > 0 and compiled[0] == compiled[2] and not counters["graph_break"]
    expected, expected_gradients = step(plain, images, masks, torch.float32)
    alone = 2 * torch.cat([gradient.flatten() for gradient in expected_gradients])  # sums of two batches
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and (both - alone).norm() <= 1e-5 * alone.norm()


def test_evaluation_is_not_compiled_and_names_of_weights_stay():
    config = make_config("vit", "plain")
    model, plain = (build(config, is_pretrain=True) for _ in range(2))
    compile_units(model, backend="eager").eval()
    before = counters["stats"]["unique_graphs"]
    with torch.no_grad():
        assert model(make_images(config), make_mask(config)) == plain(make_images(config), make_mask(config))
    assert counters["stats"]["unique_graphs"] == before and model.state_dict().keys() == plain.state_dict().keys()


def test_missing_compiler_is_said_before_training(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("PATH", "/nowhere")
    from torch._inductor import config as inductor_config
    monkeypatch.setattr(inductor_config.cpp, "cxx", ("/nowhere/g++",))
    with pytest.raises(ValueError, match="TRAIN.COMPILE True needs a C.. compiler.*Install g"):
        compile_units(build(make_config("vit", "plain"), is_pretrain=True))
