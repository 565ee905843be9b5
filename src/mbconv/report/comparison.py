"""Several runs on one HTML page: what differs, how they learnt, how well, at what cost."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec
from mbconv.errors import UserError
from mbconv.files import write_text
from mbconv.report import words
from mbconv.report.differences import Pair, differing_fields, pairs
from mbconv.report.figures import Chart, Line, Tick, scale
from mbconv.report.folder import Json, RunFolder, number, read_run
from mbconv.report.run import template
from mbconv.report.runs import is_pretrained, split_word

MOST = 8  # more lines nobody tells apart
_STARTS = {True: "From pretrained weights", False: "From scratch", None: "Start unknown"}


def write_comparison(paths: Sequence[Path], out: Path) -> Path:
    """Write one page on two to eight run folders to `out`, and return it.

    Raises UserError for another number of runs, a folder that is none, or the same one twice.
    """
    if not 1 < len(paths) <= MOST:
        raise UserError(f"{len(paths)} runs were given; a comparison takes 2 to {MOST}.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("One of these runs is named twice; name each once.")
    page = template("comparison.html.j2").render(context([read_run(path) for path in paths]))
    write_text(out, page.encode("utf-8", "replace").decode("utf-8"))
    return out


def context(runs: Sequence[RunFolder]) -> Json:
    """What the page shows, as plain data."""
    found = pairs(runs)
    names = _names(runs)
    return {
        "title": _title(found, runs, names),
        "names": names,
        "groups": _groups(runs, names),
        "verdicts": [sentence(pair, runs) for pair in found],
        "pairs": [_pair_row(pair) for pair in found],
        "remarks": _remarks(found, runs),
        "charts": [c for c in (_chart_by_epoch(runs, names), _chart_by_time(runs, names)) if c],
        "fields": differing_fields([run.config for run in runs]),
        "costs": [_costs(run) for run in runs],
        "one_machine": len({_hardware(run) for run in runs}) == 1,
    }


def letter(index: int) -> str:
    return "ABCDEFGH"[index]


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """The folders' names; their whole paths where two have the same."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _title(found: Sequence[Pair], runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    if len(runs) > 2:
        return f"{len(runs)} runs: " + _best(found, runs)
    (pair,) = found
    a, b = (f"{words.short(names[i], 30)} ({letter(i)})" for i in (pair.first, pair.second))
    return {
        "better": f"{b} is better than {a}",
        "worse": f"{a} is better than {b}",
        "not distinguishable": f"{a} and {b} cannot be told apart",
        "not comparable": f"The scores of {a} and {b} cannot be compared",
    }[pair.verdict]


def _best(found: Sequence[Pair], runs: Sequence[RunFolder]) -> str:
    """Of each kind of start: which run scores highest, and which it cannot be told apart from."""
    parts = []
    for start in (True, False, None):
        own = [i for i, run in enumerate(runs) if is_pretrained(run.config) is start]
        scored = [i for i in own if runs[i].evaluation is not None]
        if not scored:
            continue
        best = max(scored, key=lambda i: _value(runs[i]))
        close = [
            letter(p.first + p.second - best) for p in found
            if best in (p.first, p.second) and p.first in own and p.second in own
            and p.verdict in ("not distinguishable", "not comparable")
        ]  # fmt: skip
        where = {True: "from pretrained weights ", False: "from scratch ", None: ""}[start]
        if len(own) == 1:
            parts.append(f"{where}{letter(best)} alone")
        elif close:
            parts.append(f"{where}{letter(best)} scores highest, not told apart from "
                         f"{words.listing(close, MOST)}")  # fmt: skip
        else:
            parts.append(f"{where}{letter(best)} is best")
    return "; ".join(parts) or "none has a final score yet"


def sentence(pair: Pair, runs: Sequence[RunFolder]) -> str:
    """The verdict on two runs in words."""
    a, b = letter(pair.first), letter(pair.second)
    if pair.obstacle is not None:
        return f"{a} and {b} are not compared: {pair.obstacle}."
    says = {
        "better": f"{b} is better than {a}",
        "worse": f"{a} is better than {b}",
        "not distinguishable": f"{a} and {b} cannot be told apart",
    }[pair.verdict]
    if pair.counts is not None:
        n, only_a, only_b = pair.counts
        on = (
            f"of the same {words.count(n, 'picture')}, {b} alone names {only_b:,} right and {a} "
            f"alone {only_a:,}"
        )
    else:
        on = "they were scored on different pictures, which blurs the comparison"
    text = f"{says}: {on}; {b} minus {a} is {_points(pair)}."
    if pair.starts_differ:
        fresh = a if is_pretrained(runs[pair.first].config) is False else b
        text += (
            f" {fresh} began from scratch and the other from pretrained weights, so this says as "
            "much about the start as about anything else."
        )
    return text


def _points(pair: Pair) -> str:
    low, value, high = (100 * v for v in (pair.low, pair.difference, pair.high))
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _pair_row(pair: Pair) -> Json:
    return {
        "name": f"{letter(pair.second)} beside {letter(pair.first)}",
        "n": pair.counts.n if pair.counts else None,
        "only_first": pair.counts.only_first if pair.counts else None,
        "only_second": pair.counts.only_second if pair.counts else None,
        "difference": None if pair.obstacle else _points(pair),
        "verdict": pair.verdict,
    }


def _remarks(found: Sequence[Pair], runs: Sequence[RunFolder]) -> list[str]:
    """What a reader must know before believing the verdicts."""
    remarks = []
    if len({is_pretrained(run.config) for run in runs}) > 1:
        remarks.append(
            "Some of these runs began from pretrained weights and some did not. They are listed "
            "apart: a pretrained network has seen far more pictures than these."
        )
    if len({str(Path(run.root).name) for run in runs}) > 1:
        remarks.append("The runs learnt from different data, which may be all the difference.")
    if any(run.evaluation and run.detail.get("split") == "val" for run in runs):
        remarks.append(
            "Scores on validation pictures are a little too good: training chose its network by "
            "them."
        )
    if any(pair.counts is None and pair.obstacle is None for pair in found):
        remarks.append(
            "Not all runs were scored on the same pictures, or a record does not say on which; "
            "on the same ones much smaller differences show."
        )
    return remarks


def _groups(runs: Sequence[RunFolder], names: Sequence[str]) -> list[Json]:
    """The scores by kind of start, best first, on one axis."""
    records = [run.evaluation for run in runs]
    bounds = [v for r in records if r for v in (r.low, r.high) if v is not None]
    axis = scale(min(bounds), max(bounds)) if bounds else [0.0, 1.0]
    left, span = axis[0], axis[-1] - axis[0]
    groups = []
    for start, title in _STARTS.items():
        own = [i for i, run in enumerate(runs) if is_pretrained(run.config) is start]
        rows = [_score_row(i, runs[i], names[i], left, span) for i in own]
        rows.sort(key=lambda row: -(row["value"] if row["value"] is not None else -1))
        if rows:
            groups.append({"title": title, "rows": rows})
    ticks = [Tick((v - left) / span * 100, f"{100 * v:.0f}%") for v in axis]
    return [group | {"ticks": ticks} for group in groups]


def _score_row(index: int, run: RunFolder, name: str, left: float, span: float) -> Json:
    record, row = run.evaluation, {"letter": letter(index), "index": index, "name": name}
    if record is None:
        return row | {"value": None}
    low, high = (record.value if v is None else v for v in (record.low, record.high))
    split = split_word(run.detail.get("split"))
    return row | {
        "value": record.value, "low": low, "high": high, "n": record.n, "split": split,
        "at": (record.value - left) / span * 100,
        "from": (low - left) / span * 100, "width": (high - low) / span * 100,
    }  # fmt: skip


def _value(run: RunFolder) -> float:
    return run.evaluation.value if run.evaluation else -1.0


def _chart_by_epoch(runs: Sequence[RunFolder], names: Sequence[str]) -> Chart | None:
    series = [_series(run, "epoch", 1) for run in runs]
    return _chart("Validation accuracy by epoch", series, names)


def _chart_by_time(runs: Sequence[RunFolder], names: Sequence[str]) -> Chart | None:
    longest = max((x for run in runs for x, _ in _series(run, "seconds", 1)), default=0)
    unit, of = ("hours", 3600) if longest > 7200 else ("minutes", 60)
    unit, of = ("seconds", 1) if longest < 180 else (unit, of)
    series = [_series(run, "seconds", of) for run in runs]
    return _chart(f"Validation accuracy by time, in {unit}", series, names)


def _series(run: RunFolder, key: str, unit: float) -> list[tuple[float, float]]:
    """(x, validation accuracy of the averaged weights) of each line of metrics that has both."""
    rows = [(number(row.get(key)), number(row.get("val_ema"))) for row in run.epochs]
    return [(x / unit, y) for x, y in rows if x is not None and y is not None]


def _chart(
    title: str, series: Sequence[list[tuple[float, float]]], names: Sequence[str]
) -> Chart | None:
    points = [point for line in series for point in line]
    if not points:
        return None
    across = scale(0.0, max(max(x for x, _ in points), 1.0), 6)
    upward = scale(min(y for _, y in points), max(y for _, y in points))
    top, height = upward[-1], upward[-1] - upward[0]
    lines = tuple(
        Line(f"{letter(i)} {words.short(names[i], 24)}", f"run-{i}",
             tuple((x / across[-1] * 100, (top - y) / height * 100) for x, y in line))
        for i, line in enumerate(series) if line
    )  # fmt: skip
    digits = max(0, -math.floor(math.log10((upward[1] - upward[0]) * 100) + 1e-9))
    y_ticks = tuple(Tick((top - v) / height * 100, f"{100 * v:.{digits}f}%") for v in upward)
    x_ticks = tuple(Tick(v / across[-1] * 100, f"{v:g}") for v in across)
    ends = ", ".join(
        f"{letter(i)} {100 * line[-1][1]:.1f}%" for i, line in enumerate(series) if line
    )
    return Chart(title, f"{title}; at the end: {ends}.", lines, x_ticks, y_ticks)


def _costs(run: RunFolder) -> Json:
    seconds = max((number(row.get("seconds")) or 0.0 for row in run.epochs), default=0.0)
    speeds = [v for row in run.epochs if (v := number(row.get("img_per_s"))) and row.get("lr")]
    figures: dict[str, Any] = {"params": None, "macs": None}
    try:
        spent = cost(Spec.from_dict(run.config.get("spec")), run.config.get("resolution"))
        figures = {"params": spent.params, "macs": spent.macs}
    except UserError:  # a spec of a newer version
        pass
    return figures | {
        "model": run.model,
        "start": {True: "pretrained", False: "from scratch", None: "–"}[  # noqa: RUF001
            is_pretrained(run.config)
        ],
        "resolution": run.config.get("resolution"),
        "bytes": words.size(run.model_bytes) if run.model_bytes else None,
        "epochs": sum(row.get("phase") != "head" for row in run.epochs),
        "time": words.duration(seconds) if seconds else None,
        "speed": speeds[-1] if speeds else None,
    }


def _hardware(run: RunFolder) -> str:
    environment = run.config.get("environment") or {}
    return f"{environment.get('hardware')} {(run.config.get('machine') or {}).get('device')}"
