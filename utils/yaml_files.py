"""Reading and writing trees of settings as YAML."""
import yaml


class _UniqueKeys(yaml.SafeLoader):
    """Safe loading that refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Safe dumping that writes a list in one line."""


_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True))


def read_tree(path):
    """The tree in a YAML file, {} if it is empty.

    Raises: ValueError that names the file, on what is no YAML or no tree.
    """
    with open(path, encoding="utf-8") as file:
        try:
            tree = _UniqueKeys(file).get_single_data()
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds {type(tree).__name__}, expected a tree of SECTION: {{KEY: value}}.")
    return tree


def parse_tree(text):
    """The tree in a YAML text."""
    return yaml.safe_load(text) or {}


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
