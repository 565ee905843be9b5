"""Pages that are made by a command are as the command would make them now."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_table_of_networks_is_current() -> None:
    made = runpy.run_path(str(DOCS / "make_networks.py"))["page"]()
    assert (DOCS / "networks.md").read_text(encoding="utf-8") == made, "run docs/make_networks.py"
    assert "| `efficientnet_b0` | 224 | 5,288,548 | 385.8 |" in made
