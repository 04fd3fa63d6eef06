"""What every pre-training method is: images and masks in, a loss out; and what people see of it."""
import torch
from torch import nn

from models.layers import lift_mask, refuse_script
from models.methods.targets import PixelTarget

WHOLE_UNITS = ("block", "file", "random", "square")  # DATA.MASK_TYPEs of units that are hidden as a whole


def of_whole_units(config):
    """DATA.MASK_TYPE, or the one to use where units must be hidden as a whole, for messages."""
    return config.DATA.MASK_TYPE if config.DATA.MASK_TYPE in WHOLE_UNITS else "random"


class Method(nn.Module):
    """Base of all methods that predict what is hidden, pixels for the most part.

    Subclasses define `reconstruct` and `loss`. A method knows no optimizer, and the engine knows no method.

    Args:
        encoder: an Encoder.
        decoder: a module that turns features into pixels.
        target: what is predicted, see models/methods/targets.py.

    Attributes:
        section: of the config, that has the settings of the decoder, for messages; "" = none has.
    """

    section = ""
    __prepare_scriptable__ = refuse_script

    def __init__(self, encoder, decoder, target=None):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.target = target or PixelTarget()

    def forward(self, images, mask=None):
        """Loss, or features where there is no mask.

        Args:
            images: (B, C, H, W) float, normalised.
            mask: (B, H/patch, W/patch), True or 1 = hidden; None for features.
        Returns: scalar float32 loss; without a mask the tuple of `extract_feat`.
        """
        if mask is None:
            return self.extract_feat(images)
        return self.loss(self.reconstruct(images, mask), self.target(images), mask)

    def reconstruct(self, images, mask, denormalize=False):
        """What the loss compares with its target: pixels (B, C, H, W), or (B, width, h, w) as the target has it.

        With `denormalize` as pixels (B, C, H, W) on the scale of the images, for viewing.
        """
        raise NotImplementedError(f"{type(self).__name__} must define reconstruct")

    def loss(self, prediction, target, mask):
        """What `reconstruct` and the target give, mask as in `forward` -> scalar float32."""
        raise NotImplementedError(f"{type(self).__name__} must define loss")

    def pictures(self, images, mask):
        """What to look at: {name of a column: (B, C, H, W) images, normalised}. NaN = hidden; such pixels are drawn grey."""
        prediction = self.reconstruct(images, mask, denormalize=True).to(images.dtype)
        hidden = lift_mask(mask, images.shape[-2:]).unsqueeze(1)
        seen = {"original": images, "masked": images.masked_fill(hidden, torch.nan)}
        if not self.target.of_pixels:
            return {**seen, "target": self.target.view(self.target(images), images).to(images.dtype), "prediction": prediction}
        return {**seen, "prediction": prediction, "pasted": torch.where(hidden, prediction, images)}

    def extract_feat(self, images):
        """Tuple of one feature map (B, num_features, H/stride, W/stride) of the whole image."""
        return (self.encoder(images),)

    def forward_features(self, images):
        """As Encoder.forward_features."""
        return self.encoder.forward_features(images)

    def misfit(self, shapes):
        """Why the decoder of a file is not this one.

        Args:
            shapes: {name: shape} of weights in the naming of this class.
        Returns: a sentence that names the settings to change; "" where the file has no decoder, or this one.
        """
        theirs = {name.removeprefix("decoder."): tuple(shape) for name, shape in shapes.items() if name.startswith("decoder.")}
        ours = {name: tuple(value.shape) for name, value in self.decoder.state_dict().items()}
        wrong = [name for name in ours if theirs.get(name) != ours[name]] + [name for name in theirs if name not in ours]
        if not theirs or not wrong:
            return ""
        if not theirs.keys() & ours.keys():
            return f"The decoder of the file is that of another MODEL.METHOD (decoder.{next(iter(theirs))})."
        told, here = (getattr(self.decoder, "settings", lambda shapes: {})(part) for part in (theirs, ours))
        differing = {key: told[key] for key in told if told[key] != here.get(key)}
        if differing:
            has = ", ".join(f"{key}={value}" for key, value in told.items())
            fitting = " ".join(f"{self.section}.{key} {value}" for key, value in differing.items())
            return f"The decoder of the file has {has}: set {fitting}."
        name = wrong[0]
        return (f"decoder.{name} of the file is {theirs.get(name, 'missing')}, that of the model {ours.get(name, 'missing')}: "
                f"patch size, channels and width of the encoder must be those of the file, too.")

    def init_module(self, name, module):
        """As Encoder.init_module, where encoder and decoder have one."""
        part, _, rest = name.partition(".")
        if hasattr(getattr(self, part, None), "init_module"):
            getattr(self, part).init_module(rest, module)

    def units(self):
        """As Encoder.units."""
        return [*self.encoder.units(), *getattr(self.decoder, "blocks", ())]

    def no_weight_decay(self):
        """As Encoder.no_weight_decay."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
