"""Lists of files with their classes: CSV, or Parquet with the extra `parquet`."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mbconv.data.source import SPLITS, Dataset, Labelled, assemble
from mbconv.errors import UserError

# What the columns are called, in small letters; the first that a list has is taken.
_NAMES = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img"),
    "label": ("label", "class", "target", "category", "class_name", "labels"),
    "split": ("split", "subset", "partition", "set"),
}
Row = tuple[int, list[str]]  # its number for messages, and path, label and perhaps split


def scan_table(path: Path) -> Dataset:
    """The pictures that a list names, by columns path, label and, if it has one, split.

    Paths are relative to the list. `_NAMES` says what else the columns may be called. Raises
    UserError for a file of another kind, columns that are missing, a row without path or label,
    a split that is no split, and where none of the files exists.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        rows = _csv_rows(path)
    elif suffix == ".parquet":
        rows = _parquet_rows(path)
    else:
        raise UserError(
            f"{path} is a file that lists no pictures. Give a folder that holds one folder per "
            "class, a list (.csv, .tsv, .parquet) or shards (.tar, not compressed)."
        )
    found = [_labelled(path, row) for row in rows]
    if not found:
        raise UserError(f"{path} has a heading and no rows. Give a list with a row a picture.")
    if not any(item.place.exists() for item in found if isinstance(item.place, Path)):
        raise UserError(
            f"None of the {len(found):,} files in {path} exists, the first being "
            f"{found[0].place}. Paths are relative to the list's folder: move it, or mend them."
        )
    return assemble(path.parent, found, given=str(path))


def _labelled(table: Path, row: Row) -> Labelled:
    number, (path, label, *rest) = row
    if not path or not label:
        raise UserError(
            f"{table}, row {number}: the {'label' if path else 'path'} is empty. Fill it in or "
            "leave the row out."
        )
    split = "all"
    if rest:
        if rest[0].lower() not in SPLITS:
            raise UserError(
                f"{table}, row {number}: {rest[0]!r} is no split. Write train, val or test in "
                "each row, or leave the column out."
            )
        split = SPLITS[rest[0].lower()]
    return Labelled(table.parent / path, label, split)


def _csv_rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            heading = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=heading.count))
            columns = _columns(path, next(reader, []))
            for cells in reader:
                if any(cells):
                    if len(cells) <= max(columns):
                        raise UserError(
                            f"{path}, row {reader.line_num}: {len(cells)} columns are too few. "
                            "Mend the row, or quote what holds a line break."
                        )
                    yield reader.line_num, [cells[i].strip() for i in columns]
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a CSV file in UTF-8: {error}.") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f'Reading {path} needs pyarrow: pip install "mbconv[parquet]", or save it as CSV.'
        ) from None
    try:
        names = parquet.read_schema(path).names
        wanted = [names[i] for i in _columns(path, names)]
        table = parquet.read_table(path, columns=wanted)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a Parquet file: {error}.") from error
    columns = (table.column(name).to_pylist() for name in wanted)
    for number, cells in enumerate(zip(*columns, strict=True), start=1):
        yield number, [_text(cell) for cell in cells]


def _text(value: Any) -> str:
    """A cell as CSV would hold it; whole numbers without a point, as a column with gaps gets."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _columns(path: Path, names: Sequence[str]) -> list[int]:
    """Where path, label and, if there is one, split stand."""
    plain = [name.strip().lower() for name in names]
    found = {what: _first(plain, known) for what, known in _NAMES.items()}
    for what in ("path", "label"):
        if found[what] is None:
            raise UserError(
                f"{path} has no column for the {what}; it has: {', '.join(names) or 'none'}. "
                f"Call it one of {', '.join(_NAMES[what])}."
            )
    return [index for index in found.values() if index is not None]


def _first(plain: list[str], known: Iterable[str]) -> int | None:
    return next((plain.index(name) for name in known if name in plain), None)
