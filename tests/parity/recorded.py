"""Access to the recorded numbers in `fixtures/`; what each file holds is described in `fixtures/README.md`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

SIMMIM = Path(__file__).parent / "fixtures" / "simmim"
REPOSITORY = Path(__file__).parents[2]
OTHER_REPOSITORY = "swin_transformer_repo__"  # starts the names of what microsoft/Swin-Transformer has in its own files


def case_names(folder, pattern="*.json"):
    """Names of the recorded cases in a folder, without suffix; none is an error, because pytest would only skip."""
    names = sorted(path.stem for path in (SIMMIM / folder).glob(pattern) if not path.stem.startswith("_"))
    if not names:
        raise FileNotFoundError(f"no {pattern} in {SIMMIM / folder}: recorded numbers are missing from the checkout")
    return names


def load_json(path):
    return json.loads((SIMMIM / path).read_text(encoding="utf-8"))


def load_npz(path):
    """All arrays of one file as a dict (the members are LZMA-compressed, so each is read once)."""
    with np.load(SIMMIM / path) as archive:
        return {name: archive[name] for name in archive.files}


def tensors(arrays, prefix):
    """The arrays whose name starts with `prefix/`, as tensors under the rest of their name, in file order."""
    prefix = prefix + "/"
    return {name.removeprefix(prefix): torch.from_numpy(a) for name, a in arrays.items() if name.startswith(prefix)}


def opts_of(overrides):
    """{'KEY': value} -> ['KEY', value, ...], the form `load_config` takes."""
    return [item for pair in overrides.items() for item in pair]


def recipe_path(name):
    """simmim_pretrain__swin_base__img192_window6__100ep -> configs/swin_base/<name>.yaml"""
    name = name.removeprefix(OTHER_REPOSITORY)
    return REPOSITORY / "configs" / name.split("__")[1] / f"{name}.yaml"


def names_of_groups(model, optimizer):
    """Parameter names of each optimizer group, in the optimizer's order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def worst_relative_error(actual, expected, scale=None):
    """max|actual - expected| / scale; scale defaults to max|expected|. Shapes must agree."""
    assert tuple(actual.shape) == tuple(expected.shape)
    scale = expected.abs().max().item() if scale is None else scale
    return (actual.detach().double() - expected.double()).abs().max().item() / scale


def import_transformers():
    """The package, of the versions whose names our conversion speaks; a test that wants it is skipped without one."""
    reason = "compares with transformers: pip install -r requirements-bench.txt"
    transformers = pytest.importorskip("transformers", reason=reason)
    if int(transformers.__version__.partition(".")[0]) >= 5:  # which renamed the modules
        pytest.skip(f"{reason} (version {transformers.__version__} is installed)", allow_module_level=True)
    return transformers
