"""What `mbconv export` prints."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mbconv.record import Record
from mbconv.report.bench import failed, noise_lines
from mbconv.report.words import count, listing, percent, size

_TAKES = {
    "tensor": "normalised float32 [N, 3, R, R]",
    "pictures": "RGB pictures of any size, uint8 [N, H, W, 3]",
}


class ComparisonLike(Protocol):
    """Accuracies of a network and of what was made from it on the same pictures."""

    @property
    def n(self) -> int: ...
    @property
    def first(self) -> float: ...
    @property
    def second(self) -> float: ...
    @property
    def drop(self) -> float: ...
    @property
    def interval(self) -> tuple[float, float]: ...


def export_lines(
    paths: Mapping[str, Path],
    comparisons: Mapping[str, ComparisonLike],
    in_float: Sequence[str] = (),
    distilled: bool = False,
) -> Iterator[str]:
    """A line for each artifact, and beneath it what was measured."""
    for entry, path in paths.items():
        both = (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
        yield f"{path}: {size(sum(p.stat().st_size for p in both))}, takes {_TAKES[entry]}"
        found = comparisons.get(entry)
        if found is not None:
            low, high = (100 * bound for bound in found.interval)
            yield (
                f"  accuracy {percent(found.second)}, the network's {percent(found.first)} on the "
                f"same {count(found.n, 'picture')}; drop in points, 95% interval: "
                f"{low:.1f} to {high:.1f}"
            )
    if in_float:
        yield (
            f"{count(len(in_float), 'layer')} in floating point, the most sensitive to INT8: "
            f"{listing(in_float)}"
        )
    if distilled:
        yield "distilled: the weights have learnt to answer in INT8 as the network does in float32"


def fastest_lines(records: Sequence[Record]) -> Iterator[str]:
    """All candidates of `--fastest`, the best first, and at the end those that are none here."""
    built = [r for r in records if r.name != "build"]
    rows: dict[str, dict[str, Record]] = {}
    for record in built:
        rows.setdefault(record.detail["candidate"], {})[record.name] = record
    if rows:
        goal = built[0].detail["goal"]
        sign = 1 if goal == "latency" else -1
        ordered = sorted(rows.items(), key=lambda row: (failed(row[1][goal]),
                                                        sign * row[1][goal].value))  # fmt: skip
        width = max(map(len, rows))
        yield f"  {'':{width}}  ms, 1 picture    img/s  pieces of  drop in points, 95% interval"
        for name, figures in ordered:
            yield f"{_mark(figures)} {name:{width}}  {_row(figures)}".rstrip()
    for record in records:
        if record.name == "build":
            yield f"  {record.detail['candidate']}: {record.detail['error']}"
    yield from noise_lines(built)


def _mark(figures: Mapping[str, Record]) -> str:
    return "*" if figures["latency"].detail["chosen"] else " "


def _row(figures: Mapping[str, Record]) -> str:
    latency, throughput = figures["latency"], figures["throughput"]
    for record in (latency, throughput):
        if failed(record):
            return str(record.detail["error"])
    about = latency.detail
    pieces = throughput.detail["piece"] or "all"
    text = f"{latency.value:13.2f} {throughput.value:8,.0f}  {pieces!s:>9}  "
    if not about.get("artifact", True):
        return text + "no artifact"
    if "drop" in about:
        low, high = 100 * about["drop_low"], 100 * about["drop_high"]
        text += f"{100 * about['drop']:.1f} ({low:.1f} to {high:.1f})"
    if "in_float" in about:
        text += f", {count(len(about['in_float']), 'layer')} in floating point"
    if "distilled" in about:
        text += ", distilled"
    return text
