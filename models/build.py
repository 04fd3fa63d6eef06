"""From a config to a model."""
from functools import partial

import torch
from torch import nn

from models.encoders import ENCODERS
from models.inputs import check_method, image_size
from models.methods import METHODS
from utils import sharding
from utils.registry import pick


def build_encoder(config, num_classes=0, use_mask_token=False):
    """The encoder named by MODEL.TYPE; with a head if num_classes > 0, with a mask token if a method asks for one."""
    encoder = pick(ENCODERS, config.MODEL.TYPE, "MODEL.TYPE")
    return encoder.build(config, image_size(config), num_classes, use_mask_token)


def build_model(config, is_pretrain=True):
    """The model of a config.

    Args:
        config: from load_config.
        is_pretrain: a pre-training method around an encoder, or an encoder with a classification head.
    Returns: nn.Module; its contract is in docs/architecture.md. Under `with torch.device("meta")` it has sizes but no memory
        (and can be given some by `materialize`).
    Raises: ValueError on an unknown MODEL.TYPE or MODEL.METHOD, or settings that do not fit together.
    """
    with torch.device("meta"):
        if is_pretrain:
            method = pick(METHODS, config.MODEL.METHOD, "MODEL.METHOD")
            check_method(config)
            model = method.build(config, partial(build_encoder, config))
        else:
            model = build_encoder(config, config.MODEL.NUM_CLASSES)
    return model if _default_device().type == "meta" else materialize(model)


def build_sharded(config, is_pretrain, device, dtype):
    """The model of a config, its parameters divided among all processes; no process ever holds all of them.

    The weights are those that `build_model(...)` has after the same seed.

    Args:
        device: torch.device of this process.
        dtype: what is multiplied in, see utils.sharding.shard; None = float32.
    """
    with torch.device("meta"):
        model = build_model(config, is_pretrain)
    mesh, units = sharding.make_mesh(device), set(model.units())

    def finished(module):
        for own, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            getattr(module, own).data = tensor.data.to(device)
        if module in units or module is model:
            sharding.shard(module, mesh, dtype)

    return materialize(model, finished)


def _file_of(module):
    """The file of its class, as it is imported: models/methods/mae.py."""
    return type(module).__module__.replace(".", "/") + ".py"


def _without_value(module):
    """Names of its own parameters that are NaN still; tensors that have no values are of other types."""
    return [own for own, parameter in module.named_parameters(recurse=False)
            if type(parameter) is nn.Parameter and parameter.isnan().any()]


def _begin_by_default(module, names):
    """Where `init_module` left these parameters of a layer out, they begin as the layer says, as torch's own do."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if reset is None:
        return
    given = {own: parameter.detach().clone() for own, parameter in module.named_parameters(recurse=False) if own not in names}
    reset()
    with torch.no_grad():
        for own, value in given.items():
            getattr(module, own).copy_(value)


def _check_values(model, name, module):
    """Complete a module by the defaults of its layer.

    Raises: ValueError that names a parameter without initial value, or a buffer without memory.
    """
    kind, owner, forgotten = type(module).__name__, type(model).__name__, _without_value(module)
    if forgotten:
        _begin_by_default(module, forgotten)
        for own in _without_value(module):
            raise ValueError(f"{f'{name}.{own}'.lstrip('.')} of a {kind} ({_file_of(module)}) has no initial value: fill it in "
                             f"{owner}.init_module ({_file_of(model)}); layers with reset_parameters begin by that.")
    for own, buffer in module.named_buffers(recurse=False):
        if buffer.is_meta:
            raise ValueError(f"the buffer {f'{name}.{own}'.lstrip('.')} of a {kind} in {owner} has no values: make it with "
                             f"device=\"cpu\". Layers that make their own, as BatchNorm, are not supported: use LayerNorm.")


def _default_device():
    """Where new tensors go; torch 2.6's get_default_device does not see `with torch.device(...)`."""
    return torch.empty(0).device


def materialize(model, finished=None):
    """Give a model from the meta device memory and initial weights, one module at a time.

    The modules come in the order of `named_modules` and draw from torch's global generator, so that the weights depend on
    its seed only: they are the same whether or not `finished` moves or shards modules on the way.

    Args:
        model: an Encoder or a method, see `init_module` there.
        finished: called with every module once its weights and those of all its children are there.
    Returns: the model.
    """
    device = _default_device()

    def fill(name, module):
        for own, parameter in module.named_parameters(recurse=False):
            # NaN, so that a parameter that init_module forgets is noticed
            memory = torch.full(parameter.shape, float("nan"), dtype=parameter.dtype, device=device)
            module.register_parameter(own, nn.Parameter(memory, requires_grad=parameter.requires_grad))
        model.init_module(name, module)
        if device.type != "meta":
            _check_values(model, name, module)
        for own, child in module.named_children():
            fill(f"{name}.{own}" if name else own, child)
        if finished is not None:
            finished(module)

    fill("", model)
    return model
