"""The largest batch that training has memory for, from steps that were measured.

A step's memory is a fixed part (program, weights, optimizer) and a part a picture. Each batch size
is measured in a process of its own, because a process keeps what it once took.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mbconv.data.loader import Batch
from mbconv.errors import UserError
from mbconv.training.loop import Trainer
from mbconv.training.machine import keep_freed_memory, plain_machine
from mbconv.training.override import changed
from mbconv.training.recipes import find_recipe, usual_recipe
from mbconv.weights.model import create_model, has_weights

SIZES = (8, 16, 32)
RESERVE = 0.1  # share of the memory that is left alone, for waiting pictures and other programs
_CHILD = "from mbconv.training.fit_batch import child; child()"


@dataclass(frozen=True)
class Fit:
    """Bytes: the peak at each of `sizes`, the line through them, and what there is."""

    sizes: tuple[int, ...]
    peaks: tuple[int, ...]
    fixed: float
    per_picture: float
    available: int

    @property
    def largest(self) -> int:
        """The largest batch; 0 where not even one picture fits."""
        room = self.available * (1 - RESERVE) - self.fixed
        return max(0, int(room // self.per_picture))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"reserve": RESERVE, "largest": self.largest}


def fit_batch(
    model: str,
    *,
    resolution: int | None = None,
    recipe: str | None = None,
    changes: Sequence[str] = (),
    dtype: str = "float32",
    sizes: Sequence[int] = SIZES,
) -> Fit:
    """Measure training steps of `model` on this machine's CPU at each batch size of `sizes`.

    `recipe` and `changes` are those of `train`; `resolution` is the network's own by default.
    Raises UserError where memory cannot be measured, or not even the smallest two sizes fit.
    """
    if not Path("/proc/self/status").is_file():
        raise UserError("fit-batch reads a process's memory from /proc, so it needs Linux.")
    ask = {"model": model, "resolution": resolution, "recipe": recipe, "changes": list(changes),
           "dtype": dtype}  # fmt: skip
    measured: list[tuple[int, int]] = []
    for size in sorted(sizes):
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, json.dumps(ask | {"size": size})],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 2:
            raise UserError(done.stderr.strip().splitlines()[-1])
        if done.returncode != 0:
            if len(measured) >= 2:
                break
            why = (done.stderr.strip().splitlines() or ["it was killed, so memory is short"])[-1]
            raise UserError(f"A training step of {size} pictures could not be measured: {why}")
        measured.append((size, int(done.stdout.splitlines()[-1])))
    tried, peaks = zip(*measured, strict=True)
    fixed, per_picture = fitted_line(tried, peaks)
    if per_picture <= 0:
        raise UserError(
            f"Peak memory did not grow from {tried[0]} to {tried[-1]} pictures: the network is so "
            "small that memory is no limit. Give a larger --resolution to measure anyway."
        )
    return Fit(tried, peaks, fixed, per_picture, available_memory())


def fitted_line(sizes: Sequence[int], peaks: Sequence[int]) -> tuple[float, float]:
    """Intercept and slope of the least-squares line through the points."""
    x, y = sum(sizes) / len(sizes), sum(peaks) / len(peaks)
    rise = sum((size - x) * (peak - y) for size, peak in zip(sizes, peaks, strict=True))
    slope = rise / sum((size - x) ** 2 for size in sizes)
    return y - slope * x, slope


def available_memory() -> int:
    """Bytes that programs can still take: of the machine, and of this group's limit if it has one.

    Reads Linux's /proc/meminfo and the limit of control groups, version 2.
    """
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    table = dict(line.split(":", 1) for line in lines)
    free = int(table["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or the word max
        return free
    return min(free, max(0, limit - used))


def child() -> None:
    """What the measuring process runs; a user's mistake ends it with 2 and one sentence."""
    try:
        print(_measure(**json.loads(sys.argv[1])))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _measure(
    model: str,
    resolution: int | None,
    recipe: str | None,
    changes: Sequence[str],
    dtype: str,
    size: int,
) -> int:
    """This process's peak memory in bytes after three training steps of `size` pictures."""
    keep_freed_memory()  # as a run does
    pretrained = has_weights(model)
    network = create_model(model, pretrained=pretrained)
    side = resolution or network.preprocessing.resolution
    make = find_recipe(recipe) if recipe else usual_recipe(pretrained)
    machine = replace(plain_machine("cpu"), dtype=dtype, frozen_dtype=dtype)
    trainer = Trainer(network, changed(make(10_000, side, epochs=1), changes), machine, total=3)
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8)
    labels = torch.arange(size) % network.spec.num_classes
    for index in range(3):
        trainer.move(Batch(pixels, labels, ()), index, 0, rate=0.0)
    # The peak of getrusage would be that of the process that started this one, if larger.
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024
