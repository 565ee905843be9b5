"""`mbconv compare` on real networks, small ones: costs, learning, the gap, and what goes wrong."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from html_page import Page
from mbconv.cli import main
from mbconv.comparing import learning
from mbconv.comparing.gap import PAIRS, RIVALS, gap
from mbconv.comparing.learning import Lesson, is_foreign, learn
from mbconv.comparing.run import Contest, Kept, compare, costs, costs_of_taught
from mbconv.comparing.ways import usual_ways
from mbconv.errors import UserError
from mbconv.measure import bench, noise, speed
from mbconv.measure.bench import Bench, Goal, Plan
from mbconv.measure.noise import Calibration
from mbconv.measure.subject import Subject
from mbconv.measure.task import Way
from mbconv.record import Record, read_records
from mbconv.report.contest import views
from mbconv.training.console import Reporter
from mbconv.training.run import Run, train
from small import SMALL, write_classes, write_model

FOREIGN = "torchvision:shufflenet_v2_x0_5"
QUICK = Plan(batches=(), train_batches=(), memory=False, rounds=3, limit=0.4,
             ways=(Way(), Way(channels_last=False)))  # fmt: skip


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of no worth, but quickly."""
    monkeypatch.setattr(speed, "TURN", 0.01)
    monkeypatch.setattr(speed, "STEADY", 9.0)
    monkeypatch.setattr(noise, "PIECES", 2)
    monkeypatch.setattr(speed, "warm_up", partial(speed.warm_up, limit=0.1))
    monkeypatch.setattr(bench, "Calibration", partial(Calibration, checks=2))


@pytest.fixture
def specs(tmp_path: Path) -> list[str]:
    """Two small networks without weights: their own resolutions are 32 and 64 px."""
    paths = []
    for side in (32, 64):
        path = tmp_path / f"small{side}.json"
        path.write_text(SMALL.replace(resolution=side).to_json())
        paths.append(str(path))
    return paths


def test_costs_at_one_resolution_and_at_their_own(specs: list[str]) -> None:
    contest = Contest(names=(*specs, "timm:resnet500"), plan=QUICK)
    records = list(costs(contest, Bench(QUICK)))
    found = {v.kind: {(r.network, r.resolution) for r in v.rows} for v in views(records)}
    assert found == {"same": {(specs[0], 32), (specs[1], 32)},
                     "own": {(specs[0], 32), (specs[1], 64)}}  # fmt: skip
    errors = [r.detail["error"] for r in records if not r.n]
    assert len(errors) == 1
    assert "no network 'resnet500'" in errors[0]


def test_trained_networks_are_measured_where_they_learnt(specs: list[str]) -> None:
    """Once, and only where that was not done yet."""
    known = Record(name="macs", value=1.0, n=1, detail={"network": specs[0], "resolution": 32})
    taught = [
        Record(name="top1", value=0.5, n=9, detail={"network": specs[0], "resolution": side})
        for side in (32, 48)
    ]
    records = list(costs_of_taught(Bench(QUICK), [known, *taught]))
    assert {r.detail["resolution"] for r in records} == {48}
    assert {"macs", "latency"} <= {r.name for r in records}
    assert {r.detail["view"] for r in records} == {"taught"}


def test_the_command_writes_records_and_page(specs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["compare", specs[0], FOREIGN, "--resolution", "32", "--threads", "1",
            "--no-memory", "--out", str(out)]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "ROUNDS", 3)
        done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.output
    assert "torchvision:shufflenet_v2_x0_5" in done.output
    page = Page((out / "compare.html").read_text())
    assert "32 px" in page.section("costs")
    names = {r.name for r in read_records(out / "records.jsonl")}
    assert {"macs", "latency", "throughput", "training_throughput"} <= names
    again = CliRunner().invoke(main, args)
    assert again.exit_code == 2
    assert "already holds a comparison" in again.output


def test_nothing_measurable_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    contest = Contest(names=("timm:resnet500", "efficientnet_b00"))
    with pytest.raises(UserError, match=r"None of these.*resnet500.*efficientnet_b00"):
        compare(contest, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out" / "records.jsonl").exists()
    assert not (tmp_path / "out" / "compare.html").exists()


def test_our_networks_learn_the_same_pictures(
    specs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each at its own resolution, the larger again at the smaller's; foreign ones not at all."""

    def one_epoch(*args: Any, budget: float, **options: Any) -> Run:
        budgets.append(budget)
        return train(*args, epochs=1, **options)

    budgets: list[float] = []
    monkeypatch.setattr(learning, "train", one_epoch)  # on a busy machine no budget would be enough
    data = write_classes(tmp_path / "photos", each=8)
    lesson = Lesson(data=str(data), budget=90)
    taught = list(learn(lesson, [*specs, FOREIGN], tmp_path / "runs", Reporter(quiet=True)))
    assert [(r.detail["network"], r.detail["resolution"], r.detail["view"]) for r in taught] == [
        (specs[0], 32, "own"), (specs[1], 64, "own"), (specs[1], 32, "same"),
    ]  # fmt: skip
    assert budgets == [90, 90, 90]
    assert len({r.detail["answers"]["pictures"] for r in taught}) == 1  # the same pictures
    for record in taught:
        assert record.n
        assert record.low is not None
        assert record.low <= record.value
        assert record.detail["pretrained"] is False
        assert (tmp_path / "runs" / record.detail["run"] / "report.html").exists()


def test_a_training_that_fails_leaves_the_others(
    specs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: Any, *args: Any, **options: Any) -> None:
        raise UserError(f"no room for {Path(model).name}")

    monkeypatch.setattr(learning, "train", broken)
    lesson = Lesson(data="photos", budget=1)
    records = list(learn(lesson, specs, tmp_path, Reporter(quiet=True)))
    assert [r.detail["error"] for r in records] == [
        "no room for small32.json", "no room for small64.json",
    ]  # fmt: skip
    assert all(r.n == 0 for r in records)


def test_scratch_leaves_weights_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def note(model: Any, *args: Any, **options: Any) -> None:
        asked.append(model)
        raise UserError("enough")

    monkeypatch.setattr(learning, "train", note)
    name = str(write_model(tmp_path / "small.safetensors"))
    for scratch in (False, True):
        lesson = Lesson(data="photos", budget=1, scratch=scratch)
        list(learn(lesson, [name], tmp_path, Reporter(quiet=True)))
    assert asked[0] == name
    assert getattr(asked[1], "provenance", None) is None
    assert asked[1].spec.hash == SMALL.hash


def test_who_is_foreign(tmp_path: Path) -> None:
    assert is_foreign("timm:resnet50")
    assert not is_foreign("efficientnet_b0")
    assert not is_foreign(str(tmp_path))


def test_the_gap_on_small_networks(tmp_path: Path) -> None:
    ours = str(write_model(tmp_path / "small.safetensors"))
    records = list(gap(silent, Way(), pairs=((ours, "timm:mobilenetv3_small_050"),),
                       rivals=(FOREIGN,), resolution=32, rounds=3))  # fmt: skip
    (view,) = views(records)
    assert {(row.part, row.of) for row in view.rows} == {
        ("ours", ours), ("plain", ours), ("rival", FOREIGN)
    }  # fmt: skip
    assert all(set(row.figures) == {"throughput", "training_throughput"} for row in view.rows)
    assert {r.detail["batch"] for row in view.rows for r in row.figures.values()} == {16}


def test_the_gap_is_of_twelve_networks() -> None:
    assert len(PAIRS) + len(RIVALS) == 12


class Picky(nn.Module):
    """Works in float32 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        if y.dtype != torch.float32:
            raise RuntimeError("not in this format")
        return y.mean((2, 3))


def test_a_way_that_fails_is_passed_over() -> None:
    ways = (Way(dtype="bfloat16"), Way())
    plan = Plan(ways=ways, fastest=True, memory=False, rounds=3, limit=0.4)
    goal = Goal("throughput", "inference", 2)
    subject = Subject("picky", "timm", Picky(), 32)
    (record,) = Bench(plan).timed([(subject, goal)])
    assert record.detail["dtype"] == "float32"
    (failed,) = Bench(Plan(ways=ways[:1], fastest=True, memory=False)).timed([(subject, goal)])
    assert failed.detail["error"] == "not in this format"


def test_usual_ways_begin_with_what_every_device_has() -> None:
    found = usual_ways(Way())
    assert len(set(found)) == len(found)
    assert {way.layout for way in found} == {"channels_last", "contiguous"}
    assert found[0].dtype == "float32"


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path) -> None:
    about = {"network": "a", "library": "mbconv", "resolution": 32, "native": 32}

    def interrupted() -> Iterator[Record]:
        yield Record(name="macs", value=1e6, n=1, detail=about)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Kept(tmp_path, Reporter(quiet=True)) as kept:
        kept.extend(interrupted())
    assert [r.name for r in read_records(tmp_path / "records.jsonl")] == ["macs"]
    assert (tmp_path / "compare.html").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "Give NAMEs"),
        (["efficientnet_b0"], "two different networks"),
        (["efficientnet_b0", "efficientnet_b0"], "two different networks"),
        (["--gap", "efficientnet_b0"], "chooses its networks itself"),
        (["a", "b", "--device", "tpu"], "no device 'tpu'"),
        (["a", "b", "--data", "/no/such/folder"], "/no/such/folder"),
        (["--from", "a.jsonl", "--data", "photos"], "measures nothing"),
        (["a", "b", "--budget", "soon"], "is no time"),
    ],
)
def test_mistakes_get_a_sentence(args: list[str], says: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["compare", *args, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2, done.output
    assert says in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()
