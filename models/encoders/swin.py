"""Swin Transformer: windows of tokens that attend to each other, shifted in every second block.

Source: Liu et al., Swin Transformer (arXiv 2103.14030). Parameter and buffer names are the official ones.
"""
import torch
from torch import nn
from torch.nn import functional as F

from models.encoders.checks import LARGEST_SIDE, check_stages, window_problem
from models.encoders.encoder import REBUILT_BUFFERS, Encoder, linear_head
from models.encoders.packing import Packer, Packing
from models.layers import (
    DropPath,
    LayerNorm,
    Mlp,
    PatchEmbed,
    drop_path_rates,
    hide_tokens,
    init_layer,
    stream_dtype,
    truncated_normal,
)
from models.position import (
    num_table_rows,
    relative_position_index,
    resize_bias_table,
    resize_position_embedding,
    source_grid,
    source_window,
)
from models.products import attention, attention_weights, casts_together, product_dtype, reorder
from utils.registry import Component
from utils.settings import NUMBER, Setting

BLOCKED = -100.0  # added to a score that must not count; finite, as in the official buffers


def window_mask(grid, window, shift):
    """What may attend to what once a map is padded to whole windows and rolled by `shift`.

    Tokens of a window may come from opposite borders of the image, or be padding; only tokens of one region see each
    other.

    Args:
        grid: (H, W) tokens of the map before padding.
        window: (h, w) tokens.
        shift: (y, x) tokens the map is rolled by.
    Returns: (windows, h*w, h*w) float, 0 or -100; on the CPU, as all buffers are when they are made.
    """
    regions = torch.zeros((), device="cpu")
    for axis in range(2):
        padded = -(-grid[axis] // window[axis]) * window[axis]
        position = torch.arange(padded, device="cpu")
        region = torch.zeros(padded, device="cpu")
        if shift[axis]:
            region += (position >= padded - window[axis]).float() + (position >= padded - shift[axis]).float()
        origin = (position + shift[axis]) % padded  # where the token stood before the roll
        region[origin >= grid[axis]] = 3.0
        regions = regions + (region[:, None] * 4 if axis == 0 else region[None, :])
    return keep_apart(regions, window, BLOCKED)


def window_order(grid, window, shift):
    """The tokens of a map, window by window, once it is rolled.

    Args:
        grid: (H, W) tokens of the map, whole windows.
        window: (h, w) tokens.
        shift: (y, x) tokens the map is rolled by, against its axes.
    Returns: (H*W,) int64 positions in row-major order, and the permutation that undoes it; on the CPU.
    """
    rows, cols = grid[0] // window[0], grid[1] // window[1]
    position = torch.arange(grid[0] * grid[1], device="cpu").view(grid).roll((-shift[0], -shift[1]), dims=(0, 1))
    order = position.view(rows, window[0], cols, window[1]).transpose(1, 2).reshape(-1)
    return order, order.argsort()


def keep_apart(regions, window, score):
    """Attention masks that let tokens see those of their own region only.

    Args:
        regions: (H, W), a value for each region; whole windows.
        window: (h, w) tokens.
        score: added to those that must not count.
    Returns: (windows, h*w, h*w) float, 0 or `score`.
    """
    rows, cols = regions.shape[0] // window[0], regions.shape[1] // window[1]
    regions = regions.reshape(rows, window[0], cols, window[1]).transpose(1, 2).reshape(rows * cols, -1)
    return (regions[:, None, :] != regions[:, :, None]).float() * score


class WindowAttention(nn.Module):
    """Multi-head attention inside windows with a learned relative position bias."""

    def __init__(self, dim, window, num_heads, qkv_bias=True, qk_scale=None, drop=0.0):
        super().__init__()
        self.window = window
        self.num_heads = num_heads
        self.scale = qk_scale  # None: 1 / sqrt(head width), the default of the attention function
        self.add_position_bias()
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.add_projection(dim, qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def add_position_bias(self):
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_table_rows(self.window), self.num_heads))

    def add_projection(self, dim, qkv_bias):
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)

    def project(self, x):
        """(B, windows, N, C) -> query, key and value, (3, B, windows, heads, N, C / heads)."""
        return self.split(self.qkv(x))

    def split(self, qkv):
        """(B, windows, N, 3C) -> (3, B, windows, heads, N, C / heads)."""
        return qkv.view(*qkv.shape[:3], 3, self.num_heads, -1).permute(3, 0, 1, 4, 2, 5)

    def bias_table(self):
        """(offsets, heads)."""
        return self.relative_position_bias_table

    def bias(self):
        """(heads, N, N)."""
        num_tokens = self.relative_position_index.shape[0]
        bias = self.bias_table()[self.relative_position_index.view(-1)]
        return bias.view(num_tokens, num_tokens, -1).permute(2, 0, 1)

    def masked_bias(self, mask=None):
        """(windows or 1, heads, N, N), with a mask (windows, N, N) added."""
        bias = self.bias()
        return bias.unsqueeze(0) if mask is None else bias + mask.to(bias.dtype).unsqueeze(1)

    def forward(self, x, mask=None):
        """(B, windows, N, C), mask (windows, N, N) added to the scores -> the same shape."""
        return self.proj_drop(self.proj(attention(self.project(x), self.masked_bias(mask), self.scale)))

    def weights(self, x, mask=None):
        """What `forward` weighs its values by: (B, windows, heads, N, N)."""
        return attention_weights(self.project(x), self.masked_bias(mask), self.scale)

    def attend_packed(self, x, packing):
        """Attention of visible tokens inside their windows.

        Args:
            x: (B, n, C), image i with the tokens of mask i % K.
            packing: a Packing of these K * n tokens, for this window.
        Returns: (B, n, C).
        """
        batch, tokens, dim = x.shape
        rows = batch * tokens // len(packing.inverse)  # images that share a mask
        qkv = self.project(x.reshape(rows, 1, -1, dim)).squeeze(2)
        x = attention(packing.pack(qkv), packing.bias(self.bias_table().to(qkv.dtype)), self.scale)
        return self.proj_drop(self.proj(packing.unpack(x).view(batch, tokens, dim)))


class SwinBlock(nn.Module):
    """Window attention and MLP with pre-norms; (B, H, W, C) -> (B, H, W, C), or visible tokens (B, n, C) -> (B, n, C).

    Args:
        grid: (H, W) of the map the model is built for; other maps work, padded to whole windows where needed.
        attn: WindowAttention; its window is at most the grid.
        shifted: whether windows are shifted by half their size, along the axes on which there is more than one.
    """

    def __init__(self, dim, grid, attn, shifted, mlp_ratio, drop, drop_path):
        super().__init__()
        self.grid = grid
        self.window = attn.window
        self.shifted = shifted
        self.norm1 = LayerNorm(dim)
        self.attn = attn
        self.drop_path = DropPath(drop_path)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.register_buffer("attn_mask", self._mask_for(grid))
        order, inverse = window_order(self._padded(grid), self.window, self._shift_for(grid))
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", inverse, persistent=False)

    def _shift_for(self, grid):
        return tuple(w // 2 if self.shifted and side > w else 0 for side, w in zip(grid, self.window, strict=True))

    def _padded(self, grid):
        """The map in whole windows."""
        return tuple(-(-side // w) * w for side, w in zip(grid, self.window, strict=True))

    def _mask_for(self, grid):
        shift = self._shift_for(grid)
        return window_mask(grid, self.window, shift) if any(shift) or self._padded(grid) != tuple(grid) else None

    @casts_together
    def forward(self, x, mask=None, packing=None):
        x = x + self.drop_path(self.attend(self.norm1(x), mask, packing))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x, mask=None, packing=None):
        """Attention in the (shifted) windows of a map.

        Args:
            x: (B, H, W, C).
            mask: (windows, h*w, h*w) added to the scores instead of the block's own, of the padded and shifted map.
            packing: of visible tokens x (B, n, C), see WindowAttention.attend_packed.
        Returns: of the shape of x.
        """
        if packing is not None:
            return self.attn.attend_packed(x, packing)
        batch, height, width, dim = x.shape
        grid = (height, width)
        padded = self._padded(grid)
        if grid == self.grid:
            order, inverse, own_mask = self.order, self.inverse, self.attn_mask
        else:
            order, inverse = (part.to(x.device) for part in window_order(padded, self.window, self._shift_for(grid)))
            own_mask = self._mask_for(grid) if mask is None else None
            own_mask = None if own_mask is None else own_mask.to(x.device)
        mask = own_mask if mask is None else mask
        x = x.to(product_dtype(x))  # as the projection wants it, and half as much to move
        x = F.pad(x, (0, 0, 0, padded[1] - width, 0, padded[0] - height)) if padded != grid else x
        x = reorder(x.flatten(1, 2), order, inverse).view(batch, -1, self.window[0] * self.window[1], dim)
        x = reorder(self.attn(x, mask).flatten(1, 2), inverse, order).view(batch, *padded, dim)
        return x[:, :height, :width]


    def spread_attention(self, weights, grid, tokens):
        """As Encoder.spread_attention: a token sees its own window, of which the others' tokens get 0."""
        padded = self._padded(grid)
        order, inverse = (part.to(weights.device) for part in window_order(padded, self.window, self._shift_for(grid)))
        places = order.view(-1, weights.shape[-1])                                    # of each window
        slots = inverse[tokens // grid[1] * padded[1] + tokens % grid[1]]
        windows, rows = slots // weights.shape[-1], slots % weights.shape[-1]
        seen = weights[:, windows, :, rows]                                           # (T, B, heads, N)
        maps = seen.new_zeros(*seen.shape[:3], len(order)).scatter_(3, places[windows][:, None, None].expand_as(seen), seen)
        return maps.permute(1, 2, 0, 3).unflatten(3, padded)[..., :grid[0], :grid[1]]


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width: (B, H, W, C) -> (B, H/2, W/2, 2C); odd maps are padded."""

    def __init__(self, dim):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = LayerNorm(4 * dim)

    def forward(self, x):
        return self.reduction(self.norm(self.gather(x))).to(x.dtype)

    def gather(self, x):
        """(B, H, W, C) -> (B, H/2, W/2, 4C)."""
        batch, height, width, dim = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, dim)
        return x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # order of the four: column, then row


class SwinStage(nn.Module):
    """Blocks on one map, then a merging unless it is the last stage."""

    def __init__(self, blocks, downsample=None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        if downsample is not None:
            self.downsample = downsample


class SwinTransformer(Encoder):
    """Swin encoder.

    Args:
        img_size: (H, W) pixels the position tables and masks are made for.
        patch_size: pixels per side of a token.
        in_chans: channels of the images.
        num_classes: size of the head, 0 = none.
        embed_dim: width of the first stage; it doubles with each.
        depths, num_heads: blocks and heads of each stage.
        window_size: tokens per side, one number or one for each stage; per axis it shrinks to the map where the map is
            smaller.
        mlp_ratio: hidden width of the MLP over the width.
        qkv_bias: biases of query, key and value.
        qk_scale: factor on the scores, None = 1 / sqrt(head width).
        drop_rate, drop_path_rate: dropout; stochastic depth of the last block.
        ape: add a learned absolute position embedding.
        patch_norm: LayerNorm after the patch embedding.
        use_mask_token: own a mask token (pre-training).
        use_checkpoint: recompute activations in the backward pass.
    """

    drops_tokens = True

    def __init__(self, img_size=(224, 224), patch_size=4, in_chans=3, num_classes=0, embed_dim=96, depths=(2, 2, 6, 2),
                 num_heads=(3, 6, 12, 24), window_size=7, mlp_ratio=4.0, qkv_bias=True, qk_scale=None, drop_rate=0.0,
                 drop_path_rate=0.1, ape=False, patch_norm=True, use_mask_token=False, use_checkpoint=False):
        super().__init__()
        self.patch_size = patch_size
        self.stride = patch_size * 2 ** (len(depths) - 1)
        self.in_chans = in_chans
        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.depths = tuple(depths)
        self.qk_scale = qk_scale
        self.num_layers = sum(depths)
        self.mlp_ratio = mlp_ratio
        self.use_checkpoint = use_checkpoint
        self.grid = tuple(side // patch_size for side in img_size)

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, patch_norm)
        if ape:
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], embed_dim))
        if use_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        rates = iter(drop_path_rates(drop_path_rate, self.num_layers))
        windows = stage_windows(self.grid, [window_size] * len(depths) if isinstance(window_size, int) else window_size)
        self.packer = Packer(windows, [depth > 1 for depth in depths])
        stages = []
        for stage, (depth, heads, window) in enumerate(zip(depths, num_heads, windows, strict=True)):
            dim = embed_dim * 2 ** stage
            grid = tuple(-(-side // 2 ** stage) for side in self.grid)  # odd maps are padded before they are merged
            attention = {"dim": dim, "window": window, "num_heads": heads, "qkv_bias": qkv_bias, "drop": drop_rate}
            blocks = [self.make_block(stage, i, attention, dim=dim, grid=grid, shifted=i % 2 == 1, mlp_ratio=mlp_ratio,
                                      drop=drop_rate, drop_path=next(rates)) for i in range(depth)]
            stages.append(SwinStage(blocks, self.make_merging(dim) if stage < len(depths) - 1 else None))
        self.layers = nn.ModuleList(stages)
        self.norm = LayerNorm(self.num_features)
        self.head = linear_head(self.num_features, num_classes)
        self.init_weights()

    def make_block(self, stage, index, attention, **block):
        """Block `index` of a stage, from the arguments of its attention and its own."""
        return SwinBlock(attn=WindowAttention(qk_scale=self.qk_scale, **attention), **block)

    def make_merging(self, dim):
        return PatchMerging(dim)

    def init_module(self, name, module):
        init_layer(module)
        for own, parameter in module.named_parameters(recurse=False):
            if own in ("relative_position_bias_table", "absolute_pos_embed", "mask_token"):
                truncated_normal(parameter)

    def units(self):
        """Blocks and mergings: in large models a merging is as large as a block."""
        return [unit for stage in self.layers
                for unit in (*stage.blocks, *([stage.downsample] if hasattr(stage, "downsample") else []))]

    def probed_blocks(self):
        return [block for stage in self.layers for block in stage.blocks]

    def spread_attention(self, block, weights, grid, tokens):
        return block.spread_attention(weights, grid, tokens)

    def _tokens(self, images, mask=None):
        """(B, in_chans, H, W) -> (B, H/stride, W/stride, num_features), normalised."""
        x = self._embed(images)
        if mask is not None:
            if not hasattr(self, "mask_token"):
                raise ValueError("this encoder was built without a mask token: it can't take a mask (use_mask_token=True).")
            x = hide_tokens(x, mask, self.mask_token)
        return self._transform(x)

    def _embed(self, images):
        """(B, in_chans, H, W) -> (B, H/patch, W/patch, embed_dim), without positions."""
        return self.patch_embed(images).to(stream_dtype(self.norm.weight))

    def _transform(self, x, make_mask=None):
        """From patches to features.

        Args:
            x: (B, h, w, embed_dim).
            make_mask: gives the mask of a stage's attention, see SwinBlock.attend, for its map (h, w) and window (h, w).
        Returns: (B, H/stride, W/stride, num_features), normalised.
        """
        if hasattr(self, "absolute_pos_embed"):
            grid = tuple(x.shape[1:3])
            x = x + resize_position_embedding(self.absolute_pos_embed, self.grid, grid).view(1, *grid, -1)
        x = self.pos_drop(x)
        for stage in self.layers:
            mask = make_mask(tuple(x.shape[1:3]), stage.blocks[0].window) if make_mask else None
            for block in stage.blocks:
                x = self.run(block, x, mask)
            if hasattr(stage, "downsample"):
                x = stage.downsample(x)
        return self.norm(x)

    def forward_map(self, images, mask=None):
        return self._tokens(images, mask).permute(0, 3, 1, 2)

    def forward_visible(self, images, mask, ids, groups=None):
        """As Encoder.forward_visible, of cells of the last map.

        A cell is a small dense map in every stage, on which all but attention runs as it is. Windows shift and shrink as
        they do on the whole map.
        """
        batch, stride = len(images), self.stride
        if images.shape[2] % stride or images.shape[3] % stride:
            raise ValueError(f"images of {images.shape[2]}x{images.shape[3]} pixels are not whole cells of {stride} pixels, "
                             f"which are hidden or visible as a whole.")
        groups = self.packer(mask) if groups is None else groups
        side, grid = stride // self.patch_size, tuple(length // self.patch_size for length in images.shape[2:])
        images = cells_of(images.permute(0, 2, 3, 1), stride)                                     # (B, L, stride, stride, C)
        images = images[torch.arange(batch, device=ids.device).unsqueeze(1), ids].flatten(0, 1)   # (B * n, stride, stride, C)
        x = self._embed(images.permute(0, 3, 1, 2)).view(batch, -1, side, side, self.patch_embed.proj.out_channels)
        if hasattr(self, "absolute_pos_embed"):
            positions = resize_position_embedding(self.absolute_pos_embed, self.grid, grid).view(1, *grid, -1)
            x = x + cells_of(positions, side)[0][ids]
        x = self.pos_drop(x).flatten(1, 3)                                                        # (B, n * side^2, C)
        for stage, tables in zip(self.layers, groups.tables, strict=True):
            packings = [Packing.of(table.to(x.device), groups.ids.shape[0] * x.shape[1], stage.blocks[0].window)
                        for table in tables]
            for block in stage.blocks:
                x = self.run(block, x, None, packings[-1 if block.shifted else 0])
            if hasattr(stage, "downsample"):
                x = stage.downsample(x.view(-1, side, side, x.shape[-1])).view(batch, -1, 2 * x.shape[-1])
                side //= 2
        return self.norm(x)

    def forward_pooled(self, images):
        return self._tokens(images).mean(dim=(1, 2))

    def no_weight_decay(self):
        return {"absolute_pos_embed", "mask_token"}

    def no_weight_decay_keywords(self):
        return {"relative_position_bias_table"}

    def layer_id(self, name):
        """As official: a merging shares the id of the last block before it; the absolute embedding counts as last."""
        if name == "mask_token" or name.startswith("patch_embed"):
            return 0
        if name.startswith("layers."):
            _, stage, part, index, *_ = name.split(".")
            before = sum(self.depths[:int(stage)])
            return before + (int(index) + 1 if part == "blocks" else self.depths[int(stage)])
        return self.num_layers + 1

    def resize_state_dict(self, state_dict):
        own, resized = self.state_dict(), []
        out = {name: value for name, value in state_dict.items() if not name.endswith(REBUILT_BUFFERS)}
        for name, value in out.items():
            if name not in own or value.shape == own[name].shape:
                continue
            if name.endswith("relative_position_bias_table") and value.shape[1] == own[name].shape[1]:
                target = self.get_submodule(name.rpartition(".")[0]).window
                index = state_dict.get(name.replace("bias_table", "index"))
                source = source_window(value.shape[0], index, like=target)
                if source:
                    out[name] = self.resize_table(value, source, target)
                    resized.append(name)
            elif name == "absolute_pos_embed" and value.shape[2] == own[name].shape[2]:
                out[name] = resize_position_embedding(value, source_grid(value.shape[1], like=self.grid), self.grid)
                resized.append(name)
        return out, resized

    def resize_table(self, table, source, target):
        """A position bias table for windows of another size."""
        return resize_bias_table(table, source, target)


def cells_of(x, side):
    """Cut a map into cells: (B, H, W, C) -> (B, cells, side, side, C), row by row."""
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (B, rows, side, columns, side, C)
    return x.transpose(2, 3).flatten(1, 2)


def stage_windows(grid, windows):
    """(h, w) of the windows of each stage, for a map of (H, W) tokens: they shrink to the maps, which halve."""
    maps = [tuple(-(-side // 2 ** stage) for side in grid) for stage in range(len(windows))]
    return [tuple(min(window, side) for side in sides) for window, sides in zip(windows, maps, strict=True)]


def window_packer(swin, size):
    """The Packer of an encoder with the settings `swin`, e.g. of MODEL.SWIN, for images of (height, width) pixels."""
    grid = tuple(side // swin.PATCH_SIZE for side in size)
    return Packer(stage_windows(grid, [swin.WINDOW_SIZE] * len(swin.DEPTHS)), [depth > 1 for depth in swin.DEPTHS])


def build_swin(config, img_size, num_classes, use_mask_token):
    """SwinTransformer from MODEL.SWIN."""
    swin = config.MODEL.SWIN
    return SwinTransformer(
        img_size=img_size, patch_size=swin.PATCH_SIZE, in_chans=swin.IN_CHANS, num_classes=num_classes,
        embed_dim=swin.EMBED_DIM, depths=swin.DEPTHS, num_heads=swin.NUM_HEADS, window_size=swin.WINDOW_SIZE,
        mlp_ratio=swin.MLP_RATIO, qkv_bias=swin.QKV_BIAS, qk_scale=swin.QK_SCALE, drop_rate=config.MODEL.DROP_RATE,
        drop_path_rate=config.MODEL.DROP_PATH_RATE, ape=swin.APE, patch_norm=swin.PATCH_NORM,
        use_mask_token=use_mask_token, use_checkpoint=config.TRAIN.USE_CHECKPOINT)


def check_windows(config, size, section, swin):
    """Refuse stages, heads, or windows that do not divide the maps of an image.

    Args:
        config: from load_config.
        size: (height, width) of the image in pixels.
        section, swin: name and settings of the encoder, e.g. MODEL.SWIN.
    Raises: ValueError.
    """
    check_stages(section, swin)

    def problem(side, window):
        return window_problem(side, swin.PATCH_SIZE, [window] * len(swin.DEPTHS))

    found = problem(size[0], swin.WINDOW_SIZE) or problem(size[1], swin.WINDOW_SIZE)
    if found:
        fitting = [s for s in range(1, min(2 * max(size) + 1024, LARGEST_SIDE) + 1) if not problem(s, swin.WINDOW_SIZE)]
        nearest = [min(fitting, key=lambda s, side=side: abs(s - side)) for side in size] if fitting else None
        fixes = [f"DATA.IMG_SIZE {nearest[0] if size[0] == size[1] else str(nearest).replace(' ', '')}"] if nearest else []
        windows = [w for w in range(1, max(size)) if not any(problem(side, w) for side in size)]
        if windows:
            fixes.append(f"{section}.WINDOW_SIZE {min(windows, key=lambda w: abs(w - swin.WINDOW_SIZE))}")
        raise ValueError(f"DATA.IMG_SIZE={config.DATA.IMG_SIZE} with {section}.WINDOW_SIZE={swin.WINDOW_SIZE}: {found}. "
                         f"Use {' or '.join(fixes) or f'a smaller {section}.PATCH_SIZE'}.")


def check_swin(config, size):
    """Refuse settings of MODEL.SWIN that do not fit together. Raises: ValueError."""
    check_windows(config, size, "MODEL.SWIN", config.MODEL.SWIN)


def swin_groups(config, size):
    """As Component.groups."""
    return window_packer(config.MODEL.SWIN, size)


SWIN = Component(build_swin, check=check_swin, groups=swin_groups, settings={
    "PATCH_SIZE": Setting(4, "side of a token", "pixels", low=1, high=LARGEST_SIDE),
    "IN_CHANS": Setting(3, "channels of the images", low=1, high=1024),
    "EMBED_DIM": Setting(96, "width of the first stage; doubles at each stage", low=1, high=2 ** 16),
    "DEPTHS": Setting([2, 2, 6, 2], "blocks per stage", high=1000),
    "NUM_HEADS": Setting([3, 6, 12, 24], "per stage"),
    "WINDOW_SIZE": Setting(7, "shrinks to the map where the map is smaller", "tokens", low=1),
    "MLP_RATIO": Setting(4.0, "width of the MLP relative to the block's", low=1e-3, high=1000),
    "QKV_BIAS": Setting(True, "of query, key and value"),
    "QK_SCALE": Setting(None, "of the scores; None = 1 / sqrt(head width)", kind=NUMBER, optional=True,
                        low=1e-6),
    "APE": Setting(False, "learned absolute position embedding"),
    "PATCH_NORM": Setting(True, "LayerNorm after the patch embedding"),
})
