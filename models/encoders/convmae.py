"""ConvMAE's encoder: convolutions on fine maps, then a transformer over the patches.

Source: Gao et al., ConvMAE: Masked Convolution Meets Masked Autoencoders (arXiv 2205.03892). Parameter names are those of the
official files.
"""
import torch
from torch import nn
from torch.nn import functional as F

from models.encoders.checks import LARGEST_SIDE, check_mlp, check_patches, fitting_heads
from models.encoders.encoder import REBUILT_BUFFERS, Encoder, linear_head
from models.encoders.vit import NORM_EPS, Block
from models.layers import (
    DropPath,
    LayerNorm,
    Mlp,
    PatchEmbed,
    check_images,
    drop_path_rates,
    init_xavier,
    lift_mask,
    stream_dtype,
    truncated_normal,
)
from models.position import resize_position_embedding, sincos_table, source_grid
from models.products import PointwiseConv, casts_together
from utils.registry import Component
from utils.settings import Setting

HEAD_STD = 2e-5  # of the official fine-tuning


class ConvBlock(nn.Module):
    """Pre-norm depthwise 5x5 convolution between two pointwise ones, where a transformer attends, and MLP.

    LayerNorms have PyTorch's epsilon, unlike those of the transformer blocks.
    """

    def __init__(self, dim, mlp_ratio=4.0, drop=0.0, drop_path=0.0):
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.conv1 = PointwiseConv(dim, dim)
        self.conv2 = PointwiseConv(dim, dim)
        self.attn = nn.Conv2d(dim, dim, kernel_size=5, padding=2, groups=dim)
        self.drop_path = DropPath(drop_path)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop, PointwiseConv)

    @casts_together
    def forward(self, x, mask=None):
        """(B, h, w, C), mask (B, h, w) bool or None -> (B, h, w, C); no cell sees another one that is hidden."""
        branch = self.conv1(self.norm1(x))
        if mask is not None:
            branch = branch.masked_fill(mask.unsqueeze(-1), 0.0)
        branch = self.attn(branch.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.conv2(branch))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ConvViT(Encoder):
    """Two stages of convolutions at a quarter and half of the patch, and a third of transformer blocks.

    In pre-training (`forward_visible`) the convolutions are masked, only visible patches reach the transformer, and what the
    first two stages gave is added to its output. Features and classification use none of the three.

    Args:
        img_size: (H, W) pixels the position table is made for; other sizes resize it on the fly.
        patch_size: pixels per side of a cell of the last stage, a multiple of 4; masks live on this grid.
        in_chans: channels of the images.
        num_classes: size of the head, 0 = none.
        embed_dim, depths, mlp_ratio: width, blocks, hidden width of the MLP over the width; three values each.
        num_heads: of the third stage.
        qkv_bias: biases of query, key and value.
        drop_rate, drop_path_rate: dropout; stochastic depth of the last block, rising over all blocks.
        use_checkpoint: recompute activations in the backward pass.
    """

    def __init__(self, img_size=(224, 224), patch_size=16, in_chans=3, num_classes=0, embed_dim=(256, 384, 768),
                 depths=(2, 2, 11), num_heads=12, mlp_ratio=(4.0, 4.0, 4.0), qkv_bias=True, drop_rate=0.0, drop_path_rate=0.1,
                 use_checkpoint=False):
        super().__init__()
        self.patch_size = self.stride = patch_size
        self.in_chans = in_chans
        self.num_features = dim = embed_dim[2]
        self.num_layers = depths[2]
        self.mlp_ratio = mlp_ratio[0]  # the official decoder has that of the first stage
        self.drops_tokens = num_classes == 0
        self.use_checkpoint = use_checkpoint
        self.grid = tuple(side // patch_size for side in img_size)

        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], dim))
        self.patch_embed1 = PatchEmbed(patch_size // 4, in_chans, embed_dim[0], norm=True)
        self.patch_embed2 = PatchEmbed(2, embed_dim[0], embed_dim[1], norm=True)
        self.patch_embed3 = PatchEmbed(2, embed_dim[1], dim, norm=True)
        self.patch_embed4 = nn.Linear(dim, dim)
        if self.drops_tokens:
            self.stage1_output_decode = nn.Conv2d(embed_dim[0], dim, kernel_size=4, stride=4)
            self.stage2_output_decode = nn.Conv2d(embed_dim[1], dim, kernel_size=2, stride=2)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.blocks1, self.blocks2 = (
            nn.ModuleList(ConvBlock(embed_dim[stage], mlp_ratio[stage], drop_rate, next(rates)) for _ in range(depths[stage]))
            for stage in (0, 1))
        self.blocks3 = nn.ModuleList(Block(dim, num_heads, mlp_ratio[2], qkv_bias, drop_rate, next(rates), key_bias=True)
                                     for _ in range(depths[2]))
        self.norm = LayerNorm(dim, eps=NORM_EPS) if self.drops_tokens else nn.Identity()
        self.head = linear_head(dim, num_classes)
        self.fc_norm = nn.Identity() if self.drops_tokens else LayerNorm(dim, eps=NORM_EPS)
        self.init_weights()
        if self.drops_tokens:
            self.pos_embed.requires_grad_(False)

    def init_module(self, name, module):
        init_xavier(module)
        if not name:
            with torch.no_grad():
                self.pos_embed.copy_(sincos_table(self.grid, self.num_features))
        elif name == "patch_embed3.proj":  # the other convolutions keep PyTorch's default in the official code
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        elif name == "head" and self.has_head:
            truncated_normal(module.weight, HEAD_STD)

    def units(self):
        return [*self.blocks1, *self.blocks2, *self.blocks3]

    def _convolve(self, images, mask=None):
        """(B, in_chans, H, W), mask (B, h, w) or None -> (B, 4h, 4w, C1) and (B, 2h, 2w, C2), what the first stages give."""
        check_images(images, self.in_chans, self.patch_size)
        x, outputs = images, []
        for embed, blocks in ((self.patch_embed1, self.blocks1), (self.patch_embed2, self.blocks2)):
            x = F.gelu(embed(x)).to(stream_dtype(self.pos_embed))
            x = x if outputs else self.pos_drop(x)  # before all blocks, as the official code has it
            hidden = None if mask is None else lift_mask(mask, x.shape[1:3])
            for block in blocks:
                x = self.run(block, x, hidden)
            outputs.append(x)
            x = x.permute(0, 3, 1, 2)
        return outputs

    def _transform(self, stage2, ids=None):
        """(B, 2h, 2w, C2), positions (B, n) of the visible patches or None for all -> (B, n, C), (h, w)."""
        x = F.gelu(self.patch_embed3(stage2.permute(0, 3, 1, 2))).to(stream_dtype(self.pos_embed))
        grid = tuple(x.shape[1:3])
        x = self.patch_embed4(x.flatten(1, 2)) + resize_position_embedding(self.pos_embed, self.grid, grid)
        x = x if ids is None else _pick(x, ids)
        for block in self.blocks3:
            x = self.run(block, x)
        return x, grid

    def forward_visible(self, images, mask, ids, groups=None):
        stage1, stage2 = self._convolve(images, mask)
        x, _ = self._transform(stage2, ids)
        for decode, stage in ((self.stage1_output_decode, stage1), (self.stage2_output_decode, stage2)):
            x = x + _pick(decode(stage.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2), ids)
        return self.norm(x)

    def forward_map(self, images, mask=None):
        if mask is not None:
            raise ValueError("this encoder has no mask token: hidden patches are left out, by forward_visible.")
        x, grid = self._transform(self._convolve(images)[1])
        return self.norm(x).transpose(1, 2).unflatten(2, grid)

    def forward_pooled(self, images):
        x, _ = self._transform(self._convolve(images)[1])
        return self.fc_norm(self.norm(x).mean(dim=1))

    def forward_last(self, images, feature="mean"):
        """As the official linear probe: normalised without the scale that pre-training learnt for another sum of stages."""
        if self.has_head or feature == "cls":
            return super().forward_last(images, feature)
        x, _ = self._transform(self._convolve(images)[1])
        return F.layer_norm(x.mean(dim=1), (self.num_features,), eps=NORM_EPS)

    def no_weight_decay(self):
        return {"pos_embed"}

    def layer_id(self, name):
        """The convolutions count as embedding, as in the official code."""
        if name == "pos_embed" or name.startswith(("patch_embed", "blocks1.", "blocks2.")):
            return 0
        if name.startswith("blocks3."):
            return int(name.split(".")[1]) + 1
        return self.num_layers + 1

    def resize_state_dict(self, state_dict):
        out = {name: value for name, value in state_dict.items() if not name.endswith(REBUILT_BUFFERS)}
        table, own = out.get("pos_embed"), self.pos_embed
        if table is None or table.shape == own.shape or table.shape[2] != own.shape[2]:
            return out, []
        out["pos_embed"] = resize_position_embedding(table, source_grid(table.shape[1], like=self.grid), self.grid)
        return out, ["pos_embed"]


def _pick(tokens, ids):
    """Those of (B, L, C) at positions (B, n) -> (B, n, C)."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def build_convmae(config, img_size, num_classes, use_mask_token):
    """ConvViT from MODEL.CONVMAE. Raises: ValueError where a method needs a mask token."""
    if use_mask_token:
        raise ValueError(f"MODEL.TYPE convmae has no mask token, which MODEL.METHOD {config.MODEL.METHOD} puts in place of "
                         f"hidden patches: ConvMAE leaves them out. Use MODEL.METHOD mae.")
    convmae = config.MODEL.CONVMAE
    return ConvViT(
        img_size=img_size, patch_size=convmae.PATCH_SIZE, in_chans=convmae.IN_CHANS, num_classes=num_classes,
        embed_dim=convmae.EMBED_DIM, depths=convmae.DEPTHS, num_heads=convmae.NUM_HEADS, mlp_ratio=convmae.MLP_RATIO,
        qkv_bias=convmae.QKV_BIAS, drop_rate=config.MODEL.DROP_RATE, drop_path_rate=config.MODEL.DROP_PATH_RATE,
        use_checkpoint=config.TRAIN.USE_CHECKPOINT)


def check_convmae(config, size):
    """Refuse settings of MODEL.CONVMAE that do not fit together. Raises: ValueError."""
    convmae, section = config.MODEL.CONVMAE, "MODEL.CONVMAE"
    for key, lowest in (("EMBED_DIM", 1), ("DEPTHS", 1), ("MLP_RATIO", 1e-3)):
        if len(convmae[key]) != 3 or not min(convmae[key]) >= lowest:
            raise ValueError(f"{section}.{key}={convmae[key]} must have three values of at least {lowest}, one for each stage, "
                             f"e.g. {CONVMAE.settings[key].default}.")
    if convmae.PATCH_SIZE % 4:
        raise ValueError(f"{section}.PATCH_SIZE={convmae.PATCH_SIZE} must be a multiple of 4: the second and the third stage "
                         f"halve the map. Use {-(-convmae.PATCH_SIZE // 4) * 4}.")
    width, heads = convmae.EMBED_DIM[2], convmae.NUM_HEADS
    if width % 4:
        raise ValueError(f"{section}.EMBED_DIM={convmae.EMBED_DIM}: the {width} channels of the third stage must be a multiple "
                         f"of 4, a quarter each for sines and cosines of column and row. Use {-(-width // 4) * 4} there.")
    if width % heads:
        fit = fitting_heads(heads, width)
        raise ValueError(f"{section}.NUM_HEADS={heads} does not divide the {width} channels of the third stage of {section}."
                         f"EMBED_DIM={convmae.EMBED_DIM}. Use e.g. {fit} heads.")
    for ratio, width in zip(convmae.MLP_RATIO, convmae.EMBED_DIM, strict=True):
        check_mlp(section, ratio, width)
    check_patches(section, convmae.PATCH_SIZE, size, config.DATA.IMG_SIZE)


CONVMAE = Component(build_convmae, check=check_convmae, settings={  # + three stages of twice the stride each
    "PATCH_SIZE": Setting(16, "+ side of a cell of the last stage, a multiple of 4", "pixels", low=4, high=LARGEST_SIDE),
    "IN_CHANS": Setting(3, "+ channels of the images", low=1, high=1024),
    "EMBED_DIM": Setting([256, 384, 768], "+ width of each stage", high=2 ** 16),
    "DEPTHS": Setting([2, 2, 11], "+ blocks of each stage; convolutions in the first two stages, attention in the third",
                      high=1000),
    "NUM_HEADS": Setting(12, "+ of the third stage", low=1),
    "MLP_RATIO": Setting([4.0, 4.0, 4.0], "+ width of the MLP of each stage relative to the block's", high=1000),
    "QKV_BIAS": Setting(True, "+ of query, key and value"),
})
