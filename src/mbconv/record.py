"""What a figure is: a value with n, interval, origin and machine; kept as JSON lines."""

import json
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from mbconv.errors import UserError
from mbconv.files import write_text


def command_line() -> str:
    """What this process was started as, without the folder of the program."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return " ".join([name, *sys.argv[1:]])


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Hardware and software versions of this process; cheap, imports nothing heavy."""
    versions = {"python": platform.python_version()}
    for package in ("mbconv", "torch", "torchvision", "timm", "pillow", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"hardware": _processor(), "cores": os.cpu_count(), "system": platform.platform(),
            "versions": versions}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Record:
    """One figure. `low` and `high` bound its 95% interval, `spread` is a standard deviation."""

    name: str
    value: float
    unit: str = ""
    n: int | None = None
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    spec_hash: str | None = None
    command: str = field(default_factory=command_line)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    environment: dict[str, Any] = field(default_factory=environment)
    detail: dict[str, Any] = field(default_factory=dict)  # what belongs to this kind of figure

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Record":
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in data.items() if k in known})


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(r.to_dict()) + "\n" for r in records))


def read_records(path: str | Path) -> list[Record]:
    """Read JSON lines; UserError names the line that is no record."""
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(Record.from_dict(json.loads(line)))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} line {number} is no record: {error}.") from error
    return records


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(s.split(":", 1)[1].strip() for s in lines if s.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
