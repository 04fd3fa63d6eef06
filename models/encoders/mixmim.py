"""MixMIM's encoder: windows that never shift, as large as the map in the last stages, over images that may be mixtures of two.

Source: Liu et al., MixMAE: Mixed and Masked Autoencoder for Efficient Pretraining of Hierarchical Vision Transformers
(arXiv 2205.13137). Parameter and buffer names are the official ones, most of them Swin's.
"""
import torch
from torch.nn import functional as F

from models.encoders.checks import LARGEST_SIDE, check_sincos, check_stages, nearest_side, window_problem
from models.encoders.swin import SwinBlock, SwinTransformer, WindowAttention, keep_apart
from models.layers import init_xavier, lift_mask, truncated_normal
from models.position import interpolate_bias_table, sincos_table
from utils.registry import Component
from utils.settings import Setting

# far below any score, also in float16; the exponential is exactly 0, as with the -1e30 of the official code
BLOCKED = -3e4


class MixMIMTransformer(SwinTransformer):
    """MixMIM encoder: Swin with windows of a size for each stage, none of them shifted, and fixed positions.

    Args:
        img_size: (H, W) pixels the position tables are made for; other sizes resize the absolute one on the fly.
        window_sizes: tokens per side, for each stage; per axis it shrinks to the map where the map is smaller.
        Others as SwinTransformer.
    """

    drops_tokens = False
    mixes_images = True

    def __init__(self, img_size=(224, 224), patch_size=4, in_chans=3, num_classes=0, embed_dim=128, depths=(2, 2, 18, 2),
                 num_heads=(4, 8, 16, 32), window_sizes=(14, 14, 14, 7), mlp_ratio=4.0, drop_rate=0.0, drop_path_rate=0.0,
                 use_mask_token=False, use_checkpoint=False):
        super().__init__(img_size, patch_size, in_chans, num_classes, embed_dim, depths, num_heads, window_sizes, mlp_ratio,
                         drop_rate=drop_rate, drop_path_rate=drop_path_rate, ape=True, use_mask_token=use_mask_token,
                         use_checkpoint=use_checkpoint)
        self.absolute_pos_embed.requires_grad_(False)

    def make_block(self, stage, index, attention, **block):
        return SwinBlock(attn=WindowAttention(**attention), **block | {"shifted": False})

    def init_module(self, name, module):
        init_xavier(module)
        for own, parameter in module.named_parameters(recurse=False):
            if own in ("relative_position_bias_table", "mask_token"):
                truncated_normal(parameter)
            elif own == "absolute_pos_embed":
                with torch.no_grad():
                    parameter.copy_(sincos_table(self.grid, parameter.shape[-1]))

    def forward_mixed(self, images, cells):
        x = self._embed(images)
        partner = lift_mask(cells.unsqueeze(0), x.shape[1:3]).unsqueeze(-1)  # (1, h, w, 1)
        x = torch.where(partner, x.flip(0), x)

        def make_mask(grid, window):
            """Tokens see those of their own image; what fills up the last windows is a third."""
            image = lift_mask(cells.unsqueeze(0), grid)[0].to(torch.uint8)
            return keep_apart(F.pad(image, (0, -grid[1] % window[1], 0, -grid[0] % window[0]), value=2), window, BLOCKED)

        return self._transform(x, make_mask).permute(0, 3, 1, 2)

    def no_weight_decay(self):
        return {"mask_token"}  # the absolute positions do not learn

    def no_weight_decay_keywords(self):
        return set()

    def layer_id(self, name):
        """As official: a merging learns with the block after it, final norm and head with the last block."""
        if name in ("mask_token", "absolute_pos_embed") or name.startswith("patch_embed"):
            return 0
        if name.startswith("layers."):
            _, stage, part, index, *_ = name.split(".")
            before = sum(self.depths[:int(stage)])
            return before + 1 + (int(index) if part == "blocks" else self.depths[int(stage)])
        return self.num_layers

    def resize_table(self, table, source, target):
        return interpolate_bias_table(table, source, target)


def build_mixmim_encoder(config, img_size, num_classes, use_mask_token):
    """MixMIMTransformer from MODEL.MIXMIM."""
    mixmim = config.MODEL.MIXMIM
    return MixMIMTransformer(
        img_size=img_size, patch_size=mixmim.PATCH_SIZE, in_chans=mixmim.IN_CHANS, num_classes=num_classes,
        embed_dim=mixmim.EMBED_DIM, depths=mixmim.DEPTHS, num_heads=mixmim.NUM_HEADS, window_sizes=mixmim.WINDOW_SIZES,
        mlp_ratio=mixmim.MLP_RATIO, drop_rate=config.MODEL.DROP_RATE, drop_path_rate=config.MODEL.DROP_PATH_RATE,
        use_mask_token=use_mask_token, use_checkpoint=config.TRAIN.USE_CHECKPOINT)


def check_mixmim_encoder(config, size):
    """Refuse settings of the encoder in MODEL.MIXMIM that do not fit together. Raises: ValueError."""
    mixmim, section = config.MODEL.MIXMIM, "MODEL.MIXMIM"
    check_stages(section, mixmim)
    windows = mixmim.WINDOW_SIZES
    if len(windows) != len(mixmim.DEPTHS) or min(windows) < 1:
        raise ValueError(f"{section}.WINDOW_SIZES={windows} must have one value of at least 1 for each of the "
                         f"{len(mixmim.DEPTHS)} stages of {section}.DEPTHS={mixmim.DEPTHS}.")
    check_sincos(f"{section}.EMBED_DIM", mixmim.EMBED_DIM)
    unit = mixmim.PATCH_SIZE * 2 ** (len(windows) - 1)
    problems = [window_problem(side, mixmim.PATCH_SIZE, windows) for side in sorted(size, key=lambda side: side % unit == 0)]
    found = next(filter(None, problems), None)  # a side of broken cells first
    if found and any(side % unit for side in size):
        nearest = [nearest_side(side, unit) for side in size]
        advice = f"DATA.IMG_SIZE {nearest[0] if size[0] == size[1] else nearest}"
    elif found:
        maps = [[side // mixmim.PATCH_SIZE // 2 ** stage for side in size] for stage in range(len(windows))]
        fitting = [max(w for w in range(1, window + 1) if not any(side % min(w, side) for side in grid))
                   for window, grid in zip(windows, maps, strict=True)]
        advice = f"e.g. {section}.WINDOW_SIZES {fitting}"
    if found:
        raise ValueError(f"DATA.IMG_SIZE={config.DATA.IMG_SIZE} with {section}.WINDOW_SIZES={windows}: {found}. Use "
                         f"{advice.replace(', ', ',')}.")


MIXMIM_ENCODER = Component(build_mixmim_encoder, check=check_mixmim_encoder, settings={
    "PATCH_SIZE": Setting(4, "+ side of a token", "pixels", low=1, high=LARGEST_SIDE),
    "IN_CHANS": Setting(3, "+ channels of the images", low=1, high=1024),
    "EMBED_DIM": Setting(128, "+ width of the first stage; doubles at each stage", low=1, high=2 ** 16),
    "DEPTHS": Setting([2, 2, 18, 2], "+ blocks per stage", high=1000),
    "NUM_HEADS": Setting([4, 8, 16, 32], "+ per stage"),
    "WINDOW_SIZES": Setting([14, 14, 14, 7], "+ per stage; a window shrinks to the map where the map is smaller", "tokens"),
    "MLP_RATIO": Setting(4.0, "+ width of the MLP relative to the block's", low=1e-3, high=1000),
})
