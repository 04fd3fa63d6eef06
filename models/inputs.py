"""What a config says of the images and masks that its model takes. A config is known here as a tree, from wherever it comes."""
from models.encoders import ENCODERS
from models.encoders.checks import image_size
from models.methods import METHODS
from models.methods.method import WHOLE_UNITS
from utils.registry import pick
from utils.statistics import channel_statistics


def encoder_config(config):
    """The block of the chosen encoder, e.g. MODEL.SWIN."""
    pick(ENCODERS, config.MODEL.TYPE, "MODEL.TYPE")
    return config.MODEL[config.MODEL.TYPE.upper()]


def pixel_statistics(config):
    """Mean and standard deviation per channel, of pixels in [0, 1]: ([...], [...])."""
    return channel_statistics(encoder_config(config).IN_CHANS, config.DATA.MEAN, config.DATA.STD)


def check_model(config):
    """Refuse what the encoder can't be, or take, as it says itself. Raises ValueError."""
    channels = encoder_config(config).IN_CHANS
    for key in ("MEAN", "STD"):
        if len(config.DATA[key]) not in (0, channels):
            raise ValueError(f"DATA.{key} has {len(config.DATA[key])} values for IN_CHANS={channels}: give one each.")
    pick(ENCODERS, config.MODEL.TYPE, "MODEL.TYPE").check(config, image_size(config))


def mask_preparation(config):
    """What prepares the third argument of the pre-training model from the masks of a batch, see Component.groups; or None."""
    return pick(METHODS, config.MODEL.METHOD, "MODEL.METHOD").groups(config, image_size(config))


def check_method(config):
    """Refuse what the pre-training method can't be, as it says itself. Raises ValueError."""
    pick(METHODS, config.MODEL.METHOD, "MODEL.METHOD").check(config, image_size(config))


def check_pretraining(config):
    """Refuse a method that can't be, and masks that do not fit image, encoder and method. Raises ValueError."""
    check_method(config)
    unit = config.DATA.MASK_PATCH_SIZE
    height, width = image_size(config)
    patch = encoder_config(config).PATCH_SIZE
    whole = config.DATA.MASK_TYPE in WHOLE_UNITS
    units = [u for u in range(patch, min(height, width) + 1, patch) if not whole or (height % u == 0 and width % u == 0)]
    fix = f"Use DATA.MASK_PATCH_SIZE {min(units, key=lambda u: abs(u - unit))}" if units else "Use another DATA.IMG_SIZE"
    if unit % patch:
        raise ValueError(f"DATA.MASK_PATCH_SIZE={unit} is not a multiple of MODEL.{config.MODEL.TYPE.upper()}.PATCH_SIZE="
                         f"{patch}: a patch is hidden or visible as a whole. {fix}.")
    if whole and (height % unit or width % unit):
        raise ValueError(f"DATA.MASK_PATCH_SIZE={unit} does not divide DATA.IMG_SIZE={config.DATA.IMG_SIZE}: the mask grid "
                         f"needs whole units. {fix} or a DATA.IMG_SIZE that is a multiple of {unit}.")
    if config.DATA.MASK_SHARED and config.DATA.MASK_GROUPS > 1:
        raise ValueError(f"DATA.MASK_SHARED True asks for one mask, DATA.MASK_GROUPS={config.DATA.MASK_GROUPS} for several: "
                         f"set MASK_SHARED False, or MASK_GROUPS 0.")
    pick(METHODS, config.MODEL.METHOD, "MODEL.METHOD").check_masks(config)
