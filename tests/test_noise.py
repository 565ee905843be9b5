"""The noise check: what it takes for jitter, and what for another program."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mbconv.data import cache
from mbconv.measure import meeting
from mbconv.measure.noise import (
    APART,
    LEAST,
    MOST,
    PIECES,
    Beside,
    Calibration,
    busy_seconds,
    limit_of,
)


def test_the_limit_of_a_calibration_follows_its_spread() -> None:
    assert limit_of([1.0] * 10) == LEAST
    assert limit_of([1.0] * 8 + [1.15] * 2) == pytest.approx(1.3)
    assert limit_of([1.0] * 6 + [3.0] * 4) == MOST


@pytest.mark.skipif(busy_seconds() is None, reason="/proc/stat tells nothing here")
def test_another_program_is_seen_whatever_the_calibration_says() -> None:
    """Two busy loops a core: only what the system tells of others' time is asked."""
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        calibration = Calibration(checks=3)
        calibration._before = Beside(0.0, 0.0)  # as if that were quick
        calibration.reference = 1e9
        stop = time.perf_counter() + 0.6
        while time.perf_counter() < stop:
            torch.zeros(2**20).sin_()
        assert calibration.end().noise > LEAST
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def test_the_pace_is_that_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))  # every look at the clock takes a second
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    assert Calibration(checks=3).pace == pytest.approx(2e-9 * 512**3 * PIECES)


def test_the_nearest_meeting_is_that_of_all_checks() -> None:
    """A machine that opens with its cores apart knows better once they were near."""
    calibration = Calibration(checks=3)
    calibration._meetings[:] = [7e-6] * 20
    assert calibration.good(Beside(1.0, 7e-6))
    calibration._meetings[:0] = [4e-6] * 4
    assert calibration.nearest == 4e-6
    assert not calibration.good(Beside(1.0, 7e-6))
    assert calibration.good(Beside(1.0, APART * 4e-6))
    assert not calibration.good(Beside(calibration.limit + 0.01, 4e-6))


def test_a_run_knows_what_another_one_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has its cores apart from the first to the last check can then say so."""
    monkeypatch.setenv("MBCONV_CACHE", str(tmp_path / "cache"))
    near, apart = Calibration(checks=3), Calibration(checks=3)
    near._meetings[:], apart._meetings[:] = [4e-6] * 20, [7e-6] * 20
    assert apart.good(Beside(1.0, 7e-6))
    near.remember()
    apart.remember()  # changes nothing
    assert meeting.recall() == 4e-6
    late = Calibration(checks=3)
    late._meetings[:] = [7e-6] * 20
    assert not late.good(Beside(1.0, 7e-6))
    late._meetings[:] = [3e-6] * 20
    assert late.nearest == 3e-6


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"seconds": "soon"}', '{"seconds": -1}'])
def test_what_is_damaged_or_old_is_not_known(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MBCONV_CACHE", str(tmp_path))
    meeting.remember(4e-6)
    assert meeting.recall() == 4e-6
    (path,) = tmp_path.iterdir()
    yesterday = time.time() - meeting.FRESH - 60
    os.utime(path, (yesterday, yesterday))
    assert meeting.recall() == math.inf
    path.write_text(content)
    assert meeting.recall() == math.inf
    meeting.remember(5e-6)
    assert meeting.recall() == 5e-6
    assert cache.clear() > 0
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_let_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MBCONV_CACHE", str(tmp_path / "file" / "cache"))
    meeting.remember(4e-6)
    assert meeting.recall() == math.inf


def test_one_thread_meets_nobody() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        calibration = Calibration(checks=2)
        assert calibration.end().meeting == calibration.nearest == 0
        torch.set_num_threads(2)
        assert Calibration(checks=2).end().meeting > 0
    finally:
        torch.set_num_threads(threads)
