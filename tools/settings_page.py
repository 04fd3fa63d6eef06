"""The page docs/settings.md: every setting as it is declared; written by tools/pages.py."""
from defaults import TITLES, settings
from models.encoders import ENCODERS
from models.methods import METHODS
from utils.tables import markdown

INTRODUCTION = """# Settings
<!-- Made by tools/pages.py from the declarations in defaults.py, models/encoders and models/methods: change those. -->

Every key of a recipe and of `--opts KEY VALUE`, {number} of them. The same table in a terminal: `python config.py`, or
`python config.py mask` for the keys with that word. `+` marks keys that microsoft/SimMIM does not have; defaults of the
others are its own. An unknown key, a value of another kind or out of range, and settings that can't work together are refused
when a config is loaded, with what to type instead. A number whose range has no end here may be up to a million, and a list
has up to a thousand of them.

**Read by** says which programs use a key: pretrain (`main_simmim.py`), finetune (`main_finetune.py`), probe
(`main_linprobe.py`). The `config.yaml` of a run has the keys that its program reads, and whatever else was set.
"""


def page():
    """The whole text of docs/settings.md."""
    declared = {key: setting for key, setting in settings().items() if key != "BASE"}
    parts = [INTRODUCTION.replace("{number}", str(len(declared)))]
    sections = {}
    for key in declared:
        sections.setdefault(section_of(key), []).append(key)
    for section, keys in sections.items():
        heading = TITLES.get(section) or heading_of(section.removeprefix("MODEL.").lower())
        rows = [row(key, declared[key]) for key in keys]
        parts.append(f"\n## {heading}\n{markdown(['key', 'default', 'valid', 'read by', 'meaning'], rows)}")
    return "".join(parts)


def heading_of(name):
    """Of the settings of an encoder, a method, or both."""
    kinds = [kind for kind, table in (("encoder", ENCODERS), ("method", METHODS)) if name in table]
    return f"{' and '.join(kinds).capitalize()} `{name}`" if kinds else f"`{name.upper()}`, of any method"


def section_of(key):
    """MODEL.SWIN of MODEL.SWIN.DEPTHS, MODEL of MODEL.NAME, "" of SEED."""
    parts = key.split(".")[:-1]
    return ".".join(parts[:2] if parts[:1] == ["MODEL"] else parts[:1])


def row(key, setting):
    default, *others = setting.row
    return [cell.replace("|", "\\|") for cell in (f"`{key}`", f"`{default}`", *others)]
