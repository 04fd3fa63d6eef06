"""The settings of a run, which defaults.py declares: loading, merging, checking. The only module that knows yacs.

A config that was loaded is frozen. Nothing is ever written back into it: what depends on the machine (learning rates scaled by
the global batch, the number of classes of the data) lives in clones made by `scaled_config` and `with_values`.

  python config.py              all settings: default, valid values, which program reads them, meaning
  python config.py mask         those with `mask` in their name; shell wildcards work, too
"""
import logging
import os
import sys
from fnmatch import fnmatchcase
from functools import cache, reduce
from operator import getitem
from pathlib import Path

if __name__ == "__main__" and (set(sys.argv[1:]) & {"-h", "--help"} or len(sys.argv) > 2):
    sys.exit(__doc__)  # before the imports that take a second

from yacs.config import CfgNode

from defaults import TITLES, settings
from models.encoders import ENCODERS
from models.inputs import (  # what a config says of images; from here for all above
    check_model,
    check_pretraining,  # noqa: F401
    encoder_config,  # noqa: F401
    image_size,  # noqa: F401
    mask_preparation,  # noqa: F401
    pixel_statistics,  # noqa: F401
)
from models.methods import METHODS, SHARED
from utils.cli import run
from utils.files import expanded, write_text
from utils.kept import is_checkpoint, read_kept
from utils.settings import (
    JOBS,
    TASKS,
    check,
    closest,
    convert,
    shown,
)
from utils.tables import aligned
from utils.yaml_files import flatten, nested, parse_tree, read_tree, text_of, tree_text

log = logging.getLogger("simmim.config")

ROOT = Path(__file__).resolve().parent
PROBE_RECIPE = "configs/probe/linprobe__any_encoder.yaml"  # what a probe without --cfg is trained by
# what a run was started with, which is not what its weights are: not taken from a checkpoint
OF_A_START = {"BASE", "MODEL.RESUME", "PRETRAINED", "PRETRAINED_KEY", "OUTPUT", "LOCAL_RANK", "EVAL_MODE", "THROUGHPUT_MODE",
              "TRAIN.START_EPOCH", "TRAIN.AUTO_RESUME"}
# what an encoder's images are like, beside the settings of its own
OF_IMAGES = ("DATA.IMG_SIZE", "DATA.MEAN", "DATA.STD", "DATA.BACKGROUND", "DATA.WHITE", "DATA.EXIF")
WITHOUT_SHAPE = ("NUM_HEADS", "QK_SCALE")  # settings of an encoder that its weights mean nothing without, and do not show
MOVED = {  # former folders of configs/; the recipes of the last two have the new name in their own names as well
    "swin_base__100ep": "swin_base", "swin_base__800ep": "swin_base", "swin_large__800ep": "swin_large",
    "swinv2_base__800ep": "swinv2_base", "vit_base__800ep": "vit_base", "swinv2_giant": "swinv2_giant_1b",
    "swinv2_g": "swinv2_giant_3b"}


class Config(CfgNode):
    """A yacs node that also remembers which keys the user set, under `given` (only on the root)."""

    given = frozenset()


@cache
def _defaults():
    root = Config(nested({key: setting.default for key, setting in settings().items()}))
    root.freeze()
    return root


# ---- loading ------------------------------------------------------------------------------------------------------

def load_config(path=None, opts=(), job=None):
    """Defaults, then the YAML file with what it inherits, or the settings of a checkpoint, then `opts`; checked and frozen.

    Args:
        path: YAML file, see find_recipe; or a checkpoint that keeps its settings; None for the defaults alone.
        opts: ['KEY', value, 'KEY', value, ...]; values may be strings as typed on a command line.
        job: name in JOBS of the program that will use it: what it leaves open is then looked for in its checkpoint, see
            recipe_of_job and _follow_checkpoint.
    Returns: frozen Config; `config.given` holds the keys that were set by file or opts.
    Raises: ValueError on an unknown key, a value of the wrong kind, an impossible combination or unreadable YAML;
        FileNotFoundError when a file is missing.
    """
    config = _defaults().clone()
    config.defrost()
    given, opts = set(), list(opts or ())
    if len(opts) % 2:
        raise ValueError(f"--opts takes pairs KEY VALUE, but {len(opts)} words were given: {' '.join(map(str, opts))}.")
    from_checkpoint = bool(path) and is_checkpoint(path)
    if job and not path:
        path = recipe_of_job(dict(zip(opts[::2], opts[1::2], strict=True)), job)
        from_checkpoint = path != PROBE_RECIPE
    if from_checkpoint:
        _merge_checkpoint(config, path, given)
    elif path:
        place = _merge_file(config, path, given, chain=())
        if config.TAG == place.stem:  # a run that was begun under a former name of the recipe goes on in its folder
            config.TAG = Path(path).stem
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _set(config, str(key), value, given, source="--opts")
    if job:
        _follow_checkpoint(config, given, path, job)
    config.__dict__["given"] = frozenset(given)
    config.freeze()
    _check(config)
    return config


def find_recipe(path):
    """Where a recipe is: as named from here, else from the root of the repository, else under the name it has today, else the
    one of configs/ of that name.

    Returns: absolute Path, of a file that may not exist.
    """
    path = Path(expanded(path))
    places = [path, ROOT / path]
    if path.parent.name in MOVED:
        old, new = path.parent.name, MOVED[path.parent.name]
        name = path.name.replace(f"__{old}__", f"__{new}__")
        places += [folder.parent / new / name for folder in (path.parent, ROOT / path.parent)]
    place = next((place for place in places if place.is_file()), named_recipe(path) or path)
    if place in places[2:]:
        log.warning("%s is %s now", path, place.relative_to(ROOT) if place.is_relative_to(ROOT) else place)
    return Path(os.path.abspath(place))


def named_recipe(name):
    """Path of the recipe of configs/ that is called so, without its folder and with or without its ending; or None."""
    name = str(name).removesuffix(".yaml")
    return next((path for path in sorted((ROOT / "configs").glob("*/*.yaml")) if path.stem == name), None)


def _merge_file(config, path, given, chain):
    path = find_recipe(path)
    if path in chain:
        raise ValueError(f"{path} inherits from itself through BASE: {' -> '.join(map(str, (*chain, path)))}.")
    if not path.is_file():
        named = f" (named by BASE in {chain[-1]})" if chain else ""
        if path.is_dir():
            raise FileNotFoundError(f"config file {path} is a folder{named}: name a recipe in it, e.g. "
                                    f"{next((found.name for found in sorted(path.rglob('*.yaml'))), 'one of configs/')}.")
        raise FileNotFoundError(f"config file {path} does not exist{named}; the recipes are under configs/.")
    tree = read_tree(path)
    bases = tree.pop("BASE", None) or []
    for base in convert("BASE", settings()["BASE"], [bases] if isinstance(bases, str) else bases, path):
        if base:
            _merge_file(config, path.parent / base, given, (*chain, path))
    for key, value in flatten(tree).items():
        _set(config, key, value, given, source=path)
    return path


# ---- what a checkpoint says ---------------------------------------------------------------------------------------

def recipe_of_job(named, job):
    """What stands in for the recipe of a program that was given none: a checkpoint that keeps its settings, or PROBE_RECIPE.

    Args:
        named: {key: value} of the command line.
        job: name in JOBS.
    Raises: ValueError if there is none, or it is of another program.
    """
    resumed, pretrained = named.get("MODEL.RESUME"), named.get("PRETRAINED")
    if pretrained and not resumed and job == "probe":
        return PROBE_RECIPE
    path = resumed or (pretrained if {"EVAL_MODE", "THROUGHPUT_MODE"} & named.keys() else None)
    if not path:
        raise ValueError("--cfg is missing: name a recipe, see configs/ and docs/recipes.md. Without one --data-path <folder> "
                         "chooses settings by your images (main_simmim.py, main_finetune.py), and --resume <checkpoint> goes "
                         "on, or with --eval evaluates, by those that the checkpoint keeps.")
    task = read_kept(path).task
    if task and task != TASKS[list(JOBS).index(job)]:
        program = dict(zip(TASKS, JOBS.values(), strict=True))[task]
        raise ValueError(f"{path} is of {program}, not of {JOBS[job]}: use that, or --pretrained {path} with a --cfg.")
    return path


def _merge_checkpoint(config, path, given):
    """The settings that a checkpoint keeps, but for those of its start."""
    kept = read_kept(path).settings
    if not kept:
        raise ValueError(f"{path} keeps no settings of its model, as files of this repository do: name the recipe that it was "
                         f"made with as well (--cfg; --model of inference.py).")
    unknown = [key for key in kept if key not in settings()]
    if unknown:
        log.info("%s keeps %d settings that are not known here: %s", path, len(unknown), ", ".join(unknown[:4]))
    for key in kept.keys() - OF_A_START - {*unknown}:
        _set(config, key, kept[key], given, source=path)
    folder, own = Path(os.path.abspath(path)).parent, Path(config.MODEL.NAME, config.TAG)
    if folder.parts[-len(own.parts):] == own.parts:  # it lies in the folder of its run
        config.OUTPUT = str(Path(*folder.parts[:-len(own.parts)]))


def _follow_checkpoint(config, given, path, job):
    """Take from the checkpoint of a program what its settings leave open of the encoder, and refuse what contradicts it.

    A probe gets all that is not set; fine-tuning and pre-training do where they name no encoder. A file that keeps no settings,
    or is of another MODEL.TYPE that is set, changes nothing: loading tells whether it fits.
    """
    source = (config.MODEL.RESUME if config.EVAL_MODE else "") or config.PRETRAINED
    if not source or source == path or config.PROBE.RANDOM_ENCODER:
        return
    kept = read_kept(source).settings
    kind = kept.get("MODEL.TYPE")
    section = f"MODEL.{str(kind).upper()}."
    names_encoder = any(key == "MODEL.TYPE" or key.startswith(tuple(f"MODEL.{name.upper()}." for name in ENCODERS))
                        for key in given)
    if kind not in ENCODERS or (names_encoder and kind != config.MODEL.TYPE):
        return
    if job == "probe" or not names_encoder:
        for key, value in kept.items():
            if key not in given and key in settings() and (key in ("MODEL.TYPE", *OF_IMAGES) or key.startswith(section)):
                _set(config, key, value, given, source)
    if path == PROBE_RECIPE and "TAG" not in given:  # a run for each encoder
        config.TAG = "/".join([*(str(kept[key]) for key in ("MODEL.NAME", "TAG") if key in kept), Path(source).stem])
    check_heads(config, kept, source)


def check_heads(config, kept, path):
    """Refuse an encoder whose weights would mean something else, though their shapes are the same.

    Args:
        kept: {key: value} that the checkpoint of the weights keeps.
        path: of it.
    Raises: ValueError.
    """
    section = f"MODEL.{config.MODEL.TYPE.upper()}"
    for key in (f"{section}.{name}" for name in WITHOUT_SHAPE if name in config.MODEL[config.MODEL.TYPE.upper()]):
        now = encoder_config(config)[key.rpartition(".")[2]]
        then = convert(key, settings()[key], kept[key], path) if kept.get(key) is not None else now
        if then != now and kept.get("MODEL.TYPE") == config.MODEL.TYPE:
            raise ValueError(f"{key}={now}, and {path} was made with {then}, which the shapes of its weights do not show: use "
                             f"{key} {then}, or the recipe it was made with.")


def _set(config, key, value, given, source):
    if key == "BASE":
        raise ValueError(f"{source}: BASE names the files a YAML file inherits from; it can't be set otherwise.")
    if key not in settings():
        below = [name for name in settings() if name.startswith(f"{key}.")]
        if below:
            raise ValueError(f"{source}: {key} is a section, not a value; set one of "
                             f"{', '.join(name.removeprefix(f'{key}.') for name in below)}.")
        near = closest(key, settings())
        hint = f"; the closest valid key is {near}" if near else "; `python config.py` lists the valid keys"
        raise ValueError(f"{source}: unknown key {shown(key)}{hint}.")
    *sections, name = key.split(".")
    reduce(getitem, sections, config)[name] = convert(key, settings()[key], value, source)
    given.add(key)


# ---- checking -----------------------------------------------------------------------------------------------------

def _check(config):
    """Refuse what can't work, whatever the job; checks.py and `check_pretraining` know more."""
    for key, value in flatten(config).items():
        check(key, settings()[key], value)
    check_model(config)


# ---- what follows from a config -----------------------------------------------------------------------------------

def with_values(config, **values):
    """A frozen clone with other values; keys are written with double underscores: `TRAIN__BASE_LR=1e-3`."""
    clone = config.clone()
    clone.defrost()
    for key, value in values.items():
        _set(clone, key.replace("__", "."), value, set(), source="with_values")
    clone.freeze()
    return clone


def scaled_config(config, world_size):
    """A frozen clone whose three learning rates fit the global batch: rate x images per step / LR_SCALE_BATCH.

    The config itself keeps the raw rates, so that a saved config can be fed back (the official code overwrites them).
    Source: SimMIM (arXiv 2111.09886), official main_simmim.py.
    """
    factor = images_per_step(config, world_size) / config.TRAIN.LR_SCALE_BATCH
    return with_values(config, TRAIN__BASE_LR=config.TRAIN.BASE_LR * factor,
                       TRAIN__WARMUP_LR=config.TRAIN.WARMUP_LR * factor, TRAIN__MIN_LR=config.TRAIN.MIN_LR * factor)


def images_per_step(config, world_size):
    """Images of one optimizer step over all processes."""
    return config.DATA.BATCH_SIZE * world_size * max(config.TRAIN.ACCUMULATION_STEPS, 1)


def run_folder(config):
    """OUTPUT/MODEL.NAME/TAG, as in the official code."""
    return os.path.join(config.OUTPUT or "output", config.MODEL.NAME, config.TAG)


# ---- config.yaml of a run -----------------------------------------------------------------------------------------

def keys_of(config, job):
    """The keys that a job reads with this encoder and method, in the order of `settings`."""
    chosen = {config.MODEL.TYPE, *([config.MODEL.METHOD, *SHARED] if job == "pretrain" else [])}
    others = tuple(f"MODEL.{name.upper()}." for name in {*ENCODERS, *METHODS, *SHARED} - chosen)
    return [key for key, setting in settings().items()
            if key != "BASE" and job in (setting.jobs or JOBS) and not key.startswith(others)]


def dump(config, job):
    """The config as YAML: what the job reads, and whatever else has another value than its default, section by section."""
    leaves, read = flatten(config), keys_of(config, job)
    unread = [key for key, setting in settings().items() if key not in {"BASE", *read} and leaves[key] != setting.default]
    lines = [f"# What {JOBS[job]} reads; all settings: docs/settings.md. As --cfg, with another --tag, it repeats the run."]
    if unread:
        lines.append(f"# Set, but not read by it: {', '.join(unread)}")
    tree = nested({key: leaves[key] for key in settings() if key in {*read, *unread}})
    top = {name: tree.pop(name) for name in list(tree) if not isinstance(tree[name], dict)}
    for section, node in [*((name, {name: node}) for name, node in tree.items()), ("", top)]:
        lines += ["", f"# {TITLES[section]}", tree_text(node).rstrip()]
    return "\n".join(lines) + "\n"


def save_config(config, folder, job):
    """Write the config as <folder>/config.yaml; one that is there and differs, or is broken, is kept as config_<n>.yaml."""
    path = Path(folder) / "config.yaml"
    if path.exists():
        problem = _problem_of(path)
        if not problem and not differences(config, text_of(path)):
            return
        kept = next(name for n in range(1, 10 ** 6) if not (name := path.with_name(f"config_{n}.yaml")).exists())
        os.rename(path, kept)
        if problem:
            log.warning("%s; it is kept as %s, and written anew", problem, kept.name)
    os.makedirs(folder, exist_ok=True)
    write_text(path, dump(config, job))


def _problem_of(path):
    """Why a config.yaml is not what a run has written, or None. A run needs none to go on, so this does not stop it."""
    try:
        unknown = [key for key in flatten(read_tree(path)) if key not in settings()]
    except ValueError as error:
        return str(error).rstrip(".")
    return f"{path} has a key that is not known, {shown(unknown[0])}" if unknown else None


def differences(config, text):
    """What changed between a config stored as YAML text and this one: {key: (stored, now)}; what is not stored is default."""
    stored = flatten(_defaults()) | flatten(parse_tree(text))
    return {key: (stored.get(key), value) for key, value in flatten(config).items() if stored.get(key) != value}


# ---- the table of settings ----------------------------------------------------------------------------------------

def matching(pattern):
    """The keys whose name has `pattern` in it, or is it with shell wildcards; case does not matter. Raises: ValueError."""
    wanted = pattern.upper()
    found = [key for key in settings() if fnmatchcase(key, wanted if set("*?[") & set(wanted) else f"*{wanted}*")]
    if not found:
        near = closest(pattern, settings())
        raise ValueError(f"no setting has {pattern!r} in its name{f'; the closest is {near}' if near else ''}.")
    return found


def main(pattern):
    rows = [["key", "default", "valid", "read by", "meaning"]]
    for key in matching(pattern):
        rows.append([key, *settings()[key].row])
    print("\n".join(aligned(rows, num_left=5)))


if __name__ == "__main__":
    run(main, "".join(sys.argv[1:]))
