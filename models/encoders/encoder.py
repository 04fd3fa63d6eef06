"""What every encoder is: images (and an optional mask) in, a feature map out, and the facts others need about it."""
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.layers import refuse_script

# follow from the sizes; a loader leaves them to the model
REBUILT_BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")


class Encoder(nn.Module):
    """Base of all encoders.

    An encoder knows no objective. With `num_classes` it owns a linear head as well, so that one class serves
    pre-training (`encoder.*` inside a method) and classification (the same names at the root), as in official files.

    Subclasses set the facts below and define `forward_map`, `forward_pooled`, `layer_id`, `init_module`, `units` and
    `resize_state_dict`. Their constructors end with `self.init_weights()`.

    Attributes:
        patch_size: pixels per side of a token at the input; masks live on this grid.
        stride: pixels per side of a cell of the feature map.
        num_features: channels of the feature map.
        in_chans: channels of the images.
        num_layers: number of blocks, the unit of layer-wise learning-rate decay.
        drops_tokens: whether `forward_visible` exists.
        mixes_images: whether `forward_mixed` exists.
        num_prefix_tokens: tokens that stand before those of the patches there (a class token).
        mlp_ratio: hidden width of the MLP of a block over its width; a method's decoder takes it over.
        head: nn.Linear, or nn.Identity without classes.
    """

    patch_size: int
    stride: int
    num_features: int
    in_chans: int
    num_layers: int
    drops_tokens = False
    mixes_images = False
    num_prefix_tokens = 0
    mlp_ratio = 4.0
    __prepare_scriptable__ = refuse_script

    def forward_map(self, images, mask=None):
        """(B, in_chans, H, W), optional mask (B, H/patch, W/patch) -> (B, num_features, H/stride, W/stride)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward_map")

    def forward_visible(self, images, mask, ids, groups=None):
        """Only what is visible goes through the encoder, as MAE wants it.

        Args:
            images: (B, in_chans, H, W).
            mask: (B, H/patch, W/patch) bool, True = hidden; as many in each image, cells of the feature map as a whole.
            ids: (B, n) int64, positions of the visible cells of the feature map in row-major order, rising.
            groups: what `groups` of its Component has prepared from the mask (utils/registry.py); None = the encoder does
                without, or prepares it itself.
        Returns: (B, num_prefix_tokens + n, num_features), normalised.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward_visible")

    def forward_mixed(self, images, cells):
        """Two images at once, as MixMIM wants it: image i of the batch with patches of image B-1-i put in.

        No token sees one of the other image.

        Args:
            images: (B, in_chans, H, W).
            cells: (H/stride, W/stride) bool, True = shows the other image; the same in all of the batch.
        Returns: (B, num_features, H/stride, W/stride).
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward_mixed")

    def forward_pooled(self, images):
        """(B, in_chans, H, W) -> (B, num_features), the feature the head sees."""
        raise NotImplementedError(f"{type(self).__name__} must define forward_pooled")

    def forward_tokens(self, images):
        """(B, in_chans, H, W) -> (B, num_prefix_tokens + h * w, num_features): the map row by row, a class token before it."""
        return self.forward_map(images).flatten(2).transpose(1, 2)

    def forward_features(self, images):
        """What timm calls so: tokens (B, num_prefix_tokens + h * w, C) of an encoder with a class token, else (B, h, w, C)."""
        if self.num_prefix_tokens:
            return self.forward_tokens(images)
        return self.forward_map(images).permute(0, 2, 3, 1)

    def forward_layers(self, images, layers, feature="mean"):
        """Features of several depths in one pass, pooled for probing.

        Args:
            images: (B, in_chans, H, W).
            layers: numbers of blocks, from 1 (0 < layer <= len(probed_blocks())), whose outputs are pooled as they are; or
                "last", what `forward_last` gives.
            feature: mean of the patch tokens; cls, the class token; or map, the tokens as a map.
        Returns: list of (B, C_layer) float, or maps (B, C_layer, h, w), in the order of `layers`.
        Raises: ValueError if there is no class token.
        """
        blocks, outputs, handles = self.probed_blocks(), {}, []

        def keep(layer, output):
            outputs[layer] = self.as_map(output, images) if feature == "map" else self.pool(output, feature)

        for layer in set(layers) - {"last"}:
            handles.append(blocks[layer - 1].register_forward_hook(
                lambda block, args, output, layer=layer: keep(layer, output)))
        try:
            outputs["last"] = self.forward_map(images) if feature == "map" else self.forward_last(images, feature)
        finally:
            for handle in handles:
                handle.remove()
        return [outputs[layer] for layer in layers]

    def forward_last(self, images, feature="mean"):
        """(B, in_chans, H, W) -> (B, num_features), the normalised output pooled as `forward_layers` says."""
        if feature == "cls":
            raise ValueError(f"{type(self).__name__} has no class token: PROBE.FEATURE cls does not work with it, use mean.")
        return self.forward_map(images).mean(dim=(2, 3))

    def probed_blocks(self):
        """The blocks in order, whose outputs can be probed."""
        return self.units()

    def attention_maps(self, images, layer, token=None):
        """Where the tokens of a block look: the weights of its attention, spread over its map.

        Args:
            images: (B, in_chans, H, W); nothing is hidden.
            layer: number of a block, from 1 (0 < layer <= len(probed_blocks())).
            token: (row, column) on the block's map, or as floats the shares of it down and to the right; "cls", the class
                token; None = each of the map.
        Returns: (B, heads, h, w) float32 of one token, or (B, heads, h, w, h, w) of all, whose last two axes are where they
            look. They add up to 1, with what a class token gets.
        Raises: ValueError on a block without attention, or a token that there is not.
        """
        block, seen = self.probed_blocks()[layer - 1], {}
        if not hasattr(getattr(block, "attn", None), "weights"):
            having = [i for i, other in enumerate(self.probed_blocks(), start=1)
                      if hasattr(getattr(other, "attn", None), "weights")]
            others = f"blocks {', '.join(map(str, having))} of this {type(self).__name__} have" if having else (
                f"no block of a {type(self).__name__} has")
            raise ValueError(f"block {layer} has no attention; {others}.")
        handles = [module.register_forward_pre_hook(lambda module, args: seen.update({module: args}))
                   for module in (block, block.attn)]
        try:
            self.forward_last(images)
        finally:
            for handle in handles:
                handle.remove()
        (x, *_), weights = seen[block], block.attn.weights(*seen[block.attn])
        grid = tuple(self.as_map(x, images).shape[2:])
        maps = self.spread_attention(block, weights, grid, self._positions(token, grid).to(weights.device))
        return maps.unflatten(2, grid) if token is None else maps.squeeze(2)

    def _positions(self, token, grid):
        """(T,) int64: positions in the map, row by row, of `attention_maps`' token; -1 = the class token."""
        if token is None:
            return torch.arange(grid[0] * grid[1])
        if isinstance(token, str):
            if token != "cls" or self.num_prefix_tokens != 1:
                raise ValueError(f"token={token!r}: use (row, column){', or cls' if self.num_prefix_tokens == 1 else ''}; "
                                 f"{type(self).__name__} has {'one' if self.num_prefix_tokens == 1 else 'no'} class token.")
            return torch.tensor([-1])
        row, column = (min(int(place * side), side - 1) if isinstance(place, float) else place
                       for place, side in zip(token, grid, strict=True))
        if not (0 <= row < grid[0] and 0 <= column < grid[1]):
            raise ValueError(f"token=({row}, {column}) is outside of the {grid[0]} x {grid[1]} tokens of this block.")
        return torch.tensor([row * grid[1] + column])

    def spread_attention(self, block, weights, grid, tokens):
        """What tokens of a map give to each place of it.

        Args:
            block: one of probed_blocks().
            weights: (B, windows, heads, N, N), as its attention has them; here one window, the class token first.
            grid: (h, w) of its map.
            tokens: (T,) int64 positions in the map, row by row; -1 = the class token.
        Returns: (B, heads, T, h, w).
        """
        prefix = self.num_prefix_tokens
        return weights[:, 0][:, :, tokens + prefix, prefix:].unflatten(3, grid)

    def pool(self, output, feature):
        """What a block gives -> (B, C): tokens (B, n, C), those of `num_prefix_tokens` first, or a map (B, h, w, C)."""
        if feature == "cls":
            if output.ndim != 3 or not self.num_prefix_tokens:
                raise ValueError(f"{type(self).__name__} has no class token: PROBE.FEATURE cls does not work with it, use "
                                 f"mean.")
            return output[:, 0]
        return output[:, self.num_prefix_tokens:].mean(dim=1) if output.ndim == 3 else output.mean(dim=(1, 2))

    def as_map(self, output, images):
        """What a block gives -> (B, C, h, w); of tokens those of the patches, row by row."""
        if output.ndim == 4:
            return output.permute(0, 3, 1, 2)
        grid = tuple(side // self.stride for side in images.shape[2:])
        return output[:, self.num_prefix_tokens:].transpose(1, 2).unflatten(2, grid)

    def layer_id(self, name):
        """Depth of a parameter: 0 = embedding, i + 1 = block i, num_layers + 1 = what follows the blocks."""
        raise NotImplementedError(f"{type(self).__name__} must define layer_id")

    def init_module(self, name, module):
        """Fill the parameters that `module`, named `name` in this encoder, holds itself (not those of its children)."""
        raise NotImplementedError(f"{type(self).__name__} must define init_module")

    def init_weights(self):
        """Give the parameters their first values; on the meta device there are none, until build.materialize gives them."""
        if next(self.parameters()).is_meta:
            return
        for name, module in self.named_modules():
            self.init_module(name, module)

    def units(self):
        """The modules, in order, that are gathered and released one at a time when the parameters are sharded.

        They are called as modules, and together they hold most of the parameters.
        """
        raise NotImplementedError(f"{type(self).__name__} must define units")

    def resize_state_dict(self, state_dict):
        """Bring position tables of a state dict (this encoder's names, any grid) to this encoder's grid.

        Returns: (state dict without the buffers that are rebuilt, names that were resized).
        """
        raise NotImplementedError(f"{type(self).__name__} must define resize_state_dict")

    def no_weight_decay(self):
        """Exact names of parameters that never decay."""
        return set()

    def no_weight_decay_keywords(self):
        """Parts of names that do not decay in fine-tuning (in pre-training they do, see docs/parity.md)."""
        return set()

    @property
    def has_head(self):
        return isinstance(self.head, nn.Linear)

    def forward(self, images, mask=None):
        """Feature map without a head, logits with one."""
        if not self.has_head:
            return self.forward_map(images, mask)
        if mask is not None:
            raise ValueError("a classification model takes no mask; build it with is_pretrain=True to mask images.")
        return self.head(self.forward_pooled(images))

    def extract_feat(self, images):
        """Tuple of features: the pooled one of a classification model, else the feature map."""
        return (self.forward_pooled(images) if self.has_head else self.forward_map(images),)

    def run(self, block, *args):
        """Call a block, recomputing its activations in the backward pass when `use_checkpoint` is set."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)


def linear_head(num_features, num_classes):
    return nn.Linear(num_features, num_classes) if num_classes > 0 else nn.Identity()
