"""The one evaluation loop, so that accuracy has one meaning.

`collect` runs a network over labelled pictures, `summarize` turns logits and targets into
metrics, `evaluate` does both and returns a Record. Training calls the same functions.
"""

import difflib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbconv.data.place import Place, name_in
from mbconv.data.source import Dataset, Notify, Sample, scan
from mbconv.errors import UserError
from mbconv.interval import answers
from mbconv.measure.metrics import (
    Floats,
    Ints,
    balanced_accuracy,
    calibration,
    confusion_matrix,
    expected_calibration_error,
    hits,
    per_class,
    share,
    softmax,
)
from mbconv.nn.model import MBConvNet
from mbconv.record import Record
from mbconv.runtime.predictor import Picture, Predictor

Progress = Callable[[int, int], None]  # pictures done, pictures in all
MISTAKES = 200  # this many of the most confident ones are kept in a Record


@dataclass(frozen=True)
class Collected:
    """What a network answered: logits [n, classes] and targets [n] of the readable pictures."""

    logits: Floats
    targets: Ints
    paths: tuple[Place, ...]  # of the readable ones, in the order of the rows
    unreadable: tuple[tuple[Place, str], ...] = field(default=())  # path and reason

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which pictures were named correctly, [n]."""
        named: NDArray[np.bool_] = self.logits.argmax(axis=1) == self.targets
        return named


def collect(
    predictor: Predictor,
    samples: Sequence[Sample],
    *,
    pictures: Iterable[Picture] | None = None,
    progress: Progress | None = None,
) -> Collected:
    """Run the network over labelled pictures; the labels are the network's class numbers.

    `pictures` are what is read of the samples, by default their files. Unreadable ones are listed
    and not counted. Raises UserError where none is readable.
    """
    rows: list[Floats] = []
    kept: list[Sample] = []
    unreadable: list[tuple[Place, str]] = []
    pictures = pictures or (sample.path for sample in samples)
    with closing(predictor.logits(pictures)) as outputs:
        for done, (sample, output) in enumerate(zip(samples, outputs, strict=True), start=1):
            if output.logits is None:
                unreadable.append((sample.path, output.error or ""))
            else:
                rows.append(output.logits)
                kept.append(sample)
            if progress is not None:
                progress(done, len(samples))
    if not rows:
        first = f" The first, {unreadable[0][0]}: {unreadable[0][1]}." if unreadable else ""
        raise UserError(f"None of the {len(samples)} pictures to evaluate is readable.{first}")
    targets = np.array([sample.label for sample in kept], dtype=np.int64)
    return Collected(np.stack(rows), targets, tuple(s.path for s in kept), tuple(unreadable))


class NotFinite(UserError):
    """A network's answers are no numbers."""


def summarize(
    logits: Floats, targets: Ints, labels: Sequence[str], *, classes: Sequence[int] = ()
) -> dict[str, Any]:
    """All metrics of one evaluation, as plain data.

    logits [n, len(labels)], targets [n] in 0..len(labels)-1, n above 0. Keys: n, top1, top5
    (None up to five classes), balanced_accuracy (each {value, low, high}, 95%), ece, per_class
    (of the classes that occur), labels and confusion (rows true, columns predicted; of the
    classes that occur, that were answered or that `classes` names), calibration, majority.
    Raises UserError for logits that are not finite.
    """
    logits, targets = np.asarray(logits), np.asarray(targets, dtype=np.int64)
    broken = int((~np.isfinite(logits).all(axis=1)).sum())
    if broken:
        raise NotFinite(
            f"The network's answers to {broken} of {len(logits)} pictures are not finite numbers: "
            "its training diverged or the number format overflows. Use float32, or train again "
            "with a lower learning rate."
        )
    n, predicted = len(targets), logits.argmax(axis=1)
    confusion = confusion_matrix(targets, predicted, len(labels))
    shown = sorted({*classes, *targets.tolist(), *predicted.tolist()})
    right = predicted == targets
    bins = calibration(softmax(logits).max(axis=1), right)
    common = int(np.bincount(targets).argmax())
    return {
        "n": n,
        "top1": share(int(right.sum()), n),
        "top5": share(int(hits(logits, targets, 5).sum()), n) if len(labels) > 5 else None,
        "balanced_accuracy": balanced_accuracy(confusion),
        "ece": expected_calibration_error(bins),
        "per_class": _class_rows(confusion, labels),
        "labels": [labels[i] for i in shown],
        "confusion": confusion[np.ix_(shown, shown)].tolist(),
        "calibration": bins,
        "majority": {"label": labels[common], "value": float((targets == common).mean())},
    }


def evaluate(
    model: MBConvNet | Predictor | str | Path,
    data: str | Path | Dataset | Sequence[Sample],
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
    trust: bool = False,
) -> Record:
    """Measure a network on labelled pictures: a Record named `top1`, a fraction of n.

    `model` is a Predictor (which says batch size, device and number format), or what it takes: a
    network, a model file, a run folder, a zoo name with weights or an artifact; `trust` is for
    artifacts, as there.
    `data` is whatever `scan` takes, a Dataset, or samples. `split` picks one; by default test,
    else val, else everything. The data's classes are matched with
    the network's labels by name and may be some of them; `classes` says, in the order of the
    data's classes, which label of the network each is, where the names differ. For samples it
    names the labels' numbers; without it they are the network's class numbers. `notify` hears of
    downloads and of shards being indexed.

    `detail` has what `summarize` returns (but n and top1), and split, data, unreadable
    [{path, reason}], mistakes [{path, true, predicted, score}], most confident first, with
    paths relative to the data's folder, and `answers`, by which two scores on the same pictures
    are compared picture by picture; of a run folder's network also `trained_on`, how many of
    the pictures it learnt from. Raises UserError where the classes do not match,
    the split is missing or no picture is readable.
    """
    learnt: frozenset[str] = frozenset()
    if isinstance(model, str | Path):
        learnt = _training_pictures(Path(model))
    predictor = model if isinstance(model, Predictor) else Predictor(model, trust=trust)
    task = matched(predictor, data, split=split, classes=classes, notify=notify)
    record = _record(predictor, collect(predictor, task.samples, progress=progress), task)
    if learnt:
        paths = [_identity(s.path, task.root) for s in task.samples]
        record.detail["trained_on"] = sum(path in learnt for path in paths)
    return record


@dataclass(frozen=True)
class Matched:
    """Labelled pictures whose labels are a network's class numbers, and where they come from."""

    samples: tuple[Sample, ...]
    classes: Sequence[int] = ()  # the network's numbers of the data's classes, where they are named
    root: Path | None = None
    source: str | None = None
    split: str | None = None


def matched(
    predictor: Predictor,
    data: str | Path | Dataset | Sequence[Sample],
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    notify: Notify | None = None,
) -> Matched:
    """The pictures that `evaluate` measures; parameters and errors are its own."""
    if isinstance(data, str | Path):
        data = scan(data, training=False, progress=notify)
    root, source, names = None, None, classes
    if isinstance(data, Dataset):
        root, source = data.root, data.source
        split, samples = _pick(data, split)
        if classes is not None and len(classes) != len(data.classes):
            raise UserError(
                f"{data.source} has {len(data.classes)} classes and {len(classes)} names were "
                "given for them; give one for each, in the order of the data's classes."
            )
        names = data.classes if classes is None else classes
    else:
        samples = data
    numbers = range(len(predictor.labels)) if names is None else _numbers(predictor, names)
    used = sorted({sample.label for sample in samples})
    if used and not 0 <= used[0] <= used[-1] < len(numbers):
        raise UserError(
            f"The samples' labels go from {used[0]} to {used[-1]}; they must lie between 0 and "
            f"{len(numbers) - 1}, the last class."
        )
    mapped = tuple(Sample(sample.path, numbers[sample.label]) for sample in samples)
    return Matched(mapped, () if names is None else numbers, root, source, split)


def _training_pictures(model: Path) -> frozenset[str]:
    """The pictures that a run folder's network, or the model file in one, has learnt from."""
    path = (model if model.is_dir() else model.parent) / "data.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return frozenset(os.path.join(data["root"], name) for name in data["splits"]["train"])
    except (OSError, ValueError, TypeError, KeyError):
        return frozenset()  # not in a run folder


def _identity(place: Place, root: Path | None) -> str:
    """What tells a picture from all others; for a file the same whatever leads to it."""
    file = place if isinstance(place, Path) else Path(root or "", place.name)
    return os.path.realpath(file)


def _record(predictor: Predictor, collected: Collected, task: Matched) -> Record:
    root = task.root
    detail = summarize(collected.logits, collected.targets, predictor.labels, classes=task.classes)
    n, top1 = detail.pop("n"), detail.pop("top1")
    detail["split"] = task.split
    detail["unreadable"] = [
        {"path": name_in(place, root), "reason": reason} for place, reason in collected.unreadable
    ]
    detail["mistakes"] = list(_mistakes(collected, predictor.labels, root))
    detail["data"] = task.source
    named = (
        f"{predictor.labels[target]}: {name_in(place, root)}"
        for place, target in zip(collected.paths, collected.targets, strict=True)
    )
    detail["answers"] = answers(zip(named, collected.right.tolist(), strict=True))
    return Record(
        name="top1",
        value=top1["value"],
        n=n,
        low=top1["low"],
        high=top1["high"],
        spec_hash=predictor.spec.hash,
        detail=detail,
    )


def _pick(dataset: Dataset, split: str | None) -> tuple[str, Sequence[Sample]]:
    """The split to evaluate and its samples; `all` is what a folder without splits has."""
    wanted = (split,) if split is not None else ("test", "val", "all", "train")
    for name in wanted:
        if dataset.splits.get(name):
            return name, dataset.splits[name]
    has = ", ".join(name for name, samples in dataset.splits.items() if samples) or "no pictures"
    raise UserError(f"{dataset.source} has no pictures in the split {split!r}; it has: {has}.")


def _numbers(predictor: Predictor, names: Sequence[str]) -> list[int]:
    """The network's class number for each class of the data, matched by name."""
    labels = predictor.labels
    if not predictor.named and len(names) == len(labels):
        return list(range(len(names)))  # a network that never learnt names: trust the order
    counts = Counter(labels)
    unknown = [name for name in names if name not in counts]
    if unknown:
        raise UserError(_mismatch(labels, names, unknown))
    twice = [name for name in names if counts[name] > 1]
    if twice:
        raise UserError(
            f"The network has more than one class named {twice[0]!r}, so the data's class of that "
            "name has no single answer; leave it out."
        )
    number = {label: i for i, label in enumerate(labels)}
    return [number[name] for name in names]


def _mismatch(labels: Sequence[str], names: Sequence[str], unknown: list[str]) -> str:
    if len(unknown) == len(names):
        return (
            f"The network knows {len(labels)} classes ({_some(labels)}) and none of the data's "
            f"{len(names)} ({_some(names)}). Evaluate a network trained on these classes "
            "(mbconv train), or give the data's classes the names of the network's labels."
        )
    near = difflib.get_close_matches(unknown[0], labels, n=3)
    hint = f" Did you mean {' or '.join(near)} for {unknown[0]}?" if near else ""
    return (
        f"The network does not know {len(unknown)} of the data's {len(names)} classes: "
        f"{_some(unknown, 5)}.{hint} Rename them or leave them out."
    )


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _class_rows(confusion: Ints, labels: Sequence[str]) -> list[dict[str, Any]]:
    counts = confusion.sum(axis=1)
    scores = per_class(confusion)
    return [
        {"label": labels[i], "n": int(counts[i]), **{k: float(v[i]) for k, v in scores.items()}}
        for i in np.flatnonzero(counts).tolist()
    ]


def _mistakes(
    collected: Collected, labels: Sequence[str], root: Path | None
) -> Iterator[dict[str, Any]]:
    predicted = collected.logits.argmax(axis=1)
    score = softmax(collected.logits).max(axis=1)
    wrong = np.flatnonzero(predicted != collected.targets)
    for i in wrong[np.argsort(-score[wrong], kind="stable")][:MISTAKES].tolist():
        yield {
            "path": name_in(collected.paths[i], root),
            "true": labels[int(collected.targets[i])],
            "predicted": labels[int(predicted[i])],
            "score": float(score[i]),
        }
