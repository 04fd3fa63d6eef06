"""The transformer that predicts pixels of hidden patches from features of visible ones."""
import torch
from torch import nn

from models.encoders.checks import check_sincos, fitting_heads
from models.encoders.vit import NORM_EPS, Block
from models.layers import LayerNorm, init_xavier, truncated_normal
from models.position import resize_position_embedding, sincos_table, source_grid
from utils.settings import Setting


class PixelDecoder(nn.Module):
    """A small transformer over all patches, hidden ones as mask tokens, that predicts their pixels.

    Args:
        in_dim: width of the encoder's tokens.
        dim, depth, num_heads: of the decoder.
        grid: (h, w) patches its position table is made for; other grids work.
        patch_size, in_chans: of the images.
        num_prefix_tokens: tokens before those of the patches (class token); they take part and are dropped at the end.
        norm_eps: of all LayerNorms.
        mlp_ratio: hidden width of the MLP over the width.
    Source: MAE (arXiv 2111.06377), section 3.
    """

    def __init__(self, in_dim, dim, depth, num_heads, grid, patch_size, in_chans, num_prefix_tokens=0, norm_eps=NORM_EPS,
                 mlp_ratio=4.0):
        super().__init__()
        self.grid = grid
        self.patch_size = patch_size
        self.num_prefix_tokens = num_prefix_tokens
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_prefix_tokens + grid[0] * grid[1], dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio, key_bias=True, norm_eps=norm_eps) for _ in range(depth))
        self.norm = LayerNorm(dim, eps=norm_eps)
        self.pred = nn.Linear(dim, patch_size ** 2 * in_chans)

    def forward(self, tokens, ids, grid):
        """Predict every patch from the visible ones.

        Args:
            tokens: (B, num_prefix_tokens + n, in_dim), of the visible patches.
            ids: (B, n) their positions in row-major order.
            grid: (h, w) patches of the image.
        Returns: (B, in_chans, H, W).
        """
        prefix, visible = self.embed(tokens).split([self.num_prefix_tokens, ids.shape[1]], dim=1)
        batch, dim = visible.shape[0], visible.shape[-1]
        x = self.mask_token.to(visible.dtype).expand(batch, grid[0] * grid[1], dim)
        x = x.scatter(1, ids.unsqueeze(-1).expand(-1, -1, dim), visible)
        return self.predict(torch.cat([prefix, x], dim=1), grid)

    def forward_mixed(self, tokens, hidden, grid):
        """Predict two images from the tokens of a mixture: every patch belongs to one of them, and is hidden in the other.

        Args:
            tokens: (B, h*w, in_dim).
            hidden: (h*w,) bool, True = of the second image.
            grid: (h, w).
        Returns: (B, in_chans, H, W) of the first images, and of the second.
        Source: MixMAE (arXiv 2205.13137), section 3.2.
        """
        x = self.embed(tokens)
        hidden, mask_token = hidden.unsqueeze(-1), self.mask_token.to(x.dtype)
        both = torch.cat([torch.where(hidden, mask_token, x), torch.where(hidden, x, mask_token)])
        return self.predict(both, grid).chunk(2)

    def predict(self, x, grid):
        """Tokens (B, num_prefix_tokens + h*w, dim), those of hidden patches filled -> (B, in_chans, H, W)."""
        x = x + resize_position_embedding(self.pos_embed, self.grid, grid, self.num_prefix_tokens)
        for block in self.blocks:
            x = block(x)
        return to_image(self.pred(self.norm(x))[:, self.num_prefix_tokens:], grid, self.patch_size)

    def resize_state_dict(self, state_dict):
        """As Encoder.resize_state_dict: the position table, another grid's."""
        table, own = state_dict.get("pos_embed"), self.pos_embed
        if table is None or table.shape == own.shape or table.ndim != 3 or table.shape[2] != own.shape[2]:
            return state_dict, []
        source = source_grid(table.shape[1] - self.num_prefix_tokens, like=self.grid)
        table = resize_position_embedding(table, source, self.grid, self.num_prefix_tokens) if source else table
        return {**state_dict, "pos_embed": table}, ["pos_embed"]

    @staticmethod
    def settings(shapes):
        """{setting: value} that the shapes of a decoder's weights tell, {name: shape}; heads show in none."""
        if not {"embed.weight", "blocks.0.mlp.fc1.weight"} <= shapes.keys():
            return {}
        width = shapes["embed.weight"][0]
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
        return {"DECODER_EMBED_DIM": width, "DECODER_DEPTH": depth,
                "DECODER_MLP_RATIO": round(shapes["blocks.0.mlp.fc1.weight"][0] / width, 4)}

    def init_module(self, name, module):
        """As Encoder.init_module."""
        init_xavier(module)
        if not name:
            truncated_normal(self.mask_token)
            with torch.no_grad():
                self.pos_embed.copy_(sincos_table(self.grid, self.pos_embed.shape[-1], self.num_prefix_tokens))


def to_image(patches, grid, patch_size):
    """(B, h*w, patch*patch*C), values of a patch in order row, column, channel -> (B, C, h*patch, w*patch)."""
    x = patches.unflatten(1, grid).unflatten(3, (patch_size, patch_size, -1))  # (B, h, w, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def check_decoder(section, decoder):
    """Refuse settings of a PixelDecoder that do not fit together.

    Args:
        section: name of the settings, e.g. MODEL.MAE.
        decoder: those settings, with DECODER_EMBED_DIM, DECODER_NUM_HEADS and DECODER_MLP_RATIO.
    Raises: ValueError.
    """
    width, heads = decoder.DECODER_EMBED_DIM, decoder.DECODER_NUM_HEADS
    if width % heads:
        fit = fitting_heads(heads, width)
        raise ValueError(f"{section}.DECODER_NUM_HEADS={heads} does not divide {section}.DECODER_EMBED_DIM={width}. Use e.g. "
                         f"{fit} heads.")
    if 0 < decoder.DECODER_MLP_RATIO * width < 1:
        raise ValueError(f"{section}.DECODER_MLP_RATIO={decoder.DECODER_MLP_RATIO} leaves an MLP without hidden channels at "
                         f"{section}.DECODER_EMBED_DIM={width}. Use e.g. 4, or 0 for the ratio of the encoder.")
    check_sincos(f"{section}.DECODER_EMBED_DIM", width)


DECODER_SETTINGS = {
    "DECODER_EMBED_DIM": Setting(512, "+ width of the decoder", low=1, high=2 ** 16),
    "DECODER_DEPTH": Setting(8, "+ blocks of the decoder", low=1, high=1000),
    "DECODER_NUM_HEADS": Setting(16, "+ of every block of the decoder", low=1),
    "DECODER_MLP_RATIO": Setting(0.0, "+ width of the decoder's MLP relative to its blocks'; 0 = the encoder's ratio (of "
                                      "CONVMAE that of its first stage)", low=0, high=1000),
}
