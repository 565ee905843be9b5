"""What is wrong with a dataset, before anything is trained on it: each picture decoded once."""

import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from mbconv.data.examine import Entry, Progress, examine
from mbconv.data.fingerprint import near_groups
from mbconv.data.source import Dataset, check_trainable
from mbconv.errors import UserError

SAMPLE = 100_000  # files; a larger dataset is sampled unless it is asked for in full
_UNBALANCED = 5.0
_SHOWN = 3  # examples in a finding
Groups = list[list[str]]  # of paths as `Dataset.name` gives them


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The outcome. Paths are relative to the dataset's root, with `/`.

    `exact` groups hold the same bytes, `near` groups the same photograph in other bytes (pictures
    with a side below 32 px are only compared exactly). `across_splits` and `label_conflicts` are
    those of all groups, joined where they share a file, whose members lie in several splits or
    classes.
    """

    files: int
    checked: int
    sampled: bool = False
    unreadable: list[dict[str, str]] = field(default_factory=list)  # path, reason
    exact: Groups = field(default_factory=list)
    near: Groups = field(default_factory=list)
    across_splits: Groups = field(default_factory=list)
    label_conflicts: Groups = field(default_factory=list)
    class_counts: dict[str, dict[str, int]] = field(default_factory=dict)  # split, class
    imbalance: float = 1.0  # largest class / smallest class among the training pictures
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)  # width, height: min, ...
    modes: dict[str, int] = field(default_factory=dict)
    exif_rotated: int = 0
    animated: int = 0
    ignored: int = 0  # files that are no pictures by their suffix, or lie outside every class
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Audit":
        """UserError where `data` is no audit; fields that later versions added are let pass."""
        known = {f.name for f in fields(cls)}
        try:
            return cls(**{name: value for name, value in data.items() if name in known})
        except (TypeError, AttributeError) as error:
            raise UserError("This is no audit: files and checked are missing.") from error

    def groups(self) -> Groups:
        """Exact and near groups, joined where they share a file: what a split must not tear."""
        return _joined([*self.exact, *self.near])

    def recount(self, dataset: Dataset) -> "Audit":
        """The same files seen in other splits: after `split`, say. Nothing is read again."""
        return replace(self, **_by_dataset(dataset, self.groups()))

    def findings(self) -> list[str]:
        """Plain sentences, gravest first; empty where there is nothing to mend."""
        found = []
        if self.unreadable:
            names = [f"{item['path']} ({item['reason']})" for item in self.unreadable]
            found.append(
                f"{_count(names, 'file')} cannot be read and will be left out: {_few(names)}."
            )
        for groups, what in (
            (self.across_splits, "of the same picture in several splits, which flatters the score"),
            (self.label_conflicts, "of the same picture in different classes"),
            (self.exact, "of identical files"),
            (self.near, "of nearly identical pictures"),
        ):
            if groups:
                examples = _few([" = ".join(group[:_SHOWN]) for group in groups])
                found.append(f"{_count(groups, 'group')} {what}: {examples}.")
        if self.imbalance >= _UNBALANCED:
            found.append(
                f"The largest class has {self.imbalance:.1f} times as many training pictures as "
                "the smallest."
            )
        if self.sampled:
            found.append(
                f"Only a sample of {self.checked:,} of {self.files:,} files was checked; "
                "--full checks all."
            )
        return found


def audit(
    dataset: Dataset, *, full: bool = False, progress: Progress | None = None, seed: int = 0
) -> Audit:
    """Decode every file (above 100,000 a seeded sample, unless `full`) and compare them.

    `progress` is called in this thread with the number of files done and their total. What was
    learned is cached by content, so a second audit only reads and hashes the files.
    """
    start = time.perf_counter()
    samples = list(dataset)
    sampled = len(samples) > SAMPLE and not full
    if sampled:
        samples = sorted(random.Random(seed).sample(samples, SAMPLE), key=dataset.name)
    names = [dataset.name(sample) for sample in samples]
    entries = examine([sample.path for sample in samples], progress)
    exact, near = _duplicates(names, entries)
    return Audit(
        files=len(dataset),
        checked=len(samples),
        sampled=sampled,
        unreadable=[
            {"path": name, "reason": entry.reason}
            for name, entry in zip(names, entries, strict=True)
            if entry.reason
        ],
        exact=exact,
        near=near,
        ignored=dataset.ignored,
        **_statistics(entries),
        **_by_dataset(dataset, _joined([*exact, *near])),
        seconds=time.perf_counter() - start,
    )


def drop_unreadable(dataset: Dataset, found: Audit) -> Dataset:
    """The dataset without the files that the audit could not read.

    Raises UserError if no readable picture is left, or fewer than two of a class to train on.
    """
    bad = {item["path"] for item in found.unreadable}
    splits = {
        split: tuple(sample for sample in samples if dataset.name(sample) not in bad)
        for split, samples in dataset.splits.items()
    }
    splits = {split: samples for split, samples in splits.items() if samples}
    if not splits:
        raise UserError(
            f"None of the {_count(bad, 'picture')} in {dataset.source} can be read; the first: "
            f"{found.unreadable[0]['path']} ({found.unreadable[0]['reason']}). Check the files."
        )
    left = replace(dataset, splits=splits)
    if bad:
        check_trainable(left)
    return left


def _duplicates(names: Sequence[str], entries: Sequence[Entry]) -> tuple[Groups, Groups]:
    """Exact groups, and near groups of which each holds at least two different contents."""
    contents: dict[bytes, list[str]] = defaultdict(list)
    prints: dict[bytes, bytes] = {}
    for name, entry in zip(names, entries, strict=True):
        if entry.digest and not entry.reason:
            contents[entry.digest].append(name)
            if entry.print:
                prints[entry.digest] = entry.print
    exact = sorted(sorted(group) for group in contents.values() if len(group) > 1)
    digests = list(prints)
    near = (
        sorted(name for i in group for name in contents[digests[i]])
        for group in near_groups(list(prints.values()))
    )
    return exact, sorted(near)


def _statistics(entries: Iterable[Entry]) -> dict[str, Any]:
    facts = [entry.facts for entry in entries if entry.facts]
    sizes = {"width": [f.width for f in facts], "height": [f.height for f in facts]}
    return {
        "sizes": {
            side: {"min": min(v), "median": statistics.median_low(v), "max": max(v)}
            for side, v in sizes.items()
            if v
        },
        "modes": dict(Counter(f.mode for f in facts).most_common()),
        "exif_rotated": sum(f.rotated for f in facts),
        "animated": sum(f.frames > 1 for f in facts),
    }


def _by_dataset(dataset: Dataset, groups: Groups) -> dict[str, Any]:
    """What depends on the splits and labels: counts, imbalance, groups across them."""
    place: dict[str, tuple[str, int]] = {}
    counts: dict[str, dict[str, int]] = {}
    for split, samples in dataset.splits.items():
        place |= {dataset.name(sample): (split, sample.label) for sample in samples}
        tally = Counter(sample.label for sample in samples)
        counts[split] = {name: tally[i] for i, name in enumerate(dataset.classes)}
    trained = (counts.get("train") or counts.get("all") or {"": 1}).values()

    def differ(group: Sequence[str], part: int) -> bool:
        return len({place[name][part] for name in group if name in place}) > 1

    return {
        "class_counts": counts,
        "imbalance": max(trained) / max(1, min(trained)),
        "across_splits": [group for group in groups if differ(group, 0)],
        "label_conflicts": [group for group in groups if differ(group, 1)],
    }


def _joined(groups: Iterable[Sequence[str]]) -> Groups:
    """Groups merged where they share a name."""
    home: dict[str, list[str]] = {}
    for group in groups:
        merged: list[str] = []
        for name in group:
            merged += [n for n in home.get(name, [name]) if n not in merged]
        home |= dict.fromkeys(merged, merged)
    return sorted(sorted(group) for group in {id(group): group for group in home.values()}.values())


def _count(items: Iterable[object], noun: str) -> str:
    number = len(list(items))
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _few(items: Sequence[str]) -> str:
    rest = len(items) - _SHOWN
    return "; ".join(items[:_SHOWN]) + (f"; and {rest:,} more" if rest > 0 else "")
