"""What to type where a converted or exported file is used: how images are prepared, and lines that load the model there."""
import json

RESAMPLING = {"bicubic": "BICUBIC", "bilinear": "BILINEAR", "lanczos": "LANCZOS", "nearest": "NEAREST"}  # of torchvision


def image_facts(config, img_size, mean, std):
    """How evaluation here prepares an image, as a dict of JSON.

    Args:
        config: from load_config.
        img_size: (H, W) pixels.
        mean, std: of each channel, of pixels in [0, 1].
    Returns: {size [H, W], mean, std, interpolation, resize}; resize is what an image is brought to before the middle of that
        size is cut out: pixels of its short side, or [H, W], or None where it is squeezed to the size.
    """
    resize = None
    if config.TEST.CROP and max(img_size) > 32:
        larger = [int(side / config.TEST.CROP_RATIO) for side in img_size]
        resize = larger[0] if img_size[0] == img_size[1] else larger
    return {"size": list(img_size), "mean": list(mean), "std": list(std), "interpolation": config.DATA.INTERPOLATION,
            "resize": resize}


def metadata(facts, classes):
    """{name: JSON} that a file keeps beside its weights: `image`, and `classes` where their names are known."""
    named = {"classes": json.dumps(list(classes), ensure_ascii=False)} if classes else {}
    return {"image": json.dumps(facts), **named}


def transform_lines(facts):
    """Python that makes `transform`, from a PIL image to a tensor (C, H, W), with torchvision."""
    mode = f"T.InterpolationMode.{RESAMPLING[facts['interpolation']]}"
    shape = (f"T.Resize({facts['size']}, {mode})" if facts["resize"] is None else
             f"T.Resize({facts['resize']}, {mode}), T.CenterCrop({facts['size']})")
    return ["from torchvision import transforms as T",
            f"transform = T.Compose([{shape}, T.ToTensor(), T.Normalize({facts['mean']}, {facts['std']})])"]


def reading_line(path, key=None):
    """Python that reads `weights`, {name: tensor}, from a file; `key` is where a .pth file has them."""
    if str(path).endswith(".safetensors"):
        return f"from safetensors.torch import load_file; weights = load_file({str(path)!r})"
    inside = f"[{key!r}]" if key else ""
    return f"import torch; weights = torch.load({str(path)!r}, weights_only=True){inside}"


def loading_lines(layout, kind, weights, config, img_size, path):
    """Python that makes `model` in another project and fills it from a converted file.

    Args:
        layout, kind: of models.weights.layouts: LAYOUTS, KINDS.
        weights: with our pre-training names.
        config: from load_config, of the model that they are of.
        img_size: (H, W) pixels.
        path: of the file.
    Returns: list of lines; [] for layouts and kinds that no call is known of.
    """
    describe = {("timm", "swin"): _timm_swin, ("timm", "swinv2"): _timm_swin, ("timm", "relative_vit"): _timm_beit,
                ("timm", "plain_vit"): _timm_beit, ("timm", "mae_vit"): _timm_vit, ("torchvision", "swin"): _torchvision_swin,
                ("torchvision", "swinv2"): _torchvision_swin, ("torchvision", "mae_vit"): _torchvision_vit}.get((layout, kind))
    if describe is None:
        return []
    head = weights.get("encoder.head.weight")
    section, classes = config.MODEL[config.MODEL.TYPE.upper()], 0 if head is None else len(head)
    names, call, arguments = describe(kind, section, weights, list(img_size), classes)
    written = ", ".join(f"{name}={value if name == 'block' or name == 'downsample_layer' else repr(value)}"
                        for name, value in arguments.items())
    return [names, f"model = {call}({written})",
            *([f"model.{'heads' if call == 'VisionTransformer' else 'head'} = torch.nn.Identity()"]
              if layout == "torchvision" and not classes else []),
            reading_line(path), "model.load_state_dict(weights, strict=False); model.eval()"]


def _timm_swin(kind, swin, weights, size, classes):
    module, name = {"swin": ("swin_transformer", "SwinTransformer"),
                    "swinv2": ("swin_transformer_v2", "SwinTransformerV2")}[kind]
    sizes = {"pretrained_window_sizes": list(swin.PRETRAINED_WINDOW_SIZES)} if kind == "swinv2" and any(
        swin.PRETRAINED_WINDOW_SIZES) else {}
    return f"from timm.models.{module} import {name}", name, {
        "img_size": size, "patch_size": swin.PATCH_SIZE, "in_chans": swin.IN_CHANS, "num_classes": classes,
        "embed_dim": swin.EMBED_DIM, "depths": list(swin.DEPTHS), "num_heads": list(swin.NUM_HEADS),
        "window_size": swin.WINDOW_SIZE, "mlp_ratio": swin.MLP_RATIO, "qkv_bias": swin.QKV_BIAS, **sizes}


def _timm_of_tokens(vit, weights, size, classes):
    return {"img_size": size, "patch_size": vit.PATCH_SIZE, "in_chans": vit.IN_CHANS, "num_classes": classes,
            "global_pool": "avg" if "encoder.fc_norm.weight" in weights else "token", "embed_dim": vit.EMBED_DIM,
            "depth": vit.DEPTH, "num_heads": vit.NUM_HEADS, "mlp_ratio": vit.MLP_RATIO, "qkv_bias": vit.QKV_BIAS}


def _timm_beit(kind, vit, weights, size, classes):
    return "from timm.models.beit import Beit", "Beit", {
        **_timm_of_tokens(vit, weights, size, classes), "init_values": vit.INIT_VALUES or None,
        "use_abs_pos_emb": "encoder.pos_embed" in weights, "use_rel_pos_bias": vit.USE_RPB,
        "use_shared_rel_pos_bias": vit.USE_SHARED_RPB}


def _timm_vit(kind, vit, weights, size, classes):
    return ("from timm.models.vision_transformer import VisionTransformer", "VisionTransformer",
            _timm_of_tokens(vit, weights, size, classes))


def _torchvision_swin(kind, swin, weights, size, classes):
    last = swin.PATCH_SIZE * 2 ** (len(swin.DEPTHS) - 1)
    window = min(swin.WINDOW_SIZE, *(side // last for side in size))
    second = {"block": "SwinTransformerBlockV2", "downsample_layer": "PatchMergingV2"} if kind == "swinv2" else {}
    names = ", ".join(["SwinTransformer", *second.values()])
    return f"import torch; from torchvision.models.swin_transformer import {names}", "SwinTransformer", {
        "patch_size": [swin.PATCH_SIZE] * 2, "embed_dim": swin.EMBED_DIM, "depths": list(swin.DEPTHS),
        "num_heads": list(swin.NUM_HEADS), "window_size": [window] * 2, "mlp_ratio": swin.MLP_RATIO,
        "num_classes": classes or 1, **second}


def _torchvision_vit(kind, vit, weights, size, classes):
    return "import torch; from torchvision.models import VisionTransformer", "VisionTransformer", {
        "image_size": size[0], "patch_size": vit.PATCH_SIZE, "num_layers": vit.DEPTH, "num_heads": vit.NUM_HEADS,
        "hidden_dim": vit.EMBED_DIM, "mlp_dim": int(vit.EMBED_DIM * vit.MLP_RATIO), "num_classes": classes or 1}
