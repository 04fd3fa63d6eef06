"""Layouts: the names that a project gives to the weights of each kind of encoder, and what can't be converted."""
import re
from collections.abc import Callable
from dataclasses import dataclass

from models.position import source_window
from models.weights.key_maps import (
    BEIT_MMPRETRAIN,
    BEIT_TRANSFORMERS,
    MAE_MMPRETRAIN,
    MAE_MMSEGMENTATION,
    MAE_OFFICIAL,
    MAE_TRANSFORMERS,
    MIXMIM_MMPRETRAIN,
    OURS,
    OURS_ALONE,
    SIMMIM_VIT_TRANSFORMERS,
    SWIN_MMPRETRAIN,
    SWIN_MMSEGMENTATION,
    SWIN_TIMM,
    SWIN_TORCHVISION,
    SWIN_TRANSFORMERS,
    SWINV2_MMPRETRAIN,
    SWINV2_TORCHVISION,
    SWINV2_TRANSFORMERS,
    VIT_TIMM,
    VIT_TORCHVISION,
)
from models.weights.renaming import KeyMap
from models.weights.sources import SOURCES, encoder_type, recognised
from utils.registry import pick

KINDS = {
    "swin": "Swin",
    "swinv2": "SwinV2",
    "relative_vit": "ViT with relative positions or layer scale (SimMIM's)",
    "plain_vit": "ViT without these and without a bias of the key",
    "mae_vit": "ViT with a bias of the key (MAE's)",
    "convmae": "ConvMAE",
    "mixmim": "MixMIM",
}


def kind_of(weights):
    """Which of KINDS weights of our pre-training names hold, or None."""
    found = encoder_type(weights, "encoder.")
    if found == "swin" and {"decoder.embed.weight", "encoder.absolute_pos_embed"} <= weights.keys():
        return "swin" if any(name.endswith("attn_mask") for name in weights) else "mixmim"  # its windows are never shifted
    if found != "vit":
        return found
    if any("relative_position_bias" in name or ".gamma_" in name for name in weights):
        return "relative_vit"
    if "encoder.blocks.0.attn.qkv.bias" in weights:
        return "mae_vit"
    without_bias = "encoder.blocks.0.attn.q_bias" not in weights
    return "mae_vit" if without_bias and "decoder.embed.weight" in weights else "plain_vit"


@dataclass(frozen=True)
class Target:
    """What a kind of encoder becomes in a layout.

    Attributes:
        key_map: KeyMap, or a function that gives it: our weights -> KeyMap.
        model: what takes the result.
        refusal: our weights -> why they can't be converted, or None.
    """
    key_map: KeyMap | Callable
    model: str
    refusal: Callable = lambda weights: None


# ---- what can't be converted --------------------------------------------------------------------------------------

def has_positions(weights):
    if "encoder.absolute_pos_embed" in weights:
        return "it has a learned absolute position embedding (APE), for which there is no place there"
    return None


def fits_no_swin(weights):
    """What timm and transformers lack in both versions of Swin."""
    if "encoder.patch_embed.norm.weight" not in weights:
        return "it has no norm after the patch embedding (PATCH_NORM False), where models there always have one"
    if any(re.search(r"\.blocks\.\d+\.norm3\.", name) for name in weights):
        return "it has norms on the main branch (MODEL.SWINV2.EXTRA_NORM_EVERY), for which there is no place there"
    return has_positions(weights)


def has_pixel_decoder(weights):
    if "decoder.embed.weight" in weights:
        return ("it has MAE's decoder, under which there is no Swin there. Its encoder alone can be converted: encoder.pth of "
                "the run")
    return None


def has_odd_windows(weights):
    """The official code shrinks a window, and its table, to a map that is smaller; not all do.

    Measured between Swin-L with windows of 12 at 192 px (121 rows in the last stage) and mmpretrain (529): not equivalent.
    """
    windows = {}
    for name, table in weights.items():
        stage = re.fullmatch(r"encoder\.layers\.(\d+)\.blocks\.0\.attn\.relative_position_bias_table", name)
        window = stage and source_window(len(table), weights.get(name.replace("bias_table", "index")))
        if window:
            windows[int(stage[1])] = tuple(window)
        stage = re.fullmatch(r"encoder\.layers\.(\d+)\.blocks\.0\.attn\.relative_coords_table", name)  # of SwinV2
        if stage and table.ndim == 4:
            windows[int(stage[1])] = tuple((side + 1) // 2 for side in table.shape[1:3])
    if len(set(windows.values())) > 1 or any(height != width for height, width in windows.values()):
        sizes = ", ".join(f"{height}x{width}" for height, width in windows.values())
        return (f"the windows of its stages are {sizes}: ours shrink to a map that is smaller, there all are square and of one "
                f"size, and the results would differ. Train or load it at an image size at which no window shrinks")
    return None


def fits_no_swin_of_mmpretrain(weights):
    stages = {name.split(".")[2] for name in weights if name.startswith("encoder.layers.")}
    if len(stages) != 4:
        return f"it has {len(stages)} stages, and the names there are known for four"
    return has_pixel_decoder(weights) or has_positions(weights) or has_odd_windows(weights)


def fits_no_swin_of_torchvision(weights):
    return fits_no_swin(weights) or has_no_biases(weights) or has_odd_windows(weights)


def fits_no_swinv2_of_mmpretrain(weights):
    if "encoder.patch_embed.norm.weight" not in weights:
        return "it has no norm after the patch embedding (PATCH_NORM False), where models there always have one"
    return has_no_biases(weights) or fits_no_swin_of_mmpretrain(weights)


def has_no_biases(weights):
    if not any(name.endswith((".q_bias", ".qkv.bias")) for name in weights):
        return "it has no biases of query and value (QKV_BIAS False), which models there always have"
    return None


def fits_no_vit_of_torchvision(weights):
    if "encoder.fc_norm.weight" in weights:
        return ("it averages tokens and normalises the mean (fc_norm), and ViT there classifies the class token; timm's "
                "VisionTransformer has both (--to timm)")
    if "encoder.pos_embed" not in weights:
        return "it has no absolute positions, which models there always have"
    return has_no_biases(weights)


def fits_no_swin_of_transformers(weights):
    return fits_no_swinv2_of_transformers(weights) or has_odd_windows(weights)


def fits_no_swinv2_of_transformers(weights):
    return has_pixel_decoder(weights) or fits_no_swin(weights)


def fits_no_swin_of_detection(weights):
    return has_positions(weights) or has_odd_windows(weights)


def fits_no_beit(weights):
    if "encoder.blocks.0.attn.qkv.bias" in weights:
        return "it has a bias of the key (MODEL.VIT.K_BIAS), which BEiT has not"
    return None


def fits_no_vit_of_transformers(weights):
    if "encoder.fc_norm.weight" in weights:
        return ("it averages tokens and normalises the mean (fc_norm), and ViT there classifies the class token; timm's "
                "VisionTransformer has both (--to timm)")
    if "encoder.blocks.0.attn.q_bias" in weights and "decoder.embed.weight" in weights:
        return ("it has MAE's decoder, and no bias of the key as ViTMAE has (MODEL.VIT.K_BIAS). Its encoder alone can be "
                "converted: encoder.pth of the run")
    return None


# ---- the table ----------------------------------------------------------------------------------------------------

def _ours(weights):
    return OURS if any(not name.startswith("encoder.") for name in weights) else OURS_ALONE


def _official(weights):
    return MAE_OFFICIAL if "decoder.embed.weight" in weights else _ours(weights)


def _backbones(vit, swin):
    """Of detectors that take the files of the authors of MAE and Swin."""
    return {"swin": Target(VIT_TIMM, swin, fits_no_swin_of_detection), "mae_vit": Target(VIT_TIMM, vit)}


LAYOUTS = {
    "ours": dict.fromkeys(KINDS, Target(_ours, "--pretrained of this repository")),
    "official": {**dict.fromkeys(KINDS, Target(_official, "the repository of its authors")),
                 **dict.fromkeys(("swin", "swinv2"), Target(_ours, "the repository of its authors", has_pixel_decoder))},
    "timm": {
        "swin": Target(SWIN_TIMM, "timm 0.9 or later: SwinTransformer", fits_no_swin),
        "swinv2": Target(SWIN_TIMM, "timm 0.9 or later: SwinTransformerV2", fits_no_swin),
        "relative_vit": Target(VIT_TIMM, "timm: Beit", fits_no_beit),
        "plain_vit": Target(VIT_TIMM, "timm: Beit(use_abs_pos_emb=True, init_values=None)"),
        "mae_vit": Target(VIT_TIMM, "timm: VisionTransformer"),
    },
    "torchvision": {
        "swin": Target(SWIN_TORCHVISION, "torchvision: SwinTransformer", fits_no_swin_of_torchvision),
        "swinv2": Target(SWINV2_TORCHVISION, "torchvision: SwinTransformer(block=SwinTransformerBlockV2, "
                                             "downsample_layer=PatchMergingV2)", fits_no_swin_of_torchvision),
        "mae_vit": Target(VIT_TORCHVISION, "torchvision: VisionTransformer", fits_no_vit_of_torchvision),
    },
    "transformers": {
        "swin": Target(SWIN_TRANSFORMERS, "transformers: SwinForMaskedImageModeling, SwinForImageClassification, SwinModel",
                       fits_no_swin_of_transformers),
        "swinv2": Target(SWINV2_TRANSFORMERS, "transformers: Swinv2ForMaskedImageModeling, Swinv2ForImageClassification, "
                                              "Swinv2Model", fits_no_swinv2_of_transformers),
        "relative_vit": Target(BEIT_TRANSFORMERS, "transformers: BeitModel, BeitForImageClassification (use_mean_pooling=False "
                                                  "without fc_norm)", fits_no_beit),
        "plain_vit": Target(SIMMIM_VIT_TRANSFORMERS, "transformers: ViTForMaskedImageModeling, ViTForImageClassification, "
                                                     "ViTModel", fits_no_vit_of_transformers),
        "mae_vit": Target(MAE_TRANSFORMERS, "transformers: ViTMAEForPreTraining, ViTForImageClassification, ViTMAEModel",
                          fits_no_vit_of_transformers),
    },
    "mmpretrain": {
        "swin": Target(SWIN_MMPRETRAIN, "mmpretrain: SimMIM, ImageClassifier with SwinTransformer", fits_no_swin_of_mmpretrain),
        "swinv2": Target(SWINV2_MMPRETRAIN, "mmpretrain: ImageClassifier with SwinTransformerV2", fits_no_swinv2_of_mmpretrain),
        "relative_vit": Target(BEIT_MMPRETRAIN, "mmpretrain: BEiTViT", fits_no_beit),
        "mae_vit": Target(MAE_MMPRETRAIN, "mmpretrain: MAE, ImageClassifier with VisionTransformer"),
        "mixmim": Target(MIXMIM_MMPRETRAIN, "mmpretrain: MixMIM, ImageClassifier with MixMIMTransformer"),
    },
    "detectron2": _backbones("detectron2: ViT, of ViTDet", "detectron2: SwinTransformer"),
    "mmdetection": _backbones("mmdetection: ViT, of projects/ViTDet", "mmdetection: SwinTransformer(convert_weights=True)"),
    "mmsegmentation": {
        "swin": Target(SWIN_MMSEGMENTATION, "mmsegmentation, mmdetection: SwinTransformer(convert_weights=False)",
                       fits_no_swin_of_mmpretrain),
        "mae_vit": Target(MAE_MMSEGMENTATION, "mmsegmentation: backbone MAE(init_values=1.0)"),
    },
}


# ---- conversion ---------------------------------------------------------------------------------------------------

def read_layout(weights, path, layout=None):
    """Give weights of any known kind our pre-training names.

    Args:
        weights: from utils.checkpoint.weights_of.
        path: for messages.
        layout: one of LAYOUTS that they have to be in; None = any.
    Returns: (our weights, the Source they were recognised as, names there that are not known).
    Raises: ValueError if the file holds no weights, is not known, or not of that layout.
    """
    if layout is not None:
        pick(LAYOUTS, layout, "--from")
    if not weights:
        raise ValueError(f"{path} holds no weights: expected a state dict, alone or under `model` or `state_dict`.")
    source, weights, _, others = recognised(weights, path)
    if source is None:
        raise ValueError(f"{path} holds weights of a kind that is not known: they are named {', '.join(list(weights)[:4])}, "
                         f"... Known: {'; '.join(source.name for source in SOURCES)}.")
    if layout is not None and layout not in source.layouts:
        raise ValueError(f"{path} has the names of {source.name}, which is no file of --from {layout}. Leave --from out, or "
                         f"use one of {', '.join(source.layouts)}.")
    ours = source.convert(weights)
    unknown = [name for name in ours if not name.startswith(("encoder.", "decoder."))]
    return {name: tensor for name, tensor in ours.items() if name not in unknown}, source, [*unknown, *others]


def write_layout(weights, layout):
    """Give weights of our pre-training names those of a layout.

    Returns: (weights, names of ours that have no counterpart there and were left out, the Target).
    Raises: ValueError that says why it can't be done.
    """
    targets, kind = pick(LAYOUTS, layout, "--to"), kind_of(weights)
    if kind is None:
        raise ValueError(f"these weights hold no encoder that can be converted: they are named {', '.join(list(weights)[:4])}, "
                         f"... Kinds: {', '.join(KINDS.values())}.")
    if kind not in targets:
        others = [name for name, kinds in LAYOUTS.items() if kind in kinds]
        raise ValueError(f"{KINDS[kind]} can't be written for {layout}: no names are known for it there, or it lacks what the "
                         f"weights are for. It can be written for {', '.join(others)}.")
    target = targets[kind]
    reason = target.refusal(weights)
    if reason:
        raise ValueError(f"{KINDS[kind]} can't be written for {layout} ({target.model}): {reason}.")
    key_map = target.key_map if isinstance(target.key_map, KeyMap) else target.key_map(weights)
    return key_map.to_theirs(weights), key_map.dropped(weights), target
