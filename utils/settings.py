"""Declarations of settings: default, meaning and valid values of each, and how a typed word becomes one of them.

A declaration stands once, where the setting belongs: in defaults.py, or with the encoder or method that reads it. Loading,
checking, suggestions, the table of `python config.py`, docs/settings.md and the config.yaml of a run are made from it.
"""
import ast
import difflib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from utils.files import expanded

JOBS = {"pretrain": "main_simmim.py", "finetune": "main_finetune.py", "probe": "main_linprobe.py"}  # what reads settings
TASKS = ("pretrain", "classification", "probe")  # what the models of these jobs, in their order, are for
PRETRAIN, FINETUNE, PROBE = ("pretrain",), ("finetune",), ("probe",)
LABELLED = FINETUNE + PROBE

# kinds of values, in the words of the messages
FLAG, WHOLE, NUMBER, TEXT = "True or False", "a whole number", "a number", "text"
PATH = "text, a path"  # `~` and variables of the environment are replaced
WHOLES, NUMBERS, TEXTS = "a list of whole numbers", "a list of numbers", "a list of texts"
PAIR, SIZE = "two numbers, [first, second]", "a whole number or [height, width]"
_OF_TYPE = {bool: FLAG, int: WHOLE, float: NUMBER, str: TEXT}
_ITEMS = {WHOLES: WHOLE, NUMBERS: NUMBER, TEXTS: TEXT}

# what a setting changes of what a run learns, where a run must go on as it began
IMAGES = "images"  # what it is trained on; no change where the same ones are found in another place
START = "start"  # the weights it begins with; no change where none are named
TASK = "task"  # what is made of images, weights and labels

LARGEST = 10 ** 6  # number, either side of 0, of a setting that names no limit of its own
LONGEST = 1000  # list
LONGEST_WORD = 10 ** 4  # that may be a number or a list, in characters


@dataclass(frozen=True)
class Setting:
    """One key of the config.

    Attributes:
        default: its value where nobody sets it.
        meaning: in a few words, `+` first where microsoft/SimMIM has no such key.
        unit: of the value, e.g. pixels; "" = none.
        low, high: the range that it, or each item of a list, must lie in; None = to LARGEST.
        choices: valid values, () = any.
        kind: FLAG, WHOLE, ...; None = that of the default.
        optional: whether it can be None.
        rule: value -> what is wrong with it, in words that go on after `KEY=value`, or None.
        jobs: names in JOBS of what reads it; None = as the section it stands in says, or all.
        learnt: IMAGES, START or TASK where another value would be another run: a checkpoint of the one is no beginning of the
            other. "" = it may change on the way; None = as the section says, or "".
    """
    default: Any
    meaning: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple = ()
    kind: str | None = None
    optional: bool = False
    rule: Callable | None = None
    jobs: tuple | None = None
    learnt: str | None = None

    def __post_init__(self):
        if self.kind is None:
            object.__setattr__(self, "kind", _kind_of(self.default))

    @property
    def expected(self):
        """The kind in words."""
        return self.kind + (" or None" if self.optional else "")

    @property
    def row(self):
        """[default, valid values, what reads it, meaning] in a few words, for tables."""
        default = '""' if self.default == "" else str(self.default)
        read_by = "all" if self.jobs is None else ", ".join(self.jobs)
        return [default, self.values, read_by, self.meaning + (f" ({self.unit})" if self.unit else "")]

    @property
    def values(self):
        """Valid values in a few words, for tables."""
        if self.choices:
            return " | ".join(str(choice) or '""' for choice in self.choices)
        words = {FLAG: "True | False", WHOLE: "whole number", NUMBER: "number", PATH: "path"}
        text = words.get(self.kind, self.kind.removeprefix("a list of ").removeprefix("a "))
        if self.low is not None:
            text += f" {self.low:g} to {self.high}" if self.high is not None else f" >= {self.low:g}"
        return text + (" | None" if self.optional else "")


def _kind_of(default):
    if isinstance(default, list):
        return {int: WHOLES, float: NUMBERS, str: TEXTS}[type(default[0])]
    return _OF_TYPE[type(default)]


def joined(*sections, prefix="", jobs=None, learnt=None):
    """{prefix + name: Setting} of several {name: Setting}, in order.

    Args:
        jobs, learnt: of the settings that name none.
    Raises: ValueError if a name is declared twice.
    """
    found = {}
    for section in sections:
        for name, setting in section.items():
            key = prefix + name
            if key in found:
                raise ValueError(f"{key} is declared twice: a setting has one home.")
            found[key] = replace(setting, jobs=setting.jobs or jobs,
                                 learnt=learnt if setting.learnt is None else setting.learnt)
    return found


def convert(key, setting, value, source):
    """A value from YAML, a command line or Python as the kind of its setting.

    Args:
        source: where it comes from, for the message.
    Raises: ValueError that says what was expected.
    """
    if isinstance(value, str) and setting.kind not in (TEXT, PATH):
        value = parse(value)
    if value is None or (isinstance(value, str) and value.lower() == "none" and setting.optional):
        if setting.optional:
            return None
        raise ValueError(f"{source}: {key} is empty, expected {setting.expected}.")
    try:
        value = _converted(setting.kind, value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{source}: {key}={shown(value)} is {_what(value)}, expected {setting.expected}"
                         f"{_example(setting.kind, value)}.") from None
    if setting.kind != PATH:
        return value
    try:
        return expanded(value)
    except ValueError as error:
        raise ValueError(f"{source}: {key}={error}") from None


def shown(value):
    """A value as a message shows it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:60]}... ({len(text)} characters)"


def _example(kind, value):
    """What was probably meant, in words that end a message, or ""."""
    if kind in (WHOLES, NUMBERS) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return f", e.g. [{value}]"
    if kind in (TEXT, PATH) and isinstance(value, bool):
        return ": no, off, yes and on are text in quotes alone"
    share = value[:-1].strip() if isinstance(value, str) and value.endswith("%") else ""
    return f", e.g. {float(share) / 100:g}" if kind == NUMBER and share.isascii() and share.isdigit() else ""


def _what(value):
    """What is wrong with a value of the wrong kind, in a word."""
    numbers = [item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, (int, float))]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        return "not finite"
    return "too large" if any(abs(number) > sys.float_info.max for number in numbers) else type(value).__name__


def parse(text):
    """A typed word as a Python value: numbers, lists, True/true, None/null; anything else stays text."""
    if len(text) > LONGEST_WORD:
        return text
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _converted(kind, value):
    if kind == PAIR or (kind == SIZE and isinstance(value, (list, tuple))):
        first, second = value
        return [_scalar(NUMBER if kind == PAIR else WHOLE, item) for item in (first, second)]
    if kind in _ITEMS:
        if not isinstance(value, (list, tuple)):
            raise ValueError
        return [_scalar(_ITEMS[kind], item) for item in value]
    return _scalar(WHOLE if kind == SIZE else kind, value)


def _scalar(kind, value):
    """Whole floats become ints, ints become floats, `2e-4` (text in YAML) a float."""
    if kind in (TEXT, PATH):
        if isinstance(value, (list, tuple, dict, bool)):  # YAML makes a bool of no, off, yes and on without quotes
            raise ValueError
        return str(value)
    if isinstance(value, str):
        value = parse(value)
    if (kind == FLAG) != isinstance(value, bool):
        raise ValueError
    if kind == FLAG:
        return value
    if not isinstance(value, (int, float)):
        raise ValueError
    if kind == NUMBER:
        if not math.isfinite(value):
            raise ValueError
        return float(value)
    if int(value) != value:
        raise ValueError
    return int(value)


def check(key, setting, value):
    """Refuse a value that is no choice, out of range or against the rule of its setting. Raises ValueError."""
    if value is None:
        return
    if setting.choices and value not in setting.choices:
        named = {choice.lower(): choice for choice in setting.choices}
        near = [named[name] for name in difflib.get_close_matches(str(value)[:100].lower(), named, n=1)]
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{key}={shown(value)} is unknown; valid: {', '.join(c or repr('') for c in setting.choices)}.{hint}")
    _check_range(key, setting, value)
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{key}={shown(value)} holds a byte of 0: leave it out.")
    problem = setting.rule(value) if setting.rule else None
    if problem:
        raise ValueError(f"{key}={shown(value)} {problem}.")


def _check_range(key, setting, value):
    items = value if isinstance(value, list) else [value]
    if len(items) > LONGEST:
        raise ValueError(f"{key} has {len(items)} values: at most {LONGEST} are possible.")
    low, high = -LARGEST if setting.low is None else setting.low, LARGEST if setting.high is None else setting.high
    outside = [item for item in items if isinstance(item, (int, float)) and not low <= item <= high]
    if outside:
        allowed = (f"between {low} and {high}" if setting.high is not None and setting.low is not None
                   else f"at most {high}" if outside[0] > high else f"at least {low}")
        subject = "each value" if isinstance(value, list) else "it"
        raise ValueError(f"{key}={shown(value)} is out of range: {subject} must be {allowed}.")


def closest(key, valid):
    """The nearest valid key by spelling, or by its last part where the section is wrong; None if nothing is near."""
    valid, key = list(valid), key[:100]
    found = difflib.get_close_matches(key.upper(), valid, n=1, cutoff=0.6)
    if not found:
        by_name = {name.rpartition(".")[2]: name for name in reversed(valid)}
        near = difflib.get_close_matches(key.upper().rpartition(".")[2], by_name, n=1, cutoff=0.5)
        found = [by_name[name] for name in near]
    return found[0] if found else None
