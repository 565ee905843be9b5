"""One page on what networks cost and how accurate they are, from `mbconv compare`'s Records."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mbconv.errors import UserError
from mbconv.files import write_text
from mbconv.record import Record, read_records
from mbconv.report import fronts, winners, words
from mbconv.report.bench import failed, noise_lines
from mbconv.report.contest import Row, View, failures, letters, merged, views, ways_of
from mbconv.report.folder import Json
from mbconv.report.run import template
from mbconv.report.scores import Group, groups

RECORDS, PAGE = "records.jsonl", "compare.html"
_MIB = 2**20
_TIMES = {"latency": "ms, one picture", "throughput": "ms a picture, many at a time",
          "training_throughput": "ms a picture, training"}  # fmt: skip
Cost = Callable[[Row], float | None]


def read_files(paths: Sequence[Path]) -> list[Record]:
    """The Records of all files, of several machines perhaps, each once.

    Raises UserError for a file that cannot be read, one that is broken, or one without costs.
    """
    records = []
    for path in paths:
        try:
            found = read_records(path)
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise UserError(
                f"Cannot read {path}: {why}. Give a records.jsonl that mbconv compare or "
                "mbconv bench --out wrote."
            ) from error
        if not any("network" in r.detail for r in found):
            raise UserError(
                f"{path} holds no costs of networks; give a records.jsonl that mbconv compare or "
                "mbconv bench --out wrote."
            )
        records += [r for r in found if "network" in r.detail]
    return merged(records)


def write_page(records: Sequence[Record], out: Path) -> Path:
    """Write the page to `out`, and return it."""
    page = template("costs.html.j2").render(context(records))
    write_text(out, page.encode("utf-8", "replace").decode("utf-8"))
    return out


def context(records: Sequence[Record]) -> Json:
    """What the page shows, as plain data."""
    found, marks = views(records), letters(records)
    learnt = groups(records, marks)
    libraries = {r.detail["network"]: r.detail.get("library", "mbconv") for r in records}
    return {
        "title": title(found, marks),
        "letters": [(letter, name, libraries[name] != "mbconv") for name, letter in marks.items()],
        "views": [_view(view, [r for r in records if not failed(r)]) for view in found],
        "charts": _charts(found, records, learnt),
        "groups": [group.context() for group in learnt],
        "failures": failures(records),
        "noise": " ".join(noise_lines(records)),
        "machines": list(dict.fromkeys(view.machine for view in found)),
        "versions": _versions(records),
        "foreign": any(library != "mbconv" for library in libraries.values()),
    }


def title(found: Sequence[View], marks: dict[str, str]) -> str:
    """The gap between multiply-adds and time of the first view, or what is compared."""
    for view in found:
        lines = winners.answer_lines(view)[:1] or winners.gap_lines(view.rows, most=1)
        if lines:
            return lines[0].rstrip(".")
    return f"{len(marks)} networks compared"


def _view(view: View, records: Sequence[Record]) -> Json:
    return {
        "title": f"{view.machine}, {view.title}",
        "wins": [*winners.answer_lines(view), *winners.win_lines(view)],
        "slopes": _slopes(view),
        "rows": [_cells(row) for row in sorted(view.rows, key=lambda row: row.macs)],
    }


def _cells(row: Row) -> Json:
    cells: Json = {"letter": row.letter, "name": row.network, "foreign": row.foreign,
                   "resolution": row.resolution, "params": f"{row.params / 1e6:.2f}",
                   "macs": f"{row.macs / 1e6:,.0f}", "way": ways_of(row),
                   "memory": f"{row.memory.value / _MIB:,.0f}" if row.memory else "–"}  # noqa: RUF001 # fmt: skip
    for figure in _TIMES:
        span, record = row.milliseconds(figure), row.figures.get(figure)
        cells[figure] = None
        if span and record:
            about = record.detail
            cells[figure] = {"value": f"{span.value:.3g}", "noisy": bool(about.get("noisy")),
                             "interval": f"{span.low:.3g} to {span.high:.3g}",
                             "batch": about.get("batch")}  # fmt: skip
    return cells


def _slopes(view: View) -> list[fronts.Slope]:
    """Multiply-adds beside time, and where the records tell plain from ours, these two."""
    found = winners.parts(view)
    slopes = []
    for figure, words_of in _TIMES.items():
        if found is None:
            slopes.append(_slope(f"Multiply-adds and {words_of}", "million multiply-adds", words_of,
                                 view.rows, view.rows, figure))  # fmt: skip
        else:
            plain, ours = found
            slopes.append(_slope(f"Plain PyTorch, {words_of}", "million multiply-adds",
                                 "plain", plain, plain, figure))  # fmt: skip
            slopes.append(_slope(f"With our kernels, {words_of}", "million multiply-adds",
                                 "ours", ours, ours, figure))  # fmt: skip
    return [slope for slope in slopes if slope is not None]


def _slope(
    name: str, left: str, right: str, one: Sequence[Row], other: Sequence[Row], figure: str
) -> fronts.Slope | None:
    def place(row: Row, text: str) -> fronts.Place:
        name = row.network.partition(":")[2] or row.network  # its colour tells a foreign one
        return fronts.Place(row.letter, words.short(name, 22), text, row.foreign)

    return fronts.slope(
        name,
        (left, right),
        [(place(row, f"{row.macs / 1e6:,.0f}"), row.of or row.network, row.macs) for row in one],
        [(place(row, f"{span.value:.3g} ms"), row.of or row.network, span.value)
         for row in other if (span := row.milliseconds(figure))],
    )  # fmt: skip


def _charts(
    found: Sequence[View], records: Sequence[Record], learnt: Sequence[Group]
) -> list[Json]:
    """For each machine and kind of accuracy, charts against multiply-adds, time and memory."""
    published = {(r.detail["network"], r.detail["resolution"]): r.value
                 for r in records if r.name == "published_top1"}  # fmt: skip
    kinds = [("Published top-1 on ImageNet", published)]
    kinds += [(group.title, group.shares()) for group in learnt]
    charts = []
    for machine in dict.fromkeys(view.machine for view in found):
        rows = {(r.network, r.resolution): r for v in found if v.machine == machine for r in v.rows}
        for name, accuracy in kinds:
            known = [(row, accuracy[key]) for key, row in rows.items() if key in accuracy]
            drawn = [_scatter(what, unit, cost, known) for what, unit, cost in _COSTS]
            if shown := [chart for chart in drawn if chart is not None]:
                absent = {row.letter for row in rows.values()} - {row.letter for row, _ in known}
                charts.append({"title": f"{name}; {machine}", "charts": shown,
                               "absent": ", ".join(sorted(absent))})  # fmt: skip
    return charts


def _milliseconds(row: Row) -> float | None:
    span = row.milliseconds("latency") or row.milliseconds("throughput")
    return span.value if span else None


_COSTS: tuple[tuple[str, str, Cost], ...] = (
    ("Million multiply-adds", "million multiply-adds", lambda row: row.macs / 1e6),
    ("Milliseconds a picture", "ms", _milliseconds),
    ("Peak memory, MiB", "MiB", lambda row: row.memory.value / _MIB if row.memory else None),
)


def _scatter(
    name: str, unit: str, cost: Cost, known: Sequence[tuple[Row, float]]
) -> fronts.Scatter | None:
    networks = [fronts.Network(row.letter, row.network, row.foreign, value, share)
                for row, share in known if (value := cost(row))]  # fmt: skip
    return fronts.scatter(name, unit, networks)


def _versions(records: Sequence[Record]) -> str:
    found = {f"{name} {version}" for r in records
             for name, version in r.environment.get("versions", {}).items()
             if name in ("mbconv", "torch", "torchvision", "timm")}  # fmt: skip
    return ", ".join(sorted(found))
