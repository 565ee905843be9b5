"""A study's figure as geometry, and its table by two axes; the templates draw them."""

from typing import Any

from mbconv.report import words
from mbconv.report.contrasts import Interval
from mbconv.report.figures import Tick, scale
from mbconv.report.folder import Json
from mbconv.report.study_folder import ArmRow, StudyFolder

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
    """The figure's geometry, in pixels: an arm's differences in a row.

    A ring a seed, a dot for the mean, a thick line for the interval over seeds and a thin one for
    that on new pictures.
    """
    label = LABEL * max(len(words.short(arm.name, 36)) for arm in study.arms) + 24
    by_name = {arm.name: arm for arm in study.arms}
    seeds = {arm.name: _differences(arm, by_name) for arm in study.arms}
    shown = [0.0, *(value for values in seeds.values() for value in values)]
    for arm in study.arms:
        if (found := arm.contrast) is not None:
            reaches = [reach for reach in (found.across_seeds, found.on_pictures) if reach]
            shown += [end for reach in reaches for end in (reach.low, reach.high)]
    axis = scale(max(-1.0, min(shown)), min(1.0, max(shown)), 6)

    def at(value: float) -> float:
        inside = min(max(value, axis[0]), axis[-1])
        return round(label + (inside - axis[0]) / (axis[-1] - axis[0]) * PLOT, 1)

    def line(reach: Interval | None) -> tuple[float, float] | None:
        return (at(reach.low), at(reach.high)) if reach else None

    rows = []
    for index, arm in enumerate(study.arms):
        found = arm.contrast
        rows.append({
            "name": words.short(arm.name, 36), "y": TOP + ROW * (index + 0.5),
            "kind": found.verdict.split()[0] if found else "base",
            "dots": [at(value) for value in seeds[arm.name]],
            "mean": at(found.value) if found else None,
            "seeds": line(found.across_seeds) if found else None,
            "pictures": line(found.on_pictures) if found else None,
        })  # fmt: skip
    bottom = TOP + ROW * len(study.arms)
    return {
        "rows": rows, "width": label + PLOT + 24, "height": bottom + 34, "top": TOP,
        "bottom": bottom, "left": label, "zero": at(0.0),
        "ticks": [Tick(at(v), f"{100 * v:+g}" if v else "0") for v in axis],
    }  # fmt: skip


def _differences(arm: ArmRow, by_name: dict[str, ArmRow]) -> list[float]:
    """Seed by seed, to the arm beside; none for the baseline."""
    other = by_name.get(str(arm.planned["beside"]))
    if other is None:
        return []
    return [record.value - other.scores[seed].value
            for seed, record in arm.scores.items() if seed in other.scores]  # fmt: skip
