"""Writes docs/scaling.md and docs/scaling.svg: what more GPUs bring, modelled, beside measurements.

torchrun --nproc-per-node 2 benchmarks/scaling.py
python docs/make_scaling.py
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from mbconv.record import Record, read_records
from mbconv.report.words import percent
from scaling_model import (
    BACKWARD,
    COUNTS,
    FLOOR,
    HIDDEN,
    IMAGES,
    INSIDE,
    NETWORKS,
    STRONG,
    WEAK,
    Link,
    Step,
    Traffic,
    exposed,
    hiding,
    traffic,
)  # fmt: skip

FOLDER = Path(__file__).parent


# -- measurements --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The benchmark's records, and the link that its bare all-reduces fit."""

    records: dict[str, Record]

    @property
    def link(self) -> Link:
        """Least squares of relative errors over the sizes, for two processes."""
        bare = {int(n.split()[1]): r.value / 1000 for n, r in self.records.items() if " " in n}
        count = self.records["shared"].detail["processes"]
        hops = 2 * (count - 1)
        rows = [[hops / t, hops * size / count / t] for size, t in bare.items()]
        latency, inverse = np.linalg.lstsq(np.array(rows), np.ones(len(rows)), rcond=None)[0]
        return Link(max(0.0, float(latency)), 1 / float(inverse))

    def foretold(self) -> float:
        """Milliseconds of the shared step by the model, from the steps beside each other."""
        about, alone = self.records["shared"].detail, self.records["beside"].value / 1000
        sent = traffic(about["model"], about["resolution"])
        return 1000 * (alone + exposed(sent, about["processes"], self.link, BACKWARD * alone))


# -- the page ------------------------------------------------------------------------------------


def table(head: str, rows: Iterator[list[str]]) -> str:
    columns = head.count("|") - 1
    return "\n".join([head, "|" + "---|" * columns, *(f"| {' | '.join(r)} |" for r in rows)])


def measured_rows(measured: Measured) -> Iterator[list[str]]:
    words = {"alone": "step of one process, the other waiting",
             "beside": "both processes' steps at once, without a word between them",
             "shared": "shared step: the same pictures each, gradients summed"}  # fmt: skip
    for name, record in measured.records.items():
        what = words.get(name) or f"bare all-reduce of {int(name.split()[1]) / 1024:,.0f} KiB"
        yield [what, f"{record.value:.1f}", f"{record.low:.1f} to {record.high:.1f}"]
        if name == "shared":
            yield ["*the same, by the model*", f"*{measured.foretold():.1f}*", ""]


def modelled_rows(sent: Traffic) -> Iterator[list[str]]:
    for count in COUNTS:
        row = [f"{count:,}"]
        for network in NETWORKS:
            step = Step(sent, count, network, WEAK)
            row += [f"{1000 * step.seconds:.1f}", percent(step.kept, 0), f"{step.images:,.0f}"]
            row += [f"{hiding(sent, count, network):,}" if count > 1 else "–"]  # noqa: RUF001
        yield row


def strong_rows(sent: Traffic) -> Iterator[list[str]]:
    for count in COUNTS:
        each = STRONG / count
        steps = [Step(sent, count, network, each) for network in NETWORKS]
        yield [f"{count:,}", f"{each:,.0f}", *(f"{s.images:,.0f}" for s in steps)]


def assumptions(sent: Traffic) -> Iterator[list[str]]:
    total = sum(sent.sizes)
    yield ["gradients", f"{total / 1e6:.2f} MB a step in {len(sent.sizes)} buckets "
           f"({', '.join(f'{size / 1e6:.1f}' for size in sent.sizes)} MB)",
           "counted: the network's parameters in float32, the trainer's own buckets"]  # fmt: skip
    yield ["loss, running statistics", f"{sent.tail / 1e6:.2f} MB, behind the gradients",
           "counted; nothing hides this part"]  # fmt: skip
    full = ", ".join(percent(share, 0) for share in sent.full)
    yield ["a bucket is full at", f"{full} of the backward pass",
           "a layer's time taken to go with the bytes of its map"]  # fmt: skip
    yield ["one GPU", f"{IMAGES:,.0f} images a second, forward and backward",
           "published by NVIDIA (DeepLearningExamples) for B0 on one A100; not this project's "
           "code, not measured here"]  # fmt: skip
    yield ["least step", f"{1000 * FLOOR:.0f} ms", "assumed: kernels are launched one by one"]
    yield ["backward", percent(BACKWARD, 0) + " of a step", "assumed"]
    yield ["up to 8 GPUs", speed(INSIDE),
           "assumed: NVLink through a switch, one machine"]  # fmt: skip
    for network, why in zip(NETWORKS, ("one port a machine, TCP", "a port a GPU"), strict=True):
        yield [f"beyond, {network.name}",
               speed(network),
               f"assumed: {why}; 80% of the nominal rate"]  # fmt: skip
    yield ["all-reduce", "one ring over all GPUs, as slow as its slowest hop",
           "NCCL takes trees where rings are long, which have less latency"]  # fmt: skip
    yield ["left out", "reading pictures, unequal speed, other jobs on the network",
           f"{IMAGES:,.0f} images a second keep about 4 cores busy with decoding"]  # fmt: skip


def speed(link: Link) -> str:
    return f"{link.bandwidth / 1e9:.1f} GB/s, {1e6 * link.latency:.0f} µs a hop"


def page(measured: Measured) -> str:
    about, first = measured.records["shared"].detail, measured.records["shared"]
    sent, link = traffic("efficientnet_b0", 224), measured.link
    wide = "".join(f" {n.name}: ms a step | kept | images/s | hides from |" for n in NETWORKS)
    strong = "".join(f" {n.name}: images/s |" for n in NETWORKS)
    return f"""# What more GPUs bring

Made by `python docs/make_scaling.py` from `docs/scaling.jsonl`.

![Measured on two processes, modelled on up to 1,024 GPUs](scaling.svg)

**Measured** are two processes on one CPU. **Modelled** is everything about GPUs: no figure below
that speaks of them was measured.

## Measured: two processes on one machine

{about["model"]} at {about["resolution"]} px, {about["batch"]} pictures a process,
{about["dtype"]}, one thread each, gloo, on {first.environment["cores"]} cores of an
{first.environment["hardware"]} under a load of {about["load"]:.0f}, {first.date[:10]}; medians and
ranges of {first.n} rounds in turn, in ms.

{table("| what | median | range |", measured_rows(measured))}

The bare all-reduces fit {1e6 * link.latency:,.0f} µs a hop and {link.bandwidth / 1e9:.2f} GB/s.
That, the same model as below, and the steps beside each other give the line in italics.

## Modelled: {WEAK} pictures a GPU, the batch grows with the GPUs

efficientnet_b0 at 224 px. *Kept* is the share of what so many single GPUs compute; *hides from*
are the pictures a GPU from which on communication adds at most {percent(HIDDEN, 0)} to a step. A
ring of 1,024 has 2,046 hops: there the latency decides, not the bytes. Batches that grow so far
need another recipe to learn as well; this is about time alone.

{table("| GPUs |" + wide, modelled_rows(sent))}

## Modelled: a batch of {STRONG:,}, whatever the GPUs

What `mbconv train --recipe resnet_strikes_back_a2` does unless `--set batch_size=` says otherwise:
more processes share the same batch, and learn what one would. From
about {STRONG / FLOOR / IMAGES:.0f} GPUs on each step takes its least time, and more of them bring
nothing.

{table("| GPUs | pictures a GPU |" + strong, strong_rows(sent))}

## Assumptions

{table("| what | value | why |", assumptions(sent))}
"""


# -- the figure ----------------------------------------------------------------------------------

LEFT, TOP, WIDTH, HEIGHT = 60, 64, 330, 200  # px, of a panel's plot


def bars(measured: Measured) -> str:
    """The measured steps, and the model's beside them."""
    rows = [(name, measured.records[name].value) for name in ("alone", "beside", "shared")]
    labels = (
        "one process",
        "two at once,\nnot talking",
        "two, sharing\na step",
        "the same,\nmodelled",
    )
    values = [*(value for _, value in rows), measured.foretold()]
    ranges = [*(measured.records[name] for name, _ in rows), None]
    scale = HEIGHT / max(r.high or 0 for r in ranges if r is not None)
    parts = []
    for place, (label, value, found) in enumerate(zip(labels, values, ranges, strict=True)):
        x, y = LEFT + 8 + 82 * place, TOP + HEIGHT - value * scale
        look = 'fill="#52606d"' if found else 'fill="none" stroke="#52606d" stroke-dasharray="4 3"'
        parts.append(f'<rect x="{x}" y="{y:.1f}" width="52" height="{value * scale:.1f}" {look}/>')
        if found is not None:
            low, high = (TOP + HEIGHT - (v or 0) * scale for v in (found.low, found.high))
            parts.append(f'<path d="M{x + 26} {low:.1f}V{high:.1f}" class="range"/>')
        look = "inside" if found else "small"
        parts.append(
            f'<text x="{x + 26}" y="{TOP + HEIGHT - 8}" text-anchor="middle" class="{look}">'
            f"{value:.0f}</text>"
        )
        for line, words in enumerate(label.split("\n")):
            parts.append(f'<text x="{x + 26}" y="{TOP + HEIGHT + 18 + 14 * line}" class="small" '
                         f'text-anchor="middle">{escape(words)}</text>')  # fmt: skip
    return "".join(parts)


def curves(left: float, ticks: dict[float, str], value: Callable[[int, Link], float]) -> str:
    """A modelled line a network over the number of GPUs; `value` is 0 to 1 of the height."""
    step = WIDTH / (len(COUNTS) - 1)
    parts = []
    for at, label in ticks.items():
        y = TOP + HEIGHT * (1 - at)
        parts += [f'<path d="M{left} {y:.1f}h{WIDTH}" class="grid"/>',
                  f'<text x="{left - 8}" y="{y + 4:.1f}" class="small" text-anchor="end">{label}'
                  "</text>"]  # fmt: skip
    for place, count in enumerate(COUNTS):
        parts.append(f'<text x="{left + place * step:.1f}" y="{TOP + HEIGHT + 18}" class="small" '
                     f'text-anchor="middle">{count}</text>')  # fmt: skip
    for network in NETWORKS:
        points = [(place, value(count, network)) for place, count in enumerate(COUNTS)]
        path = " ".join(f"{left + p * step:.1f},{TOP + HEIGHT * (1 - v):.1f}"
                        for p, v in points if v >= 0)  # fmt: skip
        parts.append(f'<polyline points="{path}" fill="none" stroke="{network.colour}" '
                     'stroke-width="2" stroke-dasharray="6 4"/>')  # fmt: skip
    return "".join(parts)


def figure(measured: Measured) -> str:
    sent = traffic("efficientnet_b0", 224)
    second, third = LEFT + WIDTH + 100, 2 * (LEFT + WIDTH) + 140
    about = measured.records["shared"].detail
    titles = (
        (
            LEFT,
            "MEASURED: ms a step on one CPU",
            f"{about['batch']} pictures a process, median and range",
        ),
        (
            second,
            "MODELLED: speed that each GPU keeps",
            f"not measured; {WEAK} pictures a GPU, over the number of GPUs",
        ),
        (
            third,
            "MODELLED: pictures that a GPU needs",
            "not measured; communication adds 5%, over the GPUs",
        ),
    )
    heads = "".join(
        f'<text x="{x}" y="26" class="title">{escape(title)}</text>'
        f'<text x="{x}" y="44" class="small">{escape(more)}</text>'
        for x, title, more in titles
    )
    keys = "".join(
        f'<path d="M{second + 190 * i} {TOP + HEIGHT + 48}h24" stroke="{n.colour}" '
        f'stroke-width="2" stroke-dasharray="6 4"/><text x="{second + 190 * i + 30}" '
        f'y="{TOP + HEIGHT + 52}" class="small">{escape(n.name)}</text>'
        for i, n in enumerate(NETWORKS)
    )
    most = 8**5

    def least(count: int, network: Link) -> float:
        found = hiding(sent, count, network) if count > 1 else 0
        return float(np.log2(found) / np.log2(most)) if found else -1.0

    powers = {float(np.log2(v) / np.log2(most)): f"{v:,}" for v in (8**power for power in range(6))}
    shares = {share: percent(share, 0) for share in (0, 0.25, 0.5, 0.75, 1)}
    wide, high = third + WIDTH + 30, TOP + HEIGHT + 68
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" role="img">'
        "<title>A shared training step: measured on two processes, modelled on GPUs</title><style>"
        "text{font:14px system-ui,sans-serif;fill:#243b53}.title{font-weight:600;font-size:15px}"
        ".inside{font-size:12px;fill:#fff}.small{font-size:12px;fill:#486581}.grid{stroke:#e4e7eb}"
        ".range{stroke:#f0b429;stroke-width:2}</style>"
        f'<rect width="{wide}" height="{high}" rx="8" fill="#fff"/>{heads}{bars(measured)}'
        + curves(second, shares, lambda c, n: Step(sent, c, n, WEAK).kept)
        + curves(third, powers, least)
        + f"{keys}</svg>\n"
    )


def load() -> Measured:
    return Measured({record.name: record for record in read_records(FOLDER / "scaling.jsonl")})


if __name__ == "__main__":
    found = load()
    (FOLDER / "scaling.md").write_text(page(found), encoding="utf-8")
    (FOLDER / "scaling.svg").write_text(figure(found), encoding="utf-8")
