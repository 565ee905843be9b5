"""Studies that really train: planned, killed and gone on with, shared by two processes."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mbconv
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.files import locked
from mbconv.report.runs import list_runs
from mbconv.report.study import read_study
from mbconv.study import run as running
from mbconv.study.plan import Plan, read_plan
from mbconv.training.machine import Machine
from mbconv.weights.file import tensor_hash
from small import SMALL, write_classes
from studies import POOLS, pools

PLAIN = Machine(threads=1, workers=0)
EPOCHS = 3
# Runs the study of argument 1 on the pictures of argument 2, in the folder of argument 3.
DRIVER = """
import sys
import torch
import mbconv
from mbconv.training import setup
from mbconv.training.machine import Machine

torch.set_num_threads(1)
setup.choose_machine = lambda *_: Machine(threads=1, workers=0)
study, data, out, model, seeds, epochs = sys.argv[1:]
wishes = {"seeds": int(seeds), "epochs": int(epochs)}
mbconv.run_study(study, data, out, model=model, resolution=32, **wishes)
"""


@pytest.fixture(autouse=True)
def one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbconv.training.setup.choose_machine", lambda *_: PLAIN)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with pictures, a small network and a study of it."""
    write_classes(tmp_path / "data")
    (tmp_path / "small.json").write_text(SMALL.to_json())
    (tmp_path / "mine.py").write_text(POOLS)
    return tmp_path


def arguments(place: Path) -> dict[str, Any]:
    return {"model": str(place / "small.json"), "resolution": 32, "quiet": True}


def start(place: Path, seeds: int, epochs: int) -> subprocess.Popen[str]:
    words = [f"{place / 'mine.py'}:pools", place / "data", place / "study", place / "small.json",
             seeds, epochs]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, words)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def weights(study: Path) -> dict[str, str]:
    """A hash of each finished run's network, by its folder."""
    runs = sorted(path.parent for path in study.glob("runs/*/*/evaluation.jsonl"))
    return {str(r.relative_to(study)): tensor_hash(mbconv.load(r).state_dict()) for r in runs}


def test_a_study_from_plan_to_page(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "study"
    made = mbconv.run_study(pools, place / "data", out, **arguments(place), seeds=2, epochs=1)
    assert isinstance(made, Plan)
    assert made == read_plan(out)
    assert [arm.name for arm in made.arms] == ["avg", "max"]
    assert all(arm.ms_per_step > 0 and arm.ms_per_picture > 0 for arm in made.arms)
    study = read_study(out)
    assert study.runs == 4
    assert study.arms[1].contrast is not None
    assert study.arms[1].contrast.on_pictures is not None
    assert {path.name for path in out.iterdir()} == {
        "study.json", "study.html", "study.md", "study.svg", "study.jsonl", "arms", "claims", "runs"
    }  # fmt: skip
    assert not list(out.glob("runs/*/*/last/*.pt"))
    rows = list_runs([out])
    assert [row.state for row in rows] == ["finished"] * 4
    before = weights(out)
    assert before["runs/avg/seed0"] != before["runs/avg/seed1"]
    capsys.readouterr()
    mbconv.run_study(pools, place / "data", out, **{**arguments(place), "quiet": False},
                     seeds=2, epochs=1)  # fmt: skip
    assert "4 of 4 runs done" in capsys.readouterr().out
    assert weights(out) == before
    with pytest.raises(UserError, match="another epochs"):
        mbconv.run_study(pools, place / "data", out, **arguments(place), seeds=2, epochs=2)


def test_the_seed_decides_first_weights_and_pictures(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two arms that differ in nothing that counts end with the same weights."""

    def twins(base: mbconv.Spec) -> mbconv.Grid:
        one = mbconv.Arm(name="one", model=base)
        return mbconv.Grid(arms=[one, mbconv.Arm(name="two", model=base.replace(name="other"))])

    out = place / "study"
    mbconv.run_study(twins, place / "data", out, **arguments(place), seeds=1, epochs=1)
    found = weights(out)
    assert found["runs/one/seed0"] == found["runs/two/seed0"]
    contrast = read_study(out).arms[1].contrast
    assert contrast is not None
    assert contrast.value == 0
    assert contrast.verdict == "not distinguishable"


def test_killed_and_started_again_it_repeats_nothing(place: Path) -> None:
    out, deadline = place / "study", time.monotonic() + 200
    with start(place, 1, EPOCHS) as process:
        while not (half := list(out.glob("runs/max/seed0/metrics.jsonl"))):  # the second run's
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    (done,) = out.glob("runs/*/*/evaluation.jsonl")
    ended, begun = done.stat().st_mtime_ns, (half[0].parent / "config.json").read_bytes()
    study = f"{place / 'mine.py'}:pools"
    wishes = {**arguments(place), "seeds": 1, "epochs": EPOCHS}
    mbconv.run_study(study, place / "data", out, **wishes)
    assert done.stat().st_mtime_ns == ended
    assert (half[0].parent / "config.json").read_bytes() == begun  # gone on with, not begun anew
    mbconv.run_study(study, place / "data", place / "whole", **wishes)
    assert weights(out) == weights(place / "whole")


def test_two_processes_share_a_folder(place: Path) -> None:
    first, second = start(place, 2, 1), start(place, 2, 1)
    outputs = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    run = [re.findall(r"runs? done  (\w+; seed \d):", output) for output in outputs]
    assert sorted(run[0] + run[1]) == ["avg; seed 0", "avg; seed 1", "max; seed 0", "max; seed 1"]
    assert sum("2 arms x 2 seeds" in output for output in outputs) == 1  # one of them planned
    assert read_study(place / "study").runs == 4


def test_what_another_process_works_on_is_waited_for(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other, naps = place / "study", ExitStack(), []
    other.enter_context(locked(out / "claims/max-seed0", ""))

    def nap(seconds: float) -> None:
        naps.append(weights(out).keys())
        other.close()  # the other process dies

    monkeypatch.setattr(running.time, "sleep", nap)
    mbconv.run_study(pools, place / "data", out, **{**arguments(place), "quiet": False},
                     seeds=1, epochs=1)  # fmt: skip
    assert naps == [{"runs/avg/seed0"}]
    assert "waiting for other processes: 1 run" in capsys.readouterr().out
    assert weights(out).keys() == {"runs/avg/seed0", "runs/max/seed0"}


def test_a_run_that_does_not_fit_any_more_is_not_begun(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = place / "study", {**arguments(place), "quiet": False}
    mbconv.run_study(pools, place / "data", out, **words, seeds=1, epochs=1)
    for folder in (out / "runs").iterdir():
        for path in folder.rglob("evaluation.jsonl"):
            path.rename(path.with_suffix(".away"))
    capsys.readouterr()
    mbconv.run_study(pools, place / "data", out, **words, seeds=1, epochs=1, budget=0.5)
    said = capsys.readouterr().out
    assert "another run would not fit into the budget. 0 of 2 runs done" in said


def test_an_arm_that_diverges_does_not_stop_the_study(place: Path) -> None:
    def rates(base: mbconv.Spec) -> mbconv.Grid:
        wild = ("optimizer.name=sgd", "optimizer.learning_rate=1e30", "schedule.warmup=0")
        return mbconv.Grid(arms=[mbconv.Arm(name="calm", model=base),
                                 mbconv.Arm(name="wild", model=base, changes=wild)])  # fmt: skip

    out = place / "study"
    mbconv.run_study(rates, place / "data", out, **arguments(place), seeds=1, epochs=2)
    study = read_study(out)
    assert list(study.arms[0].scores) == [0]
    assert "finite number" in study.arms[1].failures[0]
    assert "wild, seed 0:" in (out / "study.md").read_text()
    begun = (out / "runs/wild/seed0/config.json").stat().st_mtime_ns
    mbconv.run_study(rates, place / "data", out, **arguments(place), seeds=1, epochs=2)
    assert (out / "runs/wild/seed0/config.json").stat().st_mtime_ns == begun


def test_the_plan_alone_writes_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    words = ["study", "zero_gamma", "--data", "data", "--model", "small.json", "--resolution", "32"]
    done = CliRunner().invoke(main, [*words, "--epochs", "2", "--plan"])
    assert done.exit_code == 0, done.output
    assert "2 arms x 3 seeds = 6 runs at 32 px" in done.output
    assert re.search(r"zero +2 epochs .* ms a step .* a run  beside one\n", done.output)
    assert not (place / "studies").exists()


def test_what_cannot_be_planned_leaves_no_folder(place: Path) -> None:
    with pytest.raises(UserError, match="The study <lambda> fails: ZeroDivisionError"):
        mbconv.run_study(lambda base: 1 // 0, place / "data", place / "studies/x",
                         **arguments(place))  # fmt: skip
    assert not (place / "studies").exists()
