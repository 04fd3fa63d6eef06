"""What a checkpoint says of the model it is of, beside its weights."""
from dataclasses import dataclass
from pathlib import Path

from utils.checkpoint import STATE_FILE, WEIGHT_FILES, load_for_resume, shapes_in, weights_of
from utils.classes import HEADS
from utils.yaml_files import flatten, parse_tree

# what an official SimMIM or Swin file, which holds all settings of its run, says of the model and its images
OFFICIAL = ("MODEL.", "DATA.IMG_SIZE", "DATA.INTERPOLATION", "DATA.MASK_", "TEST.CROP")


@dataclass(frozen=True)
class Kept:
    """What a file keeps.

    Attributes:
        settings: {"SECTION.KEY": value}, {} where it keeps none.
        task: what its weights are for by their names, one of utils.settings.TASKS; None of an encoder alone.
    """
    settings: dict
    task: str | None


def is_checkpoint(path):
    """Whether what may be a recipe or a checkpoint, by path or address, is the latter: by its ending, or as a sharded run's."""
    return str(path).endswith(WEIGHT_FILES) or (Path(path) / STATE_FILE).is_file()


def read_kept(path):
    """The Kept of a checkpoint. Raises: as utils.checkpoint.load_checkpoint; ValueError if its settings are no YAML."""
    content = load_for_resume(path)
    weights = shapes_in(path) if "folder" in content else weights_of(content)
    return Kept(_settings(content.get("config"), path), task_of_weights(weights))


def _settings(config, path):
    if isinstance(config, str):  # ours
        return flatten(parse_tree(config, f"the config in {path}"))
    model = config.get("MODEL") if isinstance(config, dict) else None
    if not isinstance(model, dict) or "TYPE" not in model:
        return {}
    return {key: value for key, value in flatten(config).items() if key.startswith(OFFICIAL) and key != "MODEL.RESUME"}


def task_of_weights(weights):
    """One of TASKS by the names of weights as this repository and the official ones have them; None of an encoder alone."""
    if any(name.startswith("decoder.") for name in weights):
        return "pretrain"
    heads = {name.removeprefix("encoder.") for name in weights if HEADS.fullmatch(name)}
    return None if not heads else "classification" if "head.weight" in heads else "probe"
