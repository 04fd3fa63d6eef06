"""From a name, a recipe or a config to a model that knows what it is for and how its images are prepared."""
import logging
from dataclasses import dataclass, field
from pathlib import Path

from config import Config, check_heads, find_recipe, flatten, load_config, named_recipe, with_values
from defaults import settings
from models.build import build_model
from models.probe import LinearProbe, build_probe
from models.weights import zoo
from models.weights.heads import read_head
from models.weights.pretrained import Report, load_pretrained
from utils.checkpoint import load_checkpoint, weights_of
from utils.finite import check_finite
from utils.kept import is_checkpoint, read_kept
from utils.registry import pick
from utils.settings import JOBS, LABELLED, TASKS
from utils.sharding import assign

log = logging.getLogger("simmim.recipes")

ROOT = Path(__file__).resolve().parent
TASK_OF_JOB = dict(zip(JOBS, TASKS, strict=True))
NAMES = {"pretrain": "pretrain", "finetune": "classification", "linprobe": "probe"}  # what MODEL.NAME may contain
WORDS = {"num_classes": "MODEL.NUM_CLASSES", "img_size": "DATA.IMG_SIZE", "in_chans": "MODEL.{}.IN_CHANS",
         "window_size": "MODEL.{}.WINDOW_SIZE", "drop_path_rate": "MODEL.DROP_PATH_RATE", "drop_rate": "MODEL.DROP_RATE",
         "pretrained_key": "PRETRAINED_KEY"}
# how a probe's normalisation and linear layer are named: here and in the official MAE; in mmpretrain and mmselfsup
PROBE_HEADS = (("head.0.", "head.1."), ("neck.bn.", "head.layers.head."))


@dataclass
class Recipe:
    """What a model was made from; inference.get_model leaves it on the model as `model.recipe`.

    Attributes:
        config: from load_config; says how images are prepared.
        task: one of TASKS.
        name: for messages.
        classes: names of the classes, or None.
        report: what became of the weights' names, see models.weights.pretrained.Report; None where none were loaded.
    """
    config: Config
    task: str
    name: str = "the model"
    classes: list | None = None
    report: Report | None = field(default=None, repr=False)

    def lacks(self, part):
        """Whether weights were loaded, but not those of a part (`head.`, `decoder.`)."""
        return self.report is not None and any(name.startswith(part) for name in self.report.missing)


def task_of(config, name="the config"):
    """What a recipe is for: pretrain, classification or probe.

    The settings it makes tell: those that, as declared, only one job reads, or only those with labels (which are taken for
    fine-tuning where nothing says probe). Where they tell nothing, or several things, as they do for a Config, MODEL.NAME
    does, if it holds pretrain, finetune or linprobe.
    Raises: ValueError where neither does.
    """
    readers = {settings()[key].jobs or () for key in config.given}
    set_for = {TASK_OF_JOB[jobs[0]] for jobs in readers if len(jobs) == 1}
    if config.TRAIN.OPTIMIZER.NAME == "lars":
        set_for.add("probe")
    if LABELLED in readers and "probe" not in set_for:
        set_for.add("classification")
    if len(set_for) == 1:
        return set_for.pop()
    named = {task for word, task in NAMES.items() if word in config.MODEL.NAME}
    if len(named) == 1:
        return named.pop()
    found = f"has settings of {' and '.join(sorted(set_for))}" if set_for else "has no setting that only one task reads"
    raise ValueError(f"{name} does not tell what it is for: it {found}, and MODEL.NAME={config.MODEL.NAME!r} says none of "
                     f"{', '.join(NAMES)}. Pass task= to get_model (--task), {', '.join(TASKS[:-1])} or {TASKS[-1]}.")


def build(recipe):
    """The model of a recipe: a method, an encoder with a head, or a LinearProbe, with initial weights."""
    if recipe.task == "probe":
        return build_probe(recipe.config, recipe.config.MODEL.NUM_CLASSES)
    return build_model(recipe.config, recipe.task == "pretrain")


def open_recipe(model, task=None, overrides=None):
    """What to build.

    Args:
        model: name or alias in the zoo, path of a YAML file, or name of one in configs/, path of a checkpoint that keeps its
            settings, or Config.
        task: one of TASKS; None = that of the zoo, or what the recipe tells, see task_of, or the names of the weights.
        overrides: {config key or word of WORDS: value}.
    Returns: (Recipe, zoo entry or None).
    Raises: ValueError, FileNotFoundError.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task={task!r} is unknown; valid: {', '.join(TASKS)}.")
    entry, path, opts = None, None, []
    if not isinstance(model, (str, Path, Config)):
        raise ValueError(f"a {type(model).__name__} was given as the model, expected a name from list_models(), the path of a "
                         f"recipe, or a Config.")
    if isinstance(model, Config):
        name, opts = "the config", [word for key, value in flatten(model).items() if key != "BASE" for word in (key, value)]
        config = model
    else:
        if is_checkpoint(model):
            name = path = str(model)
            task = task or read_kept(path).task or "pretrain"  # an encoder alone is of pre-training
        elif isinstance(model, Path) or str(model).endswith((".yaml", ".yml")) or named_recipe(model):
            name, path = str(model), find_recipe(model)
        else:
            entry = zoo.find(model)
            name, path, opts = entry.name, ROOT / _recipe_of(entry), list(entry.opts)
        config = load_config(path, opts)
    if entry is not None and task == "pretrain" != entry.task:
        raise ValueError(f"{name} is a classifier, and its recipe does not say how it was pre-trained: choose a name of "
                         f"list_models(task=\"pretrain\").")
    task = task or (task_of(config, name) if entry is None else "probe" if entry.linear_probe else entry.task)
    if task == "pretrain" and overrides and {"num_classes", "MODEL.NUM_CLASSES"} & overrides.keys():
        raise ValueError(f"num_classes: {name} is a pre-training model, which has no classes. Add task=\"classification\" for "
                         f"its encoder with a head.")
    if overrides:
        config = load_config(path, [*opts, *_settings(overrides, config)])
    return Recipe(config, task, name), entry


def _recipe_of(entry):
    if not entry.config:
        raise ValueError(f"{entry.name} can't be built here: {entry.obstacle}.")
    return entry.config


def _settings(overrides, config):
    """{key or word: value} -> [KEY, value, ...]."""
    opts = []
    for key, value in overrides.items():
        if key.upper() != key:
            key = pick(WORDS, key, "keyword").format(config.MODEL.TYPE.upper())
        if key in opts[::2]:
            raise ValueError(f"{key} is given twice, as a word and by its key: leave one out.")
        opts += [key, value]
    return opts


def fit_head(recipe, path):
    """Have a model get the head that a checkpoint has, where the number of classes is not set."""
    if recipe.task == "pretrain" or "MODEL.NUM_CLASSES" in recipe.config.given:
        return
    head = read_head(path, recipe.config.PRETRAINED_KEY)
    if head.size and head.size != recipe.config.MODEL.NUM_CLASSES:
        log.info("%s has a head for %d classes, and so has the model", path, head.size)
        recipe.config = with_values(recipe.config, MODEL__NUM_CLASSES=head.size)


def load_into(model, recipe, path):
    """Load a checkpoint into a built model; `recipe.report` then tells what became of it. A probe gets its head as well.

    The names of the classes are the file's, where it keeps some for this head and none were given. Parts that stay random
    are said in a warning.
    Raises: as models.weights.pretrained.load_pretrained.
    """
    check_heads(recipe.config, read_kept(path).settings, path)
    is_probe = isinstance(model, LinearProbe)
    report = recipe.report = load_pretrained(model.encoder if is_probe else model, path, recipe.config.PRETRAINED_KEY)
    if is_probe:
        _load_head(model, report, recipe.config.PRETRAINED_KEY)
    if recipe.classes is None and len(report.classes) == recipe.config.MODEL.NUM_CLASSES and not recipe.lacks("head."):
        recipe.classes = report.classes
    if recipe.lacks("head."):
        log.warning("%s has no head for %d classes: the head of the model is random, its predictions mean nothing before it is "
                    "trained", path, recipe.config.MODEL.NUM_CLASSES)
    if recipe.lacks("decoder."):
        log.warning("%s has no decoder that fits: that of the model is random. Features are those of the file; reconstructions "
                    "need a full checkpoint (ckpt_epoch_N.pth)", path)


def _load_head(probe, report, key):
    given, own = weights_of(load_checkpoint(report.path, moments=False), key), probe.head.state_dict()
    for norm, linear in PROBE_HEADS:
        theirs = {name: f"head.{name}".replace("head.0.", norm).replace("head.1.", linear) for name in own}
        if all(there in given and given[there].shape == own[name].shape for name, there in theirs.items()):
            taken = {name: given[there] for name, there in theirs.items()}
            check_finite({theirs[name]: value for name, value in taken.items()}, report.path)
            assign(probe.head, taken)
            report.matched += [f"head.{name}" for name in own]
            report.unexpected = [name for name in report.unexpected if name not in theirs.values()]
            return
    report.missing += [f"head.{name}" for name in own]
