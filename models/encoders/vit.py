"""Vision Transformer: plain as in MAE, or with relative position bias, layer scale and biases for query and value only.

Source: Dosovitskiy et al. (arXiv 2010.11929); the variants of BEiT (arXiv 2106.08254), which SimMIM uses, and of MAE
(arXiv 2111.06377). Parameter and buffer names are those of the official SimMIM and MAE files.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

from models.encoders.checks import LARGEST_SIDE, check_mlp, check_patches, check_sincos, fitting_heads
from models.encoders.encoder import REBUILT_BUFFERS, Encoder, linear_head
from models.layers import (
    DropPath,
    LayerNorm,
    Mlp,
    PatchEmbed,
    drop_path_rates,
    hide_tokens,
    init_layer,
    init_xavier,
    stream_dtype,
    truncated_normal,
)
from models.position import (
    num_table_rows,
    relative_position_index_with_class_token,
    resize_bias_table,
    resize_position_embedding,
    sincos_table,
    source_grid,
    source_window,
)
from models.products import add_scaled, attention, attention_weights, casts_together
from utils.registry import Component
from utils.settings import Setting

CLASS_TOKEN_ROWS = 3  # rows of a bias table for pairs that involve the class token
INIT_STD = 0.02
NORM_EPS = 1e-6  # of all LayerNorms here unless told otherwise; Swin keeps PyTorch's 1e-5


class BiasTable(nn.Module):
    """Base of modules that own a relative position bias table over a patch grid with a class token in front."""

    def add_table(self, grid, num_heads):
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_table_rows(grid) + CLASS_TOKEN_ROWS, num_heads))
        self.register_buffer("relative_position_index", relative_position_index_with_class_token(grid))

    def bias(self, grid):
        """(heads, 1 + h*w, 1 + h*w) for a patch grid (h, w); the table is resized for another grid than it was built for."""
        table, index = self.relative_position_bias_table, self.relative_position_index
        if tuple(grid) != self.grid:
            table = resize_bias_table(table, self.grid, grid, num_extra=CLASS_TOKEN_ROWS)
            index = relative_position_index_with_class_token(grid).to(table.device)
        return table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1)


class RelativePositionBias(BiasTable):
    """One table shared by all blocks."""

    def __init__(self, grid, num_heads):
        super().__init__()
        self.add_table(grid, num_heads)


class Attention(BiasTable):
    """Multi-head attention over all tokens, with a bias table of its own if `table_grid` is given."""

    def __init__(self, dim, num_heads, qkv_bias, drop, table_grid=None, key_bias=False):
        super().__init__()
        self.num_heads = num_heads
        self.has_table = table_grid is not None
        if qkv_bias and not key_bias:  # a bias of the key does not change the attention
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        else:
            self.q_bias = self.v_bias = None
        if self.has_table:
            self.add_table(table_grid, num_heads)
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias and key_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x, grid, shared_bias=None):
        """(B, N, C), patch grid (h, w) where there is a table, bias (heads, N, N) shared by the blocks or None -> (B, N, C)."""
        return self.proj_drop(self.proj(attention(*self._operands(x, grid, shared_bias)).view(x.shape)))

    def weights(self, x, grid, shared_bias=None):
        """What `forward` weighs its values by: (B, 1, heads, N, N)."""
        return attention_weights(*self._operands(x, grid, shared_bias))

    def _operands(self, x, grid, shared_bias):
        """(qkv, bias) as models.products.attention has them."""
        batch, tokens, _ = x.shape
        qkv_bias = self.qkv.bias
        if self.q_bias is not None:
            qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        qkv = qkv.view(batch, 1, tokens, 3, self.num_heads, -1).permute(3, 0, 1, 4, 2, 5)  # all tokens are one window
        bias = self.bias(grid) if self.has_table else None
        if shared_bias is not None:
            bias = shared_bias if bias is None else bias + shared_bias
        return qkv, None if bias is None else bias.unsqueeze(0)


class Block(nn.Module):
    """Pre-norm attention and MLP, each branch scaled by a learned factor per channel (`gamma`) unless `init_values` is None."""

    def __init__(self, dim, num_heads, mlp_ratio=4.0, qkv_bias=True, drop=0.0, drop_path=0.0, init_values=None,
                 table_grid=None, key_bias=False, norm_eps=NORM_EPS):
        super().__init__()
        if init_values is None:
            self.gamma_1 = self.gamma_2 = None
        else:
            self.gamma_1 = nn.Parameter(torch.full((dim,), float(init_values)))
            self.gamma_2 = nn.Parameter(torch.full((dim,), float(init_values)))
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias, drop, table_grid, key_bias)
        self.drop_path = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    @casts_together
    def forward(self, x, grid=None, shared_bias=None):
        x = self.add(x, self.attn(self.norm1(x), grid, shared_bias), self.gamma_1)
        return self.add(x, self.mlp(self.norm2(x)), self.gamma_2)

    def add(self, x, branch, gamma):
        """The stream with a branch added to it, which is scaled by gamma (C,) or None, or dropped."""
        if gamma is None:
            return x + self.drop_path(branch)
        return add_scaled(x, branch, gamma, self.drop_path.draw(branch, torch.promote_types(gamma.dtype, branch.dtype)))


class VisionTransformer(Encoder):
    """ViT encoder.

    Args:
        img_size: (H, W) pixels the position tables are made for; other sizes resize them on the fly.
        patch_size: pixels per side of a token.
        in_chans: channels of the images.
        num_classes: size of the head, 0 = none.
        embed_dim, depth, num_heads: width, blocks, heads.
        mlp_ratio: hidden width of the MLP over the width.
        qkv_bias: biases of query and value.
        key_bias: a bias of the key as well; the three are then one parameter.
        init_values: start of the layer scale, None = no layer scale.
        drop_rate, drop_path_rate: dropout; stochastic depth of the last block.
        use_ape: add a learned absolute position embedding.
        use_sincos_ape: add one that starts as a table of sines and cosines; without a head it stays so.
        use_rpb: a relative position bias table in every block.
        use_shared_rpb: one table for all blocks (added to the blocks' own where both are on).
        use_mean_pooling: the pooled feature is the normalised mean of the patch tokens instead of the class token; the
            final norm over tokens then disappears.
        use_mask_token: own a mask token (pre-training).
        use_checkpoint: recompute activations in the backward pass.
        init_cut: truncation of the initial normals; the official pre-training model cuts at one standard deviation.
        init_like_mae: Xavier's rule instead, and blocks of any depth alike.
    """

    def __init__(self, img_size=(224, 224), patch_size=16, in_chans=3, num_classes=0, embed_dim=768, depth=12,
                 num_heads=12, mlp_ratio=4.0, qkv_bias=True, key_bias=False, init_values=0.1, drop_rate=0.0,
                 drop_path_rate=0.1, use_ape=False, use_sincos_ape=False, use_rpb=False, use_shared_rpb=True,
                 use_mean_pooling=False, use_mask_token=False, use_checkpoint=False, init_cut=math.inf, init_like_mae=False):
        super().__init__()
        self.patch_size = self.stride = patch_size
        self.num_prefix_tokens = 1  # the class token
        self.in_chans = in_chans
        self.num_features = embed_dim
        self.num_layers = depth
        self.mlp_ratio = mlp_ratio
        self.use_checkpoint = use_checkpoint
        self.grid = tuple(side // patch_size for side in img_size)

        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if use_ape or use_sincos_ape:
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], embed_dim))
        if use_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.pos_drop = nn.Dropout(drop_rate)
        self.rel_pos_bias = RelativePositionBias(self.grid, num_heads) if use_shared_rpb else None
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias, drop_rate, rate, init_values, self.grid if use_rpb else None,
                  key_bias)
            for rate in drop_path_rates(drop_path_rate, depth))
        self.norm = nn.Identity() if use_mean_pooling else LayerNorm(embed_dim, eps=NORM_EPS)
        self.fc_norm = LayerNorm(embed_dim, eps=NORM_EPS) if use_mean_pooling else None
        self.head = linear_head(embed_dim, num_classes)
        self.init_values = init_values
        self.init_cut = init_cut
        self.init_like_mae = init_like_mae
        self.use_sincos_ape = use_sincos_ape
        # bias tables are made for the whole grid
        self.drops_tokens = self.rel_pos_bias is None and not use_rpb
        self.init_weights()
        if self.fc_norm is not None and not self.has_head:
            self.fc_norm.requires_grad_(False)  # official files have it, pre-training never uses it
        if use_sincos_ape and not self.has_head:
            self.pos_embed.requires_grad_(False)

    def init_module(self, name, module):
        if self.init_like_mae:
            return self._init_like_mae(name, module)
        init_layer(module, INIT_STD, self.init_cut)
        for own, parameter in module.named_parameters(recurse=False):
            if own in ("cls_token", "mask_token", "pos_embed") or (name, own) == ("patch_embed.proj", "weight"):
                truncated_normal(parameter, INIT_STD, self.init_cut)
            elif own in ("gamma_1", "gamma_2"):
                nn.init.constant_(parameter, self.init_values)
            elif own in ("q_bias", "v_bias", "relative_position_bias_table") or name == "patch_embed.proj":
                nn.init.zeros_(parameter)
        self._set_sincos(name)
        with torch.no_grad():
            if name.startswith("blocks.") and name.endswith(("attn.proj", "mlp.fc2")):  # deeper branches start smaller
                module.weight.div_(math.sqrt(2.0 * self.layer_id(name)))
            if name == "head" and self.has_head:
                module.weight.mul_(0.001)
                module.bias.mul_(0.001)

    def _init_like_mae(self, name, module):
        init_xavier(module)
        for own, parameter in module.named_parameters(recurse=False):
            if (name, own) == ("patch_embed.proj", "weight"):
                nn.init.xavier_uniform_(parameter.view(len(parameter), -1))
            elif own in ("cls_token", "mask_token", "pos_embed"):
                truncated_normal(parameter, INIT_STD)
            elif own in ("gamma_1", "gamma_2"):
                nn.init.constant_(parameter, self.init_values)
            elif own in ("q_bias", "v_bias", "relative_position_bias_table"):
                nn.init.zeros_(parameter)
        self._set_sincos(name)

    @torch.no_grad()
    def _set_sincos(self, name):
        if self.use_sincos_ape and not name:  # a parameter of the encoder itself
            self.pos_embed.copy_(sincos_table(self.grid, self.num_features, num_extra=1))

    def units(self):
        return list(self.blocks)

    def _embed(self, images, mask=None):
        """(B, in_chans, H, W) -> patch tokens with their positions (B, h*w, C), class token (B, 1, C), (h, w)."""
        x = self.patch_embed(images).to(stream_dtype(self.cls_token))
        grid = tuple(x.shape[1:3])
        if mask is not None:
            if not hasattr(self, "mask_token"):
                raise ValueError("this encoder was built without a mask token: it can't take a mask (use_mask_token=True).")
            x = hide_tokens(x, mask, self.mask_token)
        x = x.flatten(1, 2)
        cls_token = self.cls_token.to(x.dtype)
        if hasattr(self, "pos_embed"):
            positions = resize_position_embedding(self.pos_embed, self.grid, grid, num_extra=1)
            x, cls_token = x + positions[:, 1:], cls_token + positions[:, :1]
        return x, cls_token.expand(x.shape[0], -1, -1), grid

    def _tokens(self, images, mask=None):
        """(B, in_chans, H, W) -> ((B, 1 + h*w, C), (h, w)); class token first."""
        x, cls_token, grid = self._embed(images, mask)
        x = self.pos_drop(torch.cat([cls_token, x], dim=1))
        shared_bias = None if self.rel_pos_bias is None else self.rel_pos_bias.bias(grid)
        for block in self.blocks:
            x = self.run(block, x, grid, shared_bias)
        return self.norm(x), grid

    def forward_visible(self, images, mask, ids, groups=None):
        x, cls_token, _ = self._embed(images)
        x = x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        x = self.pos_drop(torch.cat([cls_token, x], dim=1))
        for block in self.blocks:
            x = self.run(block, x)
        return self.norm(x)

    def forward_map(self, images, mask=None):
        x, grid = self._tokens(images, mask)
        return x[:, 1:].transpose(1, 2).unflatten(2, grid)

    def forward_tokens(self, images):
        return self._tokens(images)[0]

    def forward_pooled(self, images):
        x, _ = self._tokens(images)
        return x[:, 0] if self.fc_norm is None else self.fc_norm(x[:, 1:].mean(dim=1))

    def forward_last(self, images, feature="mean"):
        tokens = self._tokens(images)[0]
        if feature == "cls" or self.fc_norm is None:  # with fc_norm, tokens are not normalised
            return self.pool(tokens, feature)
        return self.fc_norm(self.pool(tokens, feature))

    def no_weight_decay(self):
        """The official list forgets the mask token; kept, see docs/parity.md."""
        return {"pos_embed", "cls_token"}

    def layer_id(self, name):
        if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.num_layers + 1

    def resize_state_dict(self, state_dict):
        """As the base class says; a table shared by the blocks is also copied to blocks that have their own."""
        shared = "rel_pos_bias.relative_position_bias_table"
        own, resized = self.state_dict(), []
        out = {name: value for name, value in state_dict.items() if not name.endswith(REBUILT_BUFFERS)}
        tables = [name for name in own if name.startswith("blocks.") and name.endswith("relative_position_bias_table")]
        if shared in out and shared not in own and tables:
            out.update(dict.fromkeys(tables, out.pop(shared)))
        # of any table, they are all alike; without the class token
        index = next((value[1:, 1:] for name, value in state_dict.items() if name.endswith("relative_position_index")), None)
        if "pos_embed" in out and _is_without_class(out["pos_embed"].shape[1], math.prod(self.grid)):
            out["pos_embed"] = F.pad(out["pos_embed"], (0, 0, 1, 0))  # a position of 0 changes nothing
            resized.append("pos_embed")
        for name, value in out.items():
            if name not in own or value.shape == own[name].shape:
                continue
            if name.endswith("relative_position_bias_table") and value.shape[1] == own[name].shape[1]:
                source = source_window(value.shape[0] - CLASS_TOKEN_ROWS, index, like=self.grid)
                if source:
                    out[name] = resize_bias_table(value, source, self.grid, num_extra=CLASS_TOKEN_ROWS)
                    resized.append(name)
            elif name == "pos_embed" and value.shape[2] == own[name].shape[2]:
                source = source_grid(value.shape[1] - 1, like=self.grid, index=index)
                out[name] = resize_position_embedding(value, source, self.grid, num_extra=1)
                resized += [name] * (name not in resized)
        return out, resized


def _is_without_class(rows, cells):
    """Whether a table of positions has none for the class token, as that of DeiT III: by the number of its rows."""
    return rows == cells or (math.isqrt(rows) ** 2 == rows and math.isqrt(rows - 1) ** 2 != rows - 1 and rows != cells + 1)


def build_vit(config, img_size, num_classes, use_mask_token):
    """VisionTransformer from MODEL.VIT."""
    vit = config.MODEL.VIT
    return VisionTransformer(
        img_size=img_size, patch_size=vit.PATCH_SIZE, in_chans=vit.IN_CHANS, num_classes=num_classes,
        embed_dim=vit.EMBED_DIM, depth=vit.DEPTH, num_heads=vit.NUM_HEADS, mlp_ratio=vit.MLP_RATIO, qkv_bias=vit.QKV_BIAS,
        init_values=vit.INIT_VALUES, drop_rate=config.MODEL.DROP_RATE, drop_path_rate=config.MODEL.DROP_PATH_RATE,
        key_bias=vit.K_BIAS, use_ape=vit.USE_APE, use_sincos_ape=vit.USE_SINCOS_APE, use_rpb=vit.USE_RPB,
        use_shared_rpb=vit.USE_SHARED_RPB, use_mean_pooling=vit.USE_MEAN_POOLING,
        use_mask_token=use_mask_token, use_checkpoint=config.TRAIN.USE_CHECKPOINT,
        init_cut=INIT_STD if use_mask_token else math.inf, init_like_mae=vit.USE_SINCOS_APE and num_classes == 0)


def check_vit(config, size):
    """Refuse settings of MODEL.VIT that do not fit together. Raises: ValueError."""
    vit = config.MODEL.VIT
    if vit.USE_APE and vit.USE_SINCOS_APE:
        raise ValueError("MODEL.VIT.USE_APE and USE_SINCOS_APE are both True: an encoder has one absolute position embedding.")
    if vit.USE_SINCOS_APE:
        check_sincos("MODEL.VIT.EMBED_DIM", vit.EMBED_DIM)
    if vit.EMBED_DIM % vit.NUM_HEADS:
        fit = fitting_heads(vit.NUM_HEADS, vit.EMBED_DIM)
        raise ValueError(f"MODEL.VIT.NUM_HEADS={vit.NUM_HEADS} does not divide MODEL.VIT.EMBED_DIM={vit.EMBED_DIM}. "
                         f"Use e.g. {fit} heads.")
    check_mlp("MODEL.VIT", vit.MLP_RATIO, vit.EMBED_DIM)
    check_patches("MODEL.VIT", vit.PATCH_SIZE, size, config.DATA.IMG_SIZE)


VIT = Component(build_vit, check=check_vit, settings={
    "PATCH_SIZE": Setting(16, "side of a token", "pixels", low=1, high=LARGEST_SIDE),
    "IN_CHANS": Setting(3, "channels of the images", low=1, high=1024),
    "EMBED_DIM": Setting(768, "width", low=1, high=2 ** 16),
    "DEPTH": Setting(12, "blocks", low=1, high=1000),
    "NUM_HEADS": Setting(12, "of every block", low=1),
    "MLP_RATIO": Setting(4.0, "width of the MLP relative to the block's", low=1e-3, high=1000),
    "QKV_BIAS": Setting(True, "for query and value; the key has no bias"),
    "INIT_VALUES": Setting(0.1, "start of the layer scale; None = no layer scale", optional=True, low=0),
    "K_BIAS": Setting(False, "+ a bias for the key as well, all three in one parameter (MAE)"),
    "USE_APE": Setting(False, "learned absolute position embedding"),
    "USE_SINCOS_APE": Setting(False, "+ one of sines and cosines, fixed in pre-training (MAE)"),
    "USE_RPB": Setting(False, "a relative position bias table in every block"),
    "USE_SHARED_RPB": Setting(True, "one table for all blocks"),
    "USE_MEAN_POOLING": Setting(False, "mean of the patch tokens instead of the class token"),
})
