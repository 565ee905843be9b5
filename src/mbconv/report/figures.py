"""The report's charts as geometry in percent of the plot; the template draws them as inline SVG.

Plotly is the project's plotting library, but here it would be the wrong one: embedded, it makes
every report 4.5 MB for three small charts, needs a script before anything shows, and keeps its
colours when the reader's system goes dark or the page is printed. An SVG stretched to its box
(lines keep their width, labels are HTML beside it) takes a few kB, opens at once, has readable
text on a phone, follows the page's colours and prints. What zooming would give is in the table
below each chart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mbconv.report.folder import Json, number
from mbconv.report.words import duration, percent

Point = tuple[float, float]
_PHASES = {
    "head": "only the classifier learns, the rest is frozen",
    "full": "the network itself learns",
}
_STAGE = ("network", "params")  # of lines of a run whose network grows
BADGE = 9.0  # percent of the narrowest plot that a phase's number covers


@dataclass(frozen=True)
class Tick:
    """A label `at` percent of an axis, from the left or from the top."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A named line; x and y in percent of the plot, from its upper left corner."""

    name: str
    style: str  # class in the style sheet
    points: tuple[Point, ...]

    @property
    def path(self) -> str:
        return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in self.points)


@dataclass(frozen=True)
class Stop:
    """A place of the x axis that tells its figures when pointed at."""

    left: float
    width: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A line chart; `summary` says in words what it shows, for those who do not see it."""

    title: str
    summary: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs that trained the same part of a network at the same resolution."""

    first: int
    last: int
    text: str
    left: float
    width: float
    raised: bool  # its number stands a row higher, clear of the one before


def scale(low: float, high: float, most: int = 5) -> list[float]:
    """Round values in equal steps of 1, 2 or 5 times a power of ten, that enclose low..high."""
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high), 1e-3):  # all the same
        span = max(abs(high) / 2, 1e-3)
    power = 10 ** math.floor(math.log10(span / most))
    step = next(m * power for m in (1, 2, 5, 10, 20) if m * power >= span / most * (1 - 1e-9))
    first = math.floor(round(low / step, 9))
    last = max(math.ceil(round(high / step, 9)), first + 1)
    return [i * step for i in range(first, last + 1)]


def first_number(epochs: Sequence[Json]) -> int:
    """The first line's own number: 0 where the classifier was fitted before the first epoch."""
    given = number(epochs[0].get("epoch")) if epochs else None
    return 1 if given is None else int(given)


def epoch_ticks(total: int, most: int = 8, first: int = 1) -> tuple[Tick, ...]:
    """Numbers from `first` below the middle of each epoch's slot, thinned to about `most`."""
    step = max(1, round(scale(0, total, most)[1]))
    shown = [1, *range(step if step > 1 else 2, total + 1, step)]
    return tuple(Tick((n - 0.5) / total * 100, str(n + first - 1)) for n in shown)


def phases(epochs: Sequence[Json]) -> tuple[Phase, ...]:
    """Where training changed what it trained, which network or at which resolution."""
    if not epochs:
        return ()
    kinds = [tuple(row.get(key) for key in ("phase", "resolution", *_STAGE)) for row in epochs]
    starts = [i for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
    result: list[Phase] = []
    for first, end in zip(starts, [*starts[1:], len(kinds)], strict=True):
        phase, resolution, network, params = kinds[first]
        what = _PHASES.get(str(phase), str(phase or "training"))
        if network:  # which grows
            count = number(params)
            size = f" ({count / 1e6:.2f} million parameters)" if count else ""
            what = f"{network}{size}, {what}"
        pixels = f", pictures of {resolution} px" if resolution else ""
        left = first / len(kinds) * 100
        width = (end - first) / len(kinds) * 100
        raised = bool(result) and not result[-1].raised and left - result[-1].left < BADGE
        number_of = first_number(epochs)
        numbers = (first + number_of, end - 1 + number_of)
        result.append(Phase(*numbers, what + pixels, left, width, raised))
    return tuple(result)


def stops(epochs: Sequence[Json]) -> tuple[Stop, ...]:
    """One place an epoch, with its figures in words."""
    width = 100 / len(epochs) if epochs else 0
    return tuple(
        Stop(i * width, width, f"Epoch {n}: " + "; ".join(_figures(row)) + ".")
        for i, (n, row) in enumerate(enumerate(epochs, start=first_number(epochs)))
    )


def accuracy_chart(epochs: Sequence[Json]) -> Chart | None:
    """Validation accuracy by epoch, of the raw weights and of their moving average (EMA)."""
    best = best_epoch(epochs)
    if best is None:
        return None
    number_of_best = best[0] + first_number(epochs)
    summary = f"Validation accuracy: kept {percent(best[1])}, of epoch {number_of_best}."
    lines = {"val_raw": ("raw weights", "raw"), "val_ema": ("averaged weights (EMA)", "ema")}
    return _chart("Validation accuracy", summary, epochs, lines, as_percent=True)


def loss_chart(epochs: Sequence[Json]) -> Chart | None:
    """Training loss by epoch; None where no epoch has a finite one."""
    losses = [loss for row in epochs if (loss := number(row.get("train_loss"))) is not None]
    if not losses:
        return None
    summary = f"Training loss: {losses[0]:.3g} in the first epoch, {losses[-1]:.3g} in the last."
    return _chart("Training loss", summary, epochs, {"train_loss": ("training loss", "loss")})


def best_epoch(epochs: Sequence[Json]) -> tuple[int, float] | None:
    """(index, validation accuracy) of the epoch whose network was kept; None: none yet.

    Lines that do not say so are ranked by the better of raw and EMA.
    """
    kept = [(index, row["val_ema"]) for index, row in enumerate(epochs) if row.get("kept")]
    if kept:
        return kept[-1]
    scores = [
        (value, -index)
        for index, row in enumerate(epochs)
        for key in ("val_raw", "val_ema")
        if (value := number(row.get(key))) is not None
    ]
    if not scores:
        return None
    value, index = max(scores)
    return -index, value


def reliability(bins: Sequence[Json]) -> list[dict[str, Any]]:
    """Bins of the reliability diagram that hold pictures, with a dot sized by their share."""
    filled = [b for b in bins if b.get("n") and number(b.get("accuracy")) is not None]
    total = sum(b["n"] for b in filled)
    return [
        {**b, "x": b["confidence"] * 100, "y": 100 - b["accuracy"] * 100,
         "dot": 5 + 19 * math.sqrt(b["n"] / total)}
        for b in filled
    ]  # fmt: skip


def _chart(
    title: str,
    summary: str,
    epochs: Sequence[Json],
    named: dict[str, tuple[str, str]],
    as_percent: bool = False,
) -> Chart:
    """Lines of the fields `named` {field: (name, style)}; epochs without a figure are bridged."""
    series = {
        key: [(i, v) for i, row in enumerate(epochs) if (v := number(row.get(key))) is not None]
        for key in named
    }
    values = [v for points in series.values() for _, v in points]
    axis = scale(min(values), max(values))
    top, span, step = axis[-1], axis[-1] - axis[0], axis[1] - axis[0]
    unit = "%" if as_percent else ""
    digits = max(0, -math.floor(math.log10(step * (100 if as_percent else 1)) + 1e-9))
    lines = [
        Line(name, style, tuple(((i + 0.5) / len(epochs) * 100, (top - v) / span * 100)
                                for i, v in series[key]))
        for key, (name, style) in named.items() if series[key]
    ]  # fmt: skip
    y_ticks = tuple(Tick((top - v) / span * 100, f"{v:.{digits}{unit or 'f'}}") for v in axis)
    x_ticks = epoch_ticks(len(epochs), first=first_number(epochs))
    return Chart(title, summary, tuple(lines), x_ticks, y_ticks)


def _figures(row: Json) -> list[str]:
    raw, ema, loss = (number(row.get(key)) for key in ("val_raw", "val_ema", "train_loss"))
    seconds = number(row.get("seconds"))
    parts = []
    if raw is not None or ema is not None:
        parts.append(f"validation {percent(raw)} raw, {percent(ema)} EMA")
    if loss is not None:
        parts.append(f"loss {loss:.3f}")
    if seconds is not None:
        parts.append(f"after {duration(seconds)}")
    return parts
