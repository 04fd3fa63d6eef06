"""TRAIN.COMPILE: every method and encoder goes through torch.compile in whole blocks, once, and gives what it gives without."""
import pytest
import torch
from torch._dynamo.utils import counters

from config import with_values
from models.compiling import compile_units

from .tiny import CASES, build, make_config, make_images, make_mask

FIRST = list({(name, method): (name, variant, method, kind) for name, variant, method, kind in reversed(CASES)}.values())
STEPS = [(case, torch.float32) for case in FIRST] + [(case, torch.bfloat16) for case in FIRST if case[0] in ("vit", "convmae")]


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
