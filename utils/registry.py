"""Dict literals that serve as registries: what stands in them, and how it is looked up."""
import difflib
from collections.abc import Callable
from dataclasses import dataclass, field


def pick(table, name, key):
    """`table[name]`, or one standard error that lists the valid names.

    Args:
        table: dict of valid names.
        name: what the user asked for.
        key: the config key or flag it came from, for the message.
    Raises: ValueError.
    """
    if name in table:
        return table[name]
    close = difflib.get_close_matches(str(name), table, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{key}={name!r} is unknown; valid: {', '.join(sorted(table))}.{hint}")


@dataclass(frozen=True)
class Component:
    """An encoder or a pre-training method, as its registry knows it.

    Attributes:
        build: from a config to the module; see `build_encoder` and `build_model` in models/build.py for the arguments.
        settings: {NAME: utils.settings.Setting} of its section of the config, MODEL.<its name in capitals>.
        check: (config, (height, width)) -> None; raises ValueError on settings that can't work together; called when a
            config that names an encoder is loaded, and before a method is built. Ranges and choices of single settings are
            checked before.
        check_masks: of a method, config -> None; called where masks are drawn, raises ValueError on those that it can't use.
        groups: (config, (height, width)) -> what prepares in the processes of the loader, from the masks of a batch
            (B, h, w), what the model gets as its third argument: nested tuples of tensors. None where nothing is prepared. Of
            an encoder, for methods that drop tokens; of a method, what it takes of its encoder's.
        tiny: {NAME: value} of its settings that make a model small enough for images of 32 x 64 pixels, which the tests in
            tests/contracts then build; without them with the defaults.
    """
    build: Callable
    settings: dict = field(default_factory=dict)
    check: Callable = lambda config, size: None
    check_masks: Callable = lambda config: None
    groups: Callable = lambda config, size: None
    tiny: dict = field(default_factory=dict)
