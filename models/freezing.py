"""Parts of a model that training leaves as they are (TRAIN.FREEZE)."""
import difflib
import logging

from models.encoders.encoder import Encoder

log = logging.getLogger("simmim.freezing")


def freeze(model, what):
    """Take parameters out of the training: they need no gradient, and `train_mode` keeps their modules as in evaluation.

    Args:
        model: a pre-training method or a classification model, whole or sharded; before its optimizer is built.
        what: "none", or with commas between: "encoder", all of it but a head; a number N, the embedding and the first N
            blocks, as `Encoder.layer_id` counts them; parts of names, such as patch_embed, layers.0 or norm, from dot to dot.
    Raises: ValueError if a number or name fits nothing, or nothing is left to train.
    """
    if what == "none":
        return
    encoder = model if isinstance(model, Encoder) else model.encoder
    parameters = dict(model.named_parameters())
    chosen = [name for item in what.split(",") for name in _chosen(item.strip(), list(parameters), encoder, model)]
    for name in chosen:
        parameters[name].requires_grad_(False)
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    if not trained:
        raise ValueError(f"TRAIN.FREEZE={what} leaves nothing to train: freeze less, or only evaluate (--eval).")
    log.info("TRAIN.FREEZE=%s: %d of %d tensors stay as they are; trained: %s%s", what, len(parameters) - len(trained),
             len(parameters), ", ".join(trained[:6]), ", ..." if len(trained) > 6 else "")


def _chosen(item, names, encoder, model):
    """Those of `names`, of the parameters of `model`, that one item of TRAIN.FREEZE means."""
    prefix = "" if encoder is model else "encoder."
    of_encoder = [name for name in names if name.startswith(prefix) and not name.startswith(f"{prefix}head.")]
    if item == "encoder":
        return of_encoder
    if item.isdecimal():
        if not 1 <= int(item) <= encoder.num_layers:
            raise ValueError(f"TRAIN.FREEZE={item}: the encoder has {encoder.num_layers} blocks, so the first 1 to "
                             f"{encoder.num_layers} can be frozen. Use none to freeze nothing, patch_embed for the embedding "
                             f"alone.")
        return [name for name in of_encoder if encoder.layer_id(name.removeprefix(prefix)) <= int(item)]
    found = [name for name in names if f".{item}." in f".{name}."]
    if not found:
        near = ", ".join(difflib.get_close_matches(item, _parts(names), n=3, cutoff=0.5))
        raise ValueError(f"TRAIN.FREEZE: no parameter has {item!r} in its name. Expected none, encoder, a number of blocks, or "
                         f"parts of names with commas between{f'; the closest: {near}' if near else ', e.g. patch_embed'}.")
    return found


def _parts(names):
    """What names begin with, and what stands between their dots."""
    parts = [part for name in names for part in name.split(".")]
    starts = [".".join(name.split(".")[:end]) for name in names for end in range(2, name.count(".") + 2)]
    return list(dict.fromkeys(part for part in [*parts, *starts] if not part.isdecimal()))


def train_mode(model):
    """`model.train()`, but for modules whose parameters are all frozen, and what they hold: those are as in evaluation.

    A module without parameters, as dropout is, goes with the one before it.
    """
    model.train()
    _hold_frozen(model)


def _hold_frozen(module):
    frozen = False
    for child in module.children():
        parameters = list(child.parameters())
        if parameters:
            frozen = not any(parameter.requires_grad for parameter in parameters)
        if frozen:
            child.eval()
        else:
            _hold_frozen(child)
