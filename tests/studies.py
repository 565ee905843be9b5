"""A study folder of simulated scores, as `mbconv study` writes it, and a study of seconds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbconv.arch.spec import Spec
from mbconv.interval import answers
from mbconv.record import Record
from mbconv.study.grid import Arm, Grid
from mbconv.study.plan import Asked, Plan, PlannedArm
from mbconv.training.machine import Machine
from mbconv.training.recipes import scratch_small
from small import SMALL

POOLS = '''
from mbconv import Arm, Grid

def pools(base):
    """Which pooling?

    Average and maximum.
    """
    return Grid(arms=[Arm(name=kind, model=base.replace(pooling=kind)) for kind in ("avg", "max")])
'''


def pools(base: Spec) -> Grid:
    """Which pooling?"""
    return Grid(arms=[Arm(name=kind, model=base.replace(pooling=kind)) for kind in ("avg", "max")])


def score(right: Sequence[bool], split: str = "val") -> Record:
    """The record of a run that named these pictures right."""
    named = answers((f"{i}.jpg", bool(hit)) for i, hit in enumerate(right))
    return Record(name="top1", value=sum(right) / len(right), low=0.1, high=0.9, n=len(right),
                  detail={"split": split, "answers": named})  # fmt: skip


def hits(share: float, n: int = 400, seed: int = 0) -> list[bool]:
    """`share` of n pictures, the easiest ones but for a little noise."""
    noise = np.random.default_rng(seed).normal(0, 0.02, n)
    order = np.argsort(np.arange(n) / n + noise)
    right = np.zeros(n, bool)
    right[order[: round(share * n)]] = True
    return [bool(hit) for hit in right]


def fake_study(
    folder: Path,
    accuracies: Mapping[str, Sequence[float | None]],
    *,
    levels: Mapping[str, dict[str, str]] | None = None,
    diverged: Sequence[tuple[str, int]] = (),
    **changes: Any,
) -> Path:
    """A study of so many arms with an accuracy for each seed (None: not run); the first is the
    baseline."""
    names = list(accuracies)
    recipe = scratch_small(3000, 64, epochs=3)
    arms = tuple(
        PlannedArm(name=name, slug=Arm(name=name, model=SMALL).slug, model=None,
                   spec=SMALL.to_dict(), recipe=recipe, levels=(levels or {}).get(name, {}),
                   beside=None if name == names[0] else names[0], ms_per_step=12.3,
                   ms_per_picture=0.45, seconds=30.0)
        for name in names
    )  # fmt: skip
    values: dict[str, Any] = {
        "name": "trial",
        "question": "Which is better?",
        "about": "Which is better?\n\nAll of them.",
        "asked": Asked(study="trial", data="photos/woof"),
        "resolution": 64,
        "classes": ("cat", "dog"),
        "pictures": {"train": 3000, "val": 400},
        "seeds": 3,
        "baseline": names[0],
        "arms": arms,
        "machine": Machine(),
    }
    plan = Plan(**{**values, **changes})
    plan.write(folder)
    for job in plan.jobs(folder):
        value = accuracies[job.arm.name][job.seed]
        if (job.arm.name, job.seed) in diverged:
            job.failure.parent.mkdir(parents=True, exist_ok=True)
            job.failure.write_text(json.dumps({"reason": "The loss is not finite."}))
        elif value is not None:
            job.path.mkdir(parents=True, exist_ok=True)
            record = score(hits(value, seed=job.seed))
            (job.path / "evaluation.jsonl").write_text(json.dumps(record.to_dict()) + "\n")
            (job.path / "metrics.jsonl").write_text(json.dumps({"epoch": 3, "seconds": 42.0}))
    return folder
