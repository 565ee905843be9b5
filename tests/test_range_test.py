"""The learning-rate range test: its curve, its suggestion and its page."""

import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from html_page import Page
from mbconv.cli import main
from mbconv.report.range_test import loss_by_rate, range_test_lines, write_range_test
from mbconv.training.range_test import RangeTest, smooth
from small import write_classes, write_model


def curve(number: int = 61) -> RangeTest:
    """A parabola over the logarithm of the rate, lowest at 1e-2."""
    powers = [-5 + 4 * k / (number - 1) for k in range(number)]
    losses = tuple(1 + (power + 2) ** 2 for power in powers)
    return RangeTest("finetune", 4e-4, tuple(10**power for power in powers), losses, losses)


def test_the_smoothed_loss_starts_unbiased() -> None:
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx((3.0, 3.0, 3.0))
    assert smooth([4.0, 1.0], weight=0.5) == pytest.approx((4.0, (0.5 * 4 * 0.5 + 0.5) / 0.75))


def test_without_scatter_the_suggestion_is_the_lowest() -> None:
    test = curve()
    assert test.lowest == pytest.approx(1e-2)
    assert test.suggestion == pytest.approx(1e-2)
    words = "\n".join(range_test_lines(test.to_dict()))
    assert "--set optimizer.learning_rate=0.01 " in words
    assert "not begun to rise" not in words
    assert len(words.splitlines()) < 26
    falling = RangeTest("t", 1.0, test.rates[:30], test.losses[:30], test.smoothed[:30])
    assert "not begun to rise" in "\n".join(range_test_lines(falling.to_dict()))


@pytest.mark.parametrize("seed", range(8))
def test_scatter_does_not_hide_where_the_loss_begins_to_rise(seed: int) -> None:
    """Flat up to 1e-3, where fine-tuning starts from a fitted classifier; then it rises."""
    rng = np.random.default_rng(seed)
    powers = np.linspace(-5, 0, 100)
    losses = 1 + 0.8 * np.maximum(0, powers + 3) + rng.normal(0, 0.1, 100)
    found = RangeTest("t", 1.0, tuple(10**powers), tuple(losses), smooth(losses.tolist()))
    assert 3e-4 < found.suggestion < 5e-3


def test_the_chart_is_over_the_logarithm() -> None:
    chart = loss_by_rate(curve().to_dict())
    assert [tick.text for tick in chart.x_ticks] == ["1e-5", "1e-4", "1e-3", "1e-2", "1e-1"]
    smoothed = chart.lines[1].points
    assert smoothed[0][0] == 0
    assert smoothed[-1][0] == pytest.approx(100)
    lowest = max(smoothed, key=lambda point: point[1])  # y counts from the top
    assert lowest[0] == pytest.approx(75)
    assert all(0 <= y <= 100 for line in chart.lines for _, y in line.points)


def test_the_page_is_one_file(tmp_path: Path) -> None:
    write_range_test(curve().to_dict() | {"recipe": "<script>x</script>"}, tmp_path / "p.html")
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "A peak learning rate of about 0.01" in page.text
    assert "<script>x</script>" in page.text  # as text
    assert not {tag for tag, _ in page.elements} & {"script", "img", "iframe"}
    assert not any("src" in attrs or "href" in attrs for _, attrs in page.elements)
    assert sum(tag == "tr" for tag, _ in page.elements) == 62


def test_the_command(tmp_path: Path) -> None:
    data, start = write_classes(tmp_path / "data"), write_model(tmp_path / "start.safetensors")
    plot = tmp_path / "plot.html"
    command = ["lr-find", str(data), "--model", str(start), "--resolution", "32", "--steps", "40",
               "--high", "1000", "--plot", str(plot), "--set", "batch_size=8",
               "--set", "transfer.norms=train", "--device", "cpu"]  # fmt: skip
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "suggestion: --set optimizer.learning_rate=" in done.output
    suggested = float(done.output.partition("learning_rate=")[2].split()[0])
    assert 1e-7 < suggested < 100
    assert math.isfinite(suggested)
    assert plot.is_file()
    wrong = CliRunner().invoke(main, ["lr-find", str(data), "--low", "1", "--high", "0.1"])
    assert wrong.exit_code == 2
    assert "not below" in wrong.output
