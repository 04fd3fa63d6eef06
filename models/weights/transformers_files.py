"""What transformers' `from_pretrained` wants beside weights: config.json and preprocessor_config.json, from our settings."""
from models.weights.layouts import kind_of

SWIN_NORM_EPS, VIT_NORM_EPS = 1e-5, 1e-6  # of our LayerNorms
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # numbers of Pillow


def model_description(weights, config, img_size, classes=None):
    """The content of config.json.

    Args:
        weights: with our pre-training names; they tell the kind of encoder, and whether there is a head or a decoder.
        config: from load_config, of the model that the weights are of.
        img_size: (H, W) pixels.
        classes: names of the classes, or None.
    Returns: dict of JSON.
    Raises: ValueError on settings that models there do not have.
    """
    kind = kind_of(weights)
    describe = {"swin": _swin, "swinv2": _swin, "relative_vit": _beit, "plain_vit": _vit, "mae_vit": _vit}[kind]
    section = config.MODEL[config.MODEL.TYPE.upper()]
    height, width = img_size
    described = {
        "image_size": height if height == width else [height, width], "patch_size": section.PATCH_SIZE,
        "num_channels": section.IN_CHANS, "hidden_act": "gelu", "hidden_dropout_prob": config.MODEL.DROP_RATE,
        "attention_probs_dropout_prob": 0.0, "torch_dtype": "float32", **describe(kind, weights, config, section, img_size)}
    if "encoder.head.weight" in weights:
        names = classes or [f"LABEL_{i}" for i in range(len(weights["encoder.head.weight"]))]
        described |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return described


def _name(weights, prefix, pretraining):
    """The class there: of a decoder, of a head, or of the encoder alone."""
    if any(name.startswith("decoder.") for name in weights) and pretraining:
        return pretraining
    return f"{prefix}ForImageClassification" if "encoder.head.weight" in weights else f"{prefix}Model"


def _swin(kind, weights, config, swin, img_size):
    if getattr(swin, "QK_SCALE", None) is not None:
        raise ValueError(f"MODEL.SWIN.QK_SCALE={swin.QK_SCALE}: Swin of transformers has no other scale than the default.")
    _check_sides(swin, config, img_size)
    prefix = {"swin": "Swin", "swinv2": "Swinv2"}[kind]
    last = swin.PATCH_SIZE * 2 ** (len(swin.DEPTHS) - 1)
    # windows of SwinV2 shrink to smaller maps there as well; those of Swin are of one size, see fits_no_swin_of_transformers
    window = swin.WINDOW_SIZE if kind == "swinv2" else min(swin.WINDOW_SIZE, *(side // last for side in img_size))
    described = {
        "model_type": kind, "architectures": [_name(weights, prefix, f"{prefix}ForMaskedImageModeling")],
        "embed_dim": swin.EMBED_DIM, "depths": list(swin.DEPTHS), "num_heads": list(swin.NUM_HEADS),
        "window_size": window, "mlp_ratio": swin.MLP_RATIO,
        "qkv_bias": swin.QKV_BIAS, "drop_path_rate": config.MODEL.DROP_PATH_RATE, "use_absolute_embeddings": False,
        "layer_norm_eps": SWIN_NORM_EPS, "encoder_stride": last}
    if kind == "swinv2":
        sizes = list(swin.PRETRAINED_WINDOW_SIZES)
        described["pretrained_window_sizes"] = sizes if any(sizes) else [0] * len(swin.DEPTHS)
    return described


def _check_sides(swin, config, img_size):
    """Refuse maps whose windows shrink, or are not shifted, along one side alone: models there take both as one. Raises
    ValueError.
    """
    for stage, depth in enumerate(swin.DEPTHS):
        sides = [side // (swin.PATCH_SIZE * 2 ** stage) for side in img_size]
        windows, shifted = ({min(swin.WINDOW_SIZE, side) for side in sides}, {side > swin.WINDOW_SIZE for side in sides})
        if len(windows) > 1 or len(shifted) > 1 and depth > 1:
            raise ValueError(f"DATA.IMG_SIZE={config.DATA.IMG_SIZE}: in stage {stage}, a map of {sides[0]}x{sides[1]} tokens, "
                             f"windows of {swin.WINDOW_SIZE} shrink or stay unshifted along one side alone, which models of "
                             f"transformers can't do, and the results would differ. Convert to timm (--to timm).")


def _transformer(vit):
    """What all of ViT's kind have."""
    return {"hidden_size": vit.EMBED_DIM, "num_hidden_layers": vit.DEPTH, "num_attention_heads": vit.NUM_HEADS,
            "intermediate_size": int(vit.EMBED_DIM * vit.MLP_RATIO), "layer_norm_eps": VIT_NORM_EPS}


def _vit(kind, weights, config, vit, img_size):
    described = {**_transformer(vit), "qkv_bias": vit.QKV_BIAS, "encoder_stride": vit.PATCH_SIZE}
    if "decoder.embed.weight" not in weights:
        return {"model_type": "vit", "architectures": [_name(weights, "ViT", "ViTForMaskedImageModeling")], **described}
    mae, width = config.MODEL.MAE, config.MODEL.MAE.DECODER_EMBED_DIM
    return {
        "model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"], **described,
        "decoder_hidden_size": width, "decoder_num_hidden_layers": mae.DECODER_DEPTH,
        "decoder_num_attention_heads": mae.DECODER_NUM_HEADS,
        "decoder_intermediate_size": int(width * (mae.DECODER_MLP_RATIO or vit.MLP_RATIO)),
        "mask_ratio": config.DATA.MASK_RATIO, "norm_pix_loss": mae.NORM_PIX_LOSS}


def _beit(kind, weights, config, vit, img_size):
    return {
        "model_type": "beit", "architectures": [_name(weights, "Beit", None)], **_transformer(vit),
        "use_mask_token": "encoder.mask_token" in weights,
        "use_absolute_position_embeddings": "encoder.pos_embed" in weights, "use_relative_position_bias": vit.USE_RPB,
        "use_shared_relative_position_bias": vit.USE_SHARED_RPB, "layer_scale_init_value": vit.INIT_VALUES or 0.0,
        "drop_path_rate": config.MODEL.DROP_PATH_RATE, "use_mean_pooling": vit.USE_MEAN_POOLING}


def image_description(config, img_size, mean, std):
    """The content of preprocessor_config.json: images as evaluation here has them.

    Args:
        config: from load_config.
        img_size: (H, W) pixels.
        mean, std: of each channel, of pixels in [0, 1].
    Returns: dict of JSON.
    """
    height, width = img_size
    described = {
        "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"height": height, "width": width},
        "resample": RESAMPLE[config.DATA.INTERPOLATION], "do_center_crop": False, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(mean), "image_std": list(std),
        "do_convert_rgb": len(mean) == 3}
    if config.TEST.CROP and max(img_size) > 32:
        larger = [int(side / config.TEST.CROP_RATIO) for side in img_size]
        size = {"shortest_edge": larger[0]} if height == width else {"height": larger[0], "width": larger[1]}
        described |= {"size": size, "do_center_crop": True, "crop_size": {"height": height, "width": width}}
    return described
