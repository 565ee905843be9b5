"""What a run folder holds, read once; whatever an interrupted run has not written is empty."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbconv.errors import UserError
from mbconv.record import Record, read_records

Json = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """A run's files as plain data."""

    path: Path
    config: Json  # config.json
    data: Json  # data.json: root, classes, splits, audit
    epochs: tuple[Json, ...]  # metrics.jsonl, a line each
    evaluation: Record | None  # evaluation.jsonl: on the test split, else on the validation split
    model_bytes: int | None  # size of model.safetensors

    @property
    def detail(self) -> Json:
        """The evaluation's detail, empty where there is none."""
        return self.evaluation.detail if self.evaluation else {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes; an evaluation's own `labels` are those that occurred in it."""
        return tuple(map(str, self.data.get("classes") or self.detail.get("labels") or ()))

    @property
    def splits(self) -> dict[str, list[str]]:
        """Paths relative to `root`, by split; without empty splits."""
        splits = self.data.get("splits") or {}
        return {str(name): list(paths) for name, paths in splits.items() if paths}

    @property
    def audit(self) -> Json:
        return self.data.get("audit") or {}

    @property
    def model(self) -> str:
        """The network's name, fit for a sentence."""
        return str(self.config.get("spec_name") or self.config.get("model") or "A network")

    @property
    def root(self) -> str:
        """The data folder, as the user gave it."""
        return str(self.config.get("data") or self.data.get("root") or "")


def read_run(path: str | Path) -> RunFolder:
    """Read a run folder; UserError where it is none or a file in it is broken."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"There is no run folder {path}; give the folder that `mbconv train` made.")
    if not (path / "config.json").is_file():
        raise UserError(f"{path} holds no config.json, so it is no run; give a run's folder.")
    weights = path / "model.safetensors"
    return RunFolder(
        path=path,
        config=read_object(path / "config.json"),
        data=read_object(path / "data.json"),
        epochs=tuple(read_lines(path / "metrics.jsonl")),
        evaluation=read_evaluation(path / "evaluation.jsonl"),
        model_bytes=weights.stat().st_size if weights.is_file() else None,
    )


def number(value: Any) -> float | None:
    """`value` as a finite float, or None: null, NaN and infinity mean that there is no figure."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def read_object(path: Path) -> Json:
    """A JSON object; empty where there is no file. UserError where it is broken."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON: {error}. Restore it or train again.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object. Restore it or train again.")
    return value


def read_lines(path: Path) -> list[Json]:
    """The objects of a JSON Lines file; a last line cut short by a stopped process is left out."""
    if not path.is_file():
        return []
    rows: list[Json] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for index, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError as error:
            if index == len(lines) - 1:
                break
            raise UserError(f"{path} line {index + 1} is no valid JSON: {error}.") from error
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_evaluation(path: Path) -> Record | None:
    """The last accuracy on the test split, else the last one at all."""
    if not path.is_file():
        return None
    records = [r for r in read_records(path) if r.name == "top1"]
    on_test = [r for r in records if r.detail.get("split") == "test"]
    return next(reversed(on_test or records), None)
