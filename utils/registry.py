"""Lookup in the dict literals that serve as registries."""
import difflib


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
