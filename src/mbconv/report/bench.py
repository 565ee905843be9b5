"""What networks cost, as `mbconv bench` measured it, in a terminal; made from its Records alone."""

from collections.abc import Iterable, Sequence
from statistics import median

from mbconv.record import Record
from mbconv.report.words import percent

MIB = 2**20
_TITLES = {
    "latency": "latency",
    "throughput": "inference",
    "training_throughput": "training",
}


def failed(record: Record) -> bool:
    return "error" in record.detail


def machine(record: Record) -> str:
    """What a figure was measured on: processor or GPU, and threads."""
    device = record.detail.get("device_name") or record.environment.get("hardware") or "unknown"
    threads = record.detail.get("threads")
    if record.detail.get("device", "cpu") != "cpu" or not threads:
        return str(device)
    return f"{device}, {threads} thread{'s' if threads != 1 else ''}"


def way(record: Record) -> str:
    """`float32, channels_last, compiled`, and which kernels where they are not chosen freely."""
    about = record.detail
    words = [str(about.get(key)) for key in ("dtype", "layout") if about.get(key)]
    words += ["compiled"] * bool(about.get("compiled"))
    if about.get("kernels") not in (None, "auto"):
        words.append(f"{about['kernels']} kernels")
    return ", ".join(words)


def bench_lines(records: Sequence[Record]) -> list[str]:
    """Networks, then a table for each figure and batch, then what went wrong."""
    lines = _network_lines(records)
    for (name, batch), rows in _groups(records).items():
        lines += ["", *_table(name, batch, rows, records)]
    compiled = [r for r in records if r.name == "compile_time"]
    if compiled:
        lines += ["", "first call, compiling included:"]
        lines += [
            f"  {r.detail['network']}, {r.detail['mode']}, batch {r.detail['batch']}: "
            f"{r.value:.1f} s" for r in compiled
        ]  # fmt: skip
    return [*lines, "", *noise_lines(records)]


def noise_lines(records: Iterable[Record]) -> list[str]:
    """Whether the machine was quiet, in one sentence."""
    checked = [r for r in records if "noise" in r.detail]
    if not checked:
        return []
    worst = max(r.detail["noise"] for r in checked)
    noisy = [r for r in checked if r.detail["noisy"]]
    if noisy:
        share = f"{len(noisy)} of {len(checked)} figures"
        return [
            f"warning: the machine was too noisy for {share}, although turns were taken again: a "
            f"calibration took up to {worst:.2f} times as long as usual. Close other programs "
            "and measure again; until then trust ratios more than milliseconds."
        ]
    again = sum(r.detail["repeated"] for r in checked)
    apart = sum(bool(r.detail.get("apart")) for r in checked)
    text = f"the machine was quiet: calibrations within {percent(worst - 1, 0)}{_pace(checked)}"
    if again:
        text += f"; {again} turns beside another program, or with cores apart, were taken again"
    if apart:
        text += f"; {apart} of {len(checked)} figures could not do without such turns"
    return [text]


def _pace(records: Iterable[Record]) -> str:
    """How fast it was; nothing where several machines or older Records say it."""
    paces = [r.detail["pace"] for r in records if "pace" in r.detail]
    if not paces or max(paces) > 1.1 * min(paces):
        return ""
    text = f", float32 products at {median(paces):.0f} GFLOP/s"
    meetings = [r.detail["meeting"] for r in records if r.detail.get("meeting")]
    return text + (f", threads meet in {median(meetings):.1f} us" if meetings else "")


def _network_lines(records: Sequence[Record]) -> list[str]:
    found = {(r.detail.get("network"), r.name): r for r in records}
    lines = []
    for network in dict.fromkeys(r.detail.get("network") for r in records):
        if bad := found.get((network, "network")):
            lines.append(f"{network}: {bad.detail['error']}")
        if params := found.get((network, "params")):
            macs, out = found[(network, "macs")], found[(network, "activation_bytes")]
            text = (
                f"{network} at {params.detail['resolution']} px: {params.value / 1e6:.2f}M "
                f"parameters, {macs.value / 1e6:,.0f} MMACs, {out.value / MIB:.1f} MiB out of "
                "convolutions"
            )
            if top1 := found.get((network, "published_top1")):
                text += (
                    f"; published top-1 {percent(top1.value)} at {top1.detail['resolution']} px "
                    f"({top1.detail['source']})"
                )
            lines.append(text)
    return lines


def _groups(records: Iterable[Record]) -> dict[tuple[str, int], list[Record]]:
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        if record.name in _TITLES:
            groups.setdefault((record.name, record.detail["batch"]), []).append(record)
    return groups


def _table(name: str, batch: int, rows: list[Record], records: Sequence[Record]) -> list[str]:
    """One figure at one batch, a network a line, the best first."""
    rows = sorted(rows, key=lambda r: (failed(r), r.value if name == "latency" else -r.value))
    ways = {way(r) for r in rows if not failed(r)}
    measured = [r for r in rows if not failed(r)]
    where = f"; {', '.join(ways)}; {machine(measured[0])}" if len(ways) == 1 and measured else ""
    labels = [str(r.detail["network"]) + (f" ({way(r)})" if len(ways) > 1 else "") for r in rows]
    width = max(map(len, labels))
    unit = "ms" if name == "latency" else "img/s"
    head = f"{unit:>8}  {'95% interval':>16}"
    head += f"  {'p90':>7}  {'p99':>7}" if name == "latency" else ""
    lines = [f"{_TITLES[name]}, batch {batch}{where}", f"  {'':{width}}  {head}  peak MiB"]
    for label, record in zip(labels, rows, strict=True):
        text = record.detail["error"] if failed(record) else _figures(record, records)
        lines.append(f"  {label:{width}}  {text}")
    return lines


def _figures(record: Record, records: Sequence[Record]) -> str:
    about = record.detail
    interval = f"± {record.spread:.3g} (sd)" if record.spread is not None else ""
    if record.low is not None and record.high is not None:
        interval = f"{record.low:,.1f} to {record.high:,.1f}"
    text = f"{record.value:8,.1f}  {interval:>16}"
    if record.name == "latency":
        text += f"  {about['p90']:7,.1f}  {about['p99']:7,.1f}"
    peak = peak_memory(record, records)
    text += f"  {peak.value / MIB:8,.0f}" if peak else ""
    return text + " (noisy)" * bool(about["noisy"])


def peak_memory(record: Record, records: Iterable[Record]) -> Record | None:
    """The peak of the same network, mode and batch on the same processor."""

    def key(r: Record) -> tuple[object, ...]:
        about = r.detail
        return (*(about.get(k) for k in ("network", "mode", "batch", "resolution")),
                r.environment.get("hardware"))  # fmt: skip

    same = (r for r in records if r.name == "peak_memory" and key(r) == key(record))
    return next(same, None)
