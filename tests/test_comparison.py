"""One page on several runs: what it says must follow from their files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fake_run import fake_run
from html_page import Page
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.interval import answers
from mbconv.report.comparison import MOST, write_comparison
from mbconv.report.differences import differing_fields, pairs
from mbconv.report.folder import read_run


def scored(folder: Path, right: list[bool], **options: Any) -> Path:
    """A run that named these of n pictures right."""
    fake_run(folder, n=len(right), **options)
    path = folder / "evaluation.jsonl"
    record = json.loads(path.read_text())
    record["value"] = sum(right) / len(right)
    record["detail"]["answers"] = answers((f"{i}.jpg", hit) for i, hit in enumerate(right))
    path.write_text(json.dumps(record) + "\n")
    return folder


def page(tmp_path: Path, *folders: Path) -> Page:
    out = write_comparison(folders, tmp_path / "comparison.html")
    return Page(out.read_text(encoding="utf-8"))


GOOD = [i % 10 > 0 for i in range(400)]  # 90%
ALIKE = [i % 10 != 1 for i in range(400)]  # 90% too, other mistakes
WORSE = [i % 10 > 1 for i in range(400)]  # 80%, all of GOOD's mistakes among its own


def test_two_runs_on_the_same_pictures(tmp_path: Path) -> None:
    got = page(tmp_path, scored(tmp_path / "good", GOOD), scored(tmp_path / "worse", WORSE))
    assert "good (A) is better than worse (B)" in got.of["h1"]
    text = got.section("verdict")
    assert "of the same 400 pictures, B alone names 0 right and A alone 40" in text
    assert "B minus A is -10.0 points [-12.9, -7.0]" in text
    assert "Nothing: the configs are the same." in got.section("config")


def test_runs_that_cannot_be_told_apart(tmp_path: Path) -> None:
    got = page(tmp_path, scored(tmp_path / "a", GOOD), scored(tmp_path / "b", ALIKE))
    assert "a (A) and b (B) cannot be told apart" in got.of["h1"]
    assert "B alone names 40 right and A alone 40" in got.section("verdict")
    assert "not distinguishable" in got.section("verdict")


def test_other_pictures_are_compared_as_such(tmp_path: Path) -> None:
    got = page(tmp_path, scored(tmp_path / "a", GOOD), scored(tmp_path / "b", WORSE[:300]))
    assert "scored on different pictures" in got.section("verdict")
    assert "Not all runs were scored on the same pictures" in got.section("score")
    first, second = (read_run(tmp_path / name) for name in "ab")
    (pair,) = pairs([first, second])
    assert (pair.counts, pair.verdict) == (None, "worse")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"interrupted": True}, "one of them has no final score yet"),
        ({"split": "val"}, "one was scored on test pictures, the other on validation pictures"),
        ({"classes": ("cat", "dog")}, "they tell different classes apart"),
    ],
)
def test_what_does_not_compare_is_not_compared(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    got = page(tmp_path, fake_run(tmp_path / "a"), fake_run(tmp_path / "b", **options))
    assert "The scores of a (A) and b (B) cannot be compared" in got.of["h1"]
    assert f"A and B are not compared: {words}." in got.section("verdict")
    assert not re.search(r"\b(None|nan|inf|Undefined|undefined)\b", got.text)


def test_pretrained_and_from_scratch_are_ranked_apart(tmp_path: Path) -> None:
    got = page(
        tmp_path,
        scored(tmp_path / "fresh", WORSE, pretrained=False),
        scored(tmp_path / "tuned", GOOD),
        scored(tmp_path / "other", ALIKE),
    )
    (title,) = got.of["h1"]
    assert "from pretrained weights B scores highest, not told apart from C" in title
    assert "from scratch A alone" in title
    score = got.section("score")
    assert score.index("From pretrained weights") < score.index("tuned")
    assert score.index("other") < score.index("From scratch") < score.index("fresh")
    assert "some did not" in score
    assert got.section("verdict").count("A began from scratch") == 2
    assert "3 pairs hold together" in got.section("verdict")


def test_more_pairs_make_wider_intervals(tmp_path: Path) -> None:
    folders = [scored(tmp_path / name, GOOD if name == "a" else WORSE) for name in "abc"]
    runs = [read_run(folder) for folder in folders]
    (alone,) = pairs(runs[:2])
    among = pairs(runs)[0]
    assert alone.difference == among.difference
    assert among.low < alone.low < alone.high < among.high


def test_only_what_differs_is_listed(tmp_path: Path) -> None:
    configs = [read_run(fake_run(tmp_path / name)).config for name in "ab"]
    assert differing_fields(configs) == []
    configs[1]["recipe"] = {**configs[1]["recipe"], "lr": 0.5, "new": {"deep": [1, 2]}}
    configs[1] |= {"date": "2026-01-01", "id": "x", "command": "another"}
    assert differing_fields(configs) == [
        ("recipe.lr", ["0.001", "0.5"]),
        ("recipe.new.deep", ["–", "[1, 2]"]),  # noqa: RUF001
    ]
    for number, stage in enumerate(configs[1]["spec"]["stages"]):
        for block in stage:
            block["channels"] += 8 * (number + 1)
            block["kernel"] = 7
    ((path, values),) = [row for row in differing_fields(configs) if row[0].startswith("spec")]
    assert re.fullmatch(r"spec, \d\d fields; hash", path)
    assert values[0] != values[1]


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    folders = [
        fake_run(tmp_path / f"run {i} {'long ' * 20}", seed=i, epochs=i + 1, root=evil,
                 interrupted=i == 3)
        for i in range(MOST)
    ]  # fmt: skip
    got = page(tmp_path, *folders)
    assert [tag for tag, _ in got.elements].count("h1") == 1
    assert "script" not in {tag for tag, _ in got.elements}
    assert not [a for _, attrs in got.elements for a in ("src", "href") if attrs.get(a)]
    policy = next(attrs for tag, attrs in got.elements if "http-equiv" in attrs)
    assert (policy["content"] or "").startswith("default-src 'none'")
    assert not re.search(r"\b(None|nan|inf|Undefined|undefined)\b", got.text)
    assert len(got.html) < 60_000
    assert len([1 for tag, attrs in got.elements if attrs.get("class") == "line"]) == 2 * MOST
    assert got.section("cost").count("3,383,818") == MOST


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = str(fake_run(Path("runs/a"))), str(fake_run(Path("runs/b")))
    run = CliRunner().invoke
    assert run(main, ["report", a]).output == "report: runs/a/report.html\n"
    assert Path("runs/a/report.html").is_file()
    assert run(main, ["report", a, b]).output == "comparison: comparison.html\n"
    assert run(main, ["report", a, b, "--out", "x/y.html"]).exit_code == 0
    assert Path("x/y.html").read_text() == Path("comparison.html").read_text()
    for args, words in (
        ([a, "nowhere"], "There is no run folder nowhere"),
        ([a, a], "named twice"),
        ([a, "--out", "x.html"], "--out goes with several runs"),
        ([a] * 9, "takes 2 to 8"),
    ):
        done = run(main, ["report", *args])
        assert done.exit_code == 2
        assert words in done.output
    with pytest.raises(UserError, match="takes 2 to 8"):
        write_comparison([Path(a)], Path("z.html"))
