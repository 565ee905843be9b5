"""What runs have in common and what not: configs field by field, scores pair by pair."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

from mbconv.interval import Discordant, discordant, paired_difference, unpaired_difference
from mbconv.record import Record
from mbconv.report.folder import Json, RunFolder
from mbconv.report.runs import is_pretrained

CONFIDENCE = 0.95  # that all intervals of a page hold at once
# What differs between any two runs and decides neither of them.
_PASSED_OVER = (
    "id", "date", "command", "format", "base", "machine.trials", "environment.system", "trackers",
    "version", "spec.name", "spec.source",
    "epochs", "resolution", "batch_size",  # the recipe has them too
)  # fmt: skip
_SPEC_MOST = 12  # fields of the spec, above which they are only counted


def differing_fields(configs: Sequence[Json]) -> list[tuple[str, list[str]]]:
    """(path, value in each config) of the fields that are not the same in all; absent is a dash."""
    flat = [dict(_fields(config)) for config in configs]
    paths = list(dict.fromkeys(path for fields in flat for path in fields))
    rows = []
    for path in paths:
        values = [fields.get(path, "–") for fields in flat]  # noqa: RUF001
        passed = any(path == name or path.startswith(name + ".") for name in _PASSED_OVER)
        if len(set(values)) > 1 and not passed:
            rows.append((path, values))
    specs = [row for row in rows if row[0].startswith("spec.")]
    if len(specs) <= _SPEC_MOST:
        return rows
    hashes = [hashlib.sha256(json.dumps(c.get("spec")).encode()).hexdigest()[:8] for c in configs]
    rest = [row for row in rows if not row[0].startswith("spec.")]
    return [*rest, (f"spec, {len(specs):,} fields; hash", hashes)]


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if path.endswith(".network") and isinstance(value, dict):  # a phase's, as a whole spec
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
        yield path, f"{value.get('name', 'custom')}, hash {digest}"
    elif isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _fields(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, inner in enumerate(value):
            yield from _fields(inner, f"{path}.{index}")
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Pair:
    """Two runs' scores: indices of the runs, second minus first with its interval, and on what.

    `counts` is there where both were scored on the same pictures. `obstacle` says why nothing is
    compared; the difference is 0 then.
    """

    first: int
    second: int
    difference: float = 0.0
    low: float = 0.0
    high: float = 0.0
    counts: Discordant | None = None
    obstacle: str | None = None
    starts_differ: bool = False  # one from pretrained weights, the other from none

    @property
    def verdict(self) -> str:
        """Of the second run: better, worse, not distinguishable, or not comparable."""
        if self.obstacle is not None:
            return "not comparable"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "not distinguishable"


def pairs(runs: Sequence[RunFolder]) -> list[Pair]:
    """Every pair of runs. The intervals are wider the more pairs there are, so that with 95%
    confidence all of them hold at once (Bonferroni)."""
    both = list(combinations(range(len(runs)), 2))
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(1, len(both)))
    return [_pair(i, j, runs[i], runs[j], z) for i, j in both]


def _pair(i: int, j: int, first: RunFolder, second: RunFolder, z: float) -> Pair:
    starts = {is_pretrained(run.config) for run in (first, second)}
    differ = starts == {True, False}
    one, other = first.evaluation, second.evaluation
    obstacle = _obstacle(first, second)
    if obstacle is not None or one is None or other is None:
        return Pair(i, j, obstacle=obstacle, starts_differ=differ)
    difference, counts = score_difference(one, other, z)
    return Pair(i, j, *difference, counts, starts_differ=differ)


def score_difference(
    one: Record, other: Record, z: float
) -> tuple[tuple[float, float, float], Discordant | None]:
    """The second score minus the first: value, low, high; picture by picture where they are the
    same, and then what the two have in common."""
    counts = discordant(one.detail.get("answers"), other.detail.get("answers"))
    if counts is not None:
        return paired_difference(counts, z), counts
    hits = [(round(record.value * (record.n or 1)), record.n or 1) for record in (one, other)]
    return unpaired_difference(hits[0], hits[1], z), None


def _obstacle(first: RunFolder, second: RunFolder) -> str | None:
    one, other = first.evaluation, second.evaluation
    if one is None or other is None:
        return "one of them has no final score yet"
    splits = one.detail.get("split"), other.detail.get("split")
    if set(splits) == {"test", "val"}:
        return "one was scored on test pictures, the other on validation pictures"
    if set(first.classes) != set(second.classes):
        return "they tell different classes apart"
    return None
