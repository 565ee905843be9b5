"""Where a network's time goes, in a terminal; made from the Records of `mbconv bench --ops`."""

from collections.abc import Sequence

from mbconv.record import Record
from mbconv.report.bench import machine, way
from mbconv.report.words import percent

_ROWS = 15  # of kinds and of single operators
_TITLES = {"operator_kind": "by kind", "block": "by block", "operator": "slowest operators"}
_FUSED = (
    " outside of the fused operators (mbconv.*), which compute them on the way; "
    "MBCONV_KERNELS=plain tells them apart"
)
# Of activations alone; what a gate multiplies and pools is told apart.
_CURVES = ("silu", "sigmoid", "hardswish", "hardsigmoid", "silu_backward", "sigmoid_backward",
           "hardswish_backward", "hardsigmoid_backward")  # fmt: skip


def operator_lines(records: Sequence[Record]) -> list[str]:
    """The whole and the ceilings, three tables, and what the sigmoids cost, in one line."""
    found = {r.name: r for r in records}
    whole, about = found["pass"], found["pass"].detail
    what = "training step" if about["mode"] == "training" else "pass"
    copied, product = found["copy_ceiling"].value, found["product_ceiling"].value
    fused = []
    if "fused" in about:
        times = whole.value / about["fused"]
        fused = [f"of the plain modules, which show every operator; the fused ones compute it in "
                 f"{about['fused']:.1f} ms, {times:.2f} times as fast"]  # fmt: skip
    lines = [
        f"{about['network']}, {what} of {about['batch']} at {about['resolution']} px: "
        f"{whole.value:.1f} ms; {way(whole)}; {machine(whole)}",
        *fused,
        f"ceilings: copying {copied:.1f} GB/s, {about['dtype']} products {product:,.0f} GFLOP/s",
    ]
    for name, title in _TITLES.items():
        lines += ["", *_table(title, [r for r in records if r.name == name], whole)]
    return [*lines, "", sigmoid_line(records), *_sums(whole)]


def sigmoid_line(records: Sequence[Record]) -> str:
    """What SiLU and sigmoids take of the time, in one sentence."""
    whole = next(r for r in records if r.name == "pass")
    curves = [r for r in records if r.name == "operator_kind" and r.detail["label"] in _CURVES]
    fused = [r for r in records if r.name == "operator_kind" and "mbconv." in r.detail["label"]]
    if not curves:
        return "SiLU and sigmoids: this network has none" + (_FUSED if fused else "")
    taken = sum(r.value for r in curves)
    names = ", ".join(f"{r.detail['label']} {r.value:.1f}" for r in curves)
    apart = _FUSED if fused else ""
    return (
        f"SiLU and sigmoids cost {taken:.1f} of {whole.value:.1f} ms, "
        f"{percent(taken / whole.value)} ({names}){apart}"
    )


def _table(title: str, rows: Sequence[Record], whole: Record) -> list[str]:
    """In order of time, but blocks in the order in which they run."""
    if rows and rows[0].name != "block":
        rows = sorted(rows, key=lambda r: -r.value)
    hidden = rows[_ROWS:] if rows and rows[0].name != "block" else []
    rows = rows[: len(rows) - len(hidden)]
    width = max((len(r.detail["label"]) for r in rows), default=0)
    lines = [
        f"{title:{width + 2}}  {'calls':>5}  {'ms':>8}  {'of all':>6}  {'GFLOP':>7}  {'MB':>7}  "
        "of ceiling"
    ]
    for r in rows:
        about = r.detail
        lines.append(
            f"  {about['label']:{width}}  {about['count']:5}  {r.value:8.2f}  "
            f"{percent(r.value / whole.value):>6}  {about['flops'] / 1e9:7.2f}  "
            f"{about['bytes'] / 1e6:7.1f}  {percent(about['share'], 0):>6}"
        )
    if hidden:
        rest = sum(r.value for r in hidden)
        lines.append(f"  and {len(hidden)} more, {rest:.2f} ms in all")
    return lines


def _sums(whole: Record) -> list[str]:
    parts, profiled = whole.detail["parts"], whole.detail["profiled"]
    share = parts / whole.value
    lines = [
        f"the operators add up to {parts:.1f} ms, {percent(share)} of the pass; timing them made "
        f"it take {profiled:.1f} ms ({100 * (profiled / whole.value - 1):+.1f}%)"
    ]
    if abs(share - 1) > 0.1:
        lines.append(
            "warning: that is more than 10% off, so the machine was busy or the operators are so "
            "short that Python between them matters. Measure again, or with a larger --batch."
        )
    return lines
