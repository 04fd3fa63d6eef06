"""Resuming: what a checkpoint brings and what the present config decides."""
import pytest
import torch

from resume import _load_optimizer


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
