"""Writes this folder's README.md and its curves from the records of benchmarks/growing.py.

python benchmarks/growing.py DATA --seconds 45 --out docs/studies/growing/wide.jsonl
python benchmarks/growing.py DATA --seconds 45 --width 1 --out docs/studies/growing/deep.jsonl
python docs/studies/growing/make.py
"""

import runpy
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from mbconv.arch.cost import cost
from mbconv.record import Record, read_records
from mbconv.report.words import count

FOLDER = Path(__file__).parent
STUDY: dict[str, Any] = runpy.run_path(str(FOLDER.parents[2] / "benchmarks" / "growing.py"))
SETS = {
    "wide": "Twice the blocks, 1.4 times the channels",
    "deep": "Twice the blocks, the same channels",
}
COLOURS = {
    "from scratch": "#9aa5b1", "grown, function kept": "#1f7a8c",
    "transplant with batch norm": "#d97706", "transplant, convolutions only": "#b4436c",
}  # fmt: skip
WIDTH, HEIGHT, LEFT, TOP = 520, 260, 50, 40  # px, of one plot
HEAD = """# Does growing save time?

Made by `python docs/studies/growing/make.py` from the records beside it; `benchmarks/growing.py`
has the method. A network of four blocks ({params:,} parameters) on Imagewoof's ten breeds at 64 px,
batch 64, one thread, bfloat16. The large network learns from scratch for T, or the small one learns
for half of it, grows, and the large one learns for the other half; each training is one cycle of
the learning rate. Time is processor time: the seconds of a step of either network are measured, and
T is spent in that many steps. Scores are of the averaged weights on all {n:,} validation pictures
(points within a curve on the first 1,000); intervals are Student's over seeds, those of differences
over pairs with the same seed. A transplant moves the tensors whose name and shape agree: where
widths differ, that is next to nothing.
"""


def mean_curve(records: Sequence[Record]) -> list[tuple[float, float]]:
    """Mean accuracy at each share of T, over seeds; where the network changes, both points."""
    curves = [record.detail["curve"] for record in records]
    return [
        (points[0][0], statistics.fmean(value for _, value in points))
        for points in zip(*curves, strict=True)
    ]


def plot(title: str, records: Sequence[Record], left: int) -> str:
    """The curves of the arms with the whole T."""
    top = max(value for record in records for _, value in record.detail["curve"]) * 1.05
    parts = [f'<text x="{left + LEFT}" y="24" class="title">{escape(title)}</text>']
    for percent in range(0, int(100 * top) + 1, 10):
        y = TOP + HEIGHT * (1 - percent / 100 / top)
        parts += [
            f'<path d="M{left + LEFT} {y:.1f}h{WIDTH}" class="grid"/>',
            f'<text x="{left + LEFT - 6}" y="{y + 5:.1f}" text-anchor="end">{percent}%</text>',
        ]
    for row, (name, colour) in enumerate(COLOURS.items()):
        found = [record for record in records if record.detail["arm"] == f"{name}, T"]
        if not found:
            continue
        points = " ".join(
            f"{left + LEFT + WIDTH * share:.1f},{TOP + HEIGHT * (1 - value / top):.1f}"
            for share, value in mean_curve(found)
        )
        y = TOP + HEIGHT + 44 + 20 * row
        label = f"{escape(name)}, {count(len(found), 'seed')}"
        parts += [
            f'<polyline points="{points}" stroke="{colour}"/>',
            f'<rect x="{left + LEFT}" y="{y - 9}" width="18" height="4" fill="{colour}"/>',
            f'<text x="{left + LEFT + 26}" y="{y}">{label}</text>',
        ]
    for share, text in ((0, "0"), (0.5, "T/2"), (1, "T")):
        x = left + LEFT + WIDTH * share
        parts.append(f'<text x="{x}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{text}</text>')
    return "".join(parts)


def verdict(records: Sequence[Record]) -> str:
    """What the seeds say of growing: in the same time, and in half of it."""
    scores = {(r.detail["arm"], r.detail["seed"]): r.value for r in records}
    seeds = sorted({seed for _, seed in scores})

    def beside(arm: str) -> str:
        """Grown less from scratch in T, in words."""
        gaps = [100 * (scores[arm, s] - scores["from scratch, T", s]) for s in seeds]
        mean, half = STUDY["interval"](gaps)
        sign = "better" if mean - half > 0 else "worse" if mean + half < 0 else None
        points = f"{mean:+.1f} points, {mean - half:+.1f} to {mean + half:+.1f}"
        return f"{sign} ({points})" if sign else f"not distinguishable ({points})"

    return (
        f"**Verdict.** With {count(len(seeds), 'seed')}, growing with the function kept is, beside "
        f"training from scratch for T: {beside('grown, function kept, T')} in the same time; "
        f"{beside('grown, function kept, T/2')} in half of it."
    )


def page(sets: dict[str, list[Record]]) -> str:
    """The tables."""
    n = max(record.n or 0 for records in sets.values() for record in records)
    head = HEAD.format(params=cost(STUDY["SMALL"]).params, n=n)
    parts = [head, "\n![Accuracy over time](curves.svg)\n"]
    for name, records in sets.items():
        first = records[0]
        large = max(first.detail["seconds_per_step"].values())
        whole = max(record.detail["budget_seconds"] for record in records)
        parts.append(
            f"\n## {SETS[name]}\n\nT = {whole:.0f} s, {whole / large:.0f} steps of the large "
            f"network, {first.environment['hardware']}, torch "
            f"{first.environment['versions']['torch']}, {first.date[:10]}.\n\n"
        )
        parts.append("\n".join(STUDY["table"](records)) + "\n\n" + verdict(records) + "\n")
    return "".join(parts)


def figure(sets: dict[str, list[Record]]) -> str:
    """The curves of all sets, side by side."""
    step = LEFT + WIDTH + 40
    width, height = step * len(sets), TOP + HEIGHT + 130
    plots = "".join(
        plot(SETS[name], records, step * number)
        for number, (name, records) in enumerate(sets.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        "<title>Accuracy over training time, from scratch and grown</title><style>"
        "text{font:14px system-ui,sans-serif;fill:#243b53}.title{font-weight:600;font-size:16px}"
        ".grid{stroke:#d9e2ec}polyline{fill:none;stroke-width:2.5}</style>"
        f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>{plots}</svg>\n'
    )


if __name__ == "__main__":
    there = {name: FOLDER / f"{name}.jsonl" for name in SETS}
    found = {name: read_records(path) for name, path in there.items() if path.exists()}
    (FOLDER / "README.md").write_text(page(found), encoding="utf-8")
    (FOLDER / "curves.svg").write_text(figure(found), encoding="utf-8")
