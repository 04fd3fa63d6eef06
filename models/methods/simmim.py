"""SimMIM: hide large random patches, regress their raw pixels with one linear layer.

Source: Xie et al., SimMIM (arXiv 2111.09886). Head, target, loss and area are the axes of its ablations, section 4.1.
"""
import torch
from torch import nn
from torch.nn import functional as F

from models.encoders.checks import image_size
from models.layers import lift_mask
from models.methods.class_targets import tokenizer_of
from models.methods.feature_targets import HogTarget, teacher_cell
from models.methods.heads import HEADS, build_head
from models.methods.method import Method
from models.methods.targets import TARGETS, ResizedTarget, with_low_pass
from utils.registry import Component, pick
from utils.settings import PATH, SIZE, Setting

ERRORS = {  # of each value, from prediction and target
    "l1": lambda prediction, target: (target - prediction).abs(),
    "l2": lambda prediction, target: (target - prediction).square(),
    "smooth_l1": lambda prediction, target: F.smooth_l1_loss(prediction, target, reduction="none"),
}
CLASSES, RESIZED = ("bins", "clusters", "tokens"), ("pixels", "local_norm", "bins", "clusters")  # kinds of targets


class SimMIM(Method):
    """Encoder over visible and hidden tokens alike, linear head to pixels, L1 on hidden pixels.

    Args:
        encoder: an Encoder with a mask token.
        target: what is predicted, see models/methods/targets.py; None = the pixels.
        head: name of what predicts it, see models/methods/heads.py.
        error: name of the loss, a key of ERRORS; of a target of classes it is the cross-entropy.
        visible_weight: of the error where nothing is hidden, relative to hidden positions.
    """

    section = "MODEL.SIMMIM"

    def __init__(self, encoder, target=None, head="linear", error="l1", visible_weight=0.0):
        super().__init__(encoder, None, target)
        self.decoder = build_head(head, encoder, self.target)
        self.error = error
        self.visible_weight = visible_weight

    def reconstruct(self, images, mask, denormalize=False):
        prediction = self.decoder(self.encoder(images, mask))
        return self.target.denormalize(prediction, images) if denormalize else prediction

    def loss(self, prediction, target, mask):
        with torch.autocast(prediction.device.type, enabled=False):
            if self.target.classes:
                error = class_error(prediction.float(), target, self.target.classes)
            else:
                error = ERRORS[self.error](prediction.float(), target.float())
            return masked_mean(error, mask, self.visible_weight)

    def init_module(self, name, module):
        """As Encoder.init_module; a linear or MLP head starts at PyTorch's default."""
        super().init_module(name, module)
        if name.startswith("decoder") and isinstance(module, nn.Conv2d):
            module.reset_parameters()


def masked_l1(prediction, target, mask):
    """Mean absolute error over hidden pixels of the whole batch and all channels; 0 if nothing is hidden.

    Args:
        prediction, target: (B, C, H, W).
        mask: (B, h, w), True = hidden, on a grid that the pixels align with.
    Source: official SimMIM.
    """
    with torch.autocast(prediction.device.type, enabled=False):  # sums over millions of pixels need fp32
        return masked_mean(ERRORS["l1"](prediction.float(), target.float()), mask)


def masked_mean(error, mask, visible_weight=0.0):
    """Mean of an error over hidden positions of the whole batch and all channels; 0 if nothing counts.

    Args:
        error: (B, D, H, W) float32.
        mask: (B, h, w), True = hidden, see hidden_cells.
        visible_weight: with which visible positions count as well.
    Source: official SimMIM; the 1e-5 avoids 0 / 0.
    """
    weight = hidden_cells(mask, error.shape[-2:]).unsqueeze(1).to(torch.float32)
    if visible_weight:
        weight = weight + visible_weight * (1 - weight)
    return (error * weight).sum() / (weight.sum() + 1e-5) / error.shape[1]


def hidden_cells(mask, size):
    """A mask (B, h, w) on a grid (H, W), (B, H, W) bool; where that is coarser, of the cells that are hidden as a whole.

    Raises: ValueError if the grids do not align.
    """
    rows, cols = mask.shape[1] // size[0], mask.shape[2] // size[1]
    if rows * size[0] != mask.shape[1] or cols * size[1] != mask.shape[2]:
        return lift_mask(mask, size)
    return mask.bool().unflatten(2, (-1, cols)).unflatten(1, (-1, rows)).all(dim=4).all(dim=2)


def class_error(prediction, target, classes):
    """Cross-entropy of each value: (B, D * classes, h, w) scores and (B, D, h, w) int64 -> (B, D, h, w)."""
    return F.cross_entropy(prediction.unflatten(1, (-1, classes)).movedim(2, 1), target, reduction="none")


def build_simmim(config, make_encoder):
    """SimMIM from MODEL.SIMMIM and MODEL.PIXMIM."""
    simmim = config.MODEL.SIMMIM
    encoder = make_encoder(use_mask_token=True)
    target, cell = pick(TARGETS, target_name(config), "MODEL.SIMMIM.TARGET")(config, encoder), resized_cell(config)
    target = ResizedTarget(target, cell) if cell > 1 else target
    return SimMIM(encoder, with_low_pass(config, target, encoder.in_chans), simmim.HEAD,
                  "l1" if simmim.LOSS == "auto" else simmim.LOSS, area_weight(simmim.LOSS_AREA))


def target_name(config):
    simmim = config.MODEL.SIMMIM
    return "local_norm" if simmim.NORM_TARGET.ENABLE else simmim.TARGET


def resized_cell(config):
    """Pixels per side of what MODEL.SIMMIM.TARGET_SIZE makes one value of. Raises: ValueError where those are no squares."""
    wanted, size = config.MODEL.SIMMIM.TARGET_SIZE, image_size(config)
    if wanted == 0:
        return 1
    wanted = (wanted, wanted) if isinstance(wanted, int) else tuple(wanted)
    cell = size[0] // wanted[0]
    if (wanted[0] * cell, wanted[1] * cell) != size:
        fitting = [[side // step for side in size] for step in range(1, 65) if not size[0] % step and not size[1] % step]
        shown = ", ".join(str(of[0] if of[0] == of[1] else of).replace(" ", "") for of in fitting)
        raise ValueError(f"MODEL.SIMMIM.TARGET_SIZE={config.MODEL.SIMMIM.TARGET_SIZE} does not divide "
                         f"DATA.IMG_SIZE={config.DATA.IMG_SIZE} into squares. Use one of {shown}, or 0 for that of the image.")
    return cell


def area_weight(area):
    """Weight of visible positions by MODEL.SIMMIM.LOSS_AREA."""
    return {"masked": 0.0, "all": 1.0}.get(area) if area in ("masked", "all") else float(area)


def _problem_of_area(area):
    if area in ("masked", "all"):
        return None
    try:
        fits = 0 <= float(area) <= 1
    except ValueError:
        fits = False
    return None if fits else "must be masked, all, or the weight of visible positions, from 0 to 1"


def check_simmim(config, size):
    """Refuse settings of MODEL.SIMMIM that do not fit together. Raises: ValueError."""
    simmim, name = config.MODEL.SIMMIM, target_name(config)
    if simmim.NORM_TARGET.ENABLE and simmim.TARGET not in ("pixels", "local_norm"):
        raise ValueError(f"MODEL.SIMMIM.NORM_TARGET.ENABLE True is TARGET local_norm, but MODEL.SIMMIM.TARGET is "
                         f"{simmim.TARGET!r}: set one of them.")
    if simmim.TARGET_SIZE != 0 and name in TARGETS and name not in RESIZED:
        raise ValueError(f"MODEL.SIMMIM.TARGET_SIZE={simmim.TARGET_SIZE} is of the targets {', '.join(RESIZED)}, but TARGET is "
                         f"{name}: use TARGET_SIZE 0.")
    if simmim.LOSS == "cross_entropy" and name not in CLASSES and name in TARGETS:
        raise ValueError(f"MODEL.SIMMIM.LOSS=cross_entropy is for the targets {', '.join(CLASSES)}, but TARGET is {name}: use "
                         f"l1, smooth_l1 or l2.")
    if simmim.LOSS in ERRORS and name in CLASSES:
        raise ValueError(f"MODEL.SIMMIM.LOSS={simmim.LOSS} measures values, and TARGET {name} has classes: use cross_entropy, "
                         f"or auto.")
    if config.MODEL.PIXMIM.ENABLE and name in ("features", "tokens"):
        raise ValueError(f"MODEL.PIXMIM.ENABLE True filters pixels, and MODEL.SIMMIM.TARGET {name} is made by a model of whole "
                         f"images: use PIXMIM.ENABLE False.")
    resized_cell(config)


def cell_of_target(config, name):
    """Pixels per side of a position of the target of a name."""
    if name == "features":
        return teacher_cell(config.MODEL.SIMMIM.TEACHER)
    if name == "tokens":
        return tokenizer_of(config.MODEL.SIMMIM.TOKENIZER, config.MODEL[config.MODEL.TYPE.upper()].IN_CHANS).cell
    return HogTarget.cell if name == "hog" else resized_cell(config)


def check_cells(config):
    """Refuse masks that would hide cells of the target in part. Raises: ValueError."""
    name, patch = target_name(config), config.MODEL[config.MODEL.TYPE.upper()].PATCH_SIZE
    cell = cell_of_target(config, name)
    unit = patch if config.DATA.MASK_TYPE == "blockwise" else config.DATA.MASK_PATCH_SIZE
    if cell > 1 and unit % cell and cell % unit == 0:
        raise ValueError(f"DATA.MASK_TYPE={config.DATA.MASK_TYPE} hides units of {unit} pixels, MODEL.SIMMIM.TARGET {name} has "
                         f"cells of {cell}, which would be hidden in part. Use DATA.MASK_PATCH_SIZE {cell}, or a finer target.")


def _even(window):
    return f"is even: the window is centred on a pixel. Use {window + 1}" if window % 2 == 0 else None


SIMMIM = Component(build_simmim, check=check_simmim, check_masks=check_cells, settings={
    "TARGET": Setting("pixels", "+ what is predicted: pixels | local_norm | patch_norm (MAE's) | bins | clusters | tokens | "
                      "hog | features, see models/methods/targets.py"),
    "TARGET_SIZE": Setting(0, "+ of the image that is predicted, pixels averaged; 0 = of the image as it is", "pixels",
                           kind=SIZE, low=0, high=2 ** 16),
    "NORM_TARGET.ENABLE": Setting(False, "TARGET local_norm, as the official code says it"),
    "NORM_TARGET.PATCH_SIZE": Setting(47, "odd side of the neighbourhood that a pixel is normalised by", "pixels", low=3,
                                      rule=_even),
    "BINS": Setting(8, "+ TARGET bins: classes of each channel", low=2, high=65536),
    "PALETTE": Setting("", "+ TARGET clusters: file of colours, from tools/palette.py", kind=PATH),
    "TOKENIZER": Setting("", "+ TARGET tokens: file of tools/tokenizer.py, or package.module:Class", kind=PATH),
    "TEACHER": Setting("", "+ TARGET features: checkpoint whose encoder gives them", kind=PATH),
    "HEAD": Setting("linear", "+ what predicts: linear | mlp | inverse_swin_t | inverse_swin_b", choices=HEADS),
    "LOSS": Setting("auto", "+ l1 | smooth_l1 | l2 | cross_entropy | auto (cross_entropy of classes, l1 of values)",
                    choices=("auto", "cross_entropy", *ERRORS)),
    "LOSS_AREA": Setting("masked", "+ where the loss counts: masked | all | weight of visible positions, 0 to 1",
                         rule=_problem_of_area),
})
