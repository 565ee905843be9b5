"""The files of a run folder, read and written; each whole or not at all."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from mbconv.arch.spec import Spec
from mbconv.data.audit import Audit
from mbconv.data.source import Dataset, scan
from mbconv.errors import UserError
from mbconv.files import write_json, write_text
from mbconv.nn.model import MBConvNet, build
from mbconv.preprocessing import Preprocessing
from mbconv.record import command_line, environment
from mbconv.report.folder import read_lines
from mbconv.training.machine import Machine
from mbconv.training.recipe import Recipe

FORMAT = 2
# Where format 1, whose recipe was flat, has what format 2 keeps in groups.
_GROUPS = {
    "optimizer": ("learning_rate", "weight_decay"),
    "schedule": ("warmup",),
    "augmentation": ("crop_scale", "flip"),
    "loss": ("label_smoothing",),
    "regularization": ("drop_path", "ema_decay"),
    "transfer": ("head_resolution", "head_penalty", "frozen_stages", "norms"),
}


def describe(network: MBConvNet, recipe: Recipe, machine: Machine) -> dict[str, Any]:
    """What a run's config says of network, recipe and machine; of networks that grow the last."""
    grown = recipe.phases[-1].network
    last = grown if isinstance(grown, Spec) else network.spec
    return {
        "spec_name": last.name,
        "spec": last.to_dict(),
        "preprocessing": network.preprocessing.to_dict(),
        "base": network.provenance,  # of the weights that training starts from, their licence too
        "epochs": recipe.epochs,
        "resolution": recipe.resolution,
        "batch_size": recipe.batch_size,
        "recipe": recipe.to_dict(),
        "machine": machine.to_dict(),
    }


def write_config(run: Path, config: dict[str, Any]) -> None:
    """`config.json`: everything that decides the run, and what it was made with."""
    write_json(run / "config.json", made_with() | config)


def made_with() -> dict[str, Any]:
    """When and by what a run was started, and what it goes by elsewhere."""
    return {
        "format": FORMAT,
        "id": uuid4().hex[:12],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "environment": environment(),
    }


def read_config(path: str | Path) -> dict[str, Any]:
    """A run's config.json; UserError where it is missing, broken or of a newer format."""
    path = Path(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version = config["format"]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: there is no run to take it from.") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no run's config: {error}.") from error
    if version > FORMAT:
        raise UserError(f"{path} was written by a newer mbconv; upgrade with pip.")
    return _from_format1(config) if version == 1 else dict(config)


def _from_format1(config: dict[str, Any]) -> dict[str, Any]:
    """The same config in format 2."""
    recipe = dict(config.get("recipe") or {})
    for group, names in _GROUPS.items():
        recipe[group] = {name: recipe.pop(name) for name in names if name in recipe}
    return {**config, "format": FORMAT, "recipe": recipe}


def was_begun(run: Path) -> bool:
    """Whether there is a run that the very command which runs now has begun."""
    path = run / "config.json"
    return path.is_file() and read_config(path).get("command") == command_line()


def network_of(config: dict[str, Any], spec: dict[str, Any] | None = None) -> MBConvNet:
    """The config's network, or that of `spec` which grows into it, with fresh weights."""
    made = build(Spec.from_dict(spec or config["spec"]))
    made.preprocessing = Preprocessing.from_dict(config["preprocessing"])
    return made


def write_data(run: Path, dataset: Dataset, found: Audit) -> None:
    """`data.json`: the classes, the splits as paths relative to the root, the audit.

    `source` is there where the data is more than the root's files: a list, shards and the like.
    """
    splits = {
        name: [dataset.name(sample) for sample in samples]
        for name, samples in dataset.splits.items()
    }
    content = {"root": str(dataset.root.resolve()), "classes": list(dataset.classes),
               "splits": splits, "audit": found.to_dict()}  # fmt: skip
    if not all(isinstance(sample.path, Path) for sample in dataset) or dataset.given:
        content["source"] = _absolute(dataset.source)
    write_json(run / "data.json", content)


def _absolute(source: str) -> str:
    """What `scan` takes from any working folder; a pattern or a path, unless it is a name."""
    named = "://" in source or source.startswith("hf:")
    return source if named else os.path.abspath(source)


def read_data(run: Path) -> Dataset:
    """The dataset with the splits of `data.json`; UserError where the file or a picture is gone."""
    path = run / "data.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        source, splits = data.get("source", data["root"]), dict(data["splits"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is missing or broken ({error}); start the run anew.") from error
    dataset = scan(source)
    by_name = {dataset.name(sample): sample for sample in dataset}
    gone = [name for names in splits.values() for name in names if name not in by_name]
    if gone:
        raise UserError(f"{source} lacks {gone[0]}, which this run uses; put it back.")
    chosen = {split: tuple(by_name[name] for name in names) for split, names in splits.items()}
    return replace(dataset, splits=chosen)


def add_metrics(run: Path, line: dict[str, Any]) -> None:
    """Append a line to `metrics.jsonl`."""
    path = run / "metrics.jsonl"
    past = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, past + json.dumps(line) + "\n")


def keep_metrics(run: Path, *, through: int) -> None:
    """Drop the lines of epochs after `through`, written after the state a run goes on from.

    A last line that was cut short is dropped too; UserError names another one that is broken.
    """
    path = run / "metrics.jsonl"
    kept = [line for line in read_lines(path) if line["epoch"] <= through]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
