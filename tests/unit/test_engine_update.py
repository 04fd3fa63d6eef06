"""One optimizer step: accumulation, clipping, steps that must not happen."""
import pytest
import torch

from engine import Updater
from optimizer import build_optimizer
from utils.precision import build_precision

from .helpers import TINY, largest_difference, random_images, random_mask, state_of, tiny_config, tiny_model

CPU = torch.device("cpu")
NAN, INFINITY = float("nan"), float("inf")
OPTIMIZERS = ("adamw", "adamw_not_fused", "sgd")
each_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)


def make_updater(encoder="vit", kind="adamw", clip=None, lr=1e-3):
    """An epsilon of 1e-4 keeps AdamW from turning gradients that are rounding noise into whole steps."""
    config = tiny_config(encoder, {"TRAIN.OPTIMIZER.NAME": kind.partition("_")[0], "TRAIN.OPTIMIZER.EPS": 1e-4,
                                   "TRAIN.BASE_LR": lr})
    model = tiny_model(encoder).train()
    optimizer = build_optimizer(config, model)
    if kind == "adamw_not_fused":
        groups = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, eps=1e-4, fused=False)
    return Updater(model, optimizer, build_precision("O0", "native", CPU), clip)


def losses_of(encoder, micro_batches, batch=4):
    """The batch in equal parts; every image has as many hidden patches, so the parts weigh alike."""
    images, mask = random_images(batch), random_mask(encoder, batch)
    return [lambda model, i=i, m=m: model(i, m) for i, m in zip(images.chunk(micro_batches), mask.chunk(micro_batches),
                                                                strict=True)]


def bad(factor):
    return lambda model: losses_of("vit", 1)[0](model) * factor


@pytest.mark.parametrize("clip", [None, 0.05], ids=["not_clipped", "clipped"])
@pytest.mark.parametrize("micro_batches", [2, 4])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("encoder", TINY)
def test_micro_batches_make_the_step_of_one_large_batch(encoder, kind, micro_batches, clip):
    """The official code clips every micro-batch and so does not (quirk 6)."""
    large, split = (make_updater(encoder, kind, clip, lr=0.1 if kind == "sgd" else 1e-3) for _ in range(2))
    before = state_of(large.model)
    for _ in range(2):
        loss, norm = large.update(losses_of(encoder, 1))
        split_loss, split_norm = split.update(losses_of(encoder, micro_batches))
        assert split_loss.item() == pytest.approx(loss.item(), rel=1e-5)
        assert split_norm.item() == pytest.approx(norm.item(), rel=1e-4)
        assert clip is None or norm.item() > 2 * clip  # else the comparison says nothing about clipping
    assert largest_difference(state_of(split.model), state_of(large.model)) < 1e-6
    assert largest_difference(state_of(large.model), before) > 1e-4


def test_gradient_is_clipped_once_per_step(monkeypatch):
    clip, calls = torch.nn.utils.clip_grad_norm_, []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: calls.append(args[1]) or clip(*args))
    make_updater(clip=5.0).update(losses_of("vit", 4))
    assert calls == [5.0]


def test_step_with_plain_sgd_moves_by_the_clipped_gradient():
    """With a limit of 0.01 and a rate of 1, the first step without momentum's share is 0.01 long in all."""
    model = tiny_model("vit")
    updater = Updater(model, torch.optim.SGD(model.parameters(), lr=1.0), build_precision("O0", "native", CPU), clip=0.01)
    before = state_of(model)
    _, norm = updater.update(losses_of("vit", 2))
    moved = sum((value - before[name]).double().square().sum() for name, value in model.named_parameters()) ** 0.5
    assert norm.item() > 0.05 and moved.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("clip", [None, 0, 0.0])
def test_clip_of_zero_or_none_is_off(clip):
    limited, free = make_updater(clip=1e9, kind="sgd"), make_updater(clip=clip, kind="sgd")
    for updater in (limited, free):
        updater.update(losses_of("vit", 1))
    assert largest_difference(state_of(limited.model), state_of(free.model)) == 0


def test_gradients_are_gone_after_a_step():
    updater = make_updater()
    updater.update(losses_of("vit", 2))
    assert all(parameter.grad is None for parameter in updater.model.parameters())


def test_loss_is_the_mean_of_the_micro_batches():
    updater = make_updater()
    expected = [loss(updater.model).item() for loss in losses_of("vit", 2, batch=2)]
    loss, _ = updater.update(losses_of("vit", 2, batch=2))
    assert expected[0] != expected[1]
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-6) and not loss.requires_grad


# ---- steps that must not happen -----------------------------------------------------------------------------------

@each_optimizer
@pytest.mark.parametrize("factor", [NAN, INFINITY])
def test_nonfinite_loss_skips_the_step_and_is_counted(kind, factor):
    updater = make_updater(kind=kind, clip=5.0)
    before = state_of(updater.model)
    _, norm = updater.update([bad(factor)])
    assert not torch.isfinite(norm)
    assert largest_difference(state_of(updater.model), before) == 0
    assert (int(updater.skipped), int(updater.skipped_in_row)) == (1, 1)


@each_optimizer
def test_one_bad_micro_batch_skips_the_whole_step(kind):
    updater = make_updater(kind=kind, clip=5.0)
    before = state_of(updater.model)
    updater.update([*losses_of("vit", 1), bad(NAN)])
    assert largest_difference(state_of(updater.model), before) == 0 and int(updater.skipped) == 1


def test_skips_in_a_row_are_counted_apart_from_all_skips():
    updater, seen = make_updater(clip=5.0), []
    for factor in (1.0, NAN, NAN, 1.0, INFINITY):
        updater.update([bad(factor)])
        seen.append((int(updater.skipped), int(updater.skipped_in_row)))
    assert seen == [(0, 0), (1, 1), (2, 2), (2, 0), (3, 1)]


@pytest.fixture
def uninitialised_memory_is_nan():
    """Fill new memory with NaN, so that what was never written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@each_optimizer
@pytest.mark.parametrize("good_before", [0, 1])
def test_skipped_step_leaves_no_trace_in_the_optimizer(kind, good_before, uninitialised_memory_is_nan):
    """Moments and step counts are as if the bad batch had not come, also when it is the very first."""
    skipping, straight = make_updater(kind=kind, clip=5.0), make_updater(kind=kind, clip=5.0)
    for updater in (skipping, straight):
        for _ in range(good_before):
            updater.update(losses_of("vit", 1))
    skipping.update([bad(NAN)])
    for updater in (skipping, straight):
        for micro_batches in (1, 2):
            updater.update(losses_of("vit", micro_batches))
    assert all(torch.isfinite(value).all() for value in state_of(skipping.model).values())
    assert largest_difference(state_of(skipping.model), state_of(straight.model)) == 0


def test_fused_and_plain_optimizer_agree():
    fused, plain = make_updater(kind="adamw", clip=5.0), make_updater(kind="adamw_not_fused", clip=5.0)
    assert fused.optimizer.defaults["fused"] and not plain.optimizer.defaults["fused"]
    for updater in (fused, plain):
        for _ in range(3):
            updater.update(losses_of("vit", 1))
    assert largest_difference(state_of(fused.model), state_of(plain.model)) < 1e-6


# ---- several processes --------------------------------------------------------------------------------------------

def test_gradients_travel_with_the_last_micro_batch_only():
    """`no_sync` of a wrapped model is entered for all micro-batches but the last."""
    inside = []

    class Wrapped(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.quiet = module, False

        def no_sync(self):
            wrapped = self

            class Quiet:
                def __enter__(self):
                    wrapped.quiet = True

                def __exit__(self, *_):
                    wrapped.quiet = False
            return Quiet()

        def forward(self, *args):
            inside.append(self.quiet)
            return self.module(*args)

    updater = make_updater()
    updater.model = Wrapped(updater.model)
    updater.update(losses_of("vit", 4))
    assert inside == [True, True, True, False]
