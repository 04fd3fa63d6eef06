"""Number formats on the CPU, and apex by a stand-in with its interface."""
import contextlib
import sys
import types

import pytest
import torch

from engine import Updater
from optimizer import build_optimizer
from utils.precision import ApexPrecision, NativePrecision, build_precision

from ..helpers import largest_difference, random_images, random_mask, state_of, tiny_config, tiny_model

CPU = torch.device("cpu")


def loss_of(model):
    return model(random_images(), random_mask("vit"))


@pytest.mark.parametrize(("level", "name", "dtype"), [
    ("", "fp32", torch.float32), ("O0", "fp32", torch.float32),
    ("O1", "mixed bfloat16", torch.bfloat16), ("O2", "mixed bfloat16", torch.bfloat16)])
def test_level_chooses_the_format_on_the_cpu(level, name, dtype):
    precision, layer = build_precision(level, "native", CPU), torch.nn.Linear(3, 2)
    with precision.autocast():
        assert layer(torch.zeros(1, 3)).dtype == dtype
    assert str(precision) == name
    assert layer(torch.zeros(1, 3)).dtype == torch.float32


def test_o2_says_that_it_is_o1(caplog):
    with caplog.at_level("INFO", logger="simmim.precision"):
        build_precision("O1", "native", CPU)
        assert caplog.text == ""
        build_precision("O2", "native", CPU)
    assert "using O1" in caplog.text


@pytest.mark.parametrize("encoder", ["swin", "vit"])
def test_mixed_precision_trains_like_fp32_within_its_rounding(encoder):
    """bfloat16 has 8 bits: a loss of about 0.8 agrees to a percent, and the step has the same size."""
    losses, norms = [], []
    for level in ("O0", "O1"):
        model = tiny_model(encoder)
        optimizer = build_optimizer(tiny_config(encoder), model)
        updater = Updater(model, optimizer, build_precision(level, "native", CPU), clip=5.0)
        before = state_of(model)
        loss, norm = updater.update([lambda model: model(random_images(), random_mask(encoder))])
        assert loss.dtype == torch.float32 and largest_difference(before, state_of(model)) > 0
        assert all(p.dtype == torch.float32 for p in model.parameters())
        losses.append(loss.item())
        norms.append(norm.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert norms[1] == pytest.approx(norms[0], rel=0.05) and norms[1] != norms[0]


def test_fp16_on_the_cpu_scales_the_loss_and_steps_like_fp32():
    steps = []
    for dtype in (None, torch.float16):
        model = tiny_model("vit")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        precision, before = NativePrecision(CPU, dtype), state_of(model)
        loss, norm = Updater(model, optimizer, precision, clip=None).update([loss_of, loss_of])
        steps.append(largest_difference(before, state_of(model)))
        assert 0.1 < norm.item() < 10  # in true scale, not 65536 times larger
        assert precision.scaler.is_enabled() == (dtype is not None)
    assert steps[1] == pytest.approx(steps[0], rel=0.05)


def test_fp16_skips_an_overflow_halves_the_scale_and_counts():
    model = tiny_model("vit")
    optimizer, precision = build_optimizer(tiny_config("vit"), model), NativePrecision(CPU, torch.float16)
    updater, before = Updater(model, optimizer, precision, clip=1.0), state_of(model)
    updater.update([lambda model: loss_of(model) * float("inf")])
    assert largest_difference(before, state_of(model)) == 0
    assert int(updater.skipped) == 1 and precision.scaler.get_scale() == 2.0 ** 15
    updater.update([loss_of])
    assert largest_difference(before, state_of(model)) > 0 and int(updater.skipped) == 1


def test_loss_scale_is_saved_and_restored():
    precision, other = (NativePrecision(CPU, torch.float16) for _ in range(2))
    precision.load_state_dict(precision.state_dict() | {"scale": 1024.0})
    other.load_state_dict(precision.state_dict())
    assert other.scaler.get_scale() == 1024.0


def test_state_of_another_format_is_passed_over():
    fp32, fp16 = NativePrecision(CPU, None), NativePrecision(CPU, torch.float16)
    fp32.load_state_dict(fp16.state_dict())
    fp16.load_state_dict(fp32.state_dict())
    fp16.load_state_dict(None)
    assert fp16.scaler.get_scale() == 2.0 ** 16


# ---- apex ---------------------------------------------------------------------------------------------------------

def test_apex_that_is_missing_names_the_key_and_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(ValueError, match="AMP_BACKEND apex needs apex.amp.*Use AMP_BACKEND native"):
        build_precision("O1", "apex", CPU)


def test_apex_without_amp_names_the_key(monkeypatch):
    """As since May 2025."""
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.delitem(sys.modules, "apex.amp", raising=False)
    with pytest.raises(ValueError, match="AMP_BACKEND apex needs apex.amp"):
        build_precision("O1", "apex", CPU)


@pytest.mark.parametrize("name", ["fused_adam", "fused_lamb"])
def test_apex_optimizer_that_is_missing_names_the_key_and_the_way_out(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "apex", None)
    config = tiny_config("vit", {"TRAIN.OPTIMIZER.NAME": name})
    with pytest.raises(ValueError, match=r"TRAIN\.OPTIMIZER\.NAME needs apex\.optimizers\.Fused.*Use TRAIN\.OPTIMIZER\.NAME"):
        build_optimizer(config, tiny_model("vit"))


@pytest.fixture
def apex(monkeypatch):
    """A module with what is used of apex; it scales the loss by 8 and notes what it is asked."""
    calls = types.SimpleNamespace(levels=[], delays=[], loaded=[])
    amp, optimizers, module = (types.ModuleType(name) for name in ("apex.amp", "apex.optimizers", "apex"))

    def initialize(model, optimizer, opt_level):
        calls.levels.append(opt_level)
        return model, optimizer

    @contextlib.contextmanager
    def scale_loss(loss, optimizer, delay_unscale=False):
        calls.delays.append(delay_unscale)
        yield loss * 8
        if not delay_unscale:
            for parameter in amp.master_params(optimizer):
                if parameter.grad is not None:
                    parameter.grad /= 8

    amp.initialize, amp.scale_loss = initialize, scale_loss
    amp.master_params = lambda optimizer: (p for group in optimizer.param_groups for p in group["params"])
    amp.state_dict, amp.load_state_dict = lambda: {"loss_scaler0": {"loss_scale": 8.0}}, calls.loaded.append
    optimizers.FusedAdam = type("FusedAdam", (torch.optim.AdamW,), {})
    optimizers.FusedLAMB = type("FusedLAMB", (torch.optim.AdamW,), {})
    module.amp, module.optimizers = amp, optimizers
    for name, value in (("apex", module), ("apex.amp", amp), ("apex.optimizers", optimizers)):
        monkeypatch.setitem(sys.modules, name, value)
    return calls


@pytest.mark.parametrize(("name", "kind"), [("fused_adam", "FusedAdam"), ("fused_lamb", "FusedLAMB")])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_apex_steps_as_native_fp32_does(apex, name, kind, micro_batches):
    results = []
    for backend, optimizer_name in (("apex", name), ("native", "adamw")):
        config = tiny_config("vit", {"TRAIN.OPTIMIZER.NAME": optimizer_name, "TRAIN.OPTIMIZER.EPS": 1e-4})
        model = tiny_model("vit")
        optimizer = build_optimizer(config, model)
        precision = build_precision("O0", backend, CPU)
        model, optimizer = precision.prepare(model, optimizer)
        loss, norm = Updater(model, optimizer, precision, clip=0.1).update([loss_of] * micro_batches)
        results.append((loss.item(), norm.item(), state_of(model), type(optimizer).__name__, optimizer.defaults))
    assert results[0][3] == kind and isinstance(build_precision("O1", "apex", CPU), ApexPrecision)
    assert results[0][:2] == pytest.approx(results[1][:2], rel=1e-5)
    assert largest_difference(results[0][2], results[1][2]) < 1e-6
    assert results[0][4]["betas"] == (0.9, 0.999) and results[0][4]["eps"] == 1e-4
    assert apex.levels == ["O0"] and apex.delays == [True] * (micro_batches - 1) + [False]


def test_apex_skips_a_nonfinite_step(apex):
    model = tiny_model("vit")
    optimizer = build_optimizer(tiny_config("vit", {"TRAIN.OPTIMIZER.NAME": "fused_adam"}), model)
    updater, before = Updater(model, optimizer, build_precision("O1", "apex", CPU), clip=5.0), state_of(model)
    updater.update([lambda model: loss_of(model) * float("nan")])
    assert largest_difference(before, state_of(model)) == 0 and int(updater.skipped) == 1


def test_apex_state_is_saved_and_restored(apex):
    precision = build_precision("O1", "apex", CPU)
    precision.load_state_dict(precision.state_dict())
    precision.load_state_dict(None)
    assert apex.loaded == [{"loss_scaler0": {"loss_scale": 8.0}}] and str(precision) == "apex O1"


def test_factor_on_losses_in_float16_is_held_at_its_floor(caplog):
    """Each skipped step halves it: without a floor, a hundred of them would leave nothing to train with."""
    model = torch.nn.Linear(2, 2)
    optimizer, precision = torch.optim.SGD(model.parameters(), lr=0.1), NativePrecision(CPU, torch.float16)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scales = []
    for _ in range(6):
        precision.backward(model(torch.ones(1, 2)).sum() * float("inf"), optimizer, True)
        precision.gradients(optimizer)
        precision.step(optimizer, torch.tensor(True))
        optimizer.zero_grad()
        precision.hold_scale()
        scales.append(precision.scaler.get_scale())
    assert scales == [2.0, 1.0, 1.0, 1.0, 1.0, 1.0] and "loss scale of float16 has fallen below 1" in caplog.text


def test_factor_is_of_no_concern_to_other_formats():
    NativePrecision(CPU, None).hold_scale()
    NativePrecision(CPU, torch.bfloat16).hold_scale()
