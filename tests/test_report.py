"""The report of a run: it renders whatever a run folder holds, safely, and warns."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from skimage.data import astronaut, chelsea, coffee

from fake_run import fake_run, thumbnails
from html_page import Page
from mbconv.errors import UserError
from mbconv.report.run import write_report

EVIL = '<script>alert("x")</script>'
CASES: dict[str, dict[str, Any]] = {
    "usual": {},
    "two classes, ten pictures": {"classes": ("cat", "dog"), "n": 10, "epochs": 1, "split": "val"},
    "no mistake": {"classes": ("cat", "dog"), "n": 10, "accuracy": 1.0, "problems": False},
    "nothing right": {"accuracy": 0.0, "n": 50, "broken_loss": True},
    "200 classes": {"classes": [f"species {i}" for i in range(200)], "n": 1500, "epochs": 60},
    "long names": {"classes": ("y" * 150, "a name of many words " * 5, "قميص", "短い", EVIL)},
    "interrupted": {"interrupted": True, "epochs": 2},
    "interrupted at once": {"interrupted": True, "epochs": 0},
}


def page(folder: Path, **options: Any) -> Page:
    return Page(write_report(fake_run(folder, **options)).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pictures() -> list[tuple[str, str]]:
    return thumbnails([chelsea(), coffee(), astronaut()])  # type: ignore[no-untyped-call]


# Whatever the run, the page is whole and loads nothing


@pytest.mark.parametrize("case", CASES)
def test_every_run_gives_a_whole_page(case: str, tmp_path: Path) -> None:
    got = page(tmp_path / "run", **CASES[case])
    ids = got.ids()
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in got.elements].count("h1") == 1
    anchors = [attrs["href"] for tag, attrs in got.elements if tag == "a"]
    assert anchors
    assert all(href and href[0] == "#" and href[1:] in ids for href in anchors)
    assert not re.search(r"\b(None(?! of)|nan|inf|Undefined|undefined)\b", got.text)
    assert [p.name for p in tmp_path.joinpath("run").glob(".*")] == []  # no temporary file left
    assert len(got.html) < (250_000 if "200" in case else 90_000)


@pytest.mark.parametrize("case", CASES)
def test_every_section_says_how_to_read_it(case: str, tmp_path: Path) -> None:
    html = page(tmp_path / "run", **CASES[case]).html
    sections = re.findall(r"<section.*?</section>", html, re.S)
    assert len(sections) >= 3
    pattern = r'<section[^>]*>\s*<h2[^>]*>[^<]+</h2>\s*<p class="how">[A-Z][^<]{30,}[.)]\s*</p>'
    assert all(re.match(pattern, section) for section in sections)


@pytest.mark.parametrize("case", CASES)
def test_the_page_loads_nothing(case: str, tmp_path: Path, pictures: Any) -> None:
    got = page(tmp_path / "run", pictures=pictures, **CASES[case])
    loading = (
        "src",
        "srcset",
        "data",
        "action",
        "poster",
        "xlink:href",
        "background",
        "formaction",
    )
    for tag, attrs in got.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "use")
        for name in set(loading) & set(attrs):
            assert (attrs[name] or "").startswith("data:image/jpeg;base64,")
        assert not any(name.startswith("on") for name in attrs)
        assert "url(" not in (attrs.get("style") or "")
    (style,) = re.findall(r"<style>(.*?)</style>", got.html, re.S)
    assert "url(" not in style
    assert "@import" not in style
    assert "://" not in got.html


def test_the_policy_allows_this_script_and_nothing_else(tmp_path: Path) -> None:
    usual = page(tmp_path / "run")
    (policy,) = [a["content"] for _, a in usual.elements if a.get("http-equiv")]
    (script,) = re.findall(r"<script>(.*?)</script>", usual.html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


# What users name is shown, never run


def test_names_are_escaped_wherever_they_appear(tmp_path: Path, pictures: Any) -> None:
    quotes = "\" onmouseover='alert(1)' x=\""
    folder = fake_run(tmp_path / f"run {EVIL[1:7]}", classes=(EVIL, quotes, "{{ 7 * 7 }}", "&amp;"),
                      n=200, accuracy=0.5, pictures=pictures, root=f"photos {EVIL}")  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    config |= {"spec_name": f"net {EVIL}", "recipe": {"note": f"</pre>{EVIL}<!--"}}
    config["machine"]["device"] = EVIL
    (folder / "config.json").write_text(json.dumps(config))
    got = Page(write_report(folder).read_text(encoding="utf-8"))
    assert [tag for tag, _ in got.elements].count("script") == 1
    assert not any(name.startswith("on") for _, attrs in got.elements for name in attrs)
    for name in (EVIL, quotes, "{{ 7 * 7 }}", "&amp;"):
        for section in ("confusion", "classes", "mistakes"):
            assert name in got.section(section)
    assert f"</pre>{EVIL}<!--" in json.loads(got.exact("config"))["recipe"]["note"]
    assert f"{EVIL}/half.jpg" not in got.html  # only in its escaped form
    assert "49" not in got.of["h1"][0]


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    got = page(tmp_path / "run", classes=("caf\udce9", "tea"), n=20, accuracy=0.5)
    assert "caf?" in got.section("classes")


def test_only_embedded_pictures_are_shown(tmp_path: Path) -> None:
    outside = [("https://example.org/a.jpg", "javascript:alert(1)"),
               ('data:image/jpeg;base64,AAAA" onload="x', "data:text/html;base64,AAAA"),
               ("data:image/svg+xml;base64,AAAA", "")]  # fmt: skip
    got = page(tmp_path / "run", pictures=outside)
    assert "img" not in [tag for tag, _ in got.elements]
    assert "IMG_" in got.section("mistakes")  # listed by name instead


# Warnings


def test_a_sound_run_has_no_warning(tmp_path: Path) -> None:
    assert 'class="warnings"' not in page(tmp_path / "run", problems=False).html


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n": 40}, "Only 40 pictures were scored, so the score is rough"),
        ({"accuracy": 0.0}, "The score is not better than always answering"),
        ({"n": 12, "accuracy": 0.6, "classes": "ab", "seed": 2}, "The score is not clearly better"),
        ({"split": "val"}, "There was no test split"),
        ({"problems": True}, "1 of the 372 scored pictures is equal or nearly equal to one that"),
        ({"accuracy": 0.0, "classes": "ab"}, "Not one picture was named correctly in 2 classes"),
        ({"n": 30, "classes": [f"c{i}" for i in range(60)]}, "without a scored picture"),
    ],
)
def test_warnings(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    assert sentence in page(tmp_path / "run", **{"problems": False, **options}).section("score")


def test_only_duplicates_of_training_pictures_touch_a_test_score(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run")
    data = json.loads((folder / "data.json").read_text())
    data["audit"]["across_splits"] = [
        ["train/dress/0.jpg", "val/dress/0.jpg"],
        ["val/hat/1.jpg", "test/hat/1.jpg"],
    ]
    (folder / "data.json").write_text(json.dumps(data))
    assert "nearly equal" not in Page(write_report(folder).read_text()).section("score")


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path) -> None:
    text = page(tmp_path / "run", broken_loss=True).section("training")
    assert "7 epochs have no finite loss" in text


# Sizes


@pytest.mark.parametrize(("classes", "cells"), [(30, 900), (31, 0)])
def test_a_matrix_up_to_30_classes_else_the_pairs(classes: int, cells: int, tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(classes)]
    html = page(tmp_path / "run", classes=names, n=3000, accuracy=0.7).html
    assert len(re.findall(r'<td class="(?:hit|miss|zero)', html)) == cells
    pairs = re.search(r'<ol class="pairs">.*?</ol>', html, re.S)
    assert pairs is not None
    assert pairs.group().count("<li>") == (5 if cells else 20)


def test_no_mistake_is_said_in_words(tmp_path: Path) -> None:
    got = page(tmp_path / "run", **CASES["no mistake"])
    assert "All 10 scored pictures were named correctly." in got.section("score")
    assert "There are none" in got.section("mistakes")
    assert "No picture was given a wrong name" in got.section("confusion")


def test_many_classes_fold_the_better_ones_away(tmp_path: Path) -> None:
    got = page(tmp_path / "run", **CASES["200 classes"])
    shown = len(json.loads((tmp_path / "run/evaluation.jsonl").read_text())["detail"]["per_class"])
    assert f"The other {shown - 25} classes" in got.section("classes")


# Runs that are not whole


def test_an_interrupted_run_shows_what_there_is(tmp_path: Path) -> None:
    got = page(tmp_path / "run", **CASES["interrupted"])
    assert "No score yet" in got.section("score")
    assert "Validation accuracy" in got.section("training")
    assert not {"confusion", "classes", "mistakes", "calibration"} & set(got.ids())
    assert "train --resume" in got.exact("command-1")
    assert "command-2" not in got.by_id  # there is no model to predict with yet


def test_the_configuration_alone_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    got = Page(write_report(tmp_path).read_text())
    assert "A network was trained." in got.of["h1"]
    assert set(got.ids()) >= {"score", "machine", "next"}


def test_a_line_cut_short_at_the_end_is_left_out(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run")
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text()[:-30])
    assert "Epochs 6" in Page(write_report(folder).read_text()).section("machine")


def test_the_report_can_be_remade(tmp_path: Path) -> None:
    first = page(tmp_path / "run").html
    assert write_report(tmp_path / "run") == tmp_path / "run" / "report.html"
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == first


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.json", "{", "no valid JSON"),
        ("data.json", "[1]", "must hold a JSON object"),
        ("metrics.jsonl", "{\n{}\n{}\n", "metrics.jsonl line 1"),
        ("evaluation.jsonl", "7\n", "evaluation.jsonl line 1 is no record"),
    ],
)
def test_a_broken_file_is_named(name: str, content: str, sentence: str, tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no run folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        write_report(tmp_path)


def test_the_module_imports_no_torch() -> None:
    code = "import sys, mbconv.report.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
