"""Reading and writing trees of settings as YAML."""
import os
from collections import Counter

import yaml

from utils.extent import check_extent

LARGEST_FILE = 2 ** 17  # bytes; half a second of reading
LONGEST_VALUE = 10 ** 4  # characters
MOST_ITEMS = 10 ** 5


class _UniqueKeys(yaml.SafeLoader):
    """Safe loading that refuses a key given twice, of which YAML would silently keep the last, and values without an end."""

    def construct_scalar(self, node):
        if len(node.value) > LONGEST_VALUE:
            raise yaml.constructor.ConstructorError(None, None, f"a value of {len(node.value)} characters", node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node, deep=False):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = sorted(key for key, number in keys.items() if number > 1)
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Safe dumping that writes a list in one line."""


_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True))


def read_tree(path):
    """The tree in a YAML file, {} if it is empty.

    Raises: ValueError that names the file, on what is no YAML or no tree, or has no end; OSError.
    """
    return parse_tree(text_of(path), path)


def text_of(path):
    """The text of a file of settings. Raises: ValueError that names it, if it can't be one; OSError."""
    if not os.path.isfile(path):  # reading a pipe would never end
        raise ValueError(f"{path} is no file.")
    with open(path, "rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{path} has more than {LARGEST_FILE // 1024} kB: it is no file of settings.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}): save it in that encoding.") from error


def parse_tree(text, name="the stored config"):
    """The tree in a YAML text, {} if it is empty.

    Args:
        name: where it is from, for the message.
    Raises: ValueError, as read_tree.
    """
    if not isinstance(text, str) or len(text) > LARGEST_FILE:
        raise ValueError(f"{name} is {'too long' if isinstance(text, str) else type(text).__name__}, expected YAML.")
    try:
        loader = _UniqueKeys(text)
        node = loader.get_single_node()
        check_extent(node, _nodes_in, MOST_ITEMS)  # a reference costs nothing before it is followed
        tree = None if node is None else loader.construct_document(node)
    except Exception as error:  # of yaml, RecursionError where it is nested, ValueError of a date or a long number, ...
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ValueError(f"{name} holds {type(tree).__name__}, expected a tree of SECTION: {{KEY: value}}.")
    return tree


def _nodes_in(node):
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else None


def tree_text(tree):
    """A tree as YAML, keys in their order, lists in one line."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=10 ** 6, allow_unicode=True)


def nested(leaves):
    """{'SECTION.KEY': value} -> {'SECTION': {'KEY': value}}."""
    tree = {}
    for key, value in leaves.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree


def flatten(tree, prefix=""):
    """{'SECTION.KEY': value} of all leaves. Raises: ValueError on a key that is no text."""
    leaves = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise ValueError(f"{prefix}{key} is {type(key).__name__}: keys of a config are names.")
        leaves.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return leaves
