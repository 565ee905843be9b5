"""Who wins at what, in words; made from Records alone."""

import math
from collections.abc import Sequence

from mbconv.report.contest import Row, View
from mbconv.report.words import listing

_MIB = 2**20
_WHAT = {"latency": "One picture at a time", "throughput": "Many pictures at a time",
         "training_throughput": "Training"}  # fmt: skip


def win_lines(view: View) -> list[str]:
    """A sentence a figure, then what multiply-adds promise and time says."""
    rows = [row for row in view.rows if row.part != "plain"] or list(view.rows)
    if len(rows) < 2:
        return []
    few = min(rows, key=lambda r: r.macs)
    lines = [f"Multiply-adds: {few.network} needs the fewest, {few.macs / 1e6:,.0f} million."]
    lines += [line for figure in _WHAT if (line := _quickest(view, figure, rows))]
    known = [(row, row.memory.value) for row in rows if row.memory is not None]
    if len(known) > 1:
        least, value = min(known, key=lambda pair: pair[1])
        most, other = max(known, key=lambda pair: pair[1])
        lines.append(f"Memory: {least.network} takes the least, {value / _MIB:,.0f} MiB with the "
                     f"program; {most.network} the most, {other / _MIB:,.0f}.")  # fmt: skip
    return lines + gap_lines(rows)


def _quickest(view: View, figure: str, rows: Sequence[Row]) -> str | None:
    """The quickest, those it cannot be told from, and how far off the slowest is."""
    ranked = [(row, span) for row, span in view.ranked(figure) if row in rows]
    if len(ranked) < 2:
        return None
    (best, span), (last, slow) = ranked[0], ranked[-1]
    close = [row.network for row, other in ranked[1:] if other.low <= span.high]
    name = f"{best.network} is quickest"
    if close:
        name = f"{listing([best.network, *close])} cannot be told apart; the first"
    text = f"{_WHAT[figure]}: {name}, {span.value:.3g} ms a picture"
    if last.network in close:
        return text + "."
    return f"{text}, {slow.value / span.value:.1f} times as fast as {last.network}."


def gap_lines(rows: Sequence[Row], most: int = 3) -> list[str]:
    """What the network with the most multiply-adds loses in time to that with the fewest.

    By at most so many figures.
    """
    few, many = min(rows, key=lambda r: r.macs), max(rows, key=lambda r: r.macs)
    told = []
    for figure, words in (("latency", "one picture at a time"), ("throughput", "many at a time"),
                          ("training_throughput", "in training")):  # fmt: skip
        one, other = few.milliseconds(figure), many.milliseconds(figure)
        if one and other and (one.high < other.low or other.high < one.low):
            told.append(f"{other.value / one.value:.1f} times as fast {words}")
        elif one and other:
            told.append(f"not distinguishably faster {words}")
    if not told or many.macs < 1.5 * few.macs:
        return []
    return [f"{many.network} has {many.macs / few.macs:.1f} times the multiply-adds of "
            f"{few.network}, which is {', '.join(told[:most])}."]  # fmt: skip


def parts(view: View) -> tuple[list[Row], list[Row]] | None:
    """Plain networks and rivals, then ours and rivals, of a view that has both."""
    plain = [row for row in view.rows if row.part in ("plain", "rival")]
    ours = [row for row in view.rows if row.part in ("ours", "rival")]
    if not any(row.part == "plain" for row in plain) or not any(r.part == "ours" for r in ours):
        return None
    return plain, ours


def answer_lines(view: View) -> list[str]:
    """How much of the gap is closed: speed-ups, and whether multiply-adds foretell time."""
    found = parts(view)
    if found is None:
        return []
    plain, ours = ({row.of: row for row in rows} for rows in found)
    lines = []
    # Training first: there the gap is widest.
    for figure, words in (("training_throughput", "A training step"), ("throughput", "A pass")):
        both = [
            (plain[name].milliseconds(figure), row.milliseconds(figure))
            for name, row in ours.items()
            if row.part == "ours" and name in plain
        ]
        ratios = [p.value / o.value for p, o in both if p and o]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            lines.append(
                f"{words} of ours is {mean:.2f} times as fast as in plain PyTorch (geometric mean "
                f"of {len(ratios)} networks; {min(ratios):.2f} to {max(ratios):.2f})."
            )
        orders = [order(rows, figure) for rows in found]
        if all(value is not None for value in orders):
            before, after = orders
            lines.append(f"{words}: the order by multiply-adds and the order by time correlate at "
                         f"{before:.2f} in plain PyTorch and at {after:.2f} with ours (1: the same "
                         "order).")  # fmt: skip
    return lines


def order(rows: Sequence[Row], figure: str) -> float | None:
    """Spearman's correlation of multiply-adds with time a picture; None for less than three."""
    known = [(row.macs, span.value) for row in rows if (span := row.milliseconds(figure))]
    n = len(known)
    if n < 3:
        return None
    ranks = [
        [sorted(column).index(value) for value in column] for column in zip(*known, strict=True)
    ]
    apart = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
    return float(1 - 6 * apart / (n * (n * n - 1)))
