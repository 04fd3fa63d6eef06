"""A model in several files, as other projects write large ones: parts, and a table of which weight is in which."""
import json
import re
from pathlib import Path

from utils import formats

INDEX = ".index.json"  # how the name of the table ends
PART = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")
WHOLE = ("model.safetensors", "pytorch_model.bin")  # the file of a model in a folder of transformers and its relatives
MOST_BYTES = 2 ** 28  # of a table


def index_of(folder):
    """The table in a folder, or None. Raises: ValueError if there are several."""
    found = sorted(Path(folder).glob(f"*{INDEX}"))
    if len(found) > 1:
        raise ValueError(f"{folder} holds several models in parts: give the table of one, {found[0]} or {found[1]}.")
    return found[0] if found else None


def whole_of(folder):
    """The one file of weights in a folder of another project, or None."""
    return next((path for name in WHOLE if (path := Path(folder) / name).is_file()), None)


def check_no_part(path):
    """Refuse one file of several, whose weights would be half a model. Raises: ValueError."""
    match = PART.fullmatch(Path(path).name)
    if match and int(match[2]) > 1:
        table = Path(path).with_name(f"{match[1]}{match[3]}{INDEX}")
        advice = f"give {table}" if table.is_file() else f"fetch {table.name}, which says what is where, and give that"
        raise ValueError(f"{path} is one of {int(match[2])} parts of a model: {advice}.")


def read_parts(path):
    """Weights from all parts that a table names, {"model": {name: tensor}}.

    Args:
        path: of the table, beside its parts.
    Raises: ValueError if it is no table, or a part or a weight is missing.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is no table of parts: it has {path.stat().st_size} bytes.")
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no table of parts of a model: expected JSON with a weight_map.") from error
    odd = next((name for name in names if not isinstance(name, str) or Path(name).name != name), None)
    if odd is not None:
        raise ValueError(f"{path} names a part that is not beside it, {odd!r}.")
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise ValueError(f"{path} names {len(names)} parts, of which {len(missing)} are not there: {', '.join(missing[:3])}. "
                         f"Fetch them into its folder.")
    weights = {}
    for name in names:
        content = formats.read(path.with_name(name))
        inside = content["model"] if formats.is_safetensors(name) else content
        absent = next((key for key, place in places.items() if place == name and key not in inside), None)
        if absent is not None:
            raise ValueError(f"{path} says that {absent} is in {name}, and it is not: the parts are of different models.")
        weights |= {key: inside[key] for key, place in places.items() if place == name}
    return {"model": weights}
