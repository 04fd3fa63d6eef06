"""Names that other projects give to the weights of our models, in both directions.

A map is a list of rules (ours, theirs). In a name, `{i}` stands for a number, `{p}` for weight or bias, `{*}` for anything;
both sides of a rule have the same ones. Where `theirs` is a tuple, our tensor is theirs stacked (query, key, value). The
first rule that fits a name holds; ours have the naming of pre-training models (`encoder.*`, `decoder.*`).
"""
import re
from dataclasses import dataclass

import torch

PARTS = {"{i}": r"(\d+)", "{p}": r"(weight|bias)", "{*}": r"(.+)"}


@dataclass(frozen=True)
class KeyMap:
    """Rules between our names and those of one project."""
    rules: tuple

    def to_ours(self, weights):
        """{their name: tensor} -> {our name: tensor}; names that no rule fits stay as they are."""
        ours = {}
        for name, tensor in weights.items():
            rule = next(((own, parts, _match(part, name)) for own, parts in self._parts() for part in parts
                         if _match(part, name) is not None), None)
            if rule is None:
                ours[name] = tensor
                continue
            own, parts, found = rule
            names = [_fill(part, found) for part in parts]
            if not all(part in weights for part in names):
                ours[name] = tensor  # a part alone says nothing
            elif name == names[0]:
                ours[_fill(own, found)] = tensor if len(parts) == 1 else torch.cat([weights[part] for part in names])
        return ours

    def to_theirs(self, weights):
        """{our name: tensor} -> {their name: tensor}.

        Raises: ValueError if a name has no counterpart.
        """
        theirs, left = {}, []
        for name, tensor in weights.items():
            rule = next(((parts, _match(own, name)) for own, parts in self._parts() if _match(own, name) is not None), None)
            if rule is None:
                left.append(name)
                continue
            parts, found = rule
            pieces = [tensor] if len(parts) == 1 else [piece.clone() for piece in tensor.chunk(len(parts))]
            theirs |= {_fill(part, found): piece for part, piece in zip(parts, pieces, strict=True)}
        if left:
            raise ValueError(f"{len(left)} weights have no counterpart there, for example {', '.join(left[:3])}.")
        return theirs

    def _parts(self):
        return [(own, theirs if isinstance(theirs, tuple) else (theirs,)) for own, theirs in self.rules]


def _match(template, name):
    """What the placeholders of a template stand for in a name, or None."""
    pieces = re.split(r"(\{[ip*]\})", template)
    match = re.fullmatch("".join(PARTS.get(piece) or re.escape(piece) for piece in pieces), name)
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
MAE_MMPRETRAIN = KeyMap((
    ("encoder.cls_token", "backbone.cls_token"),
    ("encoder.pos_embed", "backbone.pos_embed"),
    ("encoder.patch_embed.proj.{p}", "backbone.patch_embed.projection.{p}"),
    *_block("encoder.blocks.{i}", "backbone.layers.{i}", _MM_BLOCK, "attn.qkv"),
    ("encoder.norm.{p}", "backbone.ln1.{p}"),
    ("encoder.fc_norm.{p}", "backbone.ln2.{p}"),
    ("encoder.head.{p}", "head.fc.{p}"),
    *_block("decoder.blocks.{i}", "neck.decoder_blocks.{i}", _MM_BLOCK, "attn.qkv"),
    ("decoder.mask_token", "neck.mask_token"),
    ("decoder.pos_embed", "neck.decoder_pos_embed"),
    ("decoder.embed.{p}", "neck.decoder_embed.{p}"),
    ("decoder.norm.{p}", "neck.ln1.{p}"),
    ("decoder.pred.{p}", "neck.decoder_pred.{p}"),
))
