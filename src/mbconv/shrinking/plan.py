"""What is removed, in what order and at what cost: pure data, no torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mbconv.arch.spec import Spec
from mbconv.shrinking.change import Change

Measure = Literal["ms", "macs", "params"]
MEASURES: tuple[Measure, ...] = ("ms", "macs", "params")

_FREE = 1e-6  # costs below it are equal; the saving decides


@dataclass(frozen=True, kw_only=True)
class Option:
    """A change with what it costs alone (divergence of the answers) and what it saves (a share)."""

    change: Change
    cost: float
    loss: float
    saved: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One removal as it was made. `module` is named as in the source.

    `cost` is by how much it alone moved the answers away from the source's (Kullback-Leibler
    divergence a picture, nats), `loss` by how much it alone raised the cross-entropy with the
    labels, `saved` its share of what the source takes. `divergence` and `left` are of the network
    after the round that the step belongs to: its answers against the source's, and the share of
    the source's milliseconds, multiply-adds or parameters that it still takes.
    """

    module: str
    kind: str
    before: int
    after: int
    round: int
    cost: float
    loss: float
    saved: float
    divergence: float
    left: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """From `source` to `target` by `steps`, in their order.

    `goal` and `reached` are shares of what the source takes of `by`; for ms the last two networks
    were timed whole, in turn. `pictures` is how many were measured on, `loss` the cross-entropy
    of the source and of the result on them, `recalibrated` whether batch-norm statistics were
    measured again, which is done where it helps. `noise` is how many times as long a fixed piece
    of work took beside the timings as at best: 1 on a quiet machine, or where none was timed.
    """

    source: Spec
    target: Spec
    by: Measure
    goal: float
    reached: float
    steps: tuple[Step, ...]
    pictures: int
    loss: tuple[float, float]
    recalibrated: bool
    noise: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the specs' too."""
        data = asdict(self)
        data["source"], data["target"] = self.source.to_dict(), self.target.to_dict()
        return {**data, "steps": [asdict(step) for step in self.steps]}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)


def choose(options: Sequence[Option], need: float) -> list[Option]:
    """At most one option a module that together save `need`, cheap ones first.

    Each turn takes what costs least for what it saves beyond the option that the module has
    already. Fewer than needed where there are no more options. Costs are taken as if they added
    up, which holds while little is removed: so rounds are small and measured anew.
    """
    chosen: dict[str, Option] = {}
    while sum(option.saved for option in chosen.values()) < need:
        best, least = None, float("inf")
        for option in options:
            had = chosen.get(option.change.module)
            more = option.saved - (had.saved if had else 0.0)
            if more <= 0:
                continue
            rise = max(_FREE, option.cost - (had.cost if had else 0.0))
            if rise / more < least:
                best, least = option, rise / more
        if best is None:
            break
        chosen.pop(best.change.module, None)
        chosen[best.change.module] = best
    return list(chosen.values())
