"""A choice as a recipe that people read, and the commands that come before and after it."""
import math
import shlex
from datetime import datetime, timedelta

from planning.values import bad_fraction
from utils.names import shown
from utils.yaml_files import nested, tree_text

SECTIONS = ("MODEL", "DATA", "TRAIN", "AUG")  # in this order; what has no section last
TITLES = {"pretrain": "SimMIM (arXiv 2111.09886): pre-training", "finetune": "fine-tuning"}
PROGRAMS = {"pretrain": "main_simmim.py", "finetune": "main_finetune.py"}
WIDEST = 128
HOURS_LINE = "# Chosen for --hours "
PROBED = 128  # images of a step of configs/probe, too many for a small folder


def command(*words):
    """A command line that can be pasted into a shell."""
    return shlex.join(map(str, ("python", *words)))


def recipe_text(choice, images, machine, folder, path, hours=None):
    """A choice as a YAML file with a reason for each value.

    Args:
        folder: of the images.
        path: of the recipe.
        hours: that were asked for; None = nothing was said of them.
    """
    kind = f"{machine.name}, {machine.cores} cores" if machine.kind == "cpu" else f"{machine.processes} x {machine.name}"
    lines = [f"# {TITLES[choice.job]} on {images.number:,} images of {shown(folder)}",
             f"# Expected: about {duration(choice.seconds)}, {choice.seen:,} images seen; no accuracy is known before",
             f"# Hardware: {kind}",
             f"# Command:  {command(PROGRAMS[choice.job], '--cfg', path)}",
             f"# Chosen on {datetime.now():%Y-%m-%d %H:%M} by {images.looked_at:,} of the images and by steps timed here.",
             *([f"{HOURS_LINE}{hours:g}"] if hours else []), "# \"ours\" marks what no paper says.",
             *(f"# {note}" for note in choice.notes)]
    return "\n".join([*lines, *_lines(choice)]) + "\n"


def chosen_hours(text):
    """The hours that a recipe, as `recipe_text` gives it, was asked to take; None where nothing was said of them."""
    return next((float(line.removeprefix(HOURS_LINE)) for line in text.splitlines() if line.startswith(HOURS_LINE)), None)


def _lines(choice):
    tree = nested({found.key: found for found in choice.values})
    top = {name: tree.pop(name) for name in list(tree) if not isinstance(tree[name], dict)}
    order = sorted(tree, key=lambda name: SECTIONS.index(name) if name in SECTIONS else len(SECTIONS))
    return [*(line for name in order for line in _section(name, tree[name], "")), *_section(None, top, "")]


def _section(name, node, indent):
    if name:
        yield f"{indent}{name}:"
        indent += "  "
    for key, found in sorted(node.items(), key=lambda item: isinstance(item[1], dict)):
        if isinstance(found, dict):
            yield from _section(key, found, indent)
            continue
        line = indent + tree_text({key: found.value}).rstrip()
        why = found.why and f"# {'ours: ' if found.ours else ''}{found.why}"
        if why and len(f"{line}  {why}") > WIDEST:
            yield f"{indent}{why}"
            why = ""
        yield f"{line}  {why}" if why else line


def summary(choice, images, machine):
    """What was chosen, in a few lines."""
    values, family = choice.settings, choice.settings["MODEL.TYPE"]
    batch, steps = values["DATA.BATCH_SIZE"] * machine.processes, values.get("TRAIN.ACCUMULATION_STEPS", 1)
    what = next(found.why for found in choice.values if found.key == "MODEL.TYPE")
    end = datetime.now() + timedelta(seconds=choice.seconds)
    lines = [f"encoder: {family}{f' ({what})' if what else ''}, {values['DATA.IMG_SIZE']} px"]
    if choice.job == "pretrain":
        lines.append(f"masks: units of {values['DATA.MASK_PATCH_SIZE']} px, {values['DATA.MASK_RATIO']:.0%} hidden")
    return [*lines, f"{values['TRAIN.EPOCHS']} epochs, {batch * steps} images a step, {choice.seen:,} images seen, "
                    f"learning rate {values['TRAIN.BASE_LR']:.1e}",
            f"expected: {duration(choice.seconds)}, until {end:%H:%M}{f' on {end:%d %B}' if choice.seconds > 86400 else ''}",
            *choice.notes]


def found_text(images):
    """What was seen of a folder, in a line."""
    parts = [f"{images.number:,} images, {images.looked_at:,} of them looked at: {images.short_side} px (short side, median)",
             {1: "grey", 3: "colours"}.get(images.channels, f"{images.channels} channels")]
    for share, what in ((images.transparent, "transparent"), (images.turned, "turned by EXIF"), (images.bad, "unreadable")):
        parts += [f"{share:.1%} {what}"] if share else []
    parts.append(f"{images.classes} classes" if images.classes else "no folders of classes")
    return ", ".join(parts)


def duration(seconds):
    """A time in words that suit its length."""
    for limit, size, unit in ((120, 1, "seconds"), (7200, 60, "minutes"), (172800, 3600, "hours")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def next_commands(choice, images, folder, run, tuned):
    """Commands that follow a run, each with what it does: [(title, command line), ...].

    Args:
        images: planning.facts.Images.
        folder: of the images.
        run: folder of this run.
        tuned: folder of the run that fine-tunes.
    """
    data, encoder, best = ("--data-path", folder), f"{run}/encoder.pth", f"{tuned}/ckpt_best.pth"
    found = []
    if choice.job == "pretrain":
        found.append(("fine-tune", command("main_finetune.py", "--pretrained", encoder, *data)))
    found += [("evaluate, each class", command("main_finetune.py", "--eval", "--resume", best, *data)),
              ("predict", command("inference.py", "--weights", best, folder))]
    if choice.job == "pretrain":
        small = images.labelled < 8 * PROBED
        size = ("--batch-size", 2 ** int(math.log2(max(images.labelled / 8, 1)))) if small else ()
        bad = ("--opts", "DATA.MAX_BAD_FRACTION", bad_fraction(images)) if images.bad else ()
        found += [("probe the encoder", command("main_linprobe.py", "--pretrained", encoder, *data, *size, *bad)),
                  features_command(folder, run)]
    return found


def features_command(folder, run):
    """A vector for each image."""
    return "features", command("inference.py", "--weights", f"{run}/encoder.pth", folder, "--features", "features.npz",
                               "--output", "pooled")


def unlabelled_commands(folder, run):
    """The same where there are no classes."""
    return [features_command(folder, run)]
