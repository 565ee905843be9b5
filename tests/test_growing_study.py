"""The growing study's page is as its records would make it now, and its intervals are right."""

import runpy
from pathlib import Path

import pytest

from mbconv.record import Record, read_records

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "studies" / "growing"


def test_the_page_is_current() -> None:
    made = runpy.run_path(str(FOLDER / "make.py"))
    files = {name: FOLDER / f"{name}.jsonl" for name in made["SETS"]}
    sets = {name: read_records(path) for name, path in files.items() if path.exists()}
    assert sets
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == made["page"](sets), "run docs/studies/growing/make.py"
    assert (FOLDER / "curves.svg").read_text(encoding="utf-8") == made["figure"](sets)


def test_the_table_compares_seed_by_seed() -> None:
    study = runpy.run_path(str(ROOT / "benchmarks" / "growing.py"))
    assert study["interval"]([0.1, 0.2, 0.3]) == pytest.approx((0.2, 4.303 * 0.1 / 3**0.5))
    scores = {"from scratch, T": (0.20, 0.30), "grown, function kept, T": (0.25, 0.37)}
    records = [
        Record(name=arm, value=value, detail={"arm": arm, "seed": seed, "moved": 9})
        for arm, values in scores.items()
        for seed, value in enumerate(values)
    ]
    lines = list(study["table"](records))
    assert "| +6.0 (-6.7 to +18.7) |" in lines[-1]  # 12.706 times half a point
    assert "| 25.0 (-38.5 to 88.5) |  |" in lines[-2]
