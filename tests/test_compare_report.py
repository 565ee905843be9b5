"""What `mbconv compare` shows: made from made-up Records alone, so that every word is known."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from html_page import Page
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.interval import answers
from mbconv.measure.bench import failure
from mbconv.record import Record, write_records
from mbconv.report.contest import letters, merged, views
from mbconv.report.contest_lines import contest_lines
from mbconv.report.costs_page import context, read_files, write_page
from mbconv.report.fronts import Network, Place, front, scatter, slope
from mbconv.report.scores import groups
from mbconv.report.winners import answer_lines, order, win_lines

MIB = 2**20
AMD = {"hardware": "AMD EPYC", "versions": {"torch": "2.14.1"}}
ARM = {"hardware": "Graviton", "versions": {"torch": "2.13.0"}}


def costs(
    network: str, macs: float, ms: float, *, environment: Any = AMD, **about: Any
) -> list[Record]:
    """Counts, published accuracy, latency, throughputs and memory of a network."""
    library, found, _ = network.partition(":")
    detail = {"network": network, "library": library if found else "mbconv", "resolution": 224,
              "native": 224, "view": "same"} | about  # fmt: skip
    run = detail | {"dtype": "float32", "layout": "contiguous", "threads": 2, "noise": 1.0,
                    "noisy": False, "repeated": 0}  # fmt: skip

    def one(name: str, value: float, **more: Any) -> Record:
        spread = {"low": value * 0.98, "high": value * 1.02} if "batch" in more else {}
        return Record(name=name, value=value, n=9, environment=environment,
                      detail=(run if "batch" in more else detail) | more, **spread)  # type: ignore[arg-type] # fmt: skip

    side = detail["resolution"]
    return [
        one("params", macs / 80), one("macs", macs),
        one("published_top1", 0.6 + macs / 5e10, resolution=detail["native"], source="paper"),
        one("latency", ms, batch=1, mode="inference", p90=ms, p99=ms),
        one("throughput", 2000 / ms, batch=16, mode="inference"),
        one("training_throughput", 400 / ms, batch=8, mode="training"),
        Record(name="peak_memory", value=(300 + ms) * MIB, n=1, environment=environment,
               detail=run | {"mode": "training", "batch": 8, "resolution": side}),
    ]  # fmt: skip


SMALL, LARGE = "efficientnet_b0", "torchvision:resnet50"
TWO = [*costs(SMALL, 386e6, 20.0), *costs(LARGE, 4089e6, 45.0)]


def score(network: str, right: int, *, n: int = 200, **about: Any) -> Record:
    """Of `n` pictures the first `right` are named correctly."""
    detail = {"network": network, "library": "mbconv", "data": "photos", "seed": 0, "budget": 60.0,
              "resolution": 224, "view": "own", "pretrained": False, "epochs": 3,
              "answers": answers((f"{i:04}", i < right) for i in range(n))}  # fmt: skip
    return Record(name="top1", value=right / n, n=n, low=right / n - 0.05, high=right / n + 0.05,
                  environment=AMD, detail=detail | about)  # fmt: skip


def test_winners_are_told_in_words() -> None:
    (view,) = views(TWO)
    assert view.title == "all at 224 px"
    text = "\n".join(win_lines(view))
    assert "efficientnet_b0 needs the fewest, 386 million" in text
    assert "One picture at a time: efficientnet_b0 is quickest, 20 ms a picture, 2.2 times" in text
    assert "efficientnet_b0 takes the least, 320 MiB" in text
    assert "resnet50 has 10.6 times the multiply-adds of efficientnet_b0, which is 2.2" in text


def test_overlapping_intervals_name_no_winner() -> None:
    (view,) = views([*costs(SMALL, 386e6, 20.0), *costs(LARGE, 4089e6, 20.3)])
    text = "\n".join(win_lines(view))
    assert f"{SMALL} and {LARGE} cannot be told apart" in text
    assert "is quickest" not in text
    assert "not distinguishably faster in training" in text


def test_the_fastest_way_and_the_usual_batch_count() -> None:
    slow = [r for r in costs(SMALL, 386e6, 30.0) if r.name == "latency"]
    alone = Record(name="throughput", value=9.0, n=9,
                   detail=TWO[4].detail | {"batch": 64})  # fmt: skip
    (view,) = views([*slow, *TWO, alone])
    row = next(row for row in view.rows if row.network == SMALL)
    assert row.figures["latency"].value == 20.0
    assert row.figures["throughput"].detail["batch"] == 16


def test_machines_and_resolutions_stand_apart() -> None:
    other = [
        *costs(SMALL, 386e6, 9.0, environment=ARM),
        *costs(LARGE, 4089e6, 90.0, environment=ARM),
    ]
    large = costs("efficientnet_b4", 1500e6, 50.0, native=380)
    own = costs("efficientnet_b4", 4400e6, 150.0, native=380, resolution=380, view="own")
    found = views([*TWO, *large, *own, *other])
    assert [(v.machine, v.kind, len(v.rows)) for v in found] == [
        ("AMD EPYC, 2 threads", "same", 3), ("AMD EPYC, 2 threads", "own", 1),
        ("Graviton, 2 threads", "same", 2),
    ]  # fmt: skip
    shown = context([*TWO, *large, *own, *other])
    # Published accuracy holds at 380 px, so B4's mark stands at what it costs there.
    dots = {dot.letter: dot for dot in shown["charts"][0]["charts"][1].dots}
    assert "150 ms" in dots["C"].text
    assert len(shown["machines"]) == 2


def test_merging_leaves_out_what_is_there_twice() -> None:
    assert merged([*TWO, *TWO]) == TWO
    names = [f"n{i}" for i in range(28)]
    marks = letters([failure("network", {"network": name}, "no") for name in names])
    assert [marks[name] for name in ("n0", "n25", "n26")] == ["A", "Z", "A2"]


def test_the_front_holds_what_nothing_beats() -> None:
    a, b, c = (Network(x, x, False, cost, share)
               for x, cost, share in (("A", 10, 0.7), ("B", 20, 0.65), ("C", 40, 0.8)))  # fmt: skip
    assert front([c, b, a]) == [a, c]
    chart = scatter("ms", "ms", [a, b, c])
    assert chart is not None
    assert [dot.front for dot in chart.dots] == [True, False, True]
    assert all(0 <= dot.x <= 100 and 0 <= dot.y <= 100 for dot in chart.dots)
    assert chart.dots[0].x < chart.dots[1].x < chart.dots[2].x
    assert chart.dots[2].y < chart.dots[0].y < chart.dots[1].y  # up is better
    assert [tick.text for tick in chart.x_ticks] == ["10", "20", "50"]
    assert scatter("ms", "ms", [a]) is None


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (3.3, 5e6), (0.02, 0.021), (999, 1001)])
def test_marks_lie_within_their_axis(low: float, high: float) -> None:
    chart = scatter(
        "x", "x", [Network("A", "a", False, low, 0.5), Network("B", "b", True, high, 0.5)]
    )
    assert chart is not None
    assert all(-1e-6 <= dot.x <= 100 + 1e-6 for dot in chart.dots)
    assert 2 <= len(chart.x_ticks) <= 9


def test_a_slope_joins_the_same_network() -> None:
    def side(*values: float) -> list[tuple[Place, str, float]]:
        return [(Place(k, k, str(v), False), k, v) for k, v in zip("abc", values, strict=True)]

    chart = slope("t", ("left", "right"), side(1, 2, 3), side(9, 4, 5))
    assert chart is not None
    assert [place.name for place in chart.right] == ["b", "c", "a"]
    assert chart.lines == ((0, 2, "behind"), (1, 0, "ahead"), (2, 1, "ahead"))
    assert slope("t", ("l", "r"), side(1, 2, 3)[:1], side(1, 2, 3)) is None


def test_scores_of_different_starts_are_never_ranked_together() -> None:
    records = [score("a", 150), score("b", 120), score("c", 190, pretrained=True)]
    found = groups(records, letters(records))
    assert [len(group.records) for group in found] == [1, 2]
    assert "from pretrained weights" in found[0].title
    assert found[0].verdicts() == []
    assert found[1].verdicts() == ["a is better than b: +15.0 points [+9.9, +19.9]."]
    close = [score("a", 150), score("b", 149)]
    (group,) = groups(close, letters(close))
    assert "cannot be told apart" in group.verdicts()[0]


def test_scores_at_their_own_and_at_one_resolution() -> None:
    """A network whose own resolution is the common one is ranked with both."""
    records = [score("a", 150, resolution=160), score("b", 170), score("b", 140, resolution=160,
                                                                         view="same")]  # fmt: skip
    own, same = groups(records, letters(records))
    assert "each at its own resolution" in own.title
    assert "all at 160 px" in same.title
    assert [r.detail["network"] for r in own.records] == ["b", "a"]
    assert [r.detail["network"] for r in same.records] == ["a", "b"]
    assert same.shares() == {("a", 160): 0.75, ("b", 160): 0.7}


def gap_records() -> list[Record]:
    """Plain networks whose time runs against their multiply-adds, and ours that follow them."""
    plain = {"x": (1e8, 30.0), "y": (5e8, 20.0), "z": (3e9, 10.0)}
    records = []
    for name, (macs, ms) in plain.items():
        if name == "z":
            records += costs("timm:z", macs, ms, part="rival", of="timm:z")
            continue
        records += costs(f"timm:{name}", macs, ms, part="plain", of=name)
        records += costs(name, macs, ms / 10, part="ours", of=name)
    return records


def test_the_gap_and_its_answer() -> None:
    (view,) = views(gap_records())
    lines = answer_lines(view)
    assert "A training step of ours is 10.00 times as fast as in plain PyTorch" in lines[0]
    assert "A pass of ours is 10.00 times as fast as in plain PyTorch" in lines[2]
    assert "correlate at -1.00 in plain PyTorch and at 0.50 with ours" in lines[3]
    assert order(view.rows[:2], "latency") is None
    slopes = context(gap_records())["views"][0]["slopes"]
    assert [place.name for place in slopes[0].right] == ["z", "y", "x"]
    assert [place.name for place in slopes[1].right] == ["y", "x", "z"]


def test_the_page_shows_it_all(tmp_path: Path) -> None:
    records = [
        *TWO, score(SMALL, 150), score("efficientnet_lite0", 160),
        score("mobilenetv2_100", 190, pretrained=True),
        failure("network", {"network": "timm:<b>"}, "timm has no network '<b>'"),
    ]  # fmt: skip
    page = Page(write_page(records, tmp_path / "p.html").read_text())
    assert "10.6 times the multiply-adds" in page.text
    assert "timm has no network '<b>'" in page.text  # escaped, so it is text
    assert "ranked with nobody" in page.section("learnt")
    assert "efficientnet_lite0 is better than efficientnet_b0" in page.section("learnt")
    assert page.section("costs").count("20") >= 1
    assert "45" in page.section("ranks-1")
    assert "does not train those" in page.text
    loaded = {a.get("src") or a.get("href") for _, a in page.elements} - {None}
    assert not loaded
    assert "default-src 'none'" in page.html


def test_a_page_without_times_or_accuracies(tmp_path: Path) -> None:
    bare = [r for r in TWO if r.name in ("params", "macs")]
    assert "nobody wins" in Page(write_page(bare, tmp_path / "p.html").read_text()).text


def test_from_files_of_two_machines(tmp_path: Path) -> None:
    write_records(tmp_path / "here.jsonl", TWO)
    other = [
        *costs(SMALL, 386e6, 9.0, environment=ARM),
        *costs(LARGE, 4089e6, 9.9, environment=ARM),
    ]
    write_records(tmp_path / "there.jsonl", other)
    args = ["compare", "--from", str(tmp_path / "here.jsonl"), str(tmp_path / "there.jsonl"),
            "--out", str(tmp_path / "out")]  # fmt: skip
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.output
    page = Page((tmp_path / "out" / "compare.html").read_text())
    assert "Graviton" in page.text
    assert "Times of different machines stand apart" in page.text
    assert "9.9" in done.output
    first = (tmp_path / "out" / "compare.html").read_bytes()
    CliRunner().invoke(main, args)
    assert (tmp_path / "out" / "compare.html").read_bytes() == first


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "line 1 is no record"),
        (b"[1]\n", "line 1 is no record"),
        (b"\xff\xfe\x00", "no text"),
        (b"", "holds no costs"),
        (json.dumps(Record(name="top1", value=0.5).to_dict()).encode(), "holds no costs"),
    ],
)
def test_broken_files_get_a_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_files([path])
    done = CliRunner().invoke(main, ["compare", "--from", str(path)])
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert not (tmp_path / "compare.html").exists()


def test_a_missing_file_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read"):
        read_files([tmp_path / "none.jsonl"])


def test_the_printed_lines_come_from_records_alone() -> None:
    records = [
        *TWO,
        score(SMALL, 150),
        score("b", 120),
        failure("top1", {"network": "c"}, "no room"),
    ]
    again = [Record.from_dict(json.loads(json.dumps(r.to_dict()))) for r in records]
    text = "\n".join(contest_lines(again))
    assert text.index(SMALL) < text.index(LARGE)
    assert "c, not trained: no room" in text
    assert "75.0% [70.0, 80.0], n = 200" in text
    assert "the machine was quiet" in text
