"""Pages that are made by a command are as the command would make them now."""

import re
import runpy
from pathlib import Path

from mbconv.record import read_records
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


def test_the_first_table_of_the_readme_shows_the_figure_beneath_it() -> None:
    figure = runpy.run_path(str(DOCS / "make_training_figure.py"))
    records = list(read_records(DOCS / "training.jsonl"))
    speeds = [r for r in records if r.unit == "img/s"]
    kept = [r for r in records if r.name.startswith("efficientnet_b0 kept") and " bf16 " in r.name]
    rows = re.findall(r"\n\| (?:B0|ResNet).*", (DOCS.parent / "README.md").read_text("utf-8"))
    assert len(rows) == len(figure["ROWS"])
    for _, start, end in figure["ROWS"].values():
        speed = figure["best"](speeds, start, end, True)
        least = figure["best"](kept, start, end, False)
        shown = f"{speed.value:.0f} ({speed.low:.0f} to {speed.high:.0f}), {least.value:.1f}"
        assert any(shown == _figures(row) for row in rows), f"{start} {end}: {shown}"


def _figures(row: str) -> str:
    """`18 (16 to 18), 41.8` of a row of that table."""
    _, speed, kept = (cell.strip() for cell in row.replace("*", "").strip().strip("|").split("|"))
    return f"{speed.partition(',')[0]}, {kept}"
