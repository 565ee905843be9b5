"""Pages that are made by a command are as the command would make them now."""

import re
import runpy
from pathlib import Path

from mbconv.training.override import changed
from mbconv.training.recipes import RECIPES, finetune

DOCS = Path(__file__).parent.parent / "docs"


def test_the_table_of_networks_is_current() -> None:
    made = runpy.run_path(str(DOCS / "make_networks.py"))["page"]()
    assert (DOCS / "networks.md").read_text(encoding="utf-8") == made, "run docs/make_networks.py"
    assert "| `efficientnet_b0` | 224 | 5,288,548 | 385.8 |" in made


def test_the_page_of_recipes_is_current() -> None:
    module = runpy.run_path(str(DOCS / "make_recipes.py"))
    made = module["page"]()
    assert (DOCS / "recipes.md").read_text(encoding="utf-8") == made, "run docs/make_recipes.py"
    assert module["covered"]()
    assert all(f"### `{name}`" in made for name in RECIPES)


def test_the_page_of_recipes_sets_fields_that_there_are() -> None:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8").partition("## The recipes")[0]
    shown = re.findall(r"--set ([a-z_.]+=\S+?)[`\s]", text)
    assert len(shown) >= 5
    changed(finetune(1000, 224), shown)
