"""Rules about the source itself: who imports whom, what may run code, which settings are read."""
import ast
from pathlib import Path

import pytest

from config import flatten, load_config

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("data", "examples", "models", "planning", "utils", "tools")
SOURCES = sorted([*REPOSITORY.glob("*.py"), *(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))])
TREES = {path.relative_to(REPOSITORY).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
PROJECT = {name.partition("/")[0].removesuffix(".py") for name in TREES}

MAY_IMPORT = {  # a room: what its files may import; the longest name that a file begins with is its room
    "utils": {"utils"},
    "logger": {"utils"},
    "models/products": {"utils"},
    "models/layers": {"models/products", "utils"},
    "models/position": {"utils"},
    "models/encoders": {"models/encoders", "models/layers", "models/position", "models/products", "utils"},
    "models/methods": {"models/encoders", "models/layers", "models/methods", "models/position", "utils"},
    "models/inputs": {"models/encoders", "models/methods", "utils"},
    "models/weights": {"models/encoders", "models/position", "models/weights", "utils"},
    "models": {"models", "utils"},
    "defaults": {"models/encoders", "models/methods", "utils"},  # their settings; no model imports it
    "config": {"defaults", "models/encoders", "models/inputs", "models/methods", "utils"},
    "recipes": {"config", "defaults", "models", "utils"},
    "checks": {"data", "models"},
    "data": {"config", "data", "utils"},
    "optimizer": {"config", "utils"},
    "lr_scheduler": {"config", "utils"},
    "saving": {"config", "utils"},
    "resume": {"config", "defaults", "saving", "utils"},
    "evaluation": {"config", "logger", "utils"},
    "inference": {"config", "data", "models", "recipes", "utils"},
    "hubconf": {"inference", "models"},
    "watch": {"resume", "saving", "utils"},
    "planning": {"config", "data", "defaults", "engine", "logger", "models", "optimizer", "planning", "utils"},
    "engine": {"checks", "config", "logger", "lr_scheduler", "models", "optimizer", "resume", "saving",
               "utils", "watch"},
}


def imported(tree):
    """Names of all modules a file imports, also inside functions, as paths: models/encoders/swin; relative ones as they are."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {"." * node.level + (node.module or "")} | {f"{node.module}.{alias.name}" for alias in node.names
                                                                  if f"{node.module}.{alias.name}" in MODULES}
    return {name.replace(".", "/") for name in names}


MODULES = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in TREES}


def rooms_of(name):
    """The names in MAY_IMPORT that a path lies below, the longest first: that is its room."""
    parts = name.removesuffix(".py").removesuffix("/__init__").split("/")
    return [path for path in ("/".join(parts[:i]) for i in range(len(parts), 0, -1)) if path in MAY_IMPORT]


def forbidden(name, imports):
    """Those imports of a file that its room does not allow."""
    allowed = MAY_IMPORT[rooms_of(name)[0]]
    ours = [path for path in imports if path.startswith("/") or path.partition("/")[0] in PROJECT]
    return {path for path in ours if not allowed & {path, *rooms_of(path)}}


def calls(source):
    """(dotted name, node) of every call."""
    return [(ast.unparse(node.func), node) for node in ast.walk(source) if isinstance(node, ast.Call)]


RUNS_TEXT = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput",
             "subprocess.getstatusoutput", "asyncio.create_subprocess_shell"}
RUNS_WHAT_IT_IS_GIVEN = (  # beginnings
    "pickle.", "dill.", "joblib.load", "marshal.", "shelve.", "yaml.load", "yaml.full_load", "yaml.unsafe_load",
    "torch.jit.load", "torch.hub.load", "torch.package", "torch.ops.load_library", "ctypes.CDLL", "ctypes.cdll", "os.exec",
    "os.spawn", "os.posix_spawn", "runpy.", "importlib.__import__", "importlib.util.spec_from_file_location")
LAST_NAMES = {"Unpickler", "_Unpickler",  # as classes to derive from they are not called
              "extractall", "unpack_archive"}  # an archive may name files outside of the folder it is unpacked into
STARTS = {"run", "Popen", "call", "check_call", "check_output"}  # of subprocess
FROM_A_TABLE = {"importlib.import_module(_HOMES[name])"}  # which stands in the same file


def unsafe_load(name, node):
    """Whether a call of torch.load does not say weights_only=True."""
    safe = any(word.arg == "weights_only" and isinstance(word.value, ast.Constant) and word.value.value is True
               for word in node.keywords)
    return name == "torch.load" and not safe


def unsafe_calls(tree):
    """Calls that can run code from a file or a text, or write where a file says."""
    found = []
    for name, node in calls(tree):
        words, last, text = {word.arg for word in node.keywords}, name.rpartition(".")[2], ast.unparse(node)
        imports_a_name = last == "import_module" and not isinstance(node.args[0], ast.Constant) and text not in FROM_A_TABLE
        if (name in RUNS_TEXT or name.startswith(RUNS_WHAT_IT_IS_GIVEN) or last in LAST_NAMES or imports_a_name
                or unsafe_load(name, node) or "allow_pickle" in words or (last in STARTS and "shell" in words)):
            found.append(f"line {node.lineno}: {text}")
    return found


def test_sources_are_found():
    assert {"config.py", "engine.py", "main_simmim.py", "models/encoders/swin.py", "utils/checkpoint.py"} <= TREES.keys()


@pytest.mark.parametrize("path", [path for path in TREES if rooms_of(path)])
def test_file_imports_only_what_lies_below_it(path):
    assert forbidden(path, imported(TREES[path])) == set()


@pytest.mark.parametrize(("path", "line"), [
    ("models/encoders/swin.py", "from config import load_config"), ("models/encoders/vit.py", "from models import build_model"),
    ("models/encoders/swin.py", "from models.methods.mae import MAE"), ("models/weights/zoo.py", "from models.build import x"),
    ("config.py", "from models.weights import zoo"), ("config.py", "import models"), ("utils/cli.py", "import config"),
    ("data/masks.py", "from models import build"), ("models/build.py", "from config import image_size"),
    ("models/build.py", "from .encoders import swin")])
def test_import_that_runs_back_up_is_noticed(path, line):
    assert len(forbidden(path, imported(ast.parse(line)))) >= 1


@pytest.mark.parametrize(("path", "line"), [
    ("models/encoders/swin.py", "from models.layers import Mlp"), ("models/build.py", "from models.encoders import ENCODERS"),
    ("config.py", "from models.inputs import image_size"), ("engine.py", "from models import build_model")])
def test_import_that_goes_down_is_allowed(path, line):
    assert forbidden(path, imported(ast.parse(line))) == set()


def test_rooms_import_each_other_in_one_direction():
    """So that there is an order in which they can be read: none comes before what it imports."""
    left = {room: {other for other in allowed if other in MAY_IMPORT and other != room} for room, allowed in MAY_IMPORT.items()}
    while left:
        lowest = [room for room, others in left.items() if not others]
        assert lowest, f"a circle among {sorted(left)}"
        left = {room: others - set(lowest) for room, others in left.items() if room not in lowest}


@pytest.mark.parametrize("path", TREES)
def test_file_imports_no_main(path):
    assert not any(name.startswith("main_") for name in imported(TREES[path]))


def test_only_the_config_knows_yacs():
    assert [path for path, tree in TREES.items() if "yacs/config" in imported(tree)] == ["config.py"]


@pytest.mark.parametrize("path", TREES)
def test_file_has_no_call_that_runs_code_from_data(path):
    assert unsafe_calls(TREES[path]) == []


@pytest.mark.parametrize("line", [
    "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)", "eval(text)",
    "exec(text)", "pickle.load(file)",
    "Unpickler(file).load()", "pickle.loads(text)", "pickle._Unpickler(file)", "marshal.loads(text)", "shelve.open(path)",
    "yaml.load(file)", "yaml.load(file, yaml.Loader)", "yaml.load_all(file)", "yaml.full_load(file)", "yaml.unsafe_load(file)",
    "os.system(text)", "os.popen(text)", "subprocess.run(text, shell=True)", "subprocess.check_call(text, shell=flag)",
    "subprocess.getoutput(text)", "os.execv(path, words)", "os.execvpe(path, words, names)", "os.spawnl(mode, path)",
    "importlib.import_module(name)", "importlib.import_module(config.NAME)", "importlib.import_module(TABLE[name])",
    "__import__(name)", "runpy.run_path(path)", "torch.jit.load(path)", "torch.hub.load(name, model)",
    "torch.ops.load_library(path)", "np.load(path, allow_pickle=True)", "np.load(path, allow_pickle=flag)",
    "tarfile.open(path).extractall(folder)", "archive.extractall()", "shutil.unpack_archive(path)"])
def test_unsafe_call_is_recognised(line):
    assert len(unsafe_calls(ast.parse(line))) >= 1


@pytest.mark.parametrize("line", ["torch.load(path, map_location='cpu', weights_only=True)", "model.eval()",
                                  "yaml.safe_load(file)", "subprocess.run([program])", "re.compile(text)", "np.load(path)",
                                  "importlib.import_module('torch')", "importlib.import_module(_HOMES[name])",
                                  "torch.hub.get_dir()", "torch.export.load(path)", "main(['a'])"])
def test_safe_call_is_recognised(line):
    assert unsafe_calls(ast.parse(line)) == []


TESTS = {path.relative_to(REPOSITORY).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
         for path in sorted((REPOSITORY / "tests").rglob("*.py"))}
LOADS_ANYTHING = {"tests/unit/utils/test_checkpoint.py"}  # shows that an attack is one: an unprotected reader runs it


@pytest.mark.parametrize("path", TESTS)
def test_tests_read_checkpoints_as_data(path):
    unsafe = [f"line {node.lineno}" for name, node in calls(TESTS[path]) if unsafe_load(name, node)]
    assert len(unsafe) == (1 if path in LOADS_ANYTHING else 0), unsafe


# ---- settings -----------------------------------------------------------------------------------------------------

def aliases(tree):
    """{variable: last part of the attribute it stands for}, as in `swin = config.MODEL.SWIN`."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names, values = ((target.elts, node.value.elts) if isinstance(target, ast.Tuple)
                                 and isinstance(node.value, ast.Tuple) else ([target], [node.value]))
                found |= {name.id: value.attr for name, value in zip(names, values, strict=False)
                          if isinstance(name, ast.Name) and isinstance(value, ast.Attribute)}
    return found


def keys_read(tree):
    """{(section, name)} of all attributes that are read, e.g. ("TRAIN", "BASE_LR").

    The section is "" on the config itself, and None where it can't be told: `encoder_config(config).IN_CHANS`, or a
    function's argument.
    """
    known, found = aliases(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr.isupper():
            owner = node.value
            if isinstance(owner, ast.Attribute):
                section = "" if owner.attr == "config" else owner.attr
            elif isinstance(owner, ast.Name):
                section = "" if owner.id in ("config", "_C") else known.get(owner.id)
            else:
                section = None
            found.add((section, node.attr))
    return found


READ = set().union(*(keys_read(tree) for tree in TREES.values()))


@pytest.mark.parametrize("key", [key for key in flatten(load_config()) if not key.startswith("BASE")])
def test_config_key_is_read_somewhere(key):
    section, name = ["", *key.split(".")][-2:]
    assert (section, name) in READ or (None, name) in READ


def test_key_that_nothing_reads_is_noticed():
    read = keys_read(ast.parse("swin = config.MODEL.SWIN\nswin.DEPTHS + config.SEED\nconfig.TAG = 1"))
    assert read == {("MODEL", "SWIN"), ("", "MODEL"), ("SWIN", "DEPTHS"), ("", "SEED")}
