"""Parameter groups and optimizers. Which parameters decay, and how fast each layer learns, follows the official SimMIM code."""
import torch

from utils.registry import pick


def build_optimizer(config, model, is_pretrain=True):
    """Optimizer over the trainable parameters.

    Args:
        config: TRAIN.BASE_LR is used as given; the mains pass a config whose rates are scaled by the batch.
        model: a method (pre-training) or a classification encoder; not wrapped in DistributedDataParallel.
        is_pretrain: two groups (decay, no decay), or one pair of groups a layer.
    Raises: ValueError on an unknown TRAIN.OPTIMIZER.NAME, or when apex is asked for and missing.
    """
    groups = pretrain_groups(model) if is_pretrain else finetune_groups(model, config.TRAIN.LAYER_DECAY)
    for group in groups:
        decays = group.pop("decays")
        group["weight_decay"] = config.TRAIN.WEIGHT_DECAY if decays else 0.0
        group["lr"] = config.TRAIN.BASE_LR * group.get("lr_scale", 1.0)
    build = pick(OPTIMIZERS, config.TRAIN.OPTIMIZER.NAME, "TRAIN.OPTIMIZER.NAME")
    return build(groups, config.TRAIN.OPTIMIZER)


def pretrain_groups(model):
    """Two groups: what decays, and 1-d tensors, biases and the model's `no_weight_decay()` names.

    Position bias tables decay here although they do not in fine-tuning: the official code means to exempt them but its
    keywords never match in pre-training, and published numbers were made that way.
    """
    exempt = model.no_weight_decay()
    groups = [{"params": [], "decays": True}, {"params": [], "decays": False}]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_is_exempt(name, parameter, exempt)]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def finetune_groups(model, layer_decay):
    """One group for each (layer, decays or not), in order of first appearance.

    The factor of layer i is layer_decay ** (num_layers + 1 - i). `lr_scale` records it; the group's `lr` already
    contains it and nothing multiplies by it again (newer timm schedulers do).
    Source: BEiT (arXiv 2106.08254), as used by the official SimMIM.
    """
    exempt, keywords = model.no_weight_decay(), model.no_weight_decay_keywords()
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = model.layer_id(name)
        decays = not _is_exempt(name, parameter, exempt, keywords)
        group_name = f"layer_{layer}_{'decay' if decays else 'no_decay'}"
        group = groups.setdefault(group_name, {
            "group_name": group_name, "decays": decays, "params": [],
            "lr_scale": layer_decay ** (model.num_layers + 1 - layer)})
        group["params"].append(parameter)
    return list(groups.values())


def _is_exempt(name, parameter, names, keywords=()):
    return parameter.ndim == 1 or name.endswith(".bias") or name in names or any(word in name for word in keywords)


def _adamw(groups, settings):
    return torch.optim.AdamW(groups, eps=settings.EPS, betas=tuple(settings.BETAS), fused=_can_fuse(groups))


def _sgd(groups, settings):
    # not fused: a first step that is skipped would leave the fused kernel's momentum uninitialised
    return torch.optim.SGD(groups, lr=groups[0]["lr"], momentum=settings.MOMENTUM,
                           nesterov=settings.MOMENTUM > 0)


def _fused_adam(groups, settings):
    return _apex_optimizer("FusedAdam")(groups, eps=settings.EPS, betas=tuple(settings.BETAS))


def _fused_lamb(groups, settings):
    return _apex_optimizer("FusedLAMB")(groups, eps=settings.EPS, betas=tuple(settings.BETAS))


class LARS(torch.optim.Optimizer):
    """Momentum SGD whose step of each weight is as long as the weight itself, times `trust_coefficient`.

    Tensors of one dimension take a plain step, without decay. A non-finite gradient is skipped on the device, as the fused
    optimizers do, see utils/precision.py.

    Args:
        groups: parameters or groups of them.
        lr, weight_decay, momentum: as in SGD.
        trust_coefficient: length of a step of rate 1 as a share of the weight's.
    Source: You et al. (arXiv 1708.03888), in the form of the official MAE; momentum holds the scaled gradient without the rate.
    """

    def __init__(self, groups, lr=0.0, weight_decay=0.0, momentum=0.9, trust_coefficient=0.001):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum,
                                  "trust_coefficient": trust_coefficient, "fused": True})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            raise ValueError("LARS evaluates no closure: call backward before step().")
        skipped = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "mu" not in state:
                    state["mu"] = torch.zeros_like(parameter)
                moved = group["momentum"] * state["mu"] + self._scaled_gradient(parameter, group)
                step = group["lr"] * moved
                if skipped is not None:
                    moved = torch.where(skipped > 0, state["mu"], moved)
                    step = torch.where(skipped > 0, 0.0, step)
                state["mu"].copy_(moved)
                parameter.sub_(step)

    def _scaled_gradient(self, parameter, group):
        gradient = parameter.grad
        if parameter.ndim < 2:
            return gradient
        gradient = gradient + group["weight_decay"] * parameter
        size, length = parameter.norm(), gradient.norm()
        trust = group["trust_coefficient"] * size / length
        return gradient * torch.where((size > 0) & (length > 0), trust, 1.0)


def _lars(groups, settings):
    return LARS(groups, momentum=settings.MOMENTUM, trust_coefficient=settings.TRUST_COEFFICIENT)


def _can_fuse(groups):
    """The fused kernels skip a step with a non-finite gradient on the device itself, without waiting for it."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    return all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for p in parameters)


def _apex_optimizer(name):
    try:
        from apex import optimizers
        return getattr(optimizers, name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"TRAIN.OPTIMIZER.NAME needs apex.optimizers.{name}, which is not installed ({error}). Use "
            f"TRAIN.OPTIMIZER.NAME adamw, or build NVIDIA's apex from source (github.com/NVIDIA/apex; `pip install apex` "
            f"is another project).") from error


OPTIMIZERS = {"adamw": _adamw, "sgd": _sgd, "lars": _lars, "fused_adam": _fused_adam, "fused_lamb": _fused_lamb}
