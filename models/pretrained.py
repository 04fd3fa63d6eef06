"""Start a model from the weights of another one: other task, other image size, other window."""
import logging
from dataclasses import dataclass

from models.encoder import REBUILT_BUFFERS, Encoder
from utils.checkpoint import load_checkpoint, weights_of
from utils.sharding import assign

log = logging.getLogger("simmim.pretrained")

# what may differ between two tasks or two settings of one encoder; anything else means another encoder
OPTIONAL = ("mask_token", "head.", "norm.", "fc_norm.", "absolute_pos_embed", "pos_embed", "rel_pos_bias.", "decoder.")


@dataclass
class Report:
    """What became of the names.

    Attributes:
        source: the file.
        matched: loaded, in the model's naming; `resized` is the part of them that changed grid.
        missing: left as initialised, in the model's naming.
        unexpected: not used, in the file's naming without `encoder.`.
    """
    source: str
    matched: list
    resized: list
    missing: list
    unexpected: list

    def __str__(self):
        parts = [f"{len(self.matched)} tensors matched", f"{len(self.resized)} of them resized"]
        for kind in ("missing", "unexpected"):
            names = getattr(self, kind)
            parts.append(f"{len(names)} {kind}" + (f" ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})"
                                                   if names else ""))
        return f"{self.source}: {'; '.join(parts)}"


def load_pretrained(model, path):
    """Load the encoder of a checkpoint into a model, resizing position tables to its grid.

    Reads SimMIM pre-training and fine-tuning files (official or ours, full or encoder only) of the same encoder.

    Args:
        model: a pre-training method or a classification model.
        path: file or https address.
    Returns: Report.
    Raises: FileNotFoundError; ValueError if the file is unreadable or holds another encoder.
    """
    content = load_checkpoint(path)
    weights = {name.removeprefix("module."): value for name, value in weights_of(content).items()}
    if not weights:
        raise ValueError(f"{path} holds no weights: expected a state dict, alone or under `model`. "
                         f"Its entries are {', '.join(map(str, list(content)[:6])) or 'none'}.")
    report = Report(str(path), [], [], [], [])
    if isinstance(model, Encoder):
        _load_encoder(model, _encoder_part(weights), report)
    else:
        _load_encoder(model.encoder, _encoder_part(weights), report)
        _load_decoder(model, weights, report)
    log.info("%s", report)
    return report


def _encoder_part(weights):
    """Names as the encoder has them: what stands under `encoder.` if anything does, else all."""
    prefixed = {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    return prefixed or weights


def _load_encoder(encoder, weights, report):
    weights, resized = encoder.resize_state_dict(weights)
    own = {name: value for name, value in encoder.state_dict().items() if not name.endswith(REBUILT_BUFFERS)}
    misfits = [name for name in weights if name in own and weights[name].shape != own[name].shape]
    matched = [name for name in weights if name in own and name not in misfits]
    missing = [name for name in own if name not in matched]
    unexpected = [name for name in weights if name not in matched]
    foreign = [name for name in [*missing, *unexpected]
               if not _is_optional(name) or (name in misfits and not name.startswith("head."))]
    if foreign:
        shapes = [f"{name} is {tuple(weights[name].shape)}, the model has {tuple(own[name].shape)}"
                  for name in misfits if name in foreign]
        example = shapes[0] if shapes else f"for example {foreign[0]}"
        raise ValueError(
            f"{report.source} holds another encoder than this model: {len(matched)} of {len(own)} tensors match, "
            f"{len(set(foreign))} do not ({example}). Compare MODEL.TYPE, EMBED_DIM, DEPTHS, NUM_HEADS and the patch size of "
            f"--cfg with those of the checkpoint.")
    assign(encoder, {name: weights[name] for name in matched})
    report.matched += matched
    report.resized += resized
    report.missing += missing
    report.unexpected += unexpected


def _is_optional(name):
    return name.startswith(OPTIONAL) or name.endswith("relative_position_bias_table")


def _load_decoder(model, weights, report):
    """A pre-training checkpoint also continues the decoder, where it fits."""
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    fitting = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    assign(model, fitting)
    report.matched += list(fitting)
    report.missing += [name for name in own if name not in fitting]
