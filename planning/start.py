"""From a folder of images to a recipe, for tools/recipe.py and for programs that are started without --cfg."""
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from config import OF_IMAGES, load_config
from data.splits import kind_of
from defaults import settings
from logger import create_logger
from planning import values
from planning.facts import Images, Machine
from planning.looking import look
from planning.machine import LONGEST, look_at_machine, measured
from planning.recipe import chosen_hours, found_text, next_commands, recipe_text, summary, unlabelled_commands
from planning.sizes import FAMILIES, encoders
from utils import distributed
from utils.checkpoint import checkpoints
from utils.files import expanded, write_text
from utils.kept import read_kept
from utils.names import shown
from utils.settings import convert
from utils.yaml_files import flatten, read_tree

log = logging.getLogger("simmim.planning")

FILE = "recipe.yaml"  # in the folder of a run that was started without --cfg
HOURS = {"cpu": 1.0}  # that a run may take unless --hours says so
OTHER_HOURS = 8.0
NAMES = {"pretrain": "simmim_pretrain", "finetune": "simmim_finetune"}  # MODEL.NAME
WITHOUT = {"MODEL.RESUME", "EVAL_MODE", "THROUGHPUT_MODE"}  # with these nothing is chosen


@dataclass
class Plan:
    """A choice, and what it was made by: images, machine, the folder of the images as an absolute path, --hours or None."""
    choice: values.Choice
    images: Images
    machine: Machine
    folder: str
    hours: float | None = None

    def name_run(self, tag, name):
        """Give the run its folder and its images."""
        self.choice.set("DATA.DATA_PATH", self.folder, "", False)
        self.choice.set("MODEL.NAME", name, "", False)
        self.choice.set("TAG", tag, "", False)

    def text(self, path):
        return recipe_text(self.choice, self.images, self.machine, self.folder, path, self.hours)

    def commands(self, output):
        """What comes after the run, see planning.recipe.next_commands."""
        tag = self.choice.settings["TAG"]
        run = os.path.join(output, self.choice.settings["MODEL.NAME"], tag)
        if not self.images.classes:
            return unlabelled_commands(self.folder, run)
        tuned = os.path.join(output, NAMES["finetune"], tag) if self.choice.job == "pretrain" else run
        return next_commands(self.choice, self.images, self.folder, run, tuned)

    def lines(self):
        """What was found and chosen, for people."""
        found = [found_text(self.images), *summary(self.choice, self.images, self.machine)]
        return found if self.images.classes else [*found, "fine-tuning and probes need labels: a folder for each class"]


# ---- choosing -----------------------------------------------------------------------------------------------------

def plan(folder, job, given, hours=None, device=None):
    """Look at images and the machine, time some steps, choose.

    Args:
        folder: of the images.
        job: pretrain or finetune.
        given: {key: value} that the user has set; MODEL.TYPE, DATA.IMG_SIZE, IN_CHANS and PRETRAINED are reckoned with.
        hours: that the run may take, this included; None = HOURS of the device.
        device: torch.device; None = that of distributed.start.
    Returns: Plan.
    Raises: ValueError where nothing can be chosen.
    """
    begun = time.monotonic()
    if given.get("MODEL.METHOD", "simmim") != "simmim":
        raise ValueError(f"without --cfg settings are chosen for simmim, not for MODEL.METHOD={given['MODEL.METHOD']}: name a "
                         f"recipe of it, see docs/recipes.md.")
    device = device or distributed.start()
    machine = look_at_machine(device)
    channels = next((int(value) for key, value in given.items() if key.endswith(".IN_CHANS")), None)
    log.info("looking at the images of %s", shown(folder))
    images = look(folder, machine.cores, channels)
    asked, hours = hours, hours or HOURS.get(machine.kind, OTHER_HOURS)
    longest = min(LONGEST, 3600 * hours / 50)

    def left():
        return max(hours - (time.monotonic() - begun) / 3600, hours / 10)

    if job == "finetune" and images.classes < 2:
        raise ValueError(f"{shown(folder)} has no folders of classes: fine-tuning needs labels, a folder for each of several "
                         f"classes. Pre-training (main_simmim.py) and features (inference.py --features) do without.")
    if job == "finetune" and given.get("PRETRAINED"):
        of_encoder = kept_values(given["PRETRAINED"])
        cost = _measured(of_encoder, job, images, device, machine, longest)
    else:
        encoder, cost = _encoder(images, machine, given, left(), device, job, longest)
        of_encoder = values.of_encoder(encoder, images)
    if job == "pretrain":
        choice = values.pretraining(images, machine, encoder, cost, left())
    else:
        choice = values.finetuning(images, machine, of_encoder, cost, left())
    return Plan(choice, images, machine, os.path.abspath(expanded(folder)), asked)


def kept_values(path):
    """What a checkpoint keeps of its encoder and its images: [values.Value, ...]. Raises: ValueError if it keeps nothing."""
    kept = read_kept(path).settings
    family = kept.get("MODEL.TYPE")
    if not family:
        raise ValueError(f"{path} keeps no settings of its model, as files of this repository do: name a recipe with --cfg.")
    section = f"MODEL.{str(family).upper()}."
    keys = [key for key in kept if key in settings() and (key in ("MODEL.TYPE", *OF_IMAGES) or key.startswith(section))]
    return [values.Value(key, convert(key, settings()[key], kept[key], path), "as the checkpoint keeps it"
                         if key == "MODEL.TYPE" else "", False) for key in keys]


def _encoder(images, machine, given, hours, device, job, longest):
    """(sizes.Encoder, its Cost): the smallest one is timed, larger ones guessed from it, and the one that is picked timed."""
    family = given.get("MODEL.TYPE", "swin")
    if family not in FAMILIES:
        raise ValueError(f"without --cfg the encoder is one of {', '.join(FAMILIES)}, not MODEL.TYPE={family} (--encoder): "
                         f"name a recipe of it, see docs/recipes.md.")
    side = given.get("DATA.IMG_SIZE")
    every = encoders(family, images.short_side, None if side is None else _whole(side))
    costs = {}  # {name: (sizes.Encoder, Cost)}

    def cost_of(encoder):
        if encoder.name in costs:
            return costs[encoder.name][1]
        return values.guessed(encoder, *next(iter(costs.values())))

    chosen = every[0]
    while chosen.name not in costs:
        log.info("timing %s at %d px", chosen.name, chosen.side)
        costs[chosen.name] = chosen, _measured(values.of_encoder(chosen, images), job, images, device, machine, longest)
        chosen = values.pick(every, images, machine, hours, cost_of)
    return costs[chosen.name]


def _whole(side):
    try:
        return int(side)
    except ValueError:
        raise ValueError(f"DATA.IMG_SIZE={side}: without --cfg images are square, of e.g. 96 pixels.") from None


def _measured(of_encoder, job, images, device, machine, longest):
    found = {value.key: value.value for value in of_encoder}
    if job == "pretrain":
        family = found["MODEL.TYPE"].upper()
        found["DATA.MASK_PATCH_SIZE"] = values.unit_of(found["DATA.IMG_SIZE"], found[f"MODEL.{family}.PATCH_SIZE"])
    else:
        found["MODEL.NUM_CLASSES"] = images.classes
    config = load_config(None, [word for pair in found.items() for word in pair])
    return measured(config, job == "pretrain", device, machine, longest)


# ---- programs without --cfg ---------------------------------------------------------------------------------------

def with_recipe(cfg, opts, job):
    """The recipe of a program: that of --cfg, or one that is chosen by its images, once for all its processes and starts.

    Args:
        cfg, opts: from utils.cli.parse_arguments; HOURS among opts is that of --hours.
        job: pretrain or finetune.
    Returns: (cfg, opts) for load_config. Without --cfg and without images both are as they were.
    Raises: ValueError where --hours says nothing, or nothing can be chosen.
    """
    hours = None
    if "HOURS" in opts[::2]:
        place = 2 * opts[::2].index("HOURS")
        hours, opts = float(opts[place + 1]), opts[:place] + opts[place + 2:]
    given = dict(zip(opts[::2], opts[1::2], strict=False))
    if cfg or WITHOUT & given.keys() or not given.get("DATA.DATA_PATH"):
        if hours:
            raise ValueError("--hours bounds a run whose settings are chosen: it needs --data-path, and no --cfg or --resume. "
                             "With a recipe TRAIN.EPOCHS is its length.")
        return cfg, opts
    device = distributed.start(int(given.get("LOCAL_RANK", 0)), float(given.get("DIST_TIMEOUT_MINUTES", 30)))
    create_logger(distributed.rank())
    path = distributed.from_rank0(str(_recipe_of(given, job, hours, device)) if distributed.rank() == 0 else None)
    return path, opts


def _recipe_of(given, job, hours, device):
    """Path of the recipe in the folder of a run: written by an earlier start, or now."""
    folder, output = given["DATA.DATA_PATH"], given.get("OUTPUT") or "output"
    name, tag = given.get("MODEL.NAME", NAMES[job]), given.get("TAG")
    keep_out(output, folder, "--output")
    run = Path(expanded(output), name, tag) if tag else free_run(Path(expanded(output), name), default_tag(folder, job, given),
                                                                 folder)
    path = run / FILE
    if path.exists():
        then = chosen_hours(path.read_text(encoding="utf-8"))
        if hours and hours != then:
            raise ValueError(f"{path} was chosen {f'for --hours {then:g}' if then else 'without --hours'}: to go on with it, "
                             f"leave out --hours {hours:g}; to choose anew, start another run with --tag "
                             f"{run.name}_{hours:g}h.")
        log.info("%s: the recipe that was chosen before; another --tag chooses anew", path)
        return path
    if checkpoints(run):
        raise ValueError(f"{run} holds a run of a recipe that was named: go on with that --cfg, or start another run with "
                         f"--tag.")
    found = plan(folder, job, given, hours, device)
    found.name_run(run.name if not tag else tag, name)
    write_text(path, found.text(str(path)))
    if job == "finetune" and not given.get("PRETRAINED"):
        log.warning("no --pretrained checkpoint: the encoder is chosen, and trained from scratch")
    log.info("\n".join([f"chosen for {shown(folder)} (each value with its reason: {path}):", *found.lines()]))
    log.info("\n".join(["afterwards:", *(line for _, line in found.commands(output))]))
    return path


def default_tag(folder, job, given):
    """TAG of a run on a folder: its name, without what a folder's name can't have."""
    path = Path(os.path.abspath(expanded(folder)))
    name = path.parent.name if kind_of(path.name) and path.parent.name else path.name
    tag = re.sub(r"[^\w.-]+", "_", name).strip("._-") or "images"
    return tag if job == "pretrain" or given.get("PRETRAINED") else f"{tag}_scratch"


def free_run(parent, tag, folder):
    """The folder of a run on these images: one that was begun, or a new one; not of other images of the same name."""
    number = 1
    while True:
        run = parent / (tag if number == 1 else f"{tag}_{number}")
        if not run.exists() or _is_of(run / FILE, folder):
            return run
        number += 1


def _is_of(recipe, folder):
    try:
        there = flatten(read_tree(recipe)).get("DATA.DATA_PATH", "")
    except (OSError, ValueError):  # none, or of another kind
        return False
    return os.path.realpath(str(there)) == os.path.realpath(expanded(folder))


def keep_out(place, folder, flag):
    """Refuse a place to write to that lies in the folder of the images. Raises ValueError."""
    inside, images = Path(expanded(place)).resolve(), Path(expanded(folder)).resolve()
    if images == inside or images in inside.parents:
        raise ValueError(f"{inside} lies in the folder of the images, into which nothing is written: choose another place with "
                         f"{flag}, or start from another folder.")

