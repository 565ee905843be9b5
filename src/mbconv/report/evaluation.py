"""An evaluation Record as text, for a terminal or a log."""

from typing import Any, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mbconv.record import Record
from mbconv.report.words import count, headline, listing, percent, short

_MATRIX_CLASSES = 12  # a larger confusion matrix is wider than 80 columns
_ROWS = 5  # of confusions, mistakes and unreadable pictures
_LOG_WIDTH = 120  # where there is no terminal whose width counts


def print_evaluation(record: Record, file: TextIO | None = None) -> None:
    """Print what `mbconv.evaluate` returned; `file` is standard output by default."""
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    console.print(render_evaluation(record))


def render_evaluation(record: Record) -> RenderableType:
    """The Record as something that rich prints: scores, classes, confusions, mistakes."""
    detail = record.detail
    parts: list[RenderableType] = [
        Text(headline(record.value, record.low, record.high, record.n), style="bold"),
        _scores(record),
        _classes(detail.get("per_class", [])),
    ]
    labels, matrix = detail.get("labels", []), detail.get("confusion", [])
    if 1 < len(labels) <= _MATRIX_CLASSES:
        parts.append(_matrix(labels, matrix))
    for title, rows in (
        ("Most frequent confusions", _confusions(labels, matrix)),
        ("Most confident mistakes", _mistakes(detail.get("mistakes", []))),
        ("Unreadable, not counted", _unreadable(detail.get("unreadable", []))),
    ):
        if rows:
            parts.append(Text(f"\n{title}", style="bold"))
            parts.extend(Text(f"  {row}") for row in rows)
    return Group(*parts)


def _scores(record: Record) -> Table:
    detail, table = record.detail, Table(box=None, show_header=False, padding=(0, 2))
    top1 = {"value": record.value, "low": record.low, "high": record.high}
    right = round(record.value * record.n) if record.n else 0
    for name, score, note in (
        ("top-1", top1, f"; {right:,} of {count(record.n or 0, 'picture')}"),
        ("top-5", detail.get("top5"), ""),
        ("balanced accuracy", detail.get("balanced_accuracy"), "; mean of the recalls"),
    ):
        if score:
            interval = f"95% interval {percent(score['low'])} to {percent(score['high'])}"
            _row(table, name, percent(score["value"]), interval + note)
    majority = detail.get("majority")
    if majority:
        answer = f"by always answering {short(majority['label'])}"
        _row(table, "baseline", percent(majority["value"]), answer)
    if "ece" in detail:
        meaning = "expected distance between confidence and accuracy"
        _row(table, "calibration error", percent(detail["ece"]), meaning)
    if detail.get("data"):
        split = "" if detail.get("split") in (None, "all") else f", split {detail['split']}"
        _row(table, "measured on", "", f"{detail['data']}{split}")
    if detail.get("trained_on"):
        known = f"{detail['trained_on']:,} of these pictures"
        _row(table, "not held out", "", f"the network was trained on {known}")
    return table


def _classes(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("class")
    for name in ("pictures", "precision", "recall", "F1"):
        table.add_column(name, justify="right")
    for row in rows:
        scores = (percent(row[key]) for key in ("precision", "recall", "f1"))
        _row(table, short(row["label"]), f"{row['n']:,}", *scores)
    return table


def _matrix(labels: list[str], matrix: list[list[int]]) -> Table:
    table = Table(
        box=box.SIMPLE,
        title="Confusion matrix: rows are the true class, columns the answer",
        title_justify="left",
        title_style="",
        padding=(0, 0),
    )
    table.add_column("")
    for number in range(1, len(labels) + 1):
        table.add_column(str(number), justify="right", min_width=3, no_wrap=True)
    for number, (label, row) in enumerate(zip(labels, matrix, strict=True), start=1):
        cells = [Text(f"{n:,}" if n else "·", style="" if n else "dim") for n in row]
        cells[number - 1].stylize("bold")
        table.add_row(Text(f"{number:>2} {short(label, 24)}"), *cells)
    return table


def _confusions(labels: list[str], matrix: list[list[int]]) -> list[str]:
    """The most frequent pairs of different true and answered classes."""
    pairs = [
        (n, labels[true], labels[answer])
        for true, row in enumerate(matrix)
        for answer, n in enumerate(row)
        if n and true != answer
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [
        f"{short(true)} taken for {short(answer)}: {count(n, 'time')}"
        for n, true, answer in pairs[:_ROWS]
    ]


def _mistakes(mistakes: list[dict[str, Any]]) -> list[str]:
    return [
        f"{m['path']}: {short(m['predicted'])} {percent(m['score'])}, truly {short(m['true'])}"
        for m in mistakes[:_ROWS]
    ]


def _unreadable(items: list[dict[str, str]]) -> list[str]:
    lines = [f"{item['path']}: {item['reason']}" for item in items[:_ROWS]]
    if len(items) > _ROWS:
        lines.append(f"and {listing([i['path'] for i in items[_ROWS:]])}")
    return lines


def _row(table: Table, *cells: str) -> None:
    """Add a row of plain text: a name with [brackets] is no markup."""
    table.add_row(*(Text(cell) for cell in cells))
