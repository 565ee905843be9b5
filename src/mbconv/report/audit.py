"""An audit of a dataset in a terminal or a log: counts of the classes, then what was found."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mbconv.report.findings import checked, class_counts, findings

_CLASSES = 30
_FILES = 10  # groups shown under a finding; the JSON form has them all


def print_audit(audit: dict[str, Any], console: Console | None = None) -> None:
    """Print the dictionary of an audit; where no terminal listens, as plain lines.

    Lines with paths are never wrapped, so that they can be copied and searched for.
    """
    console = console or Console()
    _line(console, checked(audit))
    if ignored := int(audit.get("ignored") or 0):
        what = "1 other file was" if ignored == 1 else f"{ignored:,} other files were"
        _line(console, f"{what} ignored: no picture by its suffix, or without a class.")
    console.print(_table(audit))
    for found in findings(audit):
        bad = bool(found["bad"])
        _line(console, f"{'!' if bad else '-'} {found['title']}: {found['sentence']}", bad)
        for group in found["files"][:_FILES]:
            _line(console, "    " + "  =  ".join(group))
        if (more := len(found["files"]) - _FILES + int(found["more"])) > 0:
            _line(console, f"    and {more:,} more; --json lists them all")


def _table(audit: dict[str, Any]) -> Table:
    counts = audit.get("class_counts") or {}
    names = sorted({name for split in counts.values() for name in split})
    splits, rows = class_counts(audit, names)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("class")
    for split in splits:
        table.add_column(split, justify="right")
    for row in rows[:_CLASSES]:
        table.add_row(Text(row["label"]), *(f"{n:,}" for n in row["counts"]))
    if len(rows) > _CLASSES:
        rest = [sum(column) for column in zip(*(r["counts"] for r in rows[_CLASSES:]), strict=True)]
        table.add_row(f"{len(rows) - _CLASSES:,} smaller classes", *(f"{n:,}" for n in rest))
    totals = (f"{sum(counts[split].values()):,}" for split in splits)
    table.add_row("total", *totals, style="bold")
    return table


def _line(console: Console, text: str, bad: bool = False) -> None:
    console.print(Text(text, style="yellow" if bad else ""), soft_wrap=True, highlight=False)
