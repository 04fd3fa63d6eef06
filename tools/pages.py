"""Write the pages of docs/ that are made from data: models.md, settings.md and recipes.md.

  python tools/pages.py                   all of them; a test compares each with what it is made from
  python tools/pages.py settings          one of them: models, settings or recipes
  python tools/pages.py recipes --print   show it instead
"""
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the repository is cloned, not installed

PAGES = {"models": "models/weights/zoo.json", "settings": "the declarations", "recipes": "the headers of configs/"}


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"one of {', '.join(PAGES)}; default: all")
    parser.add_argument("--print", action="store_true", help="show them instead of writing them")
    chosen = parser.parse_args(argv)
    for name in chosen.pages:
        if name not in PAGES:
            parser.error(f"there is no page {name!r}: choose from {', '.join(PAGES)}")
    return chosen


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

from tools import models_page, recipes_page, settings_page
from utils.cli import run

MAKERS = {"models": models_page.page, "settings": settings_page.page, "recipes": recipes_page.page}


def path_of(name):
    return ROOT / "docs" / f"{name}.md"


def main(chosen):
    for name in chosen.pages or PAGES:
        text = MAKERS[name]()
        if chosen.print:
            print(text, end="")
        else:
            path_of(name).write_text(text, encoding="utf-8")
            print(f"{path_of(name)}: made from {PAGES[name]}")


if __name__ == "__main__":
    run(main, ARGUMENTS)
