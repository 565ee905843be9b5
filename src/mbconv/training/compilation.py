"""torch.compile, where it pays for itself within the run: measured, then decided."""

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mbconv.data.loader import Batch
from mbconv.errors import UserError
from mbconv.report.words import duration
from mbconv.training.loop import Trainer
from mbconv.training.machine import timed, unchanged

Mode = Literal["off", "auto", "on"]
MODES: tuple[Mode, ...] = ("off", "auto", "on")
# Compiling takes about a minute, and saves a fraction of a step: less training is not worth a try.
WORTH_A_TRY = 600.0  # seconds


@dataclass(frozen=True)
class Gain:
    """Seconds: `compiling` so many `times`, a step `before` and `after`."""

    compiling: float
    before: float
    after: float
    times: int = 1

    @property
    def break_even(self) -> float:
        """Steps after which compiling has paid for itself; infinite where it never does."""
        saved = self.before - self.after
        return self.compiling * self.times / saved if saved > 0 else math.inf

    def pays(self, steps: int) -> bool:
        return steps > self.break_even

    def words(self, steps: int, used: bool) -> str:
        """The figures and what was decided, for a run of so many steps."""
        even = "never"
        if math.isfinite(self.break_even):
            even = f"after {math.ceil(self.break_even):,} steps"
        often = {1: "", 2: " twice"}.get(self.times, f" {self.times} times")
        return (
            f"compile: {duration(self.compiling)}{often}, then a "
            f"step takes {1000 * self.after:.0f} ms instead of {1000 * self.before:.0f}: it pays "
            f"{even}, and {steps:,} are left; {'compiled' if used else 'not compiled'}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def settle(trainer: Trainer, batch: Batch, mode: Mode) -> str:
    """Compile the trainer's forward pass, or leave it, as `mode` (auto, on) says; a line on why.

    `batch` is what steps are measured with. The weights are left as they were, the buffers and
    gradients too. Raises UserError where `on` was asked for and torch cannot compile here, and
    for batch norms over several processes.
    """
    trainer.world.check(trainer.recipe, replace(trainer.machine, compiled=True))
    with unchanged(trainer.model):
        eager = timed(lambda: trainer.backward(batch))
        if mode == "auto" and eager * trainer.total < WORTH_A_TRY:
            left = duration(eager * trainer.total)
            return f"compile: not tried, all steps together take {left} as it is"
        try:
            trainer.compile()
            started = time.perf_counter()
            trainer.backward(batch)
            first = time.perf_counter() - started
            after = timed(lambda: trainer.backward(batch))
        except Exception as error:  # the compiler's own kinds are many
            trainer.compile(False)
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if mode == "on":
                told = f"torch cannot compile here ({why}). Leave --compile away."
                raise UserError(told) from error
            return f"compile: not possible here ({why})"
    # For each network once at its first resolution, and once more for all others together.
    sides: dict[object, set[int]] = {}
    for phase in trainer.recipe.phases:
        sides.setdefault(phase.network, set()).add(phase.resolution)
    times = sum(min(2, len(found)) for found in sides.values())
    gain = Gain(max(0.0, first - after), eager, after, times)
    used = mode == "on" or gain.pays(trainer.total)
    if not used:
        trainer.compile(False)
    trial = {"compile": gain.to_dict()}
    machine = trainer.machine
    trainer.machine = replace(machine, compiled=used, trials=(*machine.trials, trial))
    return gain.words(trainer.total, used)
