"""Draws docs/training.svg from docs/training.jsonl, the records of the training benchmark.

python benchmarks/train_step.py --out speed.jsonl
python benchmarks/train_step.py --memory --out memory.jsonl
cat speed.jsonl memory.jsonl > docs/training.jsonl && python docs/make_training_figure.py
"""

from collections.abc import Iterable
from html import escape
from pathlib import Path

from mbconv.record import Record, read_records

FOLDER = Path(__file__).parent
ROWS = {  # label, colour, how the contestant's name begins, how it ends
    "B0 in timm": ("#9aa5b1", "timm", ""),
    "B0 here": ("#1f7a8c", "mbconv bf16", "channels_last"),
    "B0 here, lean": ("#1f7a8c", "mbconv bf16", "lean"),
    "ResNet-50 in torchvision": ("#c9ced6", "resnet50", ""),
}
BAR, LEFT, WIDTH = 26, 190, 330  # px


def best(records: Iterable[Record], start: str, end: str, most: bool) -> Record:
    """The record of the contestant's best configuration."""
    found = [r for r in records if _contestant(r).startswith(start) and r.name.endswith(end)]
    return (max if most else min)(found, key=lambda r: r.value)


def _contestant(record: Record) -> str:
    return record.name.partition(": ")[2] or record.name.partition(" ")[2]


def panel(title: str, records: list[Record], most: bool, left: int) -> str:
    """One chart of bars; `most`: whether more is better."""
    chosen = {label: best(records, start, end, most) for label, (_, start, end) in ROWS.items()}
    scale = WIDTH / max(r.high or r.value for r in chosen.values())
    parts = [f'<text x="{left}" y="24" class="title">{escape(title)}</text>']
    for row, (label, record) in enumerate(chosen.items()):
        y, length = 44 + row * (BAR + 12), record.value * scale
        parts += [
            f'<text x="{left + LEFT - 10}" y="{y + 18}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{left + LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="3" '
            f'fill="{ROWS[label][0]}"/>',
            f'<text x="{left + LEFT + (record.high or record.value) * scale + 8:.1f}" y="{y + 18}" '
            f'class="value">'
            f"{record.value:.3g}</text>",
        ]
        if record.low is not None and record.high is not None:
            ends = [left + LEFT + v * scale for v in (record.low, record.high)]
            parts.append(f'<path d="M{ends[0]:.1f} {y + BAR / 2}H{ends[1]:.1f}" class="range"/>')
    return "".join(parts)


def figure(records: list[Record]) -> str:
    """Images a second beside MiB kept for backward."""
    speed = [r for r in records if r.unit == "img/s"]
    memory = [r for r in records if r.unit == "MiB/image"]
    step = LEFT + WIDTH + 70
    height = 44 + len(ROWS) * (BAR + 12) + 24
    hardware, versions = speed[0].environment["hardware"], speed[0].environment["versions"]
    foot = (
        f"224 px, batch 16, {speed[0].environment['cores']} cores of an {hardware}, torch "
        f"{versions['torch']}, each side's best layout and number format; median and range of "
        f"{speed[0].n} rounds, {speed[0].date[:10]}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * step} {height}" role="img">'
        "<title>EfficientNet-B0 and ResNet-50 in training, before and after</title><style>"
        "text{font:14px system-ui,sans-serif;fill:#243b53}.title{font-weight:600;font-size:16px}"
        ".value{font-weight:600}.foot{font-size:12px;fill:#627d98}"
        ".range{stroke:#243b53;stroke-width:1.5}</style>"
        f'<rect width="{2 * step}" height="{height}" rx="8" fill="#fff"/>'
        + panel("Training, images a second", speed, True, 10)
        + panel("Kept for backward, MiB an image", memory, False, step + 10)
        + f'<text x="20" y="{height - 12}" class="foot">{escape(foot)}</text></svg>\n'
    )


if __name__ == "__main__":
    drawn = figure(read_records(FOLDER / "training.jsonl"))
    (FOLDER / "training.svg").write_text(drawn, encoding="utf-8")
