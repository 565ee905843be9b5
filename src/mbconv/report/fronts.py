"""Accuracy against cost with its Pareto front, and two rankings side by side, as geometry in
percent of the plot; the template draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mbconv.report.figures import Line, Tick, scale


@dataclass(frozen=True)
class Network:
    """A network in a chart: its cost and accuracy, and how it is told apart."""

    letter: str
    name: str
    foreign: bool
    cost: float
    accuracy: float  # a share


@dataclass(frozen=True)
class Dot:
    """A network's mark; `front`: no other network is better and no dearer."""

    letter: str
    text: str
    foreign: bool
    front: bool
    x: float
    y: float


@dataclass(frozen=True)
class Scatter:
    """`front` is a stepped line through the networks on it; `summary` says what it shows."""

    title: str
    summary: str
    dots: tuple[Dot, ...]
    front: Line
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Place:
    """A network's place in a ranking; `text` is its figure."""

    letter: str
    name: str
    text: str
    foreign: bool


@dataclass(frozen=True)
class Slope:
    """Two rankings of the same networks, the least first; a line joins each one's two places.

    `lines` are (place on the left, on the right, kind): behind, ahead or level on the right.
    """

    title: str
    summary: str
    left_title: str
    right_title: str
    left: tuple[Place, ...]
    right: tuple[Place, ...]
    lines: tuple[tuple[int, int, str], ...]


def front(networks: Sequence[Network]) -> list[Network]:
    """Those that no other beats: none is as accurate for less, or more accurate for as much."""
    found: list[Network] = []
    for network in sorted(networks, key=lambda n: (n.cost, -n.accuracy)):
        if not found or network.accuracy > found[-1].accuracy:
            found.append(network)
    return found


def scatter(title: str, unit: str, networks: Sequence[Network]) -> Scatter | None:
    """A chart of at least two networks, cost on a logarithmic axis."""
    if len(networks) < 2:
        return None
    best = front(networks)
    marks = _log_ticks(min(n.cost for n in networks), max(n.cost for n in networks))
    left, width = math.log(marks[0]), math.log(marks[-1] / marks[0])
    upward = scale(min(n.accuracy for n in networks), max(n.accuracy for n in networks))
    top, height = upward[-1], upward[-1] - upward[0]

    def across(cost: float) -> float:
        return (math.log(cost) - left) / width * 100

    def down(accuracy: float) -> float:
        return (top - accuracy) / height * 100

    steps = [(across(best[0].cost), 100.0)]
    for network in best:
        steps += [
            (across(network.cost), steps[-1][1]),
            (across(network.cost), down(network.accuracy)),
        ]
    steps.append((100.0, steps[-1][1]))
    dots = tuple(
        Dot(n.letter, f"{n.name}: {100 * n.accuracy:.1f}%, {n.cost:.3g} {unit}", n.foreign,
            n in best, across(n.cost), down(n.accuracy)) for n in networks
    )  # fmt: skip
    digits = max(0, -math.floor(math.log10((upward[1] - upward[0]) * 100) + 1e-9))
    return Scatter(
        title, f"{title}. On the front: {', '.join(n.name for n in best)}.", dots,
        Line("front", "front", tuple(steps)),
        tuple(Tick(across(v), f"{v:,g}") for v in marks),
        tuple(Tick(down(v), f"{100 * v:.{digits}f}%") for v in upward),
    )  # fmt: skip


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that enclose low..high; powers alone where those are many."""
    for steps in ((1, 2, 5), (1, 3), (1,)):
        first = math.floor(math.log10(low))
        last = math.ceil(math.log10(high)) + 1
        ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        start = max(i for i, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
        end = min(i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9))
        ticks = ticks[start : max(end, start + 1) + 1]
        if len(ticks) <= 6:
            break
    return ticks


def slope(
    title: str,
    titles: tuple[str, str],
    left: Sequence[tuple[Place, str, float]],
    right: Sequence[tuple[Place, str, float]],
) -> Slope | None:
    """Rankings by the figures (place, key, figure); a key joins both sides. Of two at least."""
    both = {key for _, key, _ in left} & {key for _, key, _ in right}
    first, second = (sorted((item for item in side if item[1] in both), key=lambda item: item[2])
                     for side in (left, right))  # fmt: skip
    if len(both) < 2:
        return None
    place = {key: i for i, (_, key, _) in enumerate(second)}
    lines = tuple(
        (i, place[key], "level" if place[key] == i else "behind" if place[key] > i else "ahead")
        for i, (_, key, _) in enumerate(first)
    )
    moved = sum(kind != "level" for _, _, kind in lines)
    names = ", ".join(p.name for p, _, _ in second)
    summary = f"{title}: {moved} of {len(lines)} change their place. On the right: {names}."
    places = tuple(place for place, _, _ in first), tuple(place for place, _, _ in second)
    return Slope(title, summary, *titles, *places, lines)
