"""The language of timm's augmentation policies, e.g. rand-m9-mstd0.5-inc1. timm passes over parts that it does not know."""
import re
from functools import partial


def _number(text, low, high, whole=False):
    """Whether a text is a number of a range."""
    return bool(re.fullmatch(r"\d{1,9}" if whole else r"\d{1,9}(\.\d*)?", text, re.ASCII)) and low <= float(text) <= high


_SHARE, _SPREAD = partial(_number, low=0, high=1), partial(_number, low=0, high=1e9)
_MAGNITUDE, _COUNT = partial(_number, low=0, high=30, whole=True), partial(_number, low=1, high=100, whole=True)
_SWITCH = ("0", "1").__contains__
# policy: {letters of a part: what may follow them, or None}, in an order in which no name hides a longer one
PARTS = {
    "rand": {"mstd": _SPREAD, "mmax": _COUNT, "m": _MAGNITUDE, "inc": _SWITCH, "n": _COUNT, "p": _SHARE,
             "t": ("weights", "3a", "3aw").__contains__},
    "augmix": {"mstd": _SPREAD, "m": _MAGNITUDE, "w": _COUNT, "d": _COUNT, "b": _SWITCH,
               "a": partial(_number, low=1e-3, high=1e3)},
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), {"mstd": _SPREAD}),
}
EXAMPLES = {"rand": "rand-m9-n2-mstd0.5-inc1", "augmix": "augmix-m5-w4-d2"}


def problem_of_policy(policy):
    """What is wrong with a policy, in words that go on after `KEY=value`; None if timm takes all of it as it is written.

    Args:
        policy: name, then parts, with `-` between them; "none" in any case is none.
    """
    name, *parts = policy.split("-")
    if policy.lower() == "none":
        return None
    if name not in PARTS:
        return f"is no policy of timm: expected {', '.join(PARTS)}, or none; e.g. {EXAMPLES['rand']}"
    known, seen = PARTS[name], set()
    example = EXAMPLES.get(name, f"{name}-mstd0.5")
    for part in parts:
        key = next((key for key in known if part.startswith(key)), None)
        if key is None:
            return f"has a part that {name} does not know, {part!r}: expected {', '.join(known)} with a value, e.g. {example}"
        if not known[key](part[len(key):]):
            return f"has a part without a value that {name} can take, {part!r}: e.g. {example}"
        if key in seen:
            return f"says {key} twice: leave {part} out"
        seen.add(key)
    return None
