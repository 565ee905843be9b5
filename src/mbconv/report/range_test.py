"""A learning-rate range test as lines in a terminal and as one HTML page."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mbconv.files import write_text
from mbconv.report.figures import Chart, Line, Tick, scale
from mbconv.report.run import template

_ROWS = 20  # of the table in a terminal


def range_test_lines(test: dict[str, Any]) -> list[str]:
    """About twenty of the steps, then the suggestion; `test` is what `RangeTest.to_dict` gives."""
    rows = list(zip(test["rates"], test["losses"], test["smoothed"], strict=True))
    every = math.ceil(len(rows) / _ROWS)
    lines = ["    rate      loss  smoothed"]
    lines += [f"{rate:8.1e}  {loss:8.3f}  {mean:8.3f}" for rate, loss, mean in rows[::every]]
    lines.append(f"lowest smoothed loss at {test['lowest']:.1e}")
    if not _rises(test):
        lines.append("the loss had not begun to rise at the last rate: test further with --high")
    lines.append(
        f"suggestion: --set optimizer.learning_rate={test['suggestion']:g} (the last rate at which "
        f"it is not clearly higher; the recipe {test['recipe']} has {test['usual']:g})"
    )
    return lines


def write_range_test(test: dict[str, Any], path: Path) -> None:
    """Write the page; UserError where it cannot be written."""
    page = template("range_test.html.j2").render(
        **test,
        c=loss_by_rate(test),
        rises=_rises(test),
        rows=list(zip(test["rates"], test["losses"], test["smoothed"], strict=True)),
    )
    write_text(path, page)


def loss_by_rate(test: dict[str, Any]) -> Chart:
    """Loss and smoothed loss over the logarithm of the rate.

    The axis is the smoothed loss's; single steps beyond it are drawn at its edge.
    """
    powers = [math.log10(rate) for rate in test["rates"]]
    left, right = math.floor(powers[0]), max(math.ceil(powers[-1]), math.floor(powers[0]) + 1)
    axis = scale(min(test["smoothed"]), max(test["smoothed"]))
    bottom, top = axis[0], axis[-1]

    def points(losses: Sequence[float]) -> tuple[tuple[float, float], ...]:
        return tuple(
            ((power - left) / (right - left) * 100,
             (top - min(max(loss, bottom), top)) / (top - bottom) * 100)
            for power, loss in zip(powers, losses, strict=True)
        )  # fmt: skip

    digits = max(0, -math.floor(math.log10(axis[1] - axis[0]) + 1e-9))
    return Chart(
        title="Training loss",
        summary=f"Training loss by learning rate: lowest at {test['lowest']:.1e}.",
        lines=(
            Line("each step", "raw", points(test["losses"])),
            Line("smoothed", "loss", points(test["smoothed"])),
        ),
        x_ticks=tuple(
            Tick((power - left) / (right - left) * 100, f"1e{power}")
            for power in range(left, right + 1)
        ),
        y_ticks=tuple(
            Tick((top - value) / (top - bottom) * 100, f"{value:.{digits}f}") for value in axis
        ),
    )


def _rises(test: dict[str, Any]) -> bool:
    return bool(test["suggestion"] < 0.95 * test["rates"][-1])
