"""The page docs/recipes.md: what the recipes say of themselves; written by tools/pages.py."""
import re
from dataclasses import dataclass, field
from pathlib import Path

from utils.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
LABELS = ("Expected", "Hardware", "Command", "Evaluate")
FOLDERS = {  # in the order of the page: what they are, as a heading
    "demo": "Demo: drawn images, minutes on a CPU", "small": "Small data and small models",
    "probe": "Linear probe of any encoder",
    "swin_base": "SimMIM, Swin-B", "swin_large": "SimMIM, Swin-L",
    "vit_base": "SimMIM, ViT-B/16", "swinv2_small": "SimMIM, SwinV2-S", "swinv2_base": "SimMIM, SwinV2-B",
    "swinv2_large": "SimMIM, SwinV2-L", "swinv2_huge": "SimMIM, SwinV2-H (658M)",
    "swinv2_giant_1b": "SimMIM, SwinV2-g (1.06B)", "swinv2_giant_3b": "SimMIM, SwinV2-G (3.0B)", "mae": "MAE",
    "pixmim": "PixMIM", "convmae": "ConvMAE", "mixmim": "MixMIM", "lsmae": "LSMAE",
    "sparse": "GreenMIM: Swin, visible tokens alone"}
INTRODUCTION = """# Recipes
<!-- Made by tools/pages.py from the first lines of the files in configs/: change those. -->

{number} recipes: what each trains, what to expect, on what hardware, and its commands. Expected numbers are published ones
unless the recipe says otherwise; those of the demo were measured here. Fewer GPUs: keep batch x GPUs x `--accumulation-steps`
the same. `--cfg` takes a path from here or from the root of the repository. In several nodes run the same command on each,
with its own `--node_rank`.

{contents}
"""


@dataclass
class Header:
    """The comment that a recipe begins with.

    Attributes:
        path: of the recipe, from the root of the repository.
        title: paper, stage, model, size.
        expected, hardware: texts.
        commands: {label: lines of the command}.
        remarks: what else it says, as sentences.
    """
    path: str
    title: str = ""
    expected: str = ""
    hardware: str = ""
    commands: dict = field(default_factory=dict)
    remarks: list = field(default_factory=list)


def read_header(path):
    """The Header of a recipe. Raises: ValueError that names the file, where a part is missing."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#"))
    found, label = Header(path.relative_to(ROOT).as_posix()), "title"
    parts = {"title": [], "remark": [], **{name: [] for name in LABELS}}
    for line in lines:
        named = re.match(r" (\w+):\s+(.*)", line)
        if named and named[1] in LABELS:
            label = named[1]
            parts[label].append(named[2])
        elif line.startswith("   "):
            # below a command: its next line, or a remark
            goes_on = label not in ("Command", "Evaluate") or parts[label][-1].endswith("\\")
            parts[label if goes_on else "remark"].append(line.strip())
        else:
            label = "title" if label == "title" else "remark"
            parts[label].append(line.strip())
    absent = [name for name in ("title", "Expected", "Hardware", "Command") if not parts[name]]
    if absent:
        raise ValueError(f"{found.path} begins without {', '.join(absent)}: its first lines are `# <what it is>`, "
                         f"`# Expected:`, `# Hardware:` and `# Command:`.")
    found.title = ". ".join(line.removesuffix(".") for line in parts["title"])
    found.expected, found.hardware = " ".join(parts["Expected"]), " ".join(parts["Hardware"])
    found.commands = {name: parts[name] for name in ("Command", "Evaluate") if parts[name]}
    found.remarks = parts["remark"]
    return found


def headers():
    """{folder: [Header, ...]} of all recipes: pre-training first, then fine-tuning, then probes."""
    found = {}
    for path in sorted((ROOT / "configs").rglob("*.yaml"), key=lambda path: (stage_of(path), path.name)):
        found.setdefault(path.parent.name, []).append(read_header(path))
    return found


def folder_of(found):
    """The folder of some recipes, from the root of the repository."""
    return Path(found[0].path).parent.as_posix()


def stage_of(path):
    return next(i for i, word in enumerate(("_pretrain__", "_finetune__", "linprobe__", "")) if word in path.name)


def page():
    """The whole text of docs/recipes.md."""
    recipes = headers()
    folders = [*(name for name in FOLDERS if name in recipes), *sorted(recipes.keys() - FOLDERS.keys())]
    titles = {name: FOLDERS.get(name, name) for name in folders}
    places = {name: folder_of(recipes[name]) for name in folders}
    rows = [[f"[{titles[name]}](#{anchor(titles[name])})", f"[{places[name]}](../{places[name]})", str(len(recipes[name]))]
            for name in folders]
    number = sum(map(len, recipes.values()))
    contents = markdown(["what", "folder", "recipes"], rows).rstrip()
    parts = [INTRODUCTION.replace("{number}", str(number)).replace("{contents}", contents)]
    for name in folders:
        parts += [f"\n## {titles[name]}\n", *map(section, recipes[name])]
    return "".join(parts)


def anchor(title):
    """Of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def section(header):
    """What one recipe says, with its commands to copy."""
    commands = "\n".join(line for lines in header.commands.values() for line in shown(lines))
    text = [f"\n### [{Path(header.path).stem}](../{header.path})\n{header.title}.\n",
            f"\n- **Expected:** {header.expected}", f"\n- **Hardware:** {header.hardware}\n"]
    text += [f"- {remark}\n" for remark in header.remarks]
    return "".join([*text, f"\n```bash\n{commands}\n```\n"])


def shown(lines):
    """The lines of a command: the recipe and what follows it on lines of their own."""
    command, _, rest = " ".join(line.removesuffix("\\").strip() for line in lines).partition(" --cfg ")
    recipe, _, rest = rest.partition(" ")
    pieces = command.split(" --nproc_per_node ") if "--nnodes" in command else [command]
    pieces = [pieces[0], *(f"--nproc_per_node {piece}" for piece in pieces[1:]), f"--cfg {recipe}", *([rest] if rest else [])]
    return [("  " if i else "") + piece + (" \\" if i < len(pieces) - 1 else "") for i, piece in enumerate(pieces)]
