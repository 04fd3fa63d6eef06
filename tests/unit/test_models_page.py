"""docs/models.md is what tools/models_page.py makes of the data."""
import re
from dataclasses import replace

import pytest

from models.weights import zoo
from tools import models_page, pages

PAGE = pages.path_of("models").read_text(encoding="utf-8")


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| `")]


def test_page_has_a_row_for_every_model_and_every_other_name():
    tables, _, others = PAGE.partition("## Other names")
    assert sorted(row.split("`")[1] for row in rows(tables)) == zoo.list_models()
    assert dict(re.findall(r"\| `(.+?)` \| `(.+?)` \|", others)) == {
        alias: entry.name for entry in zoo.entries().values() for alias in entry.aliases}


def test_recipes_that_the_page_links_to_exist():
    linked = set(re.findall(r"\]\(\.\./(.+?)\)", PAGE))
    assert len(linked) > 20
    assert [path for path in linked if not (pages.ROOT / path).exists()] == []


def test_row_leaves_open_what_is_not_known():
    entry = replace(zoo.find("mae_vit_base_ft"), params=None, gflops=None, top1=None, url=None, config=None,
                    obstacle="a reason", note=None)
    other = replace(entry, name="other", top1=85.0)
    text = models_page.section([entry, other])
    assert rows(text)[0] == ("| `mae_vit_base_1600ep_ft224` | not known | not known | 1600 epochs | not known | none | "
                             "facebookresearch/mae: not known | 1 |")
    assert text.endswith(" | 1 |\n\n1. Can't be built here: a reason.\n")


@pytest.mark.parametrize(("name", "pieces"), [
    ("simmim_swin_base_100ep_mmpretrain", ["89,874,104", "18.83", "100 epochs at 192 px", "-0e15782d.pth)"]),
    ("simmim_swin_base_800ep_ft224", ["87,768,224", "not known", "84.0", "__img224_window7__800ep.pth"]),
    ("simmim_swinv2_giant_22k_500k", ["ImageNet-22K, 500k iterations", "0.4416"])])
def test_row_has_the_facts_of_a_model(name, pieces):
    row, = [row for row in rows(PAGE) if row.startswith(f"| `{name}` ")]
    assert [piece for piece in pieces if piece not in row] == []


def test_page_says_where_flops_were_counted_at_another_size():
    section = PAGE.partition("### SimMIM: pre-trained")[2].partition("###")[0]
    assert "GFLOPs: measured at 224 px, where windows of 6 pad the maps; at the 192 px of its training it is 11.30." in section
