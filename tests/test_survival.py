"""Runs that are killed end as if they had not been, whenever it happens."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mbconv
from mbconv.training.machine import Machine
from mbconv.weights.file import tensor_hash
from small import write_classes, write_model

PLAIN = Machine(threads=1, workers=0)
EPOCHS = 30
WORKER = Path(__file__).with_name("stage_worker.py")


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run that nobody disturbs; its model and data lie beside it."""
    monkeypatch.setattr("mbconv.training.setup.choose_machine", lambda *_: PLAIN)
    data = write_classes(tmp_path / "data")
    model = write_model(tmp_path / "small.safetensors")
    return mbconv.train(
        model, data, tmp_path / "whole", epochs=EPOCHS, resolution=32, quiet=True
    ).path


def drive(out: Path, seconds: float | None, fatal: int = 0) -> int:
    """Let the run in `out` begin or go on, for so many seconds behind its imports; the exit code.

    `fatal` is the save, if not 0, that is cut off half-way by a kill.
    """
    model, data = out.parent / "small.safetensors", out.parent / "data"
    new = [data, "--model", model, "--out", out, "--epochs", EPOCHS, "--resolution", 32]
    options = ["--resume", out] if (out / "config.json").exists() else new
    command = [sys.executable, *map(str, (WORKER, "train", *options))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KILL": str(fatal)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if seconds is not None:
            time.sleep(seconds)
            process.kill()
        process.stdout.read()
        return process.wait()


def end(out: Path) -> str:
    assert drive(out, None) == 0
    assert not list((out / "last").glob(".*")), "what a killed save left behind is cleared away"
    return tensor_hash(mbconv.load(out).state_dict())


def test_killed_ten_times(whole: Path, tmp_path: Path) -> None:
    out, moments = tmp_path / "killed", random.Random(0)
    codes = [drive(out, moments.uniform(0.05, 1.5)) for _ in range(10)]
    assert codes.count(-signal.SIGKILL) >= 5  # the run may have ended before the last ones
    assert end(out) == tensor_hash(mbconv.load(whole).state_dict())


@pytest.mark.parametrize("fatal", [1, 2, 5])
def test_killed_while_a_checkpoint_is_written(whole: Path, tmp_path: Path, fatal: int) -> None:
    out = tmp_path / "torn"
    assert drive(out, None, fatal) == -signal.SIGKILL
    assert end(out) == tensor_hash(mbconv.load(whole).state_dict())


def test_a_damaged_checkpoint_costs_an_epoch(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "damaged"
    assert drive(out, None, 4) == -signal.SIGKILL
    state = out / "last/state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    assert tensor_hash(mbconv.resume(out).model.state_dict()) == tensor_hash(
        mbconv.load(whole).state_dict()
    )
    assert "the one before it" in capsys.readouterr().out
