"""Resuming: what a checkpoint brings and what the present config decides."""
import pytest
import torch

from config import dump
from resume import _load_optimizer

from .tiny_job import fitted, make_job


def optimizer(fused):
    weight = torch.nn.Parameter(torch.ones(3))
    made = torch.optim.AdamW([{"params": [weight], "lr": 0.5, "weight_decay": 0.1}], fused=fused)
    weight.grad = torch.ones(3)
    return made


def test_settings_of_the_optimizer_stay_those_of_the_config_when_its_state_is_loaded():
    old, new = optimizer(fused=False), optimizer(fused=True)
    old.step()
    state = old.state_dict()
    state["param_groups"][0].update(lr=9.0, weight_decay=9.0)
    state["param_groups"][0].pop("fused")  # an official file does not have it
    _load_optimizer(new, state, "a file")
    group = new.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["fused"]) == (0.5, 0.1, True)
    assert int(new.state[group["params"][0]]["step"]) == 1
    new.step()


@pytest.mark.parametrize("other", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.AdamW(p)],
                         ids=["adamw_to_sgd", "sgd_to_adamw"])
def test_moments_of_another_optimizer_are_refused(other):
    kinds = [torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)]
    new = other([torch.nn.Parameter(torch.ones(3))])
    old = kinds[isinstance(new, torch.optim.AdamW)]([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match=r"another optimizer than TRAIN\.OPTIMIZER\.NAME says"):
        _load_optimizer(new, old.state_dict(), "a file")


MAE = {"MODEL__TYPE": "vit", "MODEL__METHOD": "mae", "MODEL__VIT__USE_SHARED_RPB": False, "TRAIN__EPOCHS": 1,
       "TRAIN__WARMUP_EPOCHS": 0}


@pytest.mark.parametrize(("key", "value"), [("MODEL.VIT.NUM_HEADS", 6), ("MODEL.MAE.DECODER_NUM_HEADS", 8)])
def test_other_heads_are_not_resumed_though_every_shape_fits(key, value, tmp_path):
    job = fitted(tmp_path, **MAE)
    assert f"{key.split('.')[-1]}:" in dump(job.config, "pretrain")
    with pytest.raises(ValueError, match=rf"was made with {key}=\d+, not {value}: .*--pretrained"):
        make_job(tmp_path, **MAE, **{key.replace(".", "__"): value})
    make_job(tmp_path, **MAE)
