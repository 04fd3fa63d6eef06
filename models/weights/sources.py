"""Kinds of files: whose weights they are, by their names, and how they get ours."""
import os
from collections.abc import Callable
from dataclasses import dataclass

from models.weights.key_maps import (
    BEIT_MMPRETRAIN,
    BEIT_TRANSFORMERS,
    MAE_MMPRETRAIN,
    MAE_MMSEGMENTATION,
    MAE_OFFICIAL,
    MAE_TRANSFORMERS,
    MIXMIM_MMPRETRAIN,
    SIMMIM_VIT_TRANSFORMERS,
    SWIN_MMPRETRAIN,
    SWIN_MMSEGMENTATION,
    SWIN_TIMM,
    SWIN_TORCHVISION,
    SWIN_TRANSFORMERS,
    SWINV2_MMPRETRAIN,
    SWINV2_TORCHVISION,
    SWINV2_TRANSFORMERS,
    VIT_TORCHVISION,
)


@dataclass(frozen=True)
class Source:
    """A family of files.

    Attributes:
        name: for the report and for the list of what is known.
        recognises: weights -> bool, by their names. They come from utils.checkpoint.weights_of.
        convert: weights -> weights with the names of our pre-training models: `encoder.*`, and what the method owns.
        layouts: those of models/weights/layouts.py that have these names.
    """
    name: str
    recognises: Callable
    convert: Callable
    layouts: tuple = ()


def encoder_type(weights, prefix=""):
    """MODEL.TYPE of an encoder by the names of its weights, or None."""
    if f"{prefix}layers.0.blocks.0.attn.logit_scale" in weights:
        return "swinv2"
    if f"{prefix}layers.0.blocks.0.attn.relative_position_bias_table" in weights:
        return "mixmim" if _is_fixed(weights.get(f"{prefix}absolute_pos_embed")) else "swin"
    if f"{prefix}blocks3.0.attn.qkv.weight" in weights:
        return "convmae"
    return "vit" if f"{prefix}blocks.0.attn.qkv.weight" in weights else None


def _is_fixed(table):
    """Whether a position table (1, L, D) is a sin-cos one: at the first token its sines are 0 and its cosines 1.

    MixMIM has such a table and the names of a Swin, which has a learned one or none. The limits leave room for a table that
    was resized, to half the side at least, whose first token is not quite at 0.
    """
    if table is None or table.ndim != 3 or table.shape[-1] % 4:
        return False
    table = table.full_tensor() if hasattr(table, "full_tensor") else table  # of a sharded model
    sines, cosines = table[0, 0].float().view(2, 2, -1).unbind(dim=1)
    return bool(sines.abs().max() < 0.6 and cosines.min() > 0.7)


# what no encoder of ours has, by a part of a name: loaded without it, the rest would be another model
FOREIGN = {"register_tokens": "register tokens", "reg_token": "register tokens", "mlp.w12.": "SwiGLU as MLP",
           "mlp.w1.": "SwiGLU as MLP", "mlp.fc1_g.": "a gated MLP", "attn.q_norm.": "norms of queries and keys",
           "dist_token": "a distillation token", "norm_pre.": "a norm before the blocks"}


def recognised(weights, path):
    """Whose weights these are, also where all names, or those of one part, have a prefix of their own.

    Args:
        weights: {name: tensor} from utils.checkpoint.weights_of.
        path: for messages.
    Returns: (Source or None, {name: tensor} without the prefix, the prefix, names of other parts, which are left out).
    Raises: ValueError if they hold a part that no encoder of ours has.
    """
    for name in weights:
        foreign = next((what for part, what in FOREIGN.items() if part in name), None)
        if foreign:
            raise ValueError(f"{path} holds an encoder with {foreign} ({name}), which none of MODEL.TYPE has.")
    stripped, prefix = weights, ""
    while True:
        source = next((source for source in SOURCES if source.recognises(stripped)), None)
        common = os.path.commonprefix(list(stripped))
        step = common[:common.find(".") + 1]  # one part of the names at a time
        if source or not step:
            break
        stripped, prefix = {name.removeprefix(step): value for name, value in stripped.items()}, prefix + step
    if source:
        return source, stripped, prefix, []
    for part in dict.fromkeys(f"{name.partition('.')[0]}." for name in stripped):
        inside = {name.removeprefix(part): value for name, value in stripped.items() if name.startswith(part)}
        source = next((source for source in SOURCES if source.recognises(inside)), None)
        if source:
            return source, inside, prefix + part, [name for name in stripped if not name.startswith(part)]
    return None, weights, "", []


def as_it_is(weights):
    return weights


def under_encoder(weights):
    return {f"encoder.{name}": value for name, value in weights.items()}


def from_mae(weights):
    """Official MAE, ConvMAE and MixMIM: the root holds all but the decoder; without that a mask token is the encoder's."""
    return MAE_OFFICIAL.to_ours(weights) if "decoder_embed.weight" in weights else under_encoder(weights)


def with_timms_scales(weights):
    """timm and DINOv2 name the layer scales ls1.gamma and ls2.gamma."""
    return from_mae({name.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): value
                     for name, value in weights.items()})


def is_of_timm(weights):
    """Whether a Swin or SwinV2 has timm's names: a stage begins with the merging that ended the one before."""
    merges = [f"layers.{stage}.downsample.reduction.weight" in weights for stage in (0, 1)]
    return encoder_type(weights) in ("swin", "swinv2") and ("head.fc.weight" in weights or merges == [False, True])


def is_vit_of_transformers(weights):
    """Whether these are a ViT's or BEiT's, with what stands before the names of the encoder in a larger model or without."""
    return has(weights, "encoder.layer.0.attention.attention.query.weight")


def has(weights, ending):
    return any(name.endswith(ending) for name in weights)


_MM_TABLE = "stages.0.blocks.0.attn.w_msa.relative_position_bias_table"
_OWN = ("ours", "official")
_DETECTION = ("detectron2", "mmdetection")  # these name a Swin, and a ViT of MAE, as their authors do

# The first that recognises a file converts it. Official names of SimMIM and Swin are ours, so these have nothing to convert:
# files of their repositories and of this one look alike.
SOURCES = [
    Source("transformers' Swin",
           lambda weights: has(weights, "encoder.layers.0.blocks.0.attention.self.relative_position_bias_table"),
           SWIN_TRANSFORMERS.to_ours, ("transformers",)),
    Source("transformers' SwinV2", lambda weights: has(weights, "encoder.layers.0.blocks.0.attention.self.logit_scale"),
           SWINV2_TRANSFORMERS.to_ours, ("transformers",)),
    Source("transformers' BEiT", lambda weights: is_vit_of_transformers(weights) and (
        has(weights, "encoder.layer.0.lambda_1") or has(weights, "relative_position_bias.relative_position_bias_table")),
           BEIT_TRANSFORMERS.to_ours, ("transformers",)),
    Source("transformers' ViT with a mask token", lambda weights: is_vit_of_transformers(weights)
           and has(weights, "embeddings.mask_token"), SIMMIM_VIT_TRANSFORMERS.to_ours, ("transformers",)),
    Source("transformers' ViTMAE", lambda weights: {"embeddings.cls_token", "vit.embeddings.cls_token"} & weights.keys(),
           MAE_TRANSFORMERS.to_ours, ("transformers",)),
    Source("mmsegmentation's MAE", lambda weights: "layers.0.ln1.weight" in weights and "layers.0.attn.qkv.bias" in weights,
           MAE_MMSEGMENTATION.to_ours, ("mmsegmentation",)),
    Source("torchvision's Swin", lambda weights: "features.1.0.attn.relative_position_bias_table" in weights,
           SWIN_TORCHVISION.to_ours, ("torchvision",)),
    Source("torchvision's SwinV2", lambda weights: "features.1.0.attn.logit_scale" in weights,
           SWINV2_TORCHVISION.to_ours, ("torchvision",)),
    Source("torchvision's ViT", lambda weights: "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in weights,
           VIT_TORCHVISION.to_ours, ("torchvision",)),
    Source("mmpretrain's SwinV2", lambda weights: "backbone.stages.0.blocks.0.attn.w_msa.logit_scale" in weights,
           SWINV2_MMPRETRAIN.to_ours, ("mmpretrain",)),
    Source("mmpretrain's Swin", lambda weights: f"backbone.{_MM_TABLE}" in weights, SWIN_MMPRETRAIN.to_ours,
           ("mmpretrain", "mmsegmentation", "mmdetection")),
    Source("mmsegmentation's Swin", lambda weights: _MM_TABLE in weights, SWIN_MMSEGMENTATION.to_ours,
           ("mmsegmentation", "mmdetection")),
    Source("mmpretrain's BEiT", lambda weights: "backbone.layers.0.ln1.weight" in weights
           and "backbone.layers.0.attn.qkv.bias" not in weights, BEIT_MMPRETRAIN.to_ours, ("mmpretrain",)),
    Source("mmpretrain's MAE", lambda weights: "backbone.layers.0.ln1.weight" in weights and "backbone.cls_token" in weights,
           MAE_MMPRETRAIN.to_ours, ("mmpretrain",)),
    Source("mmpretrain's MixMIM", lambda weights: "backbone.layers.0.blocks.0.ln1.weight" in weights,
           MIXMIM_MMPRETRAIN.to_ours, ("mmpretrain",)),
    Source("timm's Swin or SwinV2", is_of_timm, SWIN_TIMM.to_ours, ("timm",)),
    Source("pre-training model", lambda weights: encoder_type(weights, "encoder.") is not None, as_it_is, _OWN),
    Source("MixMIM", lambda weights: encoder_type(weights) == "mixmim"
           or (encoder_type(weights) == "swin" and "decoder_embed.weight" in weights), from_mae, _OWN),
    Source("Swin encoder or classifier", lambda weights: encoder_type(weights) == "swin", under_encoder,
           (*_OWN, *_DETECTION)),
    Source("SwinV2 encoder or classifier", lambda weights: encoder_type(weights) == "swinv2", under_encoder, _OWN),
    Source("ConvMAE", lambda weights: encoder_type(weights) == "convmae", from_mae, _OWN),
    Source("ViT with layer scales of timm or DINOv2", lambda weights: encoder_type(weights) == "vit"
           and "blocks.0.ls1.gamma" in weights, with_timms_scales, ("timm",)),
    Source("MAE", lambda weights: encoder_type(weights) == "vit" and "cls_token" in weights
           and ("blocks.0.attn.qkv.bias" in weights or "decoder_embed.weight" in weights), from_mae,
           (*_OWN, "timm", *_DETECTION)),
    Source("SimMIM's ViT, encoder or classifier", lambda weights: encoder_type(weights) == "vit"
           and "blocks.0.attn.qkv.bias" not in weights, under_encoder, (*_OWN, "timm")),
]
