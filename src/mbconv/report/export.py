"""What `mbconv export` prints."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from mbconv.report.words import count, percent, size

_TAKES = {
    "tensor": "normalised float32 [N, 3, R, R]",
    "pictures": "RGB pictures of any size, uint8 [N, H, W, 3]",
}


class ComparisonLike(Protocol):
    """Accuracies of the network and the artifact on the same pictures."""

    @property
    def n(self) -> int: ...
    @property
    def first(self) -> float: ...
    @property
    def second(self) -> float: ...
    @property
    def interval(self) -> tuple[float, float]: ...


def export_lines(
    paths: Mapping[str, Path], comparisons: Mapping[str, ComparisonLike]
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
