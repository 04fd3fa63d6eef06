"""Models of other projects with the weights of ours, ready to give the same loss: what our step is measured beside.

From transformers (requirements-bench.txt) its own masked image modeling; from timm an encoder, in the plain code of a method
that stands here and is written as papers say it, without regard to speed.
"""
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional as F

from config import encoder_config, image_size
from models.weights.layouts import kind_of, write_layout
from models.weights.transformers_files import model_description
from tools.benchmarks import transformers_or_none

EMPTY = torch.device("meta")


def peers_of(config, weights, empty=False):
    """The peers that there are for a pre-training recipe.

    Args:
        config: from load_config.
        weights: state dict of our model.
        empty: without memory, to be counted.
    Returns: {name: module}; `module(images, mask)` is the loss that our model has, with the mask as (B, h, w) bool.
    """
    found, kind = {}, kind_of(weights)
    with EMPTY if empty else nullcontext():
        if transformers_or_none() and kind in ("swin", "mae_vit"):
            found["transformers"] = of_transformers(config, weights)
        if config.MODEL.METHOD == "simmim" and kind in ("swin", "relative_vit"):
            found["timm, plain SimMIM"] = of_timm(config, weights, kind)
    if not empty:
        for module in found.values():
            theirs, *_ = write_layout(weights, module.layout)
            own = module.model.state_dict()
            missing = [name for name in own if name not in theirs and not name.endswith(("index", "mask"))]
            if missing:
                raise ValueError(f"{module.layout} has weights that ours do not give: {', '.join(missing[:4])}.")
            module.model.load_state_dict({name: value for name, value in theirs.items() if name in own}, strict=False)
            if hasattr(module, "decoder"):
                module.decoder.load_state_dict({name.removeprefix("decoder."): value for name, value in weights.items()
                                                if name.startswith("decoder.")})
                if "encoder.mask_token" in weights:
                    module.mask_token.data.copy_(weights["encoder.mask_token"])
    return found


def of_transformers(config, weights):
    transformers = transformers_or_none()
    described = model_description(weights, config, image_size(config))
    name = described.pop("architectures")[0]
    described.pop("model_type")
    described.pop("torch_dtype")
    cls = getattr(transformers, name)
    wrapper = MaskedByNoise if name.startswith("ViTMAE") else MaskedByBools
    return wrapper(cls(cls.config_class(**described)))


class MaskedByBools(nn.Module):
    """A model of transformers that takes a mask of patches."""

    layout = "transformers"

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, mask):
        return self.model(pixel_values=images, bool_masked_pos=mask.flatten(1)).loss


class MaskedByNoise(MaskedByBools):
    """One that hides the patches of the largest noise: the mask is the noise, with the position in it to tell them apart."""

    def forward(self, images, mask):
        place = torch.arange(mask[0].numel(), device=mask.device) / mask[0].numel()
        return self.model(pixel_values=images, noise=mask.flatten(1).float() + place).loss


def of_timm(config, weights, kind):
    section, size = encoder_config(config), image_size(config)
    common = {"img_size": size, "patch_size": section.PATCH_SIZE, "in_chans": section.IN_CHANS, "num_classes": 0,
              "embed_dim": section.EMBED_DIM, "mlp_ratio": section.MLP_RATIO, "drop_path_rate": config.MODEL.DROP_PATH_RATE}
    if kind == "swin":
        from timm.models.swin_transformer import SwinTransformer
        encoder = SwinTransformer(depths=section.DEPTHS, num_heads=section.NUM_HEADS, window_size=section.WINDOW_SIZE,
                                  global_pool="", **common)
        return PlainSimMIM(encoder, section.PATCH_SIZE * 2 ** (len(section.DEPTHS) - 1), section)
    from timm.models.beit import Beit
    encoder = Beit(depth=section.DEPTH, num_heads=section.NUM_HEADS, use_abs_pos_emb=section.USE_APE,
                   use_rel_pos_bias=section.USE_RPB, use_shared_rel_pos_bias=section.USE_SHARED_RPB,
                   init_values=section.INIT_VALUES, global_pool="", **common)
    return PlainSimMIM(encoder, section.PATCH_SIZE, section)


class PlainSimMIM(nn.Module):
    """SimMIM around a Swin or a BEiT of timm."""

    layout = "timm"

    def __init__(self, encoder, stride, section):
        super().__init__()
        self.model, self.patch = encoder, section.PATCH_SIZE
        self.mask_token = nn.Parameter(torch.zeros(1, 1, section.EMBED_DIM))
        self.decoder = nn.Sequential(nn.Conv2d(encoder.num_features, stride ** 2 * section.IN_CHANS, kernel_size=1),
                                     nn.PixelShuffle(stride))

    def forward(self, images, mask):
        prediction = self.decoder(self.features(images, mask))
        hidden = mask.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2).unsqueeze(1)
        loss = F.l1_loss(images, prediction, reduction="none")
        return (loss * hidden).sum() / (hidden.sum() + 1e-5) / images.shape[1]

    def features(self, images, mask):
        """(B, num_features, H/stride, W/stride)."""
        encoder, tokens = self.model, self.model.patch_embed(images)
        hidden = mask.view(*tokens.shape[:-1], 1).type_as(tokens)
        tokens = tokens * (1 - hidden) + self.mask_token * hidden
        if tokens.ndim == 4:  # Swin's are a map
            return encoder.norm(encoder.layers(tokens)).permute(0, 3, 1, 2)
        x = torch.cat([encoder.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        x = x if encoder.pos_embed is None else x + encoder.pos_embed
        shared = None if encoder.rel_pos_bias is None else encoder.rel_pos_bias()
        for block in encoder.blocks:
            x = block(x, shared_rel_pos_bias=shared)
        return encoder.norm(x)[:, 1:].transpose(1, 2).unflatten(2, mask.shape[1:])
