"""Start a model from the weights of another one: other task, other image size, other window, other channels."""
import logging
import re
from dataclasses import dataclass, field

import torch

from models.encoders.encoder import REBUILT_BUFFERS, Encoder
from models.weights.sources import SOURCES, Source, as_it_is, encoder_type, recognised, under_encoder
from utils.checkpoint import load_checkpoint, other_weights, weights_at, weights_in
from utils.classes import difference, kept_classes
from utils.finite import check_finite
from utils.formats import WEIGHT_KEYS
from utils.sharding import assign

log = logging.getLogger("simmim.pretrained")

# what may differ between two tasks or two settings of one encoder; anything else means another encoder
OPTIONAL = ("mask_token", "head.", "norm.", "fc_norm.", "absolute_pos_embed", "pos_embed", "rel_pos_bias.", "decoder.",
            "stage1_output_decode.", "stage2_output_decode.")
# tables of positions, and the setting that makes a model have them; without those that it learned an encoder is another one
POSITIONS = {"absolute_pos_embed": "APE", "pos_embed": "USE_APE or USE_SINCOS_APE", "rel_pos_bias.": "USE_SHARED_RPB",
             "relative_position_bias_table": "USE_RPB"}
FIRST_KERNELS = ("patch_embed.proj.weight", "patch_embed1.proj.weight")


# ---- recognition ---------------------------------------------------------------------------------------------------

def recognise(weights, encoder, path):
    """The Source of a file, with its weights as `recognised` returns them; one with the names of the encoder is known, too.

    Raises: ValueError that lists the known ones.
    """
    found = recognised(weights, path)
    if found[0]:
        return found
    own = {name for name in _own(encoder) if not _is_optional(name)}
    for prefix, convert in (("encoder.", as_it_is), ("", under_encoder)):
        names = {name.removeprefix(prefix) for name in weights if name.startswith(prefix)}
        names = {name for name in names if not _is_optional(name) and not name.endswith(REBUILT_BUFFERS)}
        if names and (names <= own or own <= names):
            return Source("the names of this model", None, convert), weights, "", []
    known = "; ".join(source.name for source in SOURCES)
    raise ValueError(f"{path} holds weights of a kind that is not known: they are named {', '.join(list(weights)[:4])}, ... "
                     f"Known: {known}. Another kind is an entry of SOURCES in models/weights/sources.py.")


# ---- loading ------------------------------------------------------------------------------------------------------

@dataclass
class Report:
    """What became of the names.

    Attributes:
        path: the file.
        source: what kind of file it is.
        matched: loaded, in the model's naming; `resized` is the part of them that changed shape on the way.
        missing: left as initialised, in the model's naming.
        unexpected: not used, in the naming of our models without `encoder.`.
        notes: what a reader should not have to find out from the names.
        classes: names of the classes that the file was trained on, where it keeps them.
        misfit: why the decoder of the file was not taken, see models.methods.method.Method.misfit.
    """
    path: str
    source: str
    matched: list = field(default_factory=list)
    resized: list = field(default_factory=list)
    missing: list = field(default_factory=list)
    unexpected: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    classes: list = field(default_factory=list)
    misfit: str = ""

    def __str__(self):
        parts = [f"{len(self.matched)} tensors matched", f"{len(self.resized)} of them resized"]
        for kind in ("missing", "unexpected"):
            names = getattr(self, kind)
            parts.append(f"{len(names)} {kind}" + (f" ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})"
                                                   if names else ""))
        return f"{self.path} ({self.source}): {'; '.join(parts + self.notes)}"


def load_pretrained(model, path, key="", classes=None):
    """Load the encoder of a checkpoint into a model; into a pre-training model the decoder as well, where it fits.

    Position tables are resized to the model's grid, the first convolution is adapted to its channels.

    Args:
        model: a pre-training method or a classification model.
        path: file or https address; SOURCES lists the kinds.
        key: where in the file the weights stand, as PRETRAINED_KEY.
        classes: names of the classes that the head of the model is for. Where the file keeps others, its head is not taken.
    Returns: Report.
    Raises: FileNotFoundError; ValueError if the file is unreadable, of an unknown kind, holds another encoder, or NaN or
        infinite values in what the model takes.
    """
    content = load_checkpoint(path, moments=False)
    weights = weights_in(content, path, key)
    encoder = model if isinstance(model, Encoder) else model.encoder
    source, weights, prefix, others = recognise(weights, encoder, path)
    report = Report(str(path), source.name, classes=kept_classes(content), unexpected=others)
    report.notes += _where(content, key, prefix)
    weights = source.convert(weights)
    weights = _without_head_of_others(weights, classes, report)
    _load_encoder(encoder, {name.removeprefix("encoder."): value for name, value in weights.items()
                            if name.startswith("encoder.")}, report)
    if encoder is not model:
        _load_rest(model, {name: value for name, value in weights.items() if not name.startswith("encoder.")}, report)
    log.info("%s", report)
    return report


def _without_head_of_others(weights, classes, report):
    """The weights without a head that is for other classes of the same number; one that is taken over is said."""
    head = weights.get("encoder.head.weight")
    if not classes or head is None or len(head) != len(classes):
        return weights
    if not report.classes:
        report.notes.append(f"its head is taken over by the number of classes, {len(head)}: the file keeps no names of them")
        return weights
    if not difference(report.classes, classes):
        report.notes.append(f"its head is taken over: it is for the same {len(head)} classes")
        return weights
    report.notes.append(f"the head of the file is for other classes ({difference(report.classes, classes)}): left as "
                        f"initialised")
    return {name: value for name, value in weights.items() if not name.startswith("encoder.head.")}


def _where(content, key, prefix):
    """Which weights of a file were taken, as notes, where that is not plain."""
    place, _ = weights_at(content, key)
    others, notes = other_weights(content, place), []
    if others:
        notes.append(f"taken from {place or 'no key'}; weights are also under {', '.join(others)} (PRETRAINED_KEY chooses)")
    elif place not in ("", *WEIGHT_KEYS[:2]):
        notes.append(f"taken from {place}")
    return notes + ([f"names without {prefix}"] if prefix else [])


def _load_encoder(encoder, weights, report):
    own = _own(encoder)
    if {_certain_type(weights), _certain_type(encoder.state_dict())} == {"swin", "mixmim"}:  # of the same names
        raise ValueError(f"{report.path} holds another encoder than this model. {_advice(weights, own)}")
    odd = next((name for name in weights if name in own and weights[name].ndim != own[name].ndim), None)
    if odd:
        raise ValueError(f"{report.path} holds another encoder than this model: {odd} is {tuple(weights[odd].shape)} there, "
                         f"{tuple(own[odd].shape)} in the model. Use a file of MODEL.TYPE as it is set.")
    weights, resized = encoder.resize_state_dict(weights)
    misfits = [name for name in weights if name in own and weights[name].shape != own[name].shape]
    first = next((name for name in FIRST_KERNELS if name in misfits), None)
    if first and _differs_in_channels_alone(weights[first], own[first]):
        kernel, channels = weights[first], own[first].shape[1]
        weights = {**weights, first: adapt_channels(kernel, channels)}
        misfits.remove(first)
        resized = [first, *resized]
        report.notes.append(f"first convolution adapted from {kernel.shape[1]} to {channels} channels")
    matched = [name for name in weights if name in own and name not in misfits]
    missing = [name for name in own if name not in matched]
    unexpected = [name for name in weights if name not in matched]
    foreign = [name for name in [*missing, *unexpected]
               if not _is_optional(name) or (name in misfits and not name.startswith("head."))]
    parts = {_first_part(name) for name in own}
    if foreign and not misfits and all(map(_is_optional, missing)) and not parts & {_first_part(name) for name in foreign}:
        raise ValueError(
            f"{report.path} holds all {len(matched)} tensors of this encoder and {len(foreign)} that it has not, e.g. "
            f"{foreign[0]}: another encoder, or parts beside it. Compare MODEL.TYPE and the settings of --cfg with those of "
            f"the checkpoint; leave out what is beside the encoder where the file was made: torch.save({{name: weights[name] "
            f"for name in weights if not name.startswith('{_first_part(foreign[0])}')}}, path).")
    if foreign:
        shapes = [f"{name} is {tuple(weights[name].shape)}, the model has {tuple(own[name].shape)}"
                  for name in misfits if name in foreign]
        where = "is not in the file" if foreign[0] in missing else "is not in the model"
        example = shapes[0] if shapes else f"for example {foreign[0]} {where}"
        raise ValueError(f"{report.path} holds another encoder than this model: {len(matched)} of {len(own)} tensors match, "
                         f"{len(set(foreign))} do not ({example}). {_advice(weights, own)}")
    _check_positions(missing, unexpected, own, report.path)
    if "head.weight" in misfits:
        report.notes.append(f"the head of the file is for {weights['head.weight'].shape[0]} classes, not "
                            f"{own['head.weight'].shape[0]}: left as initialised")
    taken = {name: weights[name] for name in matched}
    check_finite(taken, report.path)
    assign(encoder, taken)
    report.matched += matched
    report.resized += resized
    report.missing += missing
    report.unexpected += unexpected


def _check_positions(missing, unexpected, own, path):
    """Refuse a file with tables of positions that the model lacks, or without those that it has. Raises ValueError."""
    for names, here, there in ((unexpected, "lacks", "has"), (missing, "has", "lacks")):
        tables = [name for name in names if name.startswith(tuple(POSITIONS)) or name.endswith(tuple(POSITIONS))]
        if tables:
            key = next(key for part, key in POSITIONS.items() if tables[0].startswith(part) or tables[0].endswith(part))
            section = f"MODEL.{(encoder_type(own) or 'ENCODER').upper()}"
            more = f" and {len(tables) - 1} more" if len(tables) > 1 else ""
            raise ValueError(f"{path} {there} positions that the model {here}: {tables[0]}{more}. Set {section}.{key} as the "
                             f"--cfg has it that the checkpoint was made with.")


def _first_part(name):
    return name[:name.find(".") + 1] or name


def _certain_type(weights):
    """As `encoder_type`, but None for what may be a Swin whose windows are never shifted or a MixMIM of unusual positions."""
    found = encoder_type(weights)
    shifts = any(name.endswith("attn_mask") for name in weights)
    return None if found == "swin" and "absolute_pos_embed" in weights and not shifts else found


def _load_rest(model, weights, report):
    """What a method owns beside its encoder; of a decoder that does not fit, nothing: half of one predicts nothing."""
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    weights = _resize_decoder(model.decoder, weights, report)
    report.misfit = model.misfit({name: value.shape for name, value in weights.items()})
    if report.misfit:
        log.warning("%s has no decoder that fits, so that it starts anew. %s", report.path, report.misfit)
    fitting = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape
               and not (report.misfit and name.startswith("decoder."))}
    check_finite(fitting, report.path)
    assign(model, fitting)
    report.matched += list(fitting)
    report.missing += [name for name in own if name not in fitting]
    report.unexpected += [name for name in weights if name not in fitting]


def _resize_decoder(decoder, weights, report):
    if not hasattr(decoder, "resize_state_dict"):
        return weights
    inside = {name.removeprefix("decoder."): value for name, value in weights.items() if name.startswith("decoder.")}
    inside, resized = decoder.resize_state_dict(inside)
    report.resized += [f"decoder.{name}" for name in resized]
    return {**weights, **{f"decoder.{name}": value for name, value in inside.items()}}


def _own(encoder):
    """What a file should fill: the state of an encoder without what follows from its sizes."""
    return {name: value for name, value in encoder.state_dict().items() if not name.endswith(REBUILT_BUFFERS)}


def _is_optional(name):
    return name.startswith(OPTIONAL) or name.endswith("relative_position_bias_table")


# ---- the first convolution ----------------------------------------------------------------------------------------

def _differs_in_channels_alone(one, other):
    return one.ndim == other.ndim == 4 and (one.shape[0], *one.shape[2:]) == (other.shape[0], *other.shape[2:])


def adapt_channels(kernel, channels):
    """Bring a convolution to another number of input channels, so that an image of equal channels gives what it gave.

    The wider of the two numbers is laid around the narrower in a cycle. To more channels (r, g, b -> r, g, b, r), copies
    of a channel share its weight; to fewer, those that fall on one channel are added up, so one channel gets the sum.

    Args:
        kernel: (D, C, h, w) float.
        channels: C of the result.
    Returns: (D, channels, h, w), same dtype; summed over channels it equals `kernel` summed over its own.
    Source: as timm's adapt_input_conv, but that scales all channels by one factor, which keeps the response to equal
        channels only where one number divides the other.
    """
    source = kernel.shape[1]
    share = torch.zeros(source, channels)
    for i in range(max(source, channels)):
        share[i % source, i % channels] = 1
    share /= share.sum(dim=1, keepdim=True)
    return torch.einsum("dshw,sc->dchw", kernel.float(), share).to(kernel.dtype)


# ---- what to change where the encoder does not fit ----------------------------------------------------------------

def _advice(weights, own):
    there, here = encoder_type(weights), encoder_type(own)
    if there and here and there != here:
        return (f"The file holds a {there}, the model is a {here}: use MODEL.TYPE {there} and the settings of the --cfg that "
                f"the checkpoint was made with.")
    theirs, ours = _settings(weights), _settings(own)
    section = f"MODEL.{here.upper()}." if here else ""
    differing = [f"{section}{key} is {theirs[key]} in the file and {ours[key]} here" for key in ours
                 if theirs.get(key) is not None and ours[key] is not None and theirs[key] != ours[key]]
    if differing:
        return f"{', '.join(differing)}: use the settings of the --cfg that the checkpoint was made with."
    return (f"Compare MODEL.TYPE and the settings of {section.rstrip('.') or 'its section'} in --cfg with those of the "
            f"checkpoint.")


def _settings(weights):
    """Settings of an encoder that the shapes of its weights tell, {name in the config: value}."""
    if encoder_type(weights) == "convmae":
        return _convmae_settings(weights)
    found, first = {}, "patch_embed.proj.weight"
    if first in weights:
        found = {"PATCH_SIZE": weights[first].shape[-1], "EMBED_DIM": weights[first].shape[0]}
    depths = {}  # {"layers.1.": blocks}; a ViT has one stage, ""
    for match in filter(None, (re.match(r"(layers\.\d+\.|)blocks\.(\d+)\.", name) for name in weights)):
        depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    heads = [_num_heads(weights, stage) for stage in depths]
    if "" in depths:
        found["DEPTH"], (found["NUM_HEADS"],) = depths[""], heads
        found["K_BIAS"] = "blocks.0.attn.qkv.bias" in weights
    elif depths:
        found["DEPTHS"], found["NUM_HEADS"] = list(depths.values()), heads
    return found


def _convmae_settings(weights):
    kernels = [weights[name] for stage in (1, 2, 3) if (name := f"patch_embed{stage}.proj.weight") in weights]
    blocks = {match[0] for match in (re.match(r"blocks\d\.\d+\.", name) for name in weights) if match}
    return {"PATCH_SIZE": 4 * kernels[0].shape[-1] if kernels else None, "EMBED_DIM": [len(kernel) for kernel in kernels],
            "DEPTHS": [sum(block.startswith(f"blocks{stage}.") for block in blocks) for stage in (1, 2, 3)]}


def _num_heads(weights, stage):
    """Heads of a stage's first block, or None where no shape tells."""
    attention = f"{stage}blocks.0.attn."
    if f"{attention}logit_scale" in weights:
        return weights[f"{attention}logit_scale"].shape[0]
    tables = (f"{attention}relative_position_bias_table", "rel_pos_bias.relative_position_bias_table")
    return next((weights[table].shape[1] for table in tables if table in weights), None)
