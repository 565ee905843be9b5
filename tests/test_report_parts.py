"""The report's parts: the commands it proposes, the geometry of its charts, its wording."""

import itertools
import json
import math
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_run import fake_run, metrics
from html_page import Page
from mbconv.report import figures, words
from mbconv.report.run import write_report


def page(folder: Path, **options: Any) -> Page:
    return Page(write_report(fake_run(folder, **options)).read_text(encoding="utf-8"))


# Commands


def commands(got: Page) -> list[list[str]]:
    names = [name for name in got.ids() if re.fullmatch(r"command-\d", name)]
    return [shlex.split(got.exact(name)) for name in names]


@pytest.mark.skipif(os.name == "nt", reason="the commands are quoted for the machine's own shell")
def test_the_next_commands_fit_this_run(tmp_path: Path) -> None:
    folder = tmp_path / "my runs" / "it's"
    (tmp_path / "my runs" / "it's-2").mkdir(parents=True)
    predict, evaluate, train = commands(page(folder, root="my photos"))
    assert predict == ["mbconv", "predict", str(folder), "my photos/test/dress/0.jpg"]
    assert evaluate == ["mbconv", "eval", str(folder), "my photos/test"]
    assert train == ["mbconv", "train", "my photos", "--out", f"{folder}-3",
                     "--model", "efficientnet_lite0", "--resolution", "160",
                     "--epochs", "16"]  # fmt: skip


def test_pictures_split_from_one_folder_are_no_test_folder(tmp_path: Path) -> None:
    """Scoring the whole folder would score training pictures."""
    evaluate = commands(page(tmp_path / "run", split="val"))[1]
    assert evaluate[-1] == "NEW_PICTURES"


@pytest.mark.parametrize(
    ("model", "resolution", "best", "options"),
    [
        ("efficientnet_lite0", 160, 8, ["--resolution", "160", "--epochs", "16"]),
        ("efficientnet_lite0", 160, 3, ["--resolution", "224", "--epochs", "8"]),
        ("efficientnet_lite0", 96, 3, ["--resolution", "128", "--epochs", "8"]),
        ("efficientnet_lite0", 224, 3, ["--model", "efficientnet_lite1", "--epochs", "8"]),
        ("efficientnet_b0", 224, 3, ["--model", "efficientnet_b0", "--epochs", "16"]),
    ],
)
def test_the_advice_depends_on_the_run(
    model: str, resolution: int, best: int, options: list[str], tmp_path: Path
) -> None:
    folder = fake_run(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model": model, "resolution": resolution}
    (folder / "config.json").write_text(json.dumps(config))
    rows = metrics(8)
    rows[best - 1]["val_ema"] = 0.99
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = commands(Page(write_report(folder).read_text()))[2]
    pairs = set(itertools.pairwise(train))
    assert set(zip(options[::2], options[1::2], strict=True)) <= pairs


# Figures


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(3, 8))
def test_axes_enclose_the_values_in_round_steps(low: float, span: float, most: int) -> None:
    axis = figures.scale(low, low + span, most)
    steps = np.diff(axis)
    slack = 1e-6 * max(abs(low), span, 1e-9)
    assert axis[0] <= low + slack
    assert axis[-1] >= low + span - slack
    assert 2 <= len(axis) <= most + 2
    assert np.allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
    assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-4


def test_the_curve_shows_the_files_values() -> None:
    epochs = metrics(6)
    chart = figures.accuracy_chart(epochs)
    assert chart is not None
    ticks = [(t.at, float(t.text.rstrip("%")) / 100) for t in chart.y_ticks]
    (y0, v0), (y1, v1) = ticks[0], ticks[-1]
    for line, key in zip(chart.lines, ("val_raw", "val_ema"), strict=True):
        drawn = [v0 + (y - y0) * (v1 - v0) / (y1 - y0) for _, y in line.points]
        assert drawn == pytest.approx([row[key] for row in epochs if row[key] is not None])
    assert [x for x, _ in chart.lines[0].points] == pytest.approx(
        [(i + 0.5) / 6 * 100 for i in range(6)]
    )
    assert [t.text for t in chart.x_ticks] == list("012345")


def test_phases_mark_what_was_trained_and_at_which_resolution() -> None:
    got = figures.phases(metrics(10))
    assert [(p.first, p.last) for p in got] == [(0, 0), (1, 5), (6, 9)]
    assert [p.left for p in got] == pytest.approx([0, 10, 60])
    assert ["128 px" in p.text for p in got] == [True, True, False]
    assert "only the classifier" in got[0].text
    crowded = figures.phases(metrics(40))
    assert [p.raised for p in crowded] == [False, True, False]


# Words


@pytest.mark.parametrize(
    ("figures_", "sentence"),
    [
        ((0.9167, 0.884, 0.941, 372), "Of 100 new pictures like these about 92 are named "
                                      "correctly; between 88 and 94 at 95% confidence."),
        ((0.9996, 0.9985, 0.9999, 5000), "Of 10,000 new pictures like these about 9,996 are named "
                                         "correctly; between 9,985 and 9,999 at 95% confidence."),
        ((0.003, 0.001, 0.006, 3000), "Of 1,000 new pictures like these about 3 are named "
                                      "correctly; between 1 and 6 at 95% confidence."),
        ((1.0, 0.722, 1.0, 10), "All 10 scored pictures were named correctly. Of 100 new pictures "
                                "like these it would be between 72 and 100 at 95% confidence."),
        ((0.5, None, None, None), "Of 100 new pictures like these about 50 are named correctly."),
    ],
)  # fmt: skip
def test_the_headline(figures_: Any, sentence: str) -> None:
    assert words.headline(*figures_) == sentence


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [(0.9167, 1, "91.7%"), (0.99999, 1, ">99.9%"), (1.0, 1, "100.0%"), (1 - 1e-12, 0, "100%"),
     (0.00001, 1, "<0.1%"), (0.0, 1, "0.0%"), (0.996, 0, ">99%"), (0.5, 0, "50%")],
)  # fmt: skip
def test_percent_never_rounds_to_certainty(share: float, digits: int, text: str) -> None:
    assert words.percent(share, digits) == text


def test_small_words() -> None:
    assert [words.duration(s) for s in (4.24, 45, 60, 292, 3780)] == [
        "4.2 s", "45 s", "1 min", "4 min 52 s", "1 h 3 min"]  # fmt: skip
    assert words.count(1, "class", "classes") == "1 class"
    assert words.count(3068, "picture") == "3,068 pictures"
    assert words.listing(["a"]) == "a"
    assert words.listing(["a", "b", "c"]) == "a, b and c"
    assert words.listing(list("abcdefg")) == "a, b, c, d and 3 more"
    assert len(words.short("x" * 99)) == 40
