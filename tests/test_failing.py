"""When disk, memory or pictures give out: a sentence, the last state whole, how to go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mbconv
from mbconv.data.loader import Batch
from mbconv.errors import UserError
from mbconv.files import locked
from mbconv.report.folder import read_lines
from mbconv.report.runs import LOCK
from mbconv.training import failing
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from small import weights, write_classes, write_model

WISHES: dict[str, Any] = {
    "epochs": 3, "resolution": 32, "changes": ["batch_size=10"], "trackers": ["none"],
    "cache": "off",  # which would still have pictures that are gone
}  # fmt: skip
# Argument 4 is the number of the write that finds the disk full, argument 5 what writes.
DRIVER = """
import resource, signal, sys
from mbconv.cli import main
from mbconv.training import session, setup
from mbconv.training.machine import Machine

setup.choose_machine = lambda *_: Machine(threads=1, workers=0)
model, data, out, fatal, what = sys.argv[1:6]
where, name = {"state": (session, "save_state"), "metrics": (session.folder, "add_metrics"),
               "model": (session, "keep")}[what]
calls, write = 0, getattr(where, name)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def full(*args, **options):
    global calls
    calls += 1
    if calls == int(fatal):
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
    write(*args, **options)


setattr(where, name, full)
main(["train", data, "--model", model, "--out", out, "--epochs", "3", "--resolution", "32",
      "--set", "batch_size=10", "--tracker", "none"])
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mbconv.training.setup.choose_machine", lambda *_: Machine(threads=1, workers=0)
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "data")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "small.safetensors")


def at_step(monkeypatch: pytest.MonkeyPatch, index: int, happens: Any, where: str = "step") -> None:
    """`happens()` once, before the step of this index."""
    step = getattr(Trainer, where)

    def then(self: Trainer, batch: Batch, at: int, seed: int) -> float:
        if at == index:
            monkeypatch.setattr(Trainer, where, step)
            happens()
        value: float = step(self, batch, at, seed)
        return value

    monkeypatch.setattr(Trainer, where, then)


@pytest.mark.parametrize(("what", "fatal"), [("state", 3), ("metrics", 2), ("model", 2)])
def test_a_full_disk(data: Path, model: Path, tmp_path: Path, what: str, fatal: int) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", DRIVER, str(model), str(data), str(out), str(fatal), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr, "what the system said, not what torch makes of it"
    assert "enforce" not in done.stderr
    assert f"mbconv train --resume {out}" in done.stderr
    assert not [path for path in out.rglob(".*") if path.is_file()], "no half-written file"
    whole = mbconv.train(model, data, tmp_path / "whole", quiet=True, **WISHES).path
    assert weights(mbconv.resume(out, quiet=True).path) == weights(whole)


def test_a_disk_that_is_full_is_called_so(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def to_the_full_disk(value: Any, opened: Any) -> None:
        with open("/dev/full", "wb") as full:
            save(value, full)

    def fill() -> None:
        monkeypatch.setattr(torch, "save", to_the_full_disk)

    at_step(monkeypatch, 4, fill)
    with pytest.raises(UserError, match=r"^The disk is full: ") as told:
        mbconv.train(model, data, tmp_path / "run", quiet=True, **WISHES)
    assert "The state after step 3 is kept. Go on with:\n  mbconv train --res" in str(told.value)
    monkeypatch.setattr(torch, "save", save)
    whole = mbconv.train(model, data, tmp_path / "whole", quiet=True, **WISHES).path
    assert weights(mbconv.resume(tmp_path / "run", quiet=True).path) == weights(whole)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("what", ["deleted", "corrupted"])
def test_a_picture_is_lost_in_mid_run(
    what: str, workers: int, data: Path, model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    machine = Machine(threads=1, workers=workers)
    monkeypatch.setattr("mbconv.training.setup.choose_machine", lambda *_: machine)
    wishes, run = {**WISHES, "epochs": 8}, tmp_path / "run"
    lost = ""

    def lose() -> None:
        nonlocal lost
        lost = json.loads((run / "data.json").read_text())["splits"]["train"][0]
        (data / lost).rename(tmp_path / "kept.png")
        if what == "corrupted":
            (data / lost).write_bytes((tmp_path / "kept.png").read_bytes()[:100])
        at_step(monkeypatch, 19, lambda: os.kill(os.getpid(), signal.SIGINT))

    at_step(monkeypatch, 2, lose)
    with pytest.raises(KeyboardInterrupt):
        mbconv.train(model, data, run, **wishes)
    told = capsys.readouterr().out
    named = [line for line in told.splitlines() if line.startswith(f"  left out: {data / lost}: ")]
    assert named, told
    assert len(named) < 7, "once an epoch"
    assert f"Go on with:\n  mbconv train --resume {run}" in told
    if what == "deleted":
        with pytest.raises(UserError, match=f"lacks {lost}, which this run uses; put it back"):
            mbconv.resume(run, quiet=True)
    (tmp_path / "kept.png").replace(data / lost)
    mbconv.resume(run)
    assert f"resuming {run} at step 21" in capsys.readouterr().out
    assert [line["epoch"] for line in read_lines(run / "metrics.jsonl")] == list(range(9))


def test_the_data_folder_goes_away_and_comes_back(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mbconv.train(model, data, tmp_path / "whole", quiet=True, **WISHES).path
    away = tmp_path / "away"
    at_step(monkeypatch, 3, lambda: data.rename(away))
    with pytest.raises(UserError, match="training pictures cannot be read") as told:
        mbconv.train(model, data, tmp_path / "run", quiet=True, **WISHES)
    assert "The state after step 3 is kept" in str(told.value)
    with pytest.raises(UserError, match="does not exist"):
        mbconv.resume(tmp_path / "run", quiet=True)
    away.rename(data)
    assert weights(mbconv.resume(tmp_path / "run", quiet=True).path) == weights(whole)


def test_single_pictures_are_left_out_and_the_list_stays_short(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def spoil() -> None:
        for path in sorted((data / "class0").iterdir()):
            path.unlink()

    at_step(monkeypatch, 3, spoil)
    mbconv.train(model, data, tmp_path / "run", **WISHES)
    lines = [line for line in capsys.readouterr().out.splitlines() if "left out:" in line]
    named = [line for line in lines if str(data) in line]
    assert 0 < len(named) <= 2 * failing.SHOWN
    assert any(line.endswith(" more") for line in lines)


def test_single_broken_batches_of_one_stop_nothing() -> None:
    check = failing.lost_pictures()
    broken = Batch(torch.zeros(0, 1, 1, 3), torch.zeros(0), ((Path("x.png"), "gone"),))
    good = Batch(torch.zeros(1, 1, 1, 3), torch.zeros(1), ())
    empty = Batch(torch.zeros(0, 1, 1, 3), torch.zeros(0), ())  # of one process among many
    for _ in range(2 * failing.UNREADABLE_MOST):
        check(empty)
    for _ in range(3):
        for _ in range(failing.UNREADABLE_MOST - 1):
            check(broken)
        check(good)
    for _ in range(failing.UNREADABLE_MOST - 1):
        check(broken)
    with pytest.raises(UserError, match=r"x\.png: gone"):
        check(broken)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_short_memory(
    error: Exception, data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    at_step(monkeypatch, 5, fail)
    with pytest.raises(UserError, match="not enough memory") as told:
        mbconv.train(model, data, tmp_path / "run", quiet=True, **WISHES)
    for words in ("10 pictures of 32 px", "--set optimizer.micro_batch=2",
                  f"mbconv fit-batch {model} --resolution 32", "after step 3 is kept",
                  f"mbconv train --resume {tmp_path / 'run'}"):  # fmt: skip
        assert words in str(told.value)
    assert mbconv.resume(tmp_path / "run", quiet=True).record.n == 3


def test_memory_that_a_real_limit_takes_away() -> None:
    """What torch itself raises where the system gives no more memory is known as such."""
    code = (
        "import resource, torch\nfrom mbconv.measure.memory import is_out_of_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "try:\n    torch.empty(16 << 30, dtype=torch.uint8)\n"
        "except Exception as error:\n    assert is_out_of_memory(error), error\n"
        "else:\n    raise SystemExit('it was given')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_other_errors_pass_as_they_are(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("a mistake of ours")

    at_step(monkeypatch, 4, fail)
    with pytest.raises(RuntimeError, match=r"^a mistake of ours$"):
        mbconv.train(model, data, tmp_path / "run", quiet=True, **WISHES)


def test_a_folder_that_cannot_be_written_is_told_before_the_audit(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        mbconv.train(model, data, tmp_path / "file/run", **WISHES)
    assert "audited" not in capsys.readouterr().out


def test_one_process_trains_in_a_folder(data: Path, model: Path, tmp_path: Path) -> None:
    run = mbconv.train(model, data, tmp_path / "run", quiet=True, **{**WISHES, "epochs": 1}).path
    code = f"import mbconv; mbconv.resume({str(run)!r})"
    with locked(run / LOCK, "busy"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is being trained by another process" in done.stderr


def test_a_torn_last_line_of_metrics_is_dropped(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    at_step(monkeypatch, 4, stop)
    with pytest.raises(KeyboardInterrupt):
        mbconv.train(model, data, tmp_path / "run", quiet=True, **WISHES)
    path = tmp_path / "run/metrics.jsonl"
    path.write_text(path.read_text() + '{"epoch": 2, "val_e')
    middle = tmp_path / "middle"
    shutil.copytree(tmp_path / "run", middle)
    mbconv.resume(tmp_path / "run", quiet=True)
    assert [json.loads(s)["epoch"] for s in path.read_text().splitlines()] == [0, 1, 2, 3]
    broken = middle / "metrics.jsonl"
    broken.write_text("{torn\n" + broken.read_text())
    with pytest.raises(UserError, match=r"metrics\.jsonl line 1"):
        mbconv.resume(middle, quiet=True)
