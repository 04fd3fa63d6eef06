"""From a config to a model. The dict literals below are all there is to registration."""
from config import check_pretraining, image_size
from models.simmim import build_simmim
from models.swin import build_swin
from models.vit import build_vit
from utils.registry import pick

ENCODERS = {"swin": build_swin, "vit": build_vit}
METHODS = {"simmim": build_simmim}


def build_encoder(config, num_classes, is_pretrain):
    """The encoder named by MODEL.TYPE; with a head if num_classes > 0, with a mask token if is_pretrain."""
    build = pick(ENCODERS, config.MODEL.TYPE, "MODEL.TYPE")
    return build(config, image_size(config), num_classes, is_pretrain)


def build_model(config, is_pretrain=True):
    """The model of a config.

    Args:
        config: from load_config.
        is_pretrain: a pre-training method around an encoder, or an encoder with a classification head.
    Returns: nn.Module; its contract is in docs/architecture.md.
    Raises: ValueError on an unknown MODEL.TYPE or MODEL.METHOD, or a mask that does not fit.
    """
    if not is_pretrain:
        return build_encoder(config, config.MODEL.NUM_CLASSES, is_pretrain=False)
    method = pick(METHODS, config.MODEL.METHOD, "MODEL.METHOD")
    encoder = build_encoder(config, num_classes=0, is_pretrain=True)
    check_pretraining(config)
    return method(config, encoder)
