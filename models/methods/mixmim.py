"""MixMIM: put visible patches of another image where an image is hidden, encode both at once, reconstruct both.

Source: Liu et al., MixMAE: Mixed and Masked Autoencoder for Efficient Pretraining of Hierarchical Vision Transformers
(arXiv 2205.13137).
"""
import torch

from models.layers import lift_mask
from models.methods.decoder import DECODER_SETTINGS, PixelDecoder, check_decoder
from models.methods.method import WHOLE_UNITS, Method, of_whole_units
from models.methods.targets import PatchNormalizedTarget, PixelTarget, with_low_pass
from utils.registry import Component
from utils.settings import Setting


class MixMIM(Method):
    """Encoder over mixtures of two images, decoder that predicts both, mean squared error on all pixels.

    The partner of an image is the one at the same place from the end of the batch, so two mixtures hold complementary parts
    of the same two images. All images of a batch share a mask. The middle image of an odd batch is its own partner: it is
    trained on as well, since tokens of the two parts never see each other.

    Args:
        encoder: an Encoder that takes mixtures (`forward_mixed`).
        decoder: PixelDecoder of patches as large as the cells of the encoder's map.
        target: what is predicted, see models/methods/targets.py.
    """

    section = "MODEL.MIXMIM"

    def reconstruct(self, images, mask, denormalize=False):
        """Predicted pixels, (B, C, H, W), each from a mixture in which it is hidden: all of them are predicted.

        Hidden ones of image i are predicted from mixture i, visible ones from the mixture of its partner.
        """
        own, partner = self.reconstruct_both(images, mask)
        hidden = lift_mask(mask[:1], images.shape[-2:]).unsqueeze(1)
        prediction = torch.where(hidden, own, partner.flip(0))
        return self.target.denormalize(prediction, images) if denormalize else prediction

    def reconstruct_both(self, images, mask):
        """What the decoder makes of each mixture: its own image, and its partner, each (B, C, H, W)."""
        cells = self.cells_of(mask, images)
        features = self.encoder.forward_mixed(images, cells)
        return self.decoder.forward_mixed(features.flatten(2).transpose(1, 2), cells.flatten(), tuple(cells.shape))

    def cells_of(self, mask, images):
        """The mask on the grid of the encoder's map, (h, w) bool. Raises: ValueError on a mask that does not fit."""
        patch, stride = self.encoder.patch_size, self.encoder.stride
        expected = (len(images), images.shape[2] // patch, images.shape[3] // patch)
        if tuple(mask.shape) != expected:
            raise ValueError(f"mask of shape {tuple(mask.shape)} does not fit the patch grid {expected} (B, h, w).")
        if images.shape[2] % stride or images.shape[3] % stride:
            raise ValueError(f"images of {images.shape[2]}x{images.shape[3]} pixels are not whole cells of {stride} pixels, "
                             f"which METHOD mixmim hides as a whole.")
        mask = mask.bool()
        cells = mask[0, ::stride // patch, ::stride // patch]
        self.check_mask(mask, cells)
        return cells

    def check_mask(self, mask, cells):
        """Raises: ValueError unless mask (B, h, w) is cells (rows, cols) for every image; on CUDA, in training, a failed
        assertion on the device: to look would be to wait for it in every step.
        """
        fits = (mask == lift_mask(cells.unsqueeze(0), mask.shape[1:])).all()
        if mask.is_cuda and self.training:
            torch._assert_async(fits, "METHOD mixmim needs one mask of whole cells for all images of a batch")
        elif not fits:
            raise ValueError(f"METHOD mixmim needs one mask for all images of a batch, of whole cells of {self.encoder.stride} "
                             f"pixels: set DATA.MASK_SHARED True and a DATA.MASK_PATCH_SIZE that is a multiple of "
                             f"{self.encoder.stride}.")

    def loss(self, prediction, target, mask):
        """Mean squared error over all pixels: each was hidden somewhere."""
        with torch.autocast(prediction.device.type, enabled=False):
            return (prediction.float() - target.float()).square().mean()

    def pictures(self, images, mask):
        prediction = self.reconstruct(images, mask, denormalize=True).to(images.dtype)
        hidden, partner = lift_mask(mask, images.shape[-2:]).unsqueeze(1), images.flip(0)
        return {"original": images, "partner": partner, "mixed": torch.where(hidden, partner, images),
                "reconstruction": torch.where(hidden, prediction, images),
                "of the partner": torch.where(hidden, partner, prediction.flip(0))}

    def no_weight_decay(self):
        """None but vectors: the official code decays mask token and position bias tables."""
        return set()


def build_mixmim(config, make_encoder):
    """MixMIM from MODEL.MIXMIM and MODEL.PIXMIM. Raises: ValueError on an encoder that can't take mixtures."""
    encoder, mixmim = make_encoder(), config.MODEL.MIXMIM
    if not encoder.mixes_images:
        raise ValueError(f"MODEL.METHOD mixmim encodes mixtures of two images, which MODEL.TYPE {config.MODEL.TYPE} can't keep "
                         f"apart. Use MODEL.TYPE mixmim.")
    height, width = (side // (encoder.stride // encoder.patch_size) for side in encoder.grid)
    decoder = PixelDecoder(encoder.num_features, mixmim.DECODER_EMBED_DIM, mixmim.DECODER_DEPTH, mixmim.DECODER_NUM_HEADS,
                           (height, width), encoder.stride, encoder.in_chans, norm_eps=mixmim.DECODER_NORM_EPS,
                           mlp_ratio=mixmim.DECODER_MLP_RATIO or encoder.mlp_ratio)
    target = PatchNormalizedTarget(encoder.stride) if mixmim.NORM_PIX_LOSS else PixelTarget()
    return MixMIM(encoder, decoder, with_low_pass(config, target, encoder.in_chans))


def check_mixmim(config, size):
    """Refuse settings of the decoder in MODEL.MIXMIM that do not fit together. Raises: ValueError."""
    check_decoder("MODEL.MIXMIM", config.MODEL.MIXMIM)


def check_mixing(config):
    """Refuse masks that do not tell two images apart on the last map of MixMIM's encoder. Raises: ValueError."""
    if config.MODEL.TYPE != "mixmim":
        return  # build_mixmim refuses it
    stride = config.MODEL.MIXMIM.PATCH_SIZE * 2 ** (len(config.MODEL.MIXMIM.DEPTHS) - 1)
    data, ratios = config.DATA, config.DATA.MASK_RATIO + config.MODEL.MIXMIM.RANGE_MASK_RATIO
    if not data.MASK_SHARED:
        raise ValueError("DATA.MASK_SHARED=False: MODEL.METHOD mixmim mixes images, which needs one mask for all of a batch. "
                         "Use DATA.MASK_SHARED True.")
    if data.MASK_TYPE not in WHOLE_UNITS or data.MASK_PATCH_SIZE % stride:
        raise ValueError(f"DATA.MASK_TYPE={data.MASK_TYPE} with DATA.MASK_PATCH_SIZE={data.MASK_PATCH_SIZE}: MODEL.METHOD "
                         f"mixmim hides whole cells of the last map, {stride} pixels wide. Use DATA.MASK_TYPE "
                         f"{of_whole_units(config)} and DATA.MASK_PATCH_SIZE {stride}.")
    if ratios > 1:
        raise ValueError(f"DATA.MASK_RATIO={data.MASK_RATIO} plus MODEL.MIXMIM.RANGE_MASK_RATIO="
                         f"{config.MODEL.MIXMIM.RANGE_MASK_RATIO} is above 1: a ratio lies between 0 and 1.")


MIXMIM_METHOD = Component(build_mixmim, check=check_mixmim, check_masks=check_mixing, settings={
    **DECODER_SETTINGS,
    "DECODER_NORM_EPS": Setting(1e-5, "+ of the decoder's LayerNorms; 1e-6 in mmpretrain", low=0),
    "NORM_PIX_LOSS": Setting(False, "+ predict pixels normalised by their cell"),
    "RANGE_MASK_RATIO": Setting(0.0, "+ ratios of masks lie between DATA.MASK_RATIO and this much more", low=0, high=1),
})
