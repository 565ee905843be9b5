"""The figures that a report shows are those of the run's files."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.data import astronaut, chelsea, coffee

from fake_run import fake_run, thumbnails
from html_page import Page
from mbconv.arch.cost import cost
from mbconv.arch.zoo import get_spec
from mbconv.record import environment
from mbconv.report.classes import bars, matrix
from mbconv.report.run import write_report


@pytest.fixture(scope="module")
def pictures() -> list[tuple[str, str]]:
    return thumbnails([chelsea(), coffee(), astronaut()])  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pictures: Any) -> Path:
    folder = fake_run(tmp_path_factory.mktemp("runs") / "clothing", pictures=pictures)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def usual(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def record(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run / "evaluation.jsonl").read_text())
    return loaded


def test_the_score(usual: Page, record: dict[str, Any]) -> None:
    score = usual.section("score")
    for value in (record["value"], record["low"], record["high"],
                  record["detail"]["majority"]["value"],
                  *record["detail"]["balanced_accuracy"].values(),
                  *record["detail"]["top5"].values()):  # fmt: skip
        assert f"{value:.1%}" in score
    assert re.search(rf"Scored pictures {record['n']}\b", score)
    assert f"Of 100 new pictures like these about {round(100 * record['value'])} are" in score
    assert f"Always answering “{record['detail']['majority']['label']}”" in score
    strip = next(a["style"] for _, a in usual.elements if a.get("class") == "interval")
    low, width = map(float, re.findall(r"[\d.]+", strip or ""))
    assert low == pytest.approx(100 * record["low"], abs=0.01)
    assert low + width == pytest.approx(100 * record["high"], abs=0.02)


def test_the_title_says_what_was_trained_on_what(usual: Page) -> None:
    assert usual.of["h1"] == [
        "efficientnet_lite0 was trained on 3,068 pictures in “clothing” to tell 10 classes apart: "
        "dress, hat, longsleeve, outwear and 6 more."
    ]


def test_the_confusion_matrix(usual: Page, record: dict[str, Any]) -> None:
    table = re.search(r'<table class="matrix.*?</table>', usual.html, re.S)
    assert table is not None
    rows = re.findall(r"<tr><th scope=\"row\".*?</tr>", table.group(), re.S)
    cells = [[int(n or 0) for n in re.findall(r"<td[^>]*>(\d*)</td>", row)] for row in rows]
    expected = record["detail"]["confusion"]
    assert cells == [[*row, sum(row)] for row in expected]


def test_the_heat_of_a_cell_is_its_share_of_the_row() -> None:
    first, empty = matrix(("a", "b"), [[96, 4], [0, 0]])
    assert [(c["heat"], c["strong"], c["hit"]) for c in first["cells"]] == [
        (0.96, True, True),
        (0.12, False, False),  # 0.6 times the root of 0.04
    ]
    assert [c["heat"] for c in empty["cells"]] == [0, 0]


def test_the_most_confused_pairs(usual: Page, record: dict[str, Any]) -> None:
    labels, table = record["detail"]["labels"], np.array(record["detail"]["confusion"])
    off = table - np.diag(table.diagonal())
    first = re.search(r'<ol class="pairs">\s*<li>(.*?)</li>', usual.html, re.S)
    assert first is not None
    text = re.sub("<[^>]+>", "", first.group(1))
    assert text.startswith(f"{off.max()} of ")
    ties = np.argwhere(off == off.max())
    assert text in {
        f"{off.max()} of {table[t].sum()} {labels[t]} named {labels[s]}" for t, s in ties
    }


def test_the_class_bars_are_the_worst_first(usual: Page, record: dict[str, Any]) -> None:
    bars = re.findall(r'<span class="name"><bdi>(.*?)</bdi>.*?class="fill" style="width:([\d.]+)%'
                      r'.*?class="figure">(\d+)%.*?class="figure">(\d+)%.*?class="n">(\d+)<',
                      usual.html, re.S)  # fmt: skip
    recalls = [float(width) for _, width, *_ in bars]
    assert recalls == sorted(recalls)
    shown = {name: (float(w), int(r), int(p), int(n)) for name, w, r, p, n in bars}
    assert shown == {
        row["label"]: (round(100 * row["recall"], 1), int(f"{row['recall']:.0%}"[:-1]),
                       int(f"{row['precision']:.0%}"[:-1]), row["n"])
        for row in record["detail"]["per_class"]
    }  # fmt: skip


def test_recall_intervals_are_drawn_where_the_files_have_them(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    line = json.loads((folder / "evaluation.jsonl").read_text())
    line["detail"]["per_class"][0] |= {"low": 0.25, "high": 0.75}
    (folder / "evaluation.jsonl").write_text(json.dumps(line))
    html = write_report(folder).read_text(encoding="utf-8")
    assert html.count('class="whisker" style="left:25.0%;width:50.0%"') == 1


def test_a_class_that_was_never_named_has_no_precision() -> None:
    rows = bars(("a", "b"), [[3, 0], [2, 0]], [
        {"label": "a", "n": 3, "recall": 1.0, "precision": 0.6},
        {"label": "b", "n": 2, "recall": 0.0, "precision": 0.0},
    ])  # fmt: skip
    assert [(r["label"], r["recall"], r["precision"]) for r in rows] == [
        ("b", 0.0, None), ("a", 1.0, 0.6)]  # fmt: skip


def test_the_mistakes(usual: Page, record: dict[str, Any], pictures: Any) -> None:
    first = record["detail"]["mistakes"][0]
    cards = re.findall(r"<li>\s*<div class=\"pair\">.*?</li>", usual.html, re.S)
    assert len(cards) == len(pictures)
    text = " ".join(re.sub("<[^>]+>", "", cards[0]).split())
    assert text == (f"{first['predicted']}, {first['score']:.0%} sure; it is labelled "
                    f"{first['true']} {first['path']}")  # fmt: skip
    assert all(cards[i].count(data) == 1 for i in range(3) for data in pictures[i])
    wrong = round(record["n"] * (1 - record["value"]))
    assert f"{wrong} mistakes in all" in usual.section("mistakes")


def test_the_calibration(usual: Page, record: dict[str, Any]) -> None:
    text = usual.section("calibration")
    assert f"Expected calibration error {record['detail']['ece']:.1%}" in text
    filled = [b for b in record["detail"]["calibration"] if b["n"]]
    dots = re.findall(r'<path d="M([\d.]+) ([\d.]+)h0" style="stroke-width', usual.html)
    assert [(float(x), float(y)) for x, y in dots] == [
        pytest.approx((100 * b["confidence"], 100 - 100 * b["accuracy"]), abs=0.01) for b in filled
    ]
    surplus = sum(b["n"] * (b["confidence"] - b["accuracy"]) for b in filled) / record["n"]
    assert f"too {'sure' if surplus > 0 else 'modest'} by {abs(100 * surplus):.1f} points" in text


def test_the_data(usual: Page) -> None:
    text = usual.section("data")
    for part in ("train/t-shirt/half.jpg: the file ends too early", "1 file could not be read",
                 "train 3,068 pictures", "test 372 pictures", "3,781 files were all decoded",
                 "train/dress/0.jpg", "test/dress/0.jpg", "Contradicting labels",
                 "4.0 times as many", "Width 250 to 533 px (median 400)",
                 "RGB 3,779", "3 files turned upright by EXIF"):  # fmt: skip
        assert part in text, part


def test_the_machine(usual: Page) -> None:
    text = usual.section("machine")
    expected = cost(get_spec("efficientnet_lite0").replace(num_classes=10), 160)
    for part in (f"{expected.params / 1e6:.2f} million", f"{expected.macs / 1e6:.0f} million",
                 "bfloat16, channels_last (taken) 83.2", "4 min 49 s of a budget of 5 min",
                 "2.1% of the time", "13.6 MB", environment()["versions"]["pillow"]):  # fmt: skip
        assert part in text, part


def test_the_configuration_can_be_copied_out(usual: Page, run: Path) -> None:
    assert json.loads(usual.exact("config")) == json.loads((run / "config.json").read_text())
