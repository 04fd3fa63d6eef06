"""Names of files, folders and classes: as text in messages, and when two are the same."""
import unicodedata


def shown(name):
    """A path or another text for a message in one line: what can't be printed is written with a backslash."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(name))


def listed(names, most=5):
    """Names in words for a message: the first ones, each as `shown`, and dots where there are more."""
    names = list(names)
    return ", ".join(shown(name) for name in names[:most]) + (", ..." if len(names) > most else "")


def same_text(name):
    """A name in the form of Unicode in which equal text is equal: systems write accents in two ways."""
    return unicodedata.normalize("NFC", name)


def plain(name):
    """A name without what is easily mistyped: capitals and blanks."""
    return "".join(same_text(name).casefold().split())


def alike(unknown, known):
    """How names are spelled among known ones that differ from them in capitals or blanks alone: {unknown: known}."""
    spelled = {plain(name): name for name in known}
    return {name: spelled[plain(name)] for name in unknown if plain(name) in spelled}
