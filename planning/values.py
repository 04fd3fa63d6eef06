"""Settings that fit images and a machine, each with its reason: functions of facts alone.

What papers say stands with the name of the paper; everything else is our choice.
"""
import math
from dataclasses import dataclass, field

from planning.facts import Cost
from planning.sizes import size_of

OVERHEAD = 0.85  # share of the time that is left to training: the rest is the start, validation, pictures, checkpoints
MEMORY = 0.8  # share of the memory that a step may fill: estimates are not exact, and libraries take their own
STEPS = 1000  # that a run should have at least: batches are smaller where time is short
FEWEST_EPOCHS = 5  # below which a part of the images is trained on, so that the schedule has its shape
PRETRAINING_EPOCHS, PRETRAINING_SEEN = 800, 500_000  # SimMIM's; of few images more epochs, up to this number of images seen
TUNING_EPOCHS, TUNING_SEEN = 100, 1_000_000
MOST_EPOCHS = {"pretrain": 1600, "finetune": 300}
PICTURES = 10  # checkpoints and reconstructions of a run


@dataclass(frozen=True)
class Value:
    """One setting: key, value and why, in a few words; `ours` = nobody published it for such images."""
    key: str
    value: object
    why: str
    ours: bool = True


@dataclass
class Choice:
    """What was chosen for a run.

    Attributes:
        job: pretrain or finetune.
        values: [Value, ...].
        seconds: that the run will take, as measured.
        seen: images that it will see, each as often as it comes.
        notes: what the user should know, as sentences.
    """
    job: str
    values: list = field(default_factory=list)
    seconds: float = 0.0
    seen: int = 0
    notes: list = field(default_factory=list)

    def set(self, key, value, why, ours=True):
        """Choose a value, in the place of one that the key may have."""
        others = [found.key for found in self.values]
        place = others.index(key) if key in others else len(others)
        self.values[place:place + 1] = [Value(key, value, why, ours)]

    @property
    def settings(self):
        """{key: value}."""
        return {found.key: found.value for found in self.values}


# ---- which encoder ------------------------------------------------------------------------------------------------

def pick(encoders, images, machine, hours, cost_of):
    """The largest encoder that the images can teach, the memory holds and the time suffices for.

    Args:
        encoders: from sizes.encoders, from small to large.
        cost_of: Encoder -> Cost, measured or guessed.
    """
    def suits(encoder):
        cost = cost_of(encoder)
        return (images.number >= encoder.size.images and _largest_batch(machine, cost) >= 1
                and affordable(images, machine, cost, hours) >= encoder.size.seen)
    return next((encoder for encoder in reversed(encoders) if suits(encoder)), encoders[0])


def guessed(encoder, measured, cost):
    """Cost of an encoder from what was measured of another: time follows its multiply-adds, memory is not known."""
    return Cost(cost.seconds * encoder.work / measured.work)


def affordable(images, machine, cost, hours):
    """Images that can be seen in some hours."""
    return int(3600 * hours * OVERHEAD / seconds_an_image(images, machine, cost))


def seconds_an_image(images, machine, cost):
    """Of a run: a CPU reads and computes with the same cores, a GPU waits for the slower of the two."""
    computing = cost.seconds / machine.processes
    reading = images.read_seconds / (machine.cores * machine.processes / machine.local)
    return computing + reading if machine.kind == "cpu" else max(computing, reading)


def _largest_batch(machine, cost):
    """Images that fit into the memory of a device in a step."""
    room = MEMORY * machine.memory / (machine.local if machine.kind == "cpu" else 1) - cost.fixed
    return 2 ** 20 if not cost.activations else max(int(room / cost.activations), 0)


# ---- what all runs have -------------------------------------------------------------------------------------------

def _power(number):
    """The power of two nearest to a number, by ratio; at least 1."""
    return 2 ** max(round(math.log2(max(number, 1))), 0)


def _set_images(choice, images):
    share = f"{{:.0%}} of {images.looked_at} images"
    if images.transparent:
        dark = images.light > 0.75
        why = f"{share.format(images.transparent)} are transparent, what is drawn is {'light' if dark else 'seen on white'}"
        choice.set("DATA.BACKGROUND", "black" if dark else "white", why)
    if images.turned:
        choice.set("DATA.EXIF", True, f"{share.format(images.turned)} lie on a side, and their EXIF says so")
    if images.peak:
        bits = next((b for b in (10, 12, 14) if images.peak < 2 ** b), 16)
        if bits < 16:
            choice.set("DATA.WHITE", float(2 ** bits - 1), f"16-bit images hold {bits} bits: none is above {images.peak}")
    if images.moments:
        for key, numbers in zip(("DATA.MEAN", "DATA.STD"), images.moments, strict=True):
            choice.set(key, [round(number, 4) for number in numbers], "measured, each channel")


def _set_bad(choice, images):
    if images.bad:
        choice.set("DATA.MAX_BAD_FRACTION", bad_fraction(images), f"{images.bad:.1%} of {images.looked_at} images "
                   f"can't be read; twice as many may be")
        choice.notes.append("Images that can't be read are passed over; tools/check_data.py <folder> names them.")


def bad_fraction(images):
    """Share of images that may be unreadable where some were found to be: twice as many, and two."""
    return round(min(2 * images.bad + 2 / images.looked_at, 1.0), 3)


def _schedule(choice, number, images, machine, cost, hours):
    """Set batch, epochs and workers for a number of training images.

    Returns: (images of a step, images of an epoch, epochs).
    """
    wanted, seen = ((PRETRAINING_EPOCHS, PRETRAINING_SEEN) if choice.job == "pretrain" else (TUNING_EPOCHS, TUNING_SEEN))
    wanted = min(max(wanted, math.ceil(seen / number)), MOST_EPOCHS[choice.job])
    if number < machine.processes:
        raise ValueError(f"{number} training images for {machine.processes} processes: start at most {number}.")
    budget = max(affordable(images, machine, cost, hours), 1)
    by_data, by_time = _power(math.sqrt(number)), 2 ** int(math.log2(max(min(budget, wanted * number) / STEPS, 1)))
    batch = min(max(min(by_data, by_time), 16), 2 ** int(math.log2(number)))
    each = max(min(round(batch / machine.processes), number // machine.processes), 1)
    fits = _largest_batch(machine, cost)
    if not fits:
        raise ValueError(f"not one image fits into the {machine.memory / 2 ** 30:.1f} GB of {machine.name}: choose a smaller "
                         f"--encoder or DATA.IMG_SIZE.")
    micro = min(each, 2 ** int(math.log2(fits)))
    if choice.job == "finetune" and micro > 1:
        micro -= micro % 2  # mixup pairs them
    steps = max(min(round(each / micro), number // (micro * machine.processes)), 1)
    batch = micro * steps * machine.processes
    epochs = min(budget // number, wanted)
    used = number
    if epochs < min(FEWEST_EPOCHS, wanted):
        used = min(max(budget // FEWEST_EPOCHS, 4 * batch), number)
        epochs = max(min(FEWEST_EPOCHS, budget // used), 1)
    reason = "by the root of the number of images" if by_data <= by_time else "small, for enough steps in the time"
    choice.set("DATA.BATCH_SIZE", micro, f"{batch} images a step ({reason})"
               + (f", {machine.processes} processes" if machine.processes > 1 else ""))
    if steps > 1:
        choice.set("TRAIN.ACCUMULATION_STEPS", steps, f"{micro} images fit into {machine.memory / 2 ** 30:.0f} GB at once")
    choice.set("DATA.NUM_WORKERS", _workers(images, machine, cost),
               f"{machine.cores} cores, {1000 * images.read_seconds:.1f} ms to read an image")
    choice.seen = epochs * used
    choice.seconds = choice.seen * seconds_an_image(images, machine, cost) / OVERHEAD
    rate = 1 / seconds_an_image(images, machine, cost)
    limited = epochs < wanted or used < number
    choice.set("TRAIN.EPOCHS", epochs, f"{choice.seen:,} images seen: "
               + (f"what {hours:.2g} hours allow at {rate:,.0f} a second; {wanted} epochs would be better" if limited else
                  "few images need many epochs" if epochs > 100 else "enough"))
    return batch, used, epochs


def _workers(images, machine, cost):
    """Loader processes for each process: as many as reading needs, and no more than cores."""
    if machine.kind == "cpu":
        return min(max(machine.cores // machine.local - 1, 1), 4)
    needed = math.ceil(1.5 * images.read_seconds / max(cost.seconds, 1e-9)) + 1
    return max(min(needed, machine.cores // machine.local, 32), 1)


def _set_rates(choice, peak, batch, epochs, why, ours=True):
    warmup = min(max(round(epochs / 10), 1), 40) if epochs > 2 else 0
    choice.set("TRAIN.LR_SCALE_BATCH", batch, "the rates below are those of a step of this recipe", False)
    choice.set("TRAIN.BASE_LR", _rounded(peak), why, ours)
    choice.set("TRAIN.WARMUP_LR", _rounded(peak / 1000), "a thousandth")
    choice.set("TRAIN.MIN_LR", _rounded(peak / 100), "a hundredth")
    choice.set("TRAIN.WARMUP_EPOCHS", warmup, "a tenth of the run, at most 40")


def _rounded(rate):
    return float(f"{rate:.2g}")


def _set_run(choice, epochs, number, batch):
    every = max(math.ceil(epochs / PICTURES), 1)
    choice.set("SAVE_FREQ", every, f"about {PICTURES} checkpoints")
    choice.set("SAVE_KEEP", 2, "the last two, and the best")
    choice.set("PRINT_FREQ", min(max(number // batch, 1), 50), "lines of the log")
    if choice.job == "pretrain":
        choice.set("VIS_FREQ", every, f"about {PICTURES} pictures of reconstructions")


# ---- pre-training -------------------------------------------------------------------------------------------------

def unit_of(side, patch):
    """Side of a mask unit: the largest multiple of a patch that divides the image and is at most a sixth of it.

    32 pixels of 192 and of 224, as SimMIM (section 4.1.1), and in proportion below.
    """
    fitting = [unit for unit in range(patch, side + 1, patch) if side % unit == 0]
    return max((unit for unit in fitting if unit <= side / 6), default=min(fitting, default=patch))


def of_encoder(encoder, images):
    """{key: value} that make an encoder and its masks, whatever it is trained for, with reasons: [Value, ...]."""
    size, section = encoder.size, f"MODEL.{encoder.family.upper()}."
    found = [Value(key, value, "") for key, value in encoder.settings.items()]
    why = f"{size.name}: the largest for {images.number:,} images and this time"
    found[0] = Value("MODEL.TYPE", encoder.family, why)
    if images.channels != 3:
        found.append(Value(section + "IN_CHANS", images.channels, "grey images" if images.channels == 1 else "of the arrays"))
    small = encoder.side > images.short_side
    found.append(Value("DATA.IMG_SIZE", encoder.side,
                       f"images of {images.short_side} pixels (short side, median){', enlarged' if small else ''}"))
    return found


def pretraining(images, machine, encoder, cost, hours):
    """Choice for SimMIM of an encoder.

    Args:
        images, machine, cost: facts.
        encoder: sizes.Encoder.
        hours: that it may take.
    Raises: ValueError where it can't be trained.
    """
    choice = Choice("pretrain", of_encoder(encoder, images))
    size, unit = encoder.size, unit_of(encoder.side, encoder.patch)
    choice.set("MODEL.METHOD", "simmim", "arXiv 2111.09886", False)
    choice.set("MODEL.DROP_PATH_RATE", 0.0, "as SimMIM's Swin-B", False)
    if encoder.family == "vit":
        choice.set("MODEL.VIT.USE_SHARED_RPB", True, "as SimMIM's ViT-B", False)
    _set_images(choice, images)
    _set_bad(choice, images)
    choice.set("DATA.MASK_PATCH_SIZE", unit, f"{encoder.side // unit} units a side; SimMIM: 6 of 192 pixels", unit != 32)
    choice.set("DATA.MASK_RATIO", 0.6, "SimMIM, section 4.1.1", False)
    batch, used, epochs = _schedule(choice, images.number, images, machine, cost, hours)
    if used < images.number:
        choice.set("DATA.LIMIT", used, f"evenly spread: of {images.number:,} not all could be seen {FEWEST_EPOCHS} times")
    peak = size.rate * min(math.sqrt(batch / size.batch), 1)
    _set_rates(choice, peak, batch, epochs, f"of this width: {size.rate:g} at {size.batch} images a step, root of smaller ones")
    _set_run(choice, epochs, used, batch)
    return choice


# ---- fine-tuning --------------------------------------------------------------------------------------------------

def finetuning(images, machine, encoder_values, cost, hours):
    """Choice for fine-tuning a classifier.

    Args:
        encoder_values: [Value, ...] of MODEL.TYPE, its section and DATA.*: what a checkpoint keeps, or of_encoder.
    Raises: ValueError without labels, or where it can't be trained.
    """
    if images.classes < 2:
        raise ValueError("fine-tuning needs labels: a folder for each of several classes, with its images.")
    choice = Choice("finetune", list(encoder_values))
    settings = choice.settings
    family = settings["MODEL.TYPE"]
    section = f"MODEL.{family.upper()}."
    width = settings.get(section + "EMBED_DIM", 96)
    size = size_of(family, width if isinstance(width, int) else width[-1])
    choice.set("DATA.DATASET", "folder", f"{images.classes} folders of classes", False)
    if not images.has_validation:
        choice.set("DATA.VAL_FRACTION", 0.1, "no val/: a tenth of each class is held out")
        choice.notes.append("Pre-training on the same folder has seen the held-out images, too, without labels.")
    if "DATA.BACKGROUND" not in settings:
        _set_images(choice, images)
    _set_bad(choice, images)
    batch, used, epochs = _schedule(choice, max(images.labelled, 1), images, machine, cost, hours)
    if used < images.labelled:
        choice.set("DATA.IMAGES_PER_CLASS", max(used // images.classes, 1), "so many can be seen in the time")
    peak = size.tuning_rate * min(math.sqrt(batch / size.tuning_batch), 1)
    _set_rates(choice, peak, batch, epochs,
               f"{size.tuning_rate:g} at {size.tuning_batch} images a step, root of smaller ones")
    choice.set("TRAIN.LAYER_DECAY", size.layer_decay, "smaller steps in lower layers", size.name != "base")
    if family == "vit":
        has_positions = settings.get(section + "USE_APE") or settings.get(section + "USE_SINCOS_APE")
        tables = {} if has_positions else {"USE_RPB": True, "USE_SHARED_RPB": False}
        for name, value in {**tables, "USE_MEAN_POOLING": True}.items():
            choice.set(section + name, value, "as MAE's ViT-B" if has_positions else "as SimMIM's ViT-B", False)
    pairs = choice.settings["DATA.BATCH_SIZE"] % 2 == 0
    _set_augmentation(choice, settings.get(section + "IN_CHANS", 3), epochs, pairs and epochs >= 50 and size.images >= 2000)
    _set_run(choice, epochs, used, batch)
    return choice


def _set_augmentation(choice, channels, epochs, strong):
    pictures = channels in (1, 3)
    why = (f"{epochs} epochs are time enough for strong augmentation" if strong else
           f"weak augmentation: {epochs} epochs of a small model")
    choice.set("AUG.AUTO_AUGMENT", "rand-m9-mstd0.5-inc1" if strong and pictures else "none",
               why if pictures else "it is for pictures", not strong)
    choice.set("AUG.COLOR_JITTER", 0.2 if channels == 3 else 0.0, "as above" if channels == 3 else "for colours")
    choice.set("AUG.CROP_SCALE", [0.25, 1.0] if strong else [0.6, 1.0], "share of the area that a crop shows")
    for key, value in (("REPROB", 0.25), ("MIXUP", 0.8), ("CUTMIX", 1.0)):
        choice.set(f"AUG.{key}", value if strong else 0.0, "as above", not strong)
    choice.set("MODEL.DROP_PATH_RATE", 0.1 if strong else 0.0, "as above", not strong)
