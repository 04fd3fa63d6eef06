"""MAE: encode the visible patches alone, decode all of them, regress the pixels of the hidden ones.

Source: He et al., Masked Autoencoders Are Scalable Vision Learners (arXiv 2111.06377).
"""
import torch

from models.encoders import ENCODERS
from models.encoders.checks import image_size
from models.layers import lift_mask
from models.methods.decoder import DECODER_SETTINGS, PixelDecoder, check_decoder
from models.methods.method import WHOLE_UNITS, Method, of_whole_units
from models.methods.targets import PatchNormalizedTarget, PixelTarget, with_low_pass
from utils.registry import Component, pick
from utils.settings import Setting


class MAE(Method):
    """Encoder over the visible patches, decoder over all, mean squared error on hidden pixels.

    Patches are the cells of the encoder's feature map. Every image of a batch must hide as many, each as a whole.

    Args:
        encoder: an Encoder that can drop tokens (`forward_visible`).
        decoder: PixelDecoder.
        target: what is predicted, see models/methods/targets.py.
    """

    section = "MODEL.MAE"

    def __init__(self, encoder, decoder, target=None):
        super().__init__(encoder, decoder, target)
        self._num_visible = {}  # of masks seen in training, by their grid

    def forward(self, images, mask=None, groups=None):
        """As Method.forward; groups: what the loader has prepared from the mask for the encoder, or None."""
        if groups is None:
            return super().forward(images, mask)
        return self.loss(self.predict(images, mask, groups), self.target(images), mask)

    def reconstruct(self, images, mask, denormalize=False):
        prediction = self.predict(images, mask)
        return self.target.denormalize(prediction, images) if denormalize else prediction

    def predict(self, images, mask, groups=None):
        """Arguments as `forward` -> (B, C, H, W), what the loss compares with its target."""
        patch = self.encoder.patch_size
        expected = (len(images), images.shape[2] // patch, images.shape[3] // patch)
        if tuple(mask.shape) != expected:
            raise ValueError(f"mask of shape {tuple(mask.shape)} does not fit the patch grid {expected} (B, h, w).")
        mask = mask.bool()
        cells = self.cells_of(mask)
        ids = cells.flatten(1).to(torch.uint8).argsort(dim=1, stable=True)[:, :self.num_visible(cells)]  # visible, in order
        return self.decoder(self.encoder.forward_visible(images, mask, ids, groups), ids, tuple(cells.shape[1:]))

    def cells_of(self, mask):
        """The mask (B, h, w) on the grid of the encoder's feature map.

        Raises: ValueError where a cell is hidden in part; on CUDA, in training, a failed assertion on the device.
        """
        step = self.encoder.stride // self.encoder.patch_size
        if step == 1:
            return mask
        cells = mask[:, ::step, ::step]
        self.check_cells(mask, cells, step)
        return cells

    def check_cells(self, mask, cells, step):
        """Raises: as `cells_of`, whose step from cell to cell is given in patches."""
        fits = tuple(step * side for side in cells.shape[1:]) == tuple(mask.shape[1:])  # the image is of whole cells
        fits = (mask == lift_mask(cells, mask.shape[1:])).all() if fits else False
        if isinstance(fits, torch.Tensor) and mask.is_cuda and self.training:
            torch._assert_async(fits, "METHOD mae needs masks of whole cells of the encoder's feature map")
        elif not fits:
            raise ValueError(f"METHOD mae drops whole cells of the encoder's feature map, {self.encoder.stride} pixels wide: "
                             f"set a DATA.MASK_PATCH_SIZE that is a multiple of {self.encoder.stride}, and an image size, too.")

    def num_visible(self, mask):
        """Visible patches of each image of a mask (B, h, w) of patches or cells.

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
                         f"and USE_RPB False (their tables are for all patches), swin, swinv2 or convmae, or MODEL.METHOD "
                         f"simmim.")
    height, width = (side // (encoder.stride // encoder.patch_size) for side in encoder.grid)
    decoder = PixelDecoder(encoder.num_features, mae.DECODER_EMBED_DIM, mae.DECODER_DEPTH, mae.DECODER_NUM_HEADS,
                           (height, width), encoder.stride, encoder.in_chans, encoder.num_prefix_tokens,
                           mlp_ratio=mae.DECODER_MLP_RATIO or encoder.mlp_ratio)
    target = PatchNormalizedTarget(encoder.stride) if mae.NORM_PIX_LOSS else PixelTarget()
    return MAE(encoder, decoder, with_low_pass(config, target, encoder.in_chans))


def check_mae(config, size):
    """Refuse settings of MODEL.MAE that do not fit together. Raises: ValueError."""
    check_decoder("MODEL.MAE", config.MODEL.MAE)


def groups_of_encoder(config, size):
    """As Component.groups: what its encoder prepares."""
    return pick(ENCODERS, config.MODEL.TYPE, "MODEL.TYPE").groups(config, size)


def check_dropping(config):
    """Refuse masks of other units than an encoder of stages can drop. Raises: ValueError."""
    packer = groups_of_encoder(config, image_size(config))
    cell = packer and packer.cell * config.MODEL[config.MODEL.TYPE.upper()].PATCH_SIZE
    if cell and (config.DATA.MASK_TYPE not in WHOLE_UNITS or config.DATA.MASK_PATCH_SIZE % cell):
        raise ValueError(f"DATA.MASK_TYPE={config.DATA.MASK_TYPE} with DATA.MASK_PATCH_SIZE={config.DATA.MASK_PATCH_SIZE}: "
                         f"MODEL.METHOD mae drops whole cells of the last map of MODEL.TYPE {config.MODEL.TYPE}, {cell} pixels "
                         f"wide. Use DATA.MASK_TYPE {of_whole_units(config)} and DATA.MASK_PATCH_SIZE {cell}.")


MAE_METHOD = Component(build_mae, check=check_mae, check_masks=check_dropping, groups=groups_of_encoder, settings={
    **DECODER_SETTINGS,
    "NORM_PIX_LOSS": Setting(False, "+ predict pixels normalised by their patch"),
})
