"""How much a structure read from a file holds: a few bytes can stand for more than any machine can walk through."""

DEEPEST = 100  # levels of containers in containers


def check_extent(root, parts, most):
    """Refuse what is too large, too deep, or holds itself. One container that is held twice counts twice.

    Args:
        parts: container -> list of what it holds, which must live as long as the container; anything else -> None.
        most: items allowed, containers among them.
    Raises: ValueError in words that go on after a name.
    """
    known = {}  # {id of a container: (items, levels)}: each is walked through once

    def visit(item, depth):
        held = None if id(item) in known else parts(item)
        if held is not None:
            if depth >= DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} levels deep, or holds itself")
            inside = [visit(part, depth + 1) for part in held]
            known[id(item)] = 1 + sum(items for items, _ in inside), 1 + max((levels for _, levels in inside), default=0)
        items, levels = known.get(id(item), (1, 0))
        if items > most:
            raise ValueError(f"it holds more than {most} items, each counted as often as it is referred to")
        if depth + levels > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep, or holds itself")
        return items, levels

    visit(root, 0)
