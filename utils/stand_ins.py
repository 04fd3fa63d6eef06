"""What stands beside the weights in checkpoints of other programs - paths, dates, settings, counters - read as nothing.

torch reads only classes and functions that it is given. For those of known programs and of Python it gets one that keeps
nothing, or a plain dictionary, so that no code of a file runs and the weights can be read.
"""
import re
from collections import OrderedDict

# by module, or with the name
KEPT_AS_NOTHING = re.compile(
    r"(pathlib|datetime|uuid|decimal|fractions|mmengine|mmcv|omegaconf|hydra|lightning|pytorch_lightning|lightning_fabric|"
    r"lightning_utilities|torchmetrics)\..+|types\.SimpleNamespace|"
    r"(builtins|__builtin__)\.(getattr|object|list|dict|tuple|set|frozenset|slice|range|xrange|int|long|float|bool|str)")
KEPT_AS_DICT = {"easydict.EasyDict", "addict.addict.Dict", "addict.Dict", "ml_collections.config_dict.config_dict.ConfigDict",
                "mmengine.config.config.ConfigDict", "lightning_fabric.utilities.data.AttributeDict",
                "lightning.fabric.utilities.data.AttributeDict", "pytorch_lightning.utilities.parsing.AttributeDict"}


class Nothing:
    """In the place of an object: takes whatever is put into it, and keeps none of it."""

    def __new__(cls, *args, **named):
        return object.__new__(cls)

    def __init__(self, *args, **named):
        pass

    def __setstate__(self, state):
        pass


def without_default(*args):
    """In the place of collections.defaultdict."""
    return {}


def stand_ins(names):
    """Those of `names`, as "module.name", that are read as nothing: [(stand-in, name), ...] for torch's safe_globals."""
    found = dict.fromkeys(KEPT_AS_DICT, OrderedDict) | {"collections.defaultdict": without_default}
    return [(found.get(name, Nothing), name) for name in names if name in found or KEPT_AS_NOTHING.fullmatch(name)]
