"""Records of several networks, as rows that can be compared; made from `mbconv compare`'s."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mbconv.record import Record
from mbconv.report.bench import failed, machine, peak_memory, way

FIGURES = ("latency", "throughput", "training_throughput")
_COUNTS = ("params", "macs", "published_top1")


@dataclass(frozen=True)
class Span:
    """A figure with its 95% interval, or what stands for one where there were few rounds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A network on one machine at one resolution."""

    network: str
    letter: str
    foreign: bool
    resolution: int
    macs: float
    params: float
    part: str = ""  # ours, plain or rival, where the records say so
    of: str = ""
    figures: dict[str, Record] = field(default_factory=dict)
    memory: Record | None = None  # the peak of a training step, or of a pass

    def milliseconds(self, figure: str) -> Span | None:
        """Time a picture."""
        record = self.figures.get(figure)
        return milliseconds(record) if record else None


@dataclass(frozen=True)
class View:
    """Networks that were measured together: on one machine, at resolutions chosen alike."""

    machine: str
    kind: str  # same, own or taught
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        sides = {row.resolution for row in self.rows}
        if len(sides) == 1:
            return f"all at {min(sides)} px"
        return {"own": "each at its own resolution"}.get(self.kind, "each as it was trained")

    def ranked(self, figure: str) -> list[tuple[Row, Span]]:
        """The rows that have the figure, quickest first."""
        known = [(row, span) for row in self.rows if (span := row.milliseconds(figure))]
        return sorted(known, key=lambda pair: pair[1].value)


def milliseconds(record: Record) -> Span:
    """Time a picture of a latency or a throughput; without an interval, two deviations."""
    low, high = record.low, record.high
    if low is None or high is None:
        reach = 2 * (record.spread or 0.0)
        low, high = max(record.value - reach, record.value / 2), record.value + reach
    if record.name == "latency":
        return Span(record.value, low, high)
    return Span(1e3 / record.value, 1e3 / high, 1e3 / low)


def letters(records: Iterable[Record]) -> dict[str, str]:
    """A letter a network, in the order of the records: A to Z, then A2 and so on."""
    names = dict.fromkeys(str(r.detail["network"]) for r in records if "network" in r.detail)
    return {name: chr(65 + i % 26) + (str(i // 26 + 1) if i >= 26 else "")
            for i, name in enumerate(names)}  # fmt: skip


def merged(records: Iterable[Record]) -> list[Record]:
    """Without those that are there twice, as when a file is given beside one that holds it."""
    seen: dict[str, Record] = {}
    for record in records:
        seen.setdefault(repr(record), record)
    return list(seen.values())


def views(records: Sequence[Record]) -> list[View]:
    """Machines in the order of the records; on each what was measured at the same resolution first.

    A view of what was measured at each network's own is left out where that is the same.
    """
    marks = letters(records)
    timed = [r for r in records if r.name in FIGURES and not failed(r) and r.value > 0]
    found = []
    for name in dict.fromkeys(map(machine, timed)):
        here = [r for r in timed if machine(r) == name]
        for kind in ("same", "own", "taught"):
            rows = _rows([r for r in here if view_of(r) == kind], records, marks)
            if rows:
                found.append(View(name, kind, rows))
    return found


def view_of(record: Record) -> str:
    """How the resolution was chosen; records of `mbconv bench` are told by what they are."""
    about = record.detail
    own = about.get("resolution") == about.get("native")
    return str(about.get("view") or ("own" if own else "same"))


def failures(records: Iterable[Record]) -> list[tuple[str, str, str]]:
    """(network, what, why) of what could not be taken."""
    what = {"network": "cannot be measured", "top1": "not trained"}
    rows = []
    for record in filter(failed, records):
        about = record.detail
        batch = f", batch {about['batch']}" if "batch" in about else ""
        text = what.get(record.name) or record.name.replace("_", " ") + batch
        rows.append((str(about["network"]), text, str(about["error"])))
    return list(dict.fromkeys(rows))


def _rows(
    timed: Sequence[Record], records: Sequence[Record], marks: dict[str, str]
) -> tuple[Row, ...]:
    counts = {(r.name, r.detail["network"], r.detail.get("resolution")): r
              for r in records if r.name in _COUNTS}  # fmt: skip
    batches = {figure: _usual_batch(timed, figure) for figure in FIGURES}
    rows = []
    for network, side in dict.fromkeys(
        (r.detail["network"], r.detail["resolution"]) for r in timed
    ):
        macs, params = (counts.get((name, network, side)) for name in ("macs", "params"))
        if macs is None or params is None:
            continue
        own = [r for r in timed if (r.detail["network"], r.detail["resolution"]) == (network, side)]
        figures = {figure: best for figure in FIGURES
                   if (best := _best(own, figure, batches[figure]))}  # fmt: skip
        peaks = (
            peak_memory(figures[name], records) for name in reversed(FIGURES) if name in figures
        )
        about = own[0].detail
        rows.append(Row(
            network, marks[network], about.get("library") != "mbconv", side, macs.value,
            params.value, about.get("part", ""), about.get("of", network), figures,
            next((peak for peak in peaks if peak is not None), None),
        ))  # fmt: skip
    return tuple(rows)


def _usual_batch(timed: Iterable[Record], figure: str) -> int | None:
    """The batch at which most networks were measured, the larger of equals."""
    pairs = {(r.detail["batch"], r.detail["network"]) for r in timed if r.name == figure}
    counted = Counter(batch for batch, _ in pairs)
    return max(counted, key=lambda batch: (counted[batch], batch), default=None)


def _best(own: Iterable[Record], figure: str, batch: int | None) -> Record | None:
    """A network's figure in its fastest way, at that batch if it has one, else at its largest."""
    known = [r for r in own if r.name == figure]
    if not known:
        return None
    sizes = {r.detail["batch"] for r in known}
    size = batch if batch in sizes else max(sizes)
    return min((r for r in known if r.detail["batch"] == size), key=lambda r: milliseconds(r).value)


def ways_of(row: Row) -> str:
    """In which way each figure was fastest, told once where it is the same."""
    found = {figure: way(record) for figure, record in row.figures.items()}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(
        f"{figure.replace('_throughput', '')}: {text}" for figure, text in found.items()
    )
