"""Giving weights other names, in both directions: what the tables of models/weights/key_maps.py are made of.

A map is a list of rules (ours, theirs) or (ours, theirs, operation). In a name, `{i}` stands for a number, `{i+1}` for the
one after it, `{2i+1}` and `{2i+2}` for every second one, `{p}` for weight or bias, `{*}` for anything; both sides of a rule
have the same ones in the same order. Where `theirs` is a tuple, the operation says what our tensor has to do with theirs;
without one they are stacked in it (query, key, value). Where it is None, they have no such tensor. The first rule that fits a
name holds; ours have the naming of pre-training models (`encoder.*`, `decoder.*`).
"""
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

NUMBERS = {"{i}": (1, 0), "{i+1}": (1, 1), "{2i+1}": (2, 1), "{2i+2}": (2, 2)}  # factor of i, and what is added
PARTS = {**dict.fromkeys(NUMBERS, r"(\d+)"), "{p}": r"(weight|bias)", "{*}": r"(.+)"}


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


def _to_square(row):
    side = math.isqrt(row.numel())
    return row.view(side, side) if row.ndim == 1 and side ** 2 == row.numel() else row


COPIED = Operation(lambda tensor, n: [tensor], lambda tensors: tensors[0])
STACKED = Operation(lambda tensor, n: [piece.clone() for piece in tensor.chunk(n)], torch.cat)
# Patch merging gathers 2x2 tokens: ours as Swin's official code, mmpretrain with nn.Unfold
MERGED = Operation(lambda tensor, n: [_to_unfold_order(tensor)], lambda tensors: _from_unfold_order(tensors[0]))
# An index (n, n) of pairs of tokens is one row there
FLATTENED = Operation(lambda tensor, n: [tensor.flatten()], lambda tensors: _to_square(tensors[0]))
# A bias of the key adds the same to all logits of a query, so one of zeros, or none, is as good as any
WITH_ZEROS = Operation(lambda tensor, n: [tensor, torch.zeros_like(tensor)], lambda tensors: tensors[0])


@dataclass(frozen=True)
class KeyMap:
    """Rules between our names and those of one project.

    Attributes:
        rules: see above.
        backbone: what stands before the names of an encoder there unless it is alone; it is also read with it.
        one_bias: query, key and value there share a bias, `qkv.bias`, of which that of the key has no effect: ours has
            `q_bias` and `v_bias`. Rules are for the shared one.
    """
    rules: tuple
    backbone: str = ""
    one_bias: bool = False

    def to_ours(self, weights):
        """{their name: tensor} -> {our name: tensor}; names that no rule fits stay as they are.

        Raises: ValueError on tensors of shapes that a rule can't do anything with.
        """
        if not any(name.startswith(self.backbone) for name in weights):
            weights = {f"{self.backbone}{name}": tensor for name, tensor in weights.items()}
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
                try:
                    ours[_fill(own, found)] = operation.to_ours([weights[part] for part in names])
                except (RuntimeError, IndexError) as error:
                    shapes = ", ".join(f"{part} {tuple(weights[part].shape)}" for part in names)
                    raise ValueError(f"the weights {shapes} of the file do not have the shape of what they are named "
                                     f"after.") from error
        return _with_two_biases(ours) if self.one_bias else ours

    def to_theirs(self, weights):
        """{our name: tensor} -> {their name: tensor}, without those of `dropped`.

        Raises: ValueError if a name has no rule.
        """
        theirs, left = {}, []
        weights = _with_one_bias(weights) if self.one_bias else weights
        for name, tensor in weights.items():
            rule = self._rule_of(name)
            if rule is None:
                left.append(name)
                continue
            parts, operation, found = rule
            pieces = operation.to_theirs(tensor, len(parts)) if parts else []
            theirs |= {_fill(part, found): piece for part, piece in zip(parts, pieces, strict=True)}
        if left:
            raise ValueError(f"{len(left)} weights have no counterpart there, for example {', '.join(left[:3])}.")
        alone = all(name.startswith(self.backbone) for name in theirs)
        return {name.removeprefix(self.backbone): tensor for name, tensor in theirs.items()} if alone else theirs

    def dropped(self, names):
        """Those of our names for which there is nothing there."""
        return [name for name in names if (rule := self._rule_of(name)) is not None and not rule[0]]

    def _rule_of(self, name):
        """(their templates, operation, what the placeholders stand for) of one of our names, or None."""
        return next(((parts, operation, found) for own, parts, operation in self._parts()
                     if (found := _match(own, name)) is not None), None)

    def _parts(self):
        """[(our template, their templates, operation)]"""
        for own, theirs, *operation in self.rules:
            parts = theirs if isinstance(theirs, tuple) else () if theirs is None else (theirs,)
            yield own, parts, operation[0] if operation else STACKED if len(parts) > 1 else COPIED


def _with_one_bias(weights):
    """q_bias and v_bias, as they follow each other, in one qkv.bias."""
    joined = {}
    for name, tensor in weights.items():
        if name.endswith(".q_bias"):
            parts = (tensor, torch.zeros_like(tensor), weights[name.replace(".q_bias", ".v_bias")])
            joined[name.replace(".q_bias", ".qkv.bias")] = torch.cat(parts)
        elif not name.endswith(".v_bias"):
            joined[name] = tensor
    return joined


def _with_two_biases(weights):
    parted = {}
    for name, tensor in weights.items():
        if name.endswith(".qkv.bias"):
            query, _, value = (piece.clone() for piece in tensor.chunk(3))
            parted |= {name.replace(".qkv.bias", ".q_bias"): query, name.replace(".qkv.bias", ".v_bias"): value}
        else:
            parted[name] = tensor
    return parted


@cache
def _pieces(template):
    return re.split(f"({'|'.join(map(re.escape, PARTS))})", template)


@cache
def _pattern(template):
    return re.compile("".join(PARTS.get(piece) or re.escape(piece) for piece in _pieces(template)))


def _match(template, name):
    """What the placeholders of a template stand for in a name, numbers as what `{i}` would be, or None."""
    match = _pattern(template).fullmatch(name)
    if match is None:
        return None
    values = []
    for piece, value in zip((piece for piece in _pieces(template) if piece in PARTS), match.groups(), strict=True):
        if piece in NUMBERS:
            factor, added = NUMBERS[piece]
            value, rest = divmod(int(value) - added, factor)
            if rest or value < 0:
                return None
        values.append(str(value))
    return values


def _fill(template, values):
    values = iter(values)
    return "".join(_filled(piece, next(values)) if piece in PARTS else piece for piece in _pieces(template))


def _filled(piece, value):
    if piece not in NUMBERS:
        return value
    factor, added = NUMBERS[piece]
    return str(factor * int(value) + added)
