"""A study's figure as geometry, and its table by two axes; the templates draw them."""

from typing import Any

from mbconv.report import words
from mbconv.report.figures import Tick, scale
from mbconv.report.folder import Json
from mbconv.report.study_folder import StudyFolder

LABEL, PLOT, ROW, TOP = 8, 520, 26, 34  # pixels: a letter, the plot's width, an arm, above


def matrix(study: StudyFolder) -> Json | None:
    """Mean accuracy by two axes, where the arms have exactly two; the baseline is marked."""
    axes = list(dict.fromkeys(axis for arm in study.arms for axis in arm.planned["levels"]))
    if len(axes) != 2 or any(set(arm.planned["levels"]) != set(axes) for arm in study.arms):
        return None
    down, across = ([*dict.fromkeys(arm.planned["levels"][axis] for arm in study.arms)]
                    for axis in axes)  # fmt: skip
    by = {tuple(arm.planned["levels"][axis] for axis in axes): arm for arm in study.arms}

    def cell(row: str, column: str) -> Json:
        arm = by.get((row, column))
        mean = arm.mean if arm else None
        kind = arm.contrast.verdict if arm and arm.contrast else ""
        if arm and arm.planned["beside"] is None:
            kind = "baseline"
        return {"text": words.percent(mean.value if mean else None), "kind": kind}

    return {"axes": axes, "columns": across,
            "rows": [(row, [cell(row, column) for column in across]) for row in down]}  # fmt: skip


def figure_context(study: StudyFolder) -> dict[str, Any]:
    """The figure's geometry, in pixels: a row an arm, a dot a seed, the mean with its interval."""
    label = LABEL * max(len(words.short(arm.name, 36)) for arm in study.arms) + 24
    shown = [record.value for arm in study.arms for record in arm.scores.values()]
    ends = [min(max(v, 0.0), 1.0) for arm in study.arms if arm.mean and len(arm.scores) > 1
            for v in (arm.mean.low, arm.mean.high)]  # fmt: skip
    axis = scale(min([*shown, *ends]), max([*shown, *ends]), 6) if shown else [0.0, 1.0]

    def at(value: float) -> float:
        inside = min(max(value, axis[0]), axis[-1])
        return label + (inside - axis[0]) / (axis[-1] - axis[0]) * PLOT

    rows = []
    for index, arm in enumerate(study.arms):
        mean, several = arm.mean, len(arm.scores) > 1
        kind = arm.contrast.verdict.split()[0] if arm.contrast else "base"
        rows.append({
            "name": words.short(arm.name, 36), "y": TOP + ROW * (index + 0.5), "kind": kind,
            "dots": [at(record.value) for record in arm.scores.values()],
            "mean": at(mean.value) if mean else None,
            "low": at(mean.low) if mean and several else None,
            "high": at(mean.high) if mean and several else None,
        })  # fmt: skip
    base = next((a.mean for a in study.arms if a.planned["beside"] is None), None)
    bottom = TOP + ROW * len(study.arms)
    return {
        "rows": rows, "width": label + PLOT + 24, "height": bottom + 34, "top": TOP,
        "bottom": bottom, "left": label, "ticks": [Tick(at(v), f"{100 * v:g}%") for v in axis],
        "base": at(base.value) if base else None,
    }  # fmt: skip
