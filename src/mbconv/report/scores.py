"""Accuracies that networks reached in the same time on the same pictures, and who is better."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from mbconv.record import Record
from mbconv.report.differences import CONFIDENCE, score_difference
from mbconv.report.figures import Tick, scale
from mbconv.report.folder import Json
from mbconv.report.words import duration

Key = tuple[str, bool, float | None, int, str]  # data, pretrained, budget, seed, hardware


@dataclass(frozen=True)
class Group:
    """Scores that may be ranked: the same pictures, budget, seed and kind of start, best first.

    `same` is the common resolution, or None where each network learnt at its own.
    """

    key: Key
    same: int | None
    records: tuple[Record, ...]
    marks: dict[str, str]

    @property
    def title(self) -> str:
        data, pretrained, budget, _, hardware = self.key
        start = "from pretrained weights" if pretrained else "from scratch"
        where = f"all at {self.same} px" if self.same else "each at its own resolution"
        time = f" within {duration(budget)}" if budget else ""
        time += f" on {hardware}" if budget else ""
        return f"Trained {start} on {data.rstrip('/').rpartition('/')[2]}{time}, {where}"

    def shares(self) -> dict[tuple[str, int], float]:
        """Accuracy by (network, resolution)."""
        return {(r.detail["network"], r.detail["resolution"]): r.value for r in self.records}

    def verdicts(self) -> list[str]:
        """The best beside each of the others; the intervals hold together with 95% confidence."""
        best, others = self.records[0], self.records[1:]
        z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(1, len(others)))
        lines = []
        for other in others:
            (value, low, high), counts = score_difference(other, best, z)
            one, two = best.detail["network"], other.detail["network"]
            says = f"{one} is better than {two}"
            if low <= 0:
                says = f"{one} and {two} cannot be told apart"
            on = "" if counts else " They were scored on different pictures."
            lines.append(f"{says}: {100 * value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]."
                         + on)  # fmt: skip
        return lines

    def context(self) -> Json:
        """The scores on one axis, for the template."""
        ends = [v for r in self.records for v in (r.low, r.high, r.value) if v is not None]
        axis = scale(min(ends), max(ends))
        left, span = axis[0], axis[-1] - axis[0]
        rows = []
        for r in self.records:
            low, high = (r.value if v is None else v for v in (r.low, r.high))
            rows.append({
                "letter": self.marks[r.detail["network"]], "name": r.detail["network"],
                "value": r.value, "low": low, "high": high, "n": r.n,
                "resolution": r.detail["resolution"], "epochs": r.detail.get("epochs"),
                "at": (r.value - left) / span * 100, "from": (low - left) / span * 100,
                "width": (high - low) / span * 100,
            })  # fmt: skip
        ticks = [Tick((v - left) / span * 100, f"{100 * v:.0f}%") for v in axis]
        return {"title": self.title, "rows": rows, "ticks": ticks, "verdicts": self.verdicts()}


def groups(records: Sequence[Record], marks: dict[str, str]) -> list[Group]:
    """Pretrained before scratch; each first at every network's own resolution, then all at one.

    A network whose own resolution is the common one counts for both.
    """
    scored = [r for r in records if r.name == "top1" and r.n and "network" in r.detail]
    by_key: dict[Key, list[Record]] = {}
    for r in scored:
        about = r.detail
        key = (str(about.get("data", "")), bool(about.get("pretrained")), about.get("budget"),
               int(about.get("seed", 0)), str(r.environment.get("hardware")))  # fmt: skip
        by_key.setdefault(key, []).append(r)
    found = []
    common = {r.detail["resolution"] for r in scored if r.detail.get("view") == "same"}
    for key, members in sorted(by_key.items(), key=lambda item: not item[0][1]):
        own = [r for r in members if r.detail.get("view") == "own"]
        sides = {r.detail["resolution"] for r in own}
        if len(sides) == 1:
            found.append(Group(key, min(sides), _ordered(own), marks))
        elif own:
            found.append(Group(key, None, _ordered(own), marks))
        for side in sorted(common):
            same = {r.detail["network"]: r for r in members if r.detail["resolution"] == side}
            if len(same) > 1 and sides != {side}:
                found.append(Group(key, side, _ordered(list(same.values())), marks))
    return found


def _ordered(records: Sequence[Record]) -> tuple[Record, ...]:
    return tuple(sorted(records, key=lambda r: -r.value))
