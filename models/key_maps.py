"""Names that other projects give to the weights of our models, in both directions.

A map is a list of rules (ours, theirs) or (ours, theirs, operation). In a name, `{i}` stands for a number, `{p}` for weight
or bias, `{*}` for anything; both sides of a rule have the same ones in the same order. Where `theirs` is a tuple, the
operation says what our tensor has to do with theirs; without one they are stacked in it (query, key, value). The first rule
that fits a name holds; ours have the naming of pre-training models (`encoder.*`, `decoder.*`).
"""
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

PARTS = {"{i}": r"(\d+)", "{p}": r"(weight|bias)", "{*}": r"(.+)"}


@dataclass(frozen=True)
class Operation:
    """What happens to a tensor on its way.

    Attributes:
        to_theirs: (our tensor, number of theirs) -> list of their tensors.
        to_ours: list of their tensors -> our tensor.
    """
    to_theirs: Callable
    to_ours: Callable


def _to_unfold_order(tensor):
    """(..., 4C), four blocks of C channels by (row, col) 00, 10, 01, 11 -> for each channel its positions 00, 01, 10, 11."""
    return tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)


def _from_unfold_order(tensor):
    return tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)


COPIED = Operation(lambda tensor, n: [tensor], lambda tensors: tensors[0])
STACKED = Operation(lambda tensor, n: [piece.clone() for piece in tensor.chunk(n)], torch.cat)
# Patch merging gathers 2x2 tokens: ours as Swin's official code, mmpretrain with nn.Unfold
MERGED = Operation(lambda tensor, n: [_to_unfold_order(tensor)], lambda tensors: _from_unfold_order(tensors[0]))


@dataclass(frozen=True)
class KeyMap:
    """Rules between our names and those of one project."""
    rules: tuple

    def to_ours(self, weights):
        """{their name: tensor} -> {our name: tensor}; names that no rule fits stay as they are."""
        ours = {}
        for name, tensor in weights.items():
            rule = next(((own, parts, operation, found) for own, parts, operation in self._parts() for part in parts
                         if (found := _match(part, name)) is not None), None)
            if rule is None:
                ours[name] = tensor
                continue
            own, parts, operation, found = rule
            names = [_fill(part, found) for part in parts]
            if not all(part in weights for part in names):
                ours[name] = tensor  # a part alone says nothing
            elif name == names[0]:
                ours[_fill(own, found)] = operation.to_ours([weights[part] for part in names])
        return ours

    def to_theirs(self, weights):
        """{our name: tensor} -> {their name: tensor}.

        Raises: ValueError if a name has no counterpart.
        """
        theirs, left = {}, []
        for name, tensor in weights.items():
            rule = next(((parts, operation, found) for own, parts, operation in self._parts()
                         if (found := _match(own, name)) is not None), None)
            if rule is None:
                left.append(name)
                continue
            parts, operation, found = rule
            pieces = operation.to_theirs(tensor, len(parts))
            theirs |= {_fill(part, found): piece for part, piece in zip(parts, pieces, strict=True)}
        if left:
            raise ValueError(f"{len(left)} weights have no counterpart there, for example {', '.join(left[:3])}.")
        return theirs

    def _parts(self):
        """[(our template, their templates, operation)]"""
        for own, theirs, *operation in self.rules:
            parts = theirs if isinstance(theirs, tuple) else (theirs,)
            yield own, parts, operation[0] if operation else STACKED if len(parts) > 1 else COPIED


@cache
def _pattern(template):
    pieces = re.split(r"(\{[ip*]\})", template)
    return re.compile("".join(PARTS.get(piece) or re.escape(piece) for piece in pieces))


def _match(template, name):
    """What the placeholders of a template stand for in a name, or None."""
    match = _pattern(template).fullmatch(name)
    return match and match.groups()


def _fill(template, values):
    values = iter(values)
    return re.sub(r"\{[ip*]\}", lambda _: next(values), template)


def _block(ours, theirs, names, qkv=None):
    """Rules of a transformer block.

    Args:
        ours, theirs: what stands before the names, with {i}.
        names: of norm1, attn.proj, norm2, mlp.fc1, mlp.fc2 there.
        qkv: of attn.qkv there, or of query, key and value.
    """
    own = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    rules = [(f"{ours}.{a}.{{p}}", f"{theirs}.{b}.{{p}}") for a, b in zip(own, names, strict=True)]
    there = tuple(f"{theirs}.{part}.{{p}}" for part in qkv) if isinstance(qkv, tuple) else f"{theirs}.{qkv}.{{p}}"
    return (*rules, (f"{ours}.attn.qkv.{{p}}", there))


MAE_OFFICIAL = KeyMap((
    ("decoder.mask_token", "mask_token"),
    ("decoder.{*}", "decoder_{*}"),
    ("encoder.{*}", "{*}"),
))

_HF_BLOCK = ("layernorm_before", "attention.output.dense", "layernorm_after", "intermediate.dense", "output.dense")
_HF_QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
MAE_TRANSFORMERS = KeyMap((
    ("encoder.cls_token", "vit.embeddings.cls_token"),
    ("encoder.pos_embed", "vit.embeddings.position_embeddings"),
    ("encoder.patch_embed.proj.{p}", "vit.embeddings.patch_embeddings.projection.{p}"),
    *_block("encoder.blocks.{i}", "vit.encoder.layer.{i}", _HF_BLOCK, _HF_QKV),
    ("encoder.norm.{p}", "vit.layernorm.{p}"),
    ("encoder.head.{p}", "classifier.{p}"),
    *_block("decoder.blocks.{i}", "decoder.decoder_layers.{i}", _HF_BLOCK, _HF_QKV),
    ("decoder.mask_token", "decoder.mask_token"),
    ("decoder.pos_embed", "decoder.decoder_pos_embed"),
    ("decoder.embed.{p}", "decoder.decoder_embed.{p}"),
    ("decoder.norm.{p}", "decoder.decoder_norm.{p}"),
    ("decoder.pred.{p}", "decoder.decoder_pred.{p}"),
))

_MM_BLOCK = ("ln1", "attn.proj", "ln2", "ffn.layers.0.0", "ffn.layers.1")
_MM_DECODER = (
    *_block("decoder.blocks.{i}", "neck.decoder_blocks.{i}", _MM_BLOCK, "attn.qkv"),
    ("decoder.mask_token", "neck.mask_token"),
    ("decoder.pos_embed", "neck.decoder_pos_embed"),
    ("decoder.embed.{p}", "neck.decoder_embed.{p}"),
    ("decoder.norm.{p}", "neck.ln1.{p}"),
    ("decoder.pred.{p}", "neck.decoder_pred.{p}"),
)
MAE_MMPRETRAIN = KeyMap((
    ("encoder.cls_token", "backbone.cls_token"),
    ("encoder.pos_embed", "backbone.pos_embed"),
    ("encoder.patch_embed.proj.{p}", "backbone.patch_embed.projection.{p}"),
    *_block("encoder.blocks.{i}", "backbone.layers.{i}", _MM_BLOCK, "attn.qkv"),
    ("encoder.norm.{p}", "backbone.ln1.{p}"),
    ("encoder.fc_norm.{p}", "backbone.ln2.{p}"),
    ("encoder.head.{p}", "head.fc.{p}"),
    *_MM_DECODER,
))

MIXMIM_MMPRETRAIN = KeyMap((
    ("encoder.absolute_pos_embed", "backbone.absolute_pos_embed"),
    ("encoder.patch_embed.proj.{p}", "backbone.patch_embed.projection.{p}"),
    ("encoder.patch_embed.norm.{p}", "backbone.patch_embed.norm.{p}"),
    *_block("encoder.layers.{i}.blocks.{i}", "backbone.layers.{i}.blocks.{i}", _MM_BLOCK, "attn.qkv"),
    ("encoder.layers.{i}.blocks.{i}.attn.{*}", "backbone.layers.{i}.blocks.{i}.attn.{*}"),  # table and index
    ("encoder.layers.{i}.downsample.{*}", "backbone.layers.{i}.downsample.{*}", MERGED),
    ("encoder.norm.{p}", "backbone.norm.{p}"),
    ("encoder.head.{p}", "head.fc.{p}"),
    *_MM_DECODER,
))
