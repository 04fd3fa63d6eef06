"""What a checkpoint of any kind says of its head, before a model is built for it."""
from models.weights.sources import recognised, under_encoder
from utils.checkpoint import load_checkpoint, weights_of
from utils.classes import head_of, head_size


def read_head(path, key=""):
    """The utils.classes.Head of a file of any known kind.

    Args:
        path, key: as in models.weights.pretrained.load_pretrained.
    Raises: as load_checkpoint; ValueError if the key is not in the file.
    """
    content = load_checkpoint(path, moments=False)
    weights = weights_of(content, key)
    if head_size(weights) is None and weights:
        source, weights, _, _ = recognised(weights, path)
        weights = (source.convert if source else under_encoder)(weights)
    return head_of(content, weights, path)
