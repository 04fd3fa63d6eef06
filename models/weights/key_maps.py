"""Names that other projects give to the weights of our models: tables that models/weights/renaming.py says how to read."""
from models.weights.renaming import FLATTENED, MERGED, WITH_ZEROS, KeyMap

_QKV = ("query", "key", "value")


def _block(ours, theirs, names, qkv=None):
    """Rules of a transformer block.

    Args:
        ours, theirs: what stands before the names, with {i}.
        names: of norm1, attn.proj, norm2, mlp.fc1, mlp.fc2 there.
        qkv: of attn.qkv there, or of query, key and value; None = other rules tell.
    """
    own = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    rules = [(f"{ours}.{a}.{{p}}", f"{theirs}.{b}.{{p}}") for a, b in zip(own, names, strict=True)]
    if qkv is None:
        return rules
    there = tuple(f"{theirs}.{part}.{{p}}" for part in qkv) if isinstance(qkv, tuple) else f"{theirs}.{qkv}.{{p}}"
    return (*rules, (f"{ours}.attn.qkv.{{p}}", there))


# ---- official, and names that are ours but for the prefix -----------------------------------------------------------

OURS = KeyMap((("{*}", "{*}"),))
OURS_ALONE = KeyMap((("encoder.{*}", "{*}"),))  # an encoder or classifier: in our files and in official ones
MAE_OFFICIAL = KeyMap((
    ("decoder.mask_token", "mask_token"),
    ("decoder.{*}", "decoder_{*}"),
    ("encoder.{*}", "{*}"),
))

# ---- timm -----------------------------------------------------------------------------------------------------------

_ENCODER_ALONE = (
    ("decoder.{*}", None),
    ("encoder.mask_token", None),
    ("encoder.{*}relative_position_index", None),  # follow from the sizes
    ("encoder.{*}relative_coords_table", None),
    ("encoder.{*}attn_mask", None),
)
VIT_TIMM = KeyMap((*_ENCODER_ALONE, ("encoder.{*}", "{*}")))  # Beit, VisionTransformer for MAE's; detectors, also for Swin
SWIN_TIMM = KeyMap((  # also of SwinV2; since timm 0.9 a stage begins with the merging that ended the one before
    *_ENCODER_ALONE,
    ("encoder.layers.{i}.downsample.{*}", "layers.{i+1}.downsample.{*}"),
    ("encoder.head.{p}", "head.fc.{p}"),
    ("encoder.{*}", "{*}"),
))

# ---- torchvision ----------------------------------------------------------------------------------------------------

_TORCHVISION_SWIN = (  # features: the patches, then by turns the blocks of a stage and the merging after it
    ("decoder.{*}", None),
    ("encoder.mask_token", None),
    ("encoder.{*}.attn_mask", None),
    ("encoder.patch_embed.proj.{p}", "features.0.0.{p}"),
    ("encoder.patch_embed.norm.{p}", "features.0.2.{p}"),
    *_block("encoder.layers.{i}.blocks.{i}", "features.{2i+1}.{i}", ("norm1", "attn.proj", "norm2", "mlp.0", "mlp.3")),
    ("encoder.layers.{i}.blocks.{i}.attn.relative_position_index", "features.{2i+1}.{i}.attn.relative_position_index",
     FLATTENED),
    ("encoder.layers.{i}.blocks.{i}.attn.{*}", "features.{2i+1}.{i}.attn.{*}"),
    ("encoder.layers.{i}.downsample.{*}", "features.{2i+2}.{*}"),
    ("encoder.norm.{p}", "norm.{p}"),
    ("encoder.head.{p}", "head.{p}"),
)
SWIN_TORCHVISION = KeyMap(_TORCHVISION_SWIN)
SWINV2_TORCHVISION = KeyMap(_TORCHVISION_SWIN, one_bias=True)

_TORCHVISION_LAYER = "encoder.layers.encoder_layer_{i}"
VIT_TORCHVISION = KeyMap((
    ("decoder.{*}", None),
    ("encoder.mask_token", None),
    ("encoder.cls_token", "class_token"),
    ("encoder.pos_embed", "encoder.pos_embedding"),
    ("encoder.patch_embed.proj.{p}", "conv_proj.{p}"),
    *_block("encoder.blocks.{i}", _TORCHVISION_LAYER, ("ln_1", "self_attention.out_proj", "ln_2", "mlp.0", "mlp.3")),
    ("encoder.blocks.{i}.attn.qkv.{p}", f"{_TORCHVISION_LAYER}.self_attention.in_proj_{{p}}"),
    ("encoder.blocks.{i}.mlp.fc1.{p}", f"{_TORCHVISION_LAYER}.mlp.linear_1.{{p}}"),  # of its released files
    ("encoder.blocks.{i}.mlp.fc2.{p}", f"{_TORCHVISION_LAYER}.mlp.linear_2.{{p}}"),
    ("encoder.norm.{p}", "encoder.ln.{p}"),
    ("encoder.head.{p}", "heads.head.{p}"),
))

# ---- transformers ---------------------------------------------------------------------------------------------------

_HF_BLOCK = ("layernorm_before", "attention.output.dense", "layernorm_after", "intermediate.dense", "output.dense")
_HF_QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")


def _hf_vit(backbone):
    """Rules of what ViTMAE, ViT and BEiT have in common."""
    return (
        ("encoder.cls_token", f"{backbone}.embeddings.cls_token"),
        ("encoder.mask_token", f"{backbone}.embeddings.mask_token"),
        ("encoder.pos_embed", f"{backbone}.embeddings.position_embeddings"),
        ("encoder.patch_embed.proj.{p}", f"{backbone}.embeddings.patch_embeddings.projection.{{p}}"),
        ("encoder.norm.{p}", f"{backbone}.layernorm.{{p}}"),
        ("encoder.head.{p}", "classifier.{p}"),
    )


def _hf_swin(backbone, qkv):
    """Rules of what Swin and SwinV2 have in common.

    Args:
        qkv: rules of the query, key and value.
    """
    stage = f"{backbone}.encoder.layers.{{i}}"
    return (
        ("encoder.{*}.attn_mask", None),
        ("encoder.{*}.relative_coords_table", None),
        ("encoder.mask_token", f"{backbone}.embeddings.mask_token"),
        ("encoder.patch_embed.proj.{p}", f"{backbone}.embeddings.patch_embeddings.projection.{{p}}"),
        ("encoder.patch_embed.norm.{p}", f"{backbone}.embeddings.norm.{{p}}"),
        *_block("encoder.layers.{i}.blocks.{i}", f"{stage}.blocks.{{i}}", _HF_BLOCK),
        *qkv,
        ("encoder.layers.{i}.downsample.{*}", f"{stage}.downsample.{{*}}"),
        ("encoder.norm.{p}", f"{backbone}.layernorm.{{p}}"),
        ("encoder.head.{p}", "classifier.{p}"),
        ("decoder.{*}", "decoder.{*}"),
    )


_SWIN_ATTENTION = "swin.encoder.layers.{i}.blocks.{i}.attention.self"
SWIN_TRANSFORMERS = KeyMap(_hf_swin("swin", (
    ("encoder.layers.{i}.blocks.{i}.attn.qkv.{p}", tuple(f"{_SWIN_ATTENTION}.{part}.{{p}}" for part in _QKV)),
    ("encoder.layers.{i}.blocks.{i}.attn.{*}", f"{_SWIN_ATTENTION}.{{*}}"),  # table and index
)), "swin.")
_SWINV2_ATTENTION = "swinv2.encoder.layers.{i}.blocks.{i}.attention.self"
SWINV2_TRANSFORMERS = KeyMap(_hf_swin("swinv2", (
    ("encoder.{*}.relative_position_index", None),
    ("encoder.layers.{i}.blocks.{i}.attn.qkv.weight", tuple(f"{_SWINV2_ATTENTION}.{part}.weight" for part in _QKV)),
    ("encoder.layers.{i}.blocks.{i}.attn.q_bias", f"{_SWINV2_ATTENTION}.query.bias"),
    ("encoder.layers.{i}.blocks.{i}.attn.v_bias", f"{_SWINV2_ATTENTION}.value.bias"),
    ("encoder.layers.{i}.blocks.{i}.attn.cpb_mlp.{*}", f"{_SWINV2_ATTENTION}.continuous_position_bias_mlp.{{*}}"),
    ("encoder.layers.{i}.blocks.{i}.attn.logit_scale", f"{_SWINV2_ATTENTION}.logit_scale"),
)), "swinv2.")

MAE_TRANSFORMERS = KeyMap((  # ViTMAE; the encoder and a classifier also of ViT
    *_hf_vit("vit"),
    *_block("encoder.blocks.{i}", "vit.encoder.layer.{i}", _HF_BLOCK, _HF_QKV),
    *_block("decoder.blocks.{i}", "decoder.decoder_layers.{i}", _HF_BLOCK, _HF_QKV),
    ("decoder.mask_token", "decoder.mask_token"),
    ("decoder.pos_embed", "decoder.decoder_pos_embed"),
    ("decoder.embed.{p}", "decoder.decoder_embed.{p}"),
    ("decoder.norm.{p}", "decoder.decoder_norm.{p}"),
    ("decoder.pred.{p}", "decoder.decoder_pred.{p}"),
), "vit.")

_VIT_ATTENTION = "vit.encoder.layer.{i}.attention.attention"
SIMMIM_VIT_TRANSFORMERS = KeyMap((  # ViTForMaskedImageModeling: absolute positions, no layer scale
    *_hf_vit("vit"),
    *_block("encoder.blocks.{i}", "vit.encoder.layer.{i}", _HF_BLOCK),
    ("encoder.blocks.{i}.attn.qkv.weight", tuple(f"{_VIT_ATTENTION}.{part}.weight" for part in _QKV)),
    ("encoder.blocks.{i}.attn.q_bias", f"{_VIT_ATTENTION}.query.bias"),
    ("encoder.blocks.{i}.attn.v_bias", (f"{_VIT_ATTENTION}.value.bias", f"{_VIT_ATTENTION}.key.bias"), WITH_ZEROS),
    ("decoder.{*}", "decoder.{*}"),
), "vit.")

_BEIT_ATTENTION = "beit.encoder.layer.{i}.attention.attention"
BEIT_TRANSFORMERS = KeyMap((  # BeitModel, BeitForImageClassification; no decoder for pixels
    ("decoder.{*}", None),
    ("encoder.{*}relative_position_index", None),
    *_hf_vit("beit"),
    ("encoder.rel_pos_bias.{*}", "beit.encoder.relative_position_bias.{*}"),
    ("encoder.blocks.{i}.gamma_{i}", "beit.encoder.layer.{i}.lambda_{i}"),
    *_block("encoder.blocks.{i}", "beit.encoder.layer.{i}", _HF_BLOCK),
    ("encoder.blocks.{i}.attn.qkv.weight", tuple(f"{_BEIT_ATTENTION}.{part}.weight" for part in _QKV)),
    ("encoder.blocks.{i}.attn.q_bias", f"{_BEIT_ATTENTION}.query.bias"),
    ("encoder.blocks.{i}.attn.v_bias", f"{_BEIT_ATTENTION}.value.bias"),
    ("encoder.blocks.{i}.attn.relative_position_bias_table",
     f"{_BEIT_ATTENTION}.relative_position_bias.relative_position_bias_table"),
    ("encoder.fc_norm.{p}", "beit.pooler.layernorm.{p}"),
), "beit.")

# ---- mmpretrain -----------------------------------------------------------------------------------------------------

_MM_BLOCK = ("ln1", "attn.proj", "ln2", "ffn.layers.0.0", "ffn.layers.1")
_MM_DECODER = (
    *_block("decoder.blocks.{i}", "neck.decoder_blocks.{i}", _MM_BLOCK, "attn.qkv"),
    ("decoder.mask_token", "neck.mask_token"),
    ("decoder.pos_embed", "neck.decoder_pos_embed"),
    ("decoder.embed.{p}", "neck.decoder_embed.{p}"),
    ("decoder.norm.{p}", "neck.ln1.{p}"),
    ("decoder.pred.{p}", "neck.decoder_pred.{p}"),
)
_MM_VIT = (
    ("encoder.cls_token", "backbone.cls_token"),
    ("encoder.pos_embed", "backbone.pos_embed"),
    ("encoder.patch_embed.proj.{p}", "backbone.patch_embed.projection.{p}"),
    *_block("encoder.blocks.{i}", "backbone.layers.{i}", _MM_BLOCK),
    ("encoder.blocks.{i}.attn.{*}", "backbone.layers.{i}.attn.{*}"),  # qkv, and tables and indices of BEiT
    ("encoder.norm.{p}", "backbone.ln1.{p}"),
    ("encoder.fc_norm.{p}", "backbone.ln2.{p}"),
    ("encoder.head.{p}", "head.fc.{p}"),
)
MAE_MMPRETRAIN = KeyMap((*_MM_VIT, *_MM_DECODER))
BEIT_MMPRETRAIN = KeyMap((  # BEiTViT; no decoder for pixels
    *_MM_VIT,
    ("encoder.rel_pos_bias.{*}", "backbone.rel_pos_bias.{*}"),
    ("encoder.blocks.{i}.gamma_{i}", "backbone.layers.{i}.gamma_{i}"),
    ("encoder.mask_token", None),
    ("decoder.{*}", None),
))
MAE_MMSEGMENTATION = KeyMap((  # the backbone MAE there, which stands at the root of a file
    ("decoder.{*}", None),
    ("encoder.mask_token", None),
    ("encoder.fc_norm.{p}", None),
    ("encoder.head.{p}", None),
    *_MM_VIT,
), "backbone.")

_MM_SWIN_BLOCK = ("norm1", "attn.w_msa.proj", "norm2", "ffn.layers.0.0", "ffn.layers.1")
_MM_SWIN = (  # four stages: norm3 is the norm of the fourth
    ("encoder.{*}.attn_mask", None),
    ("encoder.patch_embed.proj.{p}", "backbone.patch_embed.projection.{p}"),
    ("encoder.patch_embed.norm.{p}", "backbone.patch_embed.norm.{p}"),
    *_block("encoder.layers.{i}.blocks.{i}", "backbone.stages.{i}.blocks.{i}", _MM_SWIN_BLOCK),
    ("encoder.layers.{i}.blocks.{i}.attn.{*}", "backbone.stages.{i}.blocks.{i}.attn.w_msa.{*}"),
    ("encoder.norm.{p}", "backbone.norm3.{p}"),
)
_MM_MERGING = ("encoder.layers.{i}.downsample.{*}", "backbone.stages.{i}.downsample.{*}", MERGED)
SWIN_MMPRETRAIN = KeyMap((
    *_MM_SWIN,
    _MM_MERGING,
    ("encoder.mask_token", "backbone.mask_token"),
    ("encoder.head.{p}", "head.fc.{p}"),
    ("decoder.{*}", "neck.decoder.{*}"),
))
SWIN_MMSEGMENTATION = KeyMap((  # the backbone there and in mmdetection, which may stand at the root of a file
    *_MM_SWIN,
    _MM_MERGING,
    ("encoder.mask_token", None),
    ("encoder.head.{p}", None),
    ("decoder.{*}", None),
), "backbone.")
SWINV2_MMPRETRAIN = KeyMap((  # a stage begins with the merging; its norm comes after it, where the four are one
    *_MM_SWIN,
    ("encoder.layers.{i}.blocks.{i}.norm3.{p}", "backbone.stages.{i}.blocks.{i}.norm3.{p}"),
    ("encoder.layers.{i}.downsample.reduction.weight", "backbone.stages.{i+1}.downsample.reduction.weight", MERGED),
    ("encoder.layers.{i}.downsample.norm.{p}", "backbone.stages.{i+1}.downsample.norm.{p}"),
    ("encoder.mask_token", None),
    ("encoder.head.{p}", "head.fc.{p}"),
    ("decoder.{*}", None),
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
