"""MAE: encode the visible patches alone, decode all of them, regress the pixels of the hidden ones.

Source: He et al., Masked Autoencoders Are Scalable Vision Learners (arXiv 2111.06377).
"""
import torch

from models.layers import lift_mask
from models.methods.decoder import DECODER_SETTINGS, PixelDecoder, check_decoder
from models.methods.method import Method
from models.methods.targets import PatchNormalizedTarget, PixelTarget, with_low_pass
from utils.registry import Component
from utils.settings import Setting


class MAE(Method):
    """Encoder over the visible patches, decoder over all, mean squared error on hidden pixels.

    Every image of a batch must hide as many patches.

    Args:
        encoder: an Encoder that can drop tokens (`forward_visible`).
        decoder: PixelDecoder.
        target: what is predicted, see models/methods/targets.py.
    """

    section = "MODEL.MAE"

    def __init__(self, encoder, decoder, target=None):
        super().__init__(encoder, decoder, target)
        self._num_visible = {}  # of masks seen in training, by their grid

    def reconstruct(self, images, mask, denormalize=False):
        patch = self.encoder.patch_size
        grid = (images.shape[2] // patch, images.shape[3] // patch)
        if tuple(mask.shape) != (len(images), *grid):
            raise ValueError(f"mask of shape {tuple(mask.shape)} does not fit the patch grid {(len(images), *grid)} (B, h, w).")
        mask = mask.bool()
        ids = mask.flatten(1).to(torch.uint8).argsort(dim=1, stable=True)[:, :self.num_visible(mask)]  # visible ones, in order
        prediction = self.decoder(self.encoder.forward_visible(images, mask, ids), ids, grid)
        return self.target.denormalize(prediction, images) if denormalize else prediction

    def num_visible(self, mask):
        """Visible patches of each image of a mask (B, h, w).

        In training on CUDA the number of the first mask holds, and a later one that differs fails on the device: to look
        would be to wait for it in every step.
        Raises: ValueError if images have different numbers.
        """
        grid = tuple(mask.shape[1:])
        counts = (~mask).flatten(1).sum(dim=1)
        if mask.is_cuda and self.training and grid in self._num_visible:
            torch._assert_async((counts == self._num_visible[grid]).all(), "images hide different numbers of patches")
            return self._num_visible[grid]
        least, most = counts.min().item(), counts.max().item()
        if least != most:
            raise ValueError(f"the images of a batch must hide the same number of patches, but between {least} and {most} are "
                             f"visible: METHOD mae drops the others, and batches are rectangular.")
        if self.training:
            self._num_visible[grid] = most
        return most

    def loss(self, prediction, target, mask):
        return masked_l2(prediction, target, mask)

    def no_weight_decay(self):
        """None but vectors: the official code decays class and mask token."""
        return set()


def masked_l2(prediction, target, mask):
    """Mean squared error over hidden pixels of the whole batch and all channels; 0 if nothing is hidden.

    Args:
        prediction, target: (B, C, H, W).
        mask: (B, h, w), True = hidden, on a grid that the pixels align with.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        hidden = lift_mask(mask, target.shape[-2:]).unsqueeze(1).to(torch.float32)
        error = (target.float() - prediction.float()).square()
        return (error * hidden).sum() / (hidden.sum() * target.shape[1]).clamp(min=1)


def build_mae(config, make_encoder):
    """MAE from MODEL.MAE and MODEL.PIXMIM. Raises: ValueError on an encoder that can't drop tokens."""
    encoder, mae = make_encoder(), config.MODEL.MAE
    if not encoder.drops_tokens:
        raise ValueError(f"MODEL.METHOD mae lets only visible patches through the encoder, which MODEL.TYPE "
                         f"{config.MODEL.TYPE} as it is set can't do. Use MODEL.TYPE vit with MODEL.VIT.USE_SHARED_RPB False "
                         f"and USE_RPB False (their tables are for all patches), or MODEL.METHOD simmim.")
    decoder = PixelDecoder(encoder.num_features, mae.DECODER_EMBED_DIM, mae.DECODER_DEPTH, mae.DECODER_NUM_HEADS,
                           encoder.grid, encoder.patch_size, encoder.in_chans, encoder.num_prefix_tokens,
                           mlp_ratio=mae.DECODER_MLP_RATIO or encoder.mlp_ratio)
    target = PatchNormalizedTarget(encoder.patch_size) if mae.NORM_PIX_LOSS else PixelTarget()
    return MAE(encoder, decoder, with_low_pass(config, target, encoder.in_chans))


def check_mae(config, size):
    """Refuse settings of MODEL.MAE that do not fit together. Raises: ValueError."""
    check_decoder("MODEL.MAE", config.MODEL.MAE)


MAE_METHOD = Component(build_mae, check=check_mae, settings={
    **DECODER_SETTINGS,
    "NORM_PIX_LOSS": Setting(False, "+ predict pixels normalised by their patch"),
})
