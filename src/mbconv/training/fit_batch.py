"""The largest batch that training has memory for, from steps that were measured.

A step's memory is a fixed part (program, weights, optimizer) and a part a picture. Each batch size
is measured in a process of its own, because a process keeps what it once took.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from mbconv.data.loader import Batch
from mbconv.errors import UserError
from mbconv.measure.memory import (
    RESERVE,
    ChildFailed,
    available_memory,
    fitted_line,
    keep_freed_memory,
    resident,
    run_child,
)
from mbconv.training.loop import Trainer
from mbconv.training.machine import plain_machine
from mbconv.training.override import changed
from mbconv.training.recipes import find_recipe, usual_recipe
from mbconv.weights.model import create_model, has_weights

SIZES = (8, 16, 32)
_CHILD = "mbconv.training.fit_batch:measure"


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
    ask = {"model": model, "resolution": resolution, "recipe": recipe, "changes": list(changes),
           "dtype": dtype}  # fmt: skip
    measured: list[tuple[int, int]] = []
    for size in sorted(sizes):
        try:
            measured.append((size, run_child(_CHILD, ask | {"size": size})))
        except ChildFailed as error:
            if len(measured) >= 2:
                break
            raise UserError(
                f"A training step of {size} pictures could not be measured: {error}"
            ) from error
    tried, peaks = zip(*measured, strict=True)
    fixed, per_picture = fitted_line(tried, peaks)
    if per_picture <= 0:
        raise UserError(
            f"Peak memory did not grow from {tried[0]} to {tried[-1]} pictures: the network is so "
            "small that memory is no limit. Give a larger --resolution to measure anyway."
        )
    return Fit(tried, peaks, fixed, per_picture, available_memory())


def measure(
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
    return resident()
