"""What `mbconv compare` prints, made from its Records alone."""

from collections.abc import Sequence

from mbconv.record import Record
from mbconv.report.bench import failed, noise_lines
from mbconv.report.contest import View, failures, letters, views, ways_of
from mbconv.report.scores import groups
from mbconv.report.winners import answer_lines, win_lines

_HEADS = {"latency": "ms, one", "throughput": "ms, many", "training_throughput": "ms, train"}


def contest_lines(records: Sequence[Record]) -> list[str]:
    """A table and the winners of each view, the scores, what failed, and whether it was quiet."""
    lines: list[str] = []
    for view in views(records):
        lines += [f"{view.machine}; {view.title}", *_table(view), ""]
        lines += [f"- {line}" for line in (*answer_lines(view), *win_lines(view))] + [""]
    for group in groups(records, letters(records)):
        lines.append(group.title)
        for record in group.records:
            low, high = (100 * (v or 0.0) for v in (record.low, record.high))
            about = record.detail
            lines.append(
                f"  {about['network']:24}  {100 * record.value:.1f}% [{low:.1f}, {high:.1f}], "
                f"n = {record.n}; {about['resolution']} px, {about.get('epochs')} epochs"
            )
        lines += [f"- {line}" for line in group.verdicts()] + [""]
    lines += [f"{network}, {what}: {why}" for network, what, why in failures(records)]
    return lines + noise_lines(r for r in records if not failed(r))


def _table(view: View) -> list[str]:
    """A network a line, by multiply-adds; times are those of one picture."""
    rows = sorted(view.rows, key=lambda row: row.macs)
    width = max(len(row.network) for row in rows)
    shown = [figure for figure in _HEADS if any(row.figures.get(figure) for row in rows)]
    head = "".join(f"  {_HEADS[figure]:>9}" for figure in shown)
    lines = [f"  {'':{width}}    px  MMACs{head}  fastest way"]
    for row in rows:
        spans = [row.milliseconds(figure) for figure in shown]
        times = "".join(f"  {span.value:9.3g}" if span else f"  {'':9}" for span in spans)
        lines.append(f"  {row.network:{width}}  {row.resolution:4}  {row.macs / 1e6:5,.0f}{times}"
                     f"  {ways_of(row)}")  # fmt: skip
    return lines
