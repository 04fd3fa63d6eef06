"""Declarations of settings: default, meaning and valid values of each, and how a typed word becomes one of them.

A declaration stands once, where the setting belongs: in config.py, or with the encoder or method that reads it. Loading,
checking, suggestions, the table of `python config.py`, docs/settings.md and the config.yaml of a run are made from it.
"""
import ast
import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

JOBS = {"pretrain": "main_simmim.py", "finetune": "main_finetune.py", "probe": "main_linprobe.py"}  # what reads settings
TASKS = ("pretrain", "classification", "probe")  # what the models of these jobs, in their order, are for
PRETRAIN, FINETUNE, PROBE = ("pretrain",), ("finetune",), ("probe",)
LABELLED = FINETUNE + PROBE

# kinds of values, in the words of the messages
FLAG, WHOLE, NUMBER, TEXT = "True or False", "a whole number", "a number", "text"
WHOLES, NUMBERS, TEXTS = "a list of whole numbers", "a list of numbers", "a list of texts"
PAIR, SIZE = "two numbers, [first, second]", "a whole number or [height, width]"
_OF_TYPE = {bool: FLAG, int: WHOLE, float: NUMBER, str: TEXT}
_ITEMS = {WHOLES: WHOLE, NUMBERS: NUMBER, TEXTS: TEXT}


@dataclass(frozen=True)
class Setting:
    """One key of the config.

    Attributes:
        default: its value where nobody sets it.
        meaning: in a few words, `+` first where microsoft/SimMIM has no such key.
        unit: of the value, e.g. pixels; "" = none.
        low, high: the range it must lie in, None = open; NaN is refused.
        choices: valid values, () = any.
        kind: FLAG, WHOLE, ...; None = that of the default.
        optional: whether it can be None.
        rule: value -> what is wrong with it, in words that go on after `KEY=value`, or None.
        jobs: names in JOBS of what reads it; None = as the section it stands in says, or all.
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
        words = {FLAG: "True | False", WHOLE: "whole number", NUMBER: "number"}
        text = words.get(self.kind, self.kind.removeprefix("a list of ").removeprefix("a "))
        if self.low is not None:
            text += f" {self.low:g} to {self.high:g}" if self.high is not None else f" >= {self.low:g}"
        return text + (" | None" if self.optional else "")


def _kind_of(default):
    if isinstance(default, list):
        return {int: WHOLES, float: NUMBERS, str: TEXTS}[type(default[0])]
    return _OF_TYPE[type(default)]


def joined(*sections, prefix="", jobs=None):
    """{prefix + name: Setting} of several {name: Setting}, in order.

    Args:
        jobs: of the settings that name none.
    Raises: ValueError if a name is declared twice.
    """
    found = {}
    for section in sections:
        for name, setting in section.items():
            key = prefix + name
            if key in found:
                raise ValueError(f"{key} is declared twice: a setting has one home.")
            found[key] = setting if setting.jobs or not jobs else replace(setting, jobs=jobs)
    return found


def convert(key, setting, value, source):
    """A value from YAML, a command line or Python as the kind of its setting.

    Args:
        source: where it comes from, for the message.
    Raises: ValueError that says what was expected.
    """
    if isinstance(value, str) and setting.kind != TEXT:
        value = parse(value)
    if value is None or (isinstance(value, str) and value.lower() == "none" and setting.optional):
        if setting.optional:
            return None
        raise ValueError(f"{source}: {key} is empty, expected {setting.expected}.")
    try:
        return _converted(setting.kind, value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{source}: {key}={value!r} is {type(value).__name__}, expected {setting.expected}.") from None


def parse(text):
    """A typed word as a Python value: numbers, lists, True/true, None/null; anything else stays text."""
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
    if kind == TEXT:
        if isinstance(value, (list, tuple, dict)):
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
        return float(value)
    if int(value) != value:
        raise ValueError
    return int(value)


def check(key, setting, value):
    """Refuse a value that is no choice, out of range or against the rule of its setting. Raises ValueError."""
    if value is None:
        return
    if setting.choices and value not in setting.choices:
        near = difflib.get_close_matches(str(value), setting.choices, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{key}={value!r} is unknown; valid: {', '.join(c or repr('') for c in setting.choices)}.{hint}")
    if setting.low is not None:
        high = math.inf if setting.high is None else setting.high
        if not setting.low <= value <= high:
            allowed = f"between {setting.low} and {setting.high}" if setting.high is not None else f"at least {setting.low}"
            raise ValueError(f"{key}={value} is out of range: it must be {allowed}.")
    problem = setting.rule(value) if setting.rule else None
    if problem:
        raise ValueError(f"{key}={value!r} {problem}.")


def closest(key, valid):
    """The nearest valid key by spelling, or by its last part where the section is wrong; None if nothing is near."""
    valid = list(valid)
    found = difflib.get_close_matches(key.upper(), valid, n=1, cutoff=0.6)
    if not found:
        by_name = {name.rpartition(".")[2]: name for name in reversed(valid)}
        near = difflib.get_close_matches(key.upper().rpartition(".")[2], by_name, n=1, cutoff=0.5)
        found = [by_name[name] for name in near]
    return found[0] if found else None
