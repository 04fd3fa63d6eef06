"""Models for torch.hub, from a clone of this repository.

  torch.hub.load(clone, "list_models", "simmim*", source="local")
  model = torch.hub.load(clone, "mae_vit_base_ft", source="local", pretrained=True)
  torch.hub.load(clone, "inference_model", model, "bird.jpg", source="local")

Every name of models/weights/zoo.py that can be built here is an entry point, and so are the functions of inference.py. The
clone is imported under the names of its own folders: a program that has modules `config`, `data`, `models` or `utils` of
its own can't use it this way.
"""
import sys
from pathlib import Path as _Path

dependencies = ["torch", "torchvision", "numpy", "PIL", "scipy", "safetensors", "yacs", "yaml"]

_ROOT = _Path(__file__).resolve().parent
_OWN = ("config", "data", "inference", "models", "utils")  # modules that a program may have under the same name


def _refuse_foreign_modules():
    """Raise ImportError where a module of the program has the name of one that is needed from here."""
    for name in _OWN:
        module = sys.modules.get(name)
        places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", [])]
        if module is not None and not any(place and _Path(place).resolve().is_relative_to(_ROOT) for place in places):
            raise ImportError(
                f"this program has already imported a module named {name!r} ({places[-1] or 'without a file'}), and {_ROOT} "
                f"needs its own: Python knows one module of a name. Load the model before that import, rename the program's "
                f"module, or run inference.py of the clone as a program of its own.")


_refuse_foreign_modules()

from inference import (  # noqa: E402
    attention_maps,
    extract_feat,
    get_model,
    get_transform,
    inference_model,
    labelled_images,
    list_models,
    reconstruct,
)
from models.weights import zoo as _zoo  # noqa: E402

__all__ = ["attention_maps", "extract_feat", "get_model", "get_transform", "inference_model", "labelled_images", "list_models",
           "reconstruct"]


def _entry_point(name, entry):
    """A function that builds a model of the zoo."""
    def build(pretrained=False, **arguments):
        return get_model(name, pretrained, **arguments)

    build.__name__ = build.__qualname__ = name
    parameters = f", {entry.params / 1e6:.1f} M parameters" if entry.params else ""
    build.__doc__ = f"""{entry.family}: {entry.task}, {entry.pretraining}{parameters} (arXiv {entry.paper}).

    Args:
        pretrained: False = initial weights, True = those that {entry.source} released, or path of a checkpoint.
        arguments: of inference.get_model, e.g. device="cuda", num_classes=10, img_size=192.
    Returns: nn.Module in evaluation mode.
    """
    return build


for _entry in _zoo.entries().values():
    if _entry.config:
        for _name in filter(str.isidentifier, (_entry.name, *_entry.aliases)):
            globals()[_name] = _entry_point(_name, _entry)
