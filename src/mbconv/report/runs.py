"""Run folders as rows: what was trained, how well, how far it is, and what became of it."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbconv.errors import UserError
from mbconv.files import is_locked
from mbconv.interval import wilson
from mbconv.report.figures import best_epoch
from mbconv.report.folder import Json, number, read_evaluation, read_lines, read_object
from mbconv.report.words import duration, percent, short

if TYPE_CHECKING:
    from rich.table import Table

LOCK = Path("last", "lock")  # in a run folder; held while something trains there
FAILED, STATE = "failed_step.pt", Path("last", "state.pt")
_COLUMNS = ("run", "network", "data", "recipe", "score", "epochs", "time", "when", "state")
_DISPENSABLE = ("recipe", "when", "data", "time", "network")  # in this order, on a narrow terminal
_WIDEST = 10_000


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run. `state`: finished, running, interrupted, failed or broken, with a `reason`."""

    name: str
    state: str
    reason: str | None = None
    network: str | None = None
    pretrained: bool | None = None  # None: its config does not say
    data: str | None = None
    recipe: str | None = None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    split: str | None = None  # that the score is of
    epoch: int = 0
    epochs: int | None = None
    seconds: float = 0.0
    date: str | None = None  # of its start, in UTC

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# What the rows are sorted by, and whether the largest comes first.
_KEYS: dict[str, tuple[Callable[[RunRow], Any], bool]] = {
    "date": (lambda row: row.date, True),
    "name": (lambda row: row.name, False),
    "network": (lambda row: row.network, False),
    "data": (lambda row: row.data, False),
    "score": (lambda row: row.score, True),
    "time": (lambda row: row.seconds, True),
    "state": (lambda row: row.state, False),
}


def list_runs(folders: Iterable[Path], sort: str = "date") -> list[RunRow]:
    """A row for each run folder that is one of `folders` or lies below one.

    `sort` is date, name, network, data, score, time or state: newest, best and longest first, names
    by the alphabet; what has no such figure comes last. Raises UserError for a folder that is none.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"There is no folder {folder}; give the one in which mbconv train writes its runs."
            )
        for path in find_runs(folder):
            found.setdefault(path.resolve(), path)
    rows = sorted((row for path in found.values() if (row := read_row(path))), key=_by_name)
    key, largest_first = _KEYS[sort]
    known = sorted((r for r in rows if key(r) is not None), key=key, reverse=largest_first)
    return known + [row for row in rows if key(row) is None]


def find_runs(folder: Path) -> Iterator[Path]:
    """Folders that hold a config.json, at any depth; nothing is looked for inside them."""
    for path, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if "config.json" in files:
            below.clear()
            yield Path(path)


def read_row(path: Path) -> RunRow | None:
    """The row of a folder with a config.json; None where that is a model repository's."""
    try:
        config = read_object(path / "config.json")
        if "recipe" not in config and config.keys() & {"architecture", "library_name"}:
            return None
        return _row(path, config)
    except UserError as error:
        return RunRow(name=str(path), state="broken", reason=str(error))
    except (OSError, TypeError, ValueError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        return RunRow(name=str(path), state="broken", reason=reason)


def _row(path: Path, config: Json) -> RunRow:
    lines = read_lines(path / "metrics.jsonl")
    record = read_evaluation(path / "evaluation.jsonl")
    score: Json = {}
    if record is not None:
        score = {"score": record.value, "low": record.low, "high": record.high, "n": record.n,
                 "split": record.detail.get("split")}  # fmt: skip
    elif (best := best_epoch(lines)) is not None:
        score = {"score": best[1], "split": "val"} | _interval(best[1], lines[best[0]])
    recipe = config.get("recipe") or {}
    return RunRow(
        name=str(path),
        state=_state(path, finished=record is not None),
        network=str(config.get("spec_name") or config.get("model")),
        pretrained=is_pretrained(config),
        data=str(config["data"]) if config.get("data") else None,
        recipe=recipe.get("name"),
        epoch=int(lines[-1].get("epoch") or 0) if lines else 0,
        epochs=config.get("epochs"),
        seconds=max((number(line.get("seconds")) or 0.0 for line in lines), default=0.0),
        date=_date(config) or _modified(path),
        **score,
    )


def is_pretrained(config: Json) -> bool | None:
    """Whether a run began with trained weights; None where its config does not say."""
    return config["base"] is not None if "base" in config else None


def _interval(value: float, line: Json) -> Json:
    """The interval of a validation score, where the line says of how many pictures it is."""
    n = line.get("val_n")
    if not n:
        return {}
    low, high = wilson(round(value * n), n)
    return {"low": low, "high": high, "n": n}


def _state(path: Path, finished: bool) -> str:
    if is_locked(path / LOCK):
        return "running"
    if finished:
        return "finished"
    failed, state = path / FAILED, path / STATE
    if failed.exists() and not (state.exists() and _changed(state) > _changed(failed)):
        return "failed"
    return "interrupted"


def _date(config: Json) -> str | None:
    given = config.get("date")
    return datetime.fromisoformat(given).isoformat(timespec="seconds") if given else None


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _modified(path: Path) -> str:
    """Of a config without a date, that of its file."""
    moment = datetime.fromtimestamp(_changed(path / "config.json"), UTC)
    return moment.isoformat(timespec="seconds")


def _by_name(row: RunRow) -> str:
    return row.name


def runs_table(rows: Sequence[RunRow], without: Collection[str] = ()) -> "Table":
    """The rows for a terminal, without the columns that are not wanted."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    cells = [_cells(row) for row in rows]
    shown = [name for name in _COLUMNS if name not in without]
    for name in shown:
        table.add_column(name, justify="right" if name in ("epochs", "time") else "left",
                         no_wrap=True)  # fmt: skip
    for row in cells:
        table.add_row(*(Text(row.get(name, "")) for name in shown))
    return table


def _cells(row: RunRow) -> dict[str, str]:
    """What the table shows of a run, by column; of a broken one there is little."""
    if row.state == "broken":
        return {"run": row.name, "state": row.state}
    start = " (from scratch)" if row.pretrained is False else ""
    return {
        "run": row.name,
        "network": short(row.network or "", 26) + start,
        "data": short(Path(row.data or "").name, 16),
        "recipe": short(row.recipe or "", 18),
        "score": score_words(row),
        "epochs": f"{row.epoch}/{row.epochs}" if row.epochs else str(row.epoch),
        "time": duration(row.seconds),
        "when": f"{datetime.fromisoformat(row.date).astimezone():%Y-%m-%d %H:%M}"
        if row.date
        else "",
        "state": row.state,
    }


def score_words(row: RunRow) -> str:
    """92.7% [89.6, 95.0] test."""
    if row.score is None:
        return ""
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f" [{100 * row.low:.1f}, {100 * row.high:.1f}]"
    return f"{percent(row.score)}{interval} {split_word(row.split) or ''}".rstrip()


def split_word(split: str | None) -> str | None:
    """What readers call a split."""
    return "validation" if split == "val" else split


def show_runs(rows: Sequence[RunRow]) -> None:
    """Print the table, and below it why a folder could not be read.

    A terminal too narrow for all columns gets fewer; a pipe gets all, a line a run.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDEST)
    unlimited = console.options.update(max_width=_WIDEST)
    dropped = list(_DISPENSABLE)
    without: list[str] = []
    table = runs_table(rows)
    while dropped and console.measure(table, options=unlimited).maximum > console.width:
        without.append(dropped.pop(0))
        table = runs_table(rows, without)
    console.print(table)
    for row in rows:
        if row.reason is not None:
            console.print(f"{row.name}: {row.reason}", markup=False, soft_wrap=True)
