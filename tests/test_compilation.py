"""When compiling pays, as arithmetic; what it and determinism do to a run."""

import json
import math
from pathlib import Path

import pytest
import torch

import mbconv
from mbconv.training import compilation
from mbconv.training.compilation import Gain
from mbconv.training.determinism import describe_cost, deterministic
from mbconv.training.machine import Machine
from mbconv.weights.file import tensor_hash
from small import write_classes, write_model


def test_break_even() -> None:
    gain = Gain(compiling=60.0, before=0.5, after=0.25)
    assert gain.break_even == 240
    assert not gain.pays(240)
    assert gain.pays(241)
    assert Gain(60.0, 0.5, 0.25, times=2).break_even == 480
    for after in (0.5, 0.7):
        slower = Gain(60.0, 0.5, after)
        assert slower.break_even == math.inf
        assert not slower.pays(10**9)
    words = gain.words(700, used=True)
    for part in ("1 min", "250 ms instead of 500", "after 240 steps", "700 are left; compiled"):
        assert part in words
    assert "never, and 5 are left; not compiled" in Gain(60.0, 0.5, 0.7).words(5, used=False)


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setattr(
        "mbconv.training.setup.choose_machine", lambda *_: Machine(threads=1, workers=0)
    )
    return write_model(tmp_path / "small.safetensors"), write_classes(tmp_path / "data")


def test_auto_does_not_try_for_a_short_run(
    inputs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = mbconv.train(*inputs, tmp_path / "a", epochs=1, resolution=32, compile="auto").path
    assert "compile: not tried" in capsys.readouterr().out
    assert not json.loads((run / "config.json").read_text())["machine"]["compiled"]
    plain = mbconv.train(*inputs, tmp_path / "b", epochs=1, resolution=32, quiet=True).path
    states = [tensor_hash(mbconv.load(path).state_dict()) for path in (run, plain)]
    assert states[0] == states[1]  # the measurement leaves no trace


@pytest.mark.slow
def test_a_compiled_run_is_kept_only_where_it_pays(
    inputs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = mbconv.train(*inputs, tmp_path / "on", epochs=2, resolution=32, compile="on").path
    assert "; compiled" in capsys.readouterr().out
    machine = json.loads((run / "config.json").read_text())["machine"]
    assert machine["compiled"]
    assert machine["trials"][-1]["compile"]["compiling"] > 0
    torch.compiler.reset()  # else the process still has what it compiled, and compiling is free
    monkeypatch.setattr(compilation, "WORTH_A_TRY", 0.0)  # six steps: no compiler pays so soon
    run = mbconv.train(*inputs, tmp_path / "auto", epochs=2, resolution=32, compile="auto").path
    assert "; not compiled" in capsys.readouterr().out
    assert not json.loads((run / "config.json").read_text())["machine"]["compiled"]


def test_equal_runs_are_equal_and_the_flag_is_recorded_and_told(
    inputs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = []
    for name, wish in (("a", False), ("b", False), ("c", True)):
        out = tmp_path / name
        run = mbconv.train(*inputs, out, epochs=2, resolution=32, deterministic=wish).path
        machine = json.loads((run / "config.json").read_text())["machine"]
        assert machine["deterministic"] is wish
        assert ("on a CPU every step already is" in capsys.readouterr().out) is wish
        hashes.append(tensor_hash(mbconv.load(run).state_dict()))
    assert len(set(hashes)) == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_torch_is_told_inside_and_as_before_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic(Machine()):
        assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic(Machine(device="cuda", deterministic=True)):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_cost_on_other_devices_is_measured() -> None:
    def seconds(machine: Machine) -> float:
        assert torch.are_deterministic_algorithms_enabled() is machine.deterministic
        return 0.15 if machine.deterministic else 0.1

    told = describe_cost(Machine(device="mps", deterministic=True), seconds)
    assert told == "deterministic: a step takes 150.0 ms instead of 100.0 (+50%)"
