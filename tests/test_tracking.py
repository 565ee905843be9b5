"""What is told of a run beside metrics.jsonl, and that no step is told twice."""

import importlib.util
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import mbconv
from mbconv.data.loader import Batch
from mbconv.errors import UserError
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from mbconv.training.tracking import Trackers
from small import write_classes, write_model

event_accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
)
WISHES: dict[str, Any] = {
    "epochs": 3, "resolution": 32, "quiet": True, "changes": ["batch_size=10"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mbconv.training.setup.choose_machine", lambda *_: Machine(threads=1, workers=0)
    )


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    return write_model(tmp_path / "small.safetensors"), write_classes(tmp_path / "data")


def events(run: Path) -> Any:
    read = event_accumulator.EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    return read


def steps(run: Path, name: str) -> list[int]:
    return [event.step for event in events(run).Scalars(name)]


def test_tensorboard_has_each_step_and_epoch(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    run = mbconv.train(*inputs, tmp_path / "run", **WISHES).path
    total = 9
    for name in ("loss", "lr", "gradient_norm", "img_per_s"):
        assert steps(run, f"train/{name}") == list(range(1, total + 1))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = events(run).Scalars("val/top1")
    assert [event.step for event in scores] == [0, 3, 6, 9]
    assert [e.value for e in scores] == pytest.approx([line["val_ema"] for line in lines])
    assert steps(run, "epoch/data_wait") == [3, 6, 9]
    assert events(run).Tags()["tensors"] == ["config/text_summary"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("as if killed")])
def test_a_resumed_run_tells_no_step_twice(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    """Neither after Ctrl-C, which saves, nor after a crash behind steps that were not saved."""
    step = Trainer.step

    def cut(self: Trainer, batch: Batch, index: int, seed: int) -> float:
        if index == 4:
            if error is KeyboardInterrupt:
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise error
        return step(self, batch, index, seed)

    monkeypatch.setattr(Trainer, "step", cut)
    with pytest.raises((KeyboardInterrupt, OSError)):
        mbconv.train(*inputs, tmp_path / "run", **WISHES)
    monkeypatch.setattr(Trainer, "step", step)
    run = mbconv.resume(tmp_path / "run", quiet=True).path
    assert steps(run, "train/loss") == list(range(1, 10))
    assert steps(run, "val/top1") == [0, 3, 6, 9]


def test_without_tensorboard_there_is_no_folder_and_no_noise(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "tensorboard" else find(name)
    )
    run = mbconv.train(*inputs, tmp_path / "run", **{**WISHES, "epochs": 1, "quiet": False}).path
    assert not (run / "tensorboard").exists()
    told = "".join(capsys.readouterr()).replace(str(tmp_path), "")  # named after this test
    assert "tensorboard" not in told.lower()
    with pytest.raises(UserError, match=r"pip install 'mbconv\[tensorboard\]'"):
        mbconv.train(*inputs, tmp_path / "x", trackers=["tensorboard"], **WISHES)
    with pytest.raises(UserError, match="must be one of"):
        mbconv.train(*inputs, tmp_path / "x", trackers=["mlflow"], **WISHES)
    assert not (tmp_path / "x").exists()


def test_none_is_a_choice(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    run = mbconv.train(*inputs, tmp_path / "run", trackers=["none"], **{**WISHES, "epochs": 1})
    assert not (run.path / "tensorboard").exists()
    assert (run.path / "metrics.jsonl").exists()


class Broken:
    """A tracker whose library fails."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, step: int, figures: dict[str, float]) -> None:
        self.calls += 1
        raise OSError("no space")

    def saved(self) -> None:
        raise AssertionError("it was left out")

    close = saved


def test_a_tracker_that_fails_is_named_once_and_left_out() -> None:
    said: list[str] = []
    broken = Broken()
    trackers = Trackers([broken], lambda text, style=None: said.append(text))
    for step in range(3):
        trackers.step(step, {"loss": 1.0}, 10, 1.0)
    trackers.saved()
    trackers.close()
    assert broken.calls == 1
    assert said == ["  Broken stopped (no space); metrics.jsonl goes on"]


@pytest.mark.slow
def test_wandb_offline(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = mbconv.train(*inputs, tmp_path / "run", trackers=["wandb"], **WISHES).path
    identity = json.loads((run / "config.json").read_text())["id"]
    (log,) = (run / "wandb").glob("offline-run-*/*.wandb")
    assert identity in log.name
    assert b"train/gradient_norm" in log.read_bytes()
