"""The learning-rate range test (Smith 2017, arXiv 1506.01186): steps at ever higher rates."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mbconv.data.loader import Pictures, training_batches
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet
from mbconv.training import setup
from mbconv.training.console import Reporter
from mbconv.training.diagnosis import Diverged
from mbconv.training.loop import Trainer
from mbconv.training.machine import find_device, plain_machine
from mbconv.training.networks import begin
from mbconv.training.schedule import steps
from mbconv.training.start import start_weights

SMOOTHING = 0.9  # of the loss over the steps before
WINDOW = 10  # steps that such an average spans; shorter ones are luck
BLOWN = 3.0  # times the lowest smoothed loss, at which the test ends


@dataclass(frozen=True)
class RangeTest:
    """Rates in rising order with the loss at each and its moving average."""

    recipe: str
    usual: float  # the recipe's own peak
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]

    @property
    def lowest(self) -> float:
        """The rate at which the smoothed loss is lowest, once enough steps are averaged."""
        return self.rates[self._lowest_index()]

    @property
    def suggestion(self) -> float:
        """The highest rate at which the smoothed loss is not clearly above its lowest, two digits.

        Clearly: by more than two standard errors, taken from how single steps scatter. A hundred
        steps are too few for a deep valley; where the loss begins to rise shows in all of them.
        """
        lowest = self._lowest_index()
        flat = slice(0, max(WINDOW, lowest + 1))
        apart = [a - b for a, b in zip(self.losses[flat], self.smoothed[flat], strict=True)]
        scatter = math.sqrt(sum(x * x for x in apart) / len(apart))
        error = scatter * math.sqrt((1 - SMOOTHING) / (1 + SMOOTHING))
        limit = self.smoothed[lowest] + 2 * error
        bearable = [r for r, loss in zip(self.rates, self.smoothed, strict=True) if loss <= limit]
        return float(f"{bearable[-1]:.1e}")

    def _lowest_index(self) -> int:
        start = WINDOW - 1 if len(self.rates) > WINDOW else 0
        return min(range(start, len(self.rates)), key=self.smoothed.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"lowest": self.lowest, "suggestion": self.suggestion}


def smooth(losses: Sequence[float], weight: float = SMOOTHING) -> tuple[float, ...]:
    """Exponential moving average, divided by the weights so far, so that it starts unbiased."""
    mean, shown = 0.0, []
    for n, loss in enumerate(losses, start=1):
        mean = weight * mean + (1 - weight) * loss
        shown.append(mean / (1 - weight**n))
    return tuple(shown)


def range_test(
    model: MBConvNet | str | Path,
    data: str | Path,
    settings: setup.Settings,
    *,
    low: float = 1e-6,
    high: float = 1.0,
    number: int = 100,
    reporter: Reporter,
) -> RangeTest:
    """Train up to `number` steps at rates from `low` to `high`, in equal ratios.

    Ends early where the smoothed loss is three times its lowest, or is not finite. Pictures,
    network and recipe are those that `mbconv train` would start with, at the first phase's
    resolution; nothing is written.
    """
    dataset, found = setup.open_data(data, settings.seed, reporter)
    torch.manual_seed(settings.seed)
    samples = list(dataset.splits["train"])
    asked = setup.asked_recipe(settings, model, len(samples))
    start = begin(asked, model, dataset.classes, None, settings.seed)
    network = start.network
    resolution = setup.choose_resolution(start.whole, found, settings.resolution)
    recipe = setup.choose_recipe(settings, resolution, len(samples), start.pretrained)
    endless = replace(recipe.phases[0], epochs=2**31 - 1)
    recipe = replace(recipe, phases=(endless,))
    trainer = Trainer(network, recipe, plain_machine(find_device(settings.device)), number)
    pictures = Pictures(samples, recipe.augmentation)
    start_weights(network, pictures, recipe, reporter)
    points: list[tuple[float, float]] = []
    batches = training_batches(
        pictures,
        (step.draws for step in steps(recipe, len(samples), settings.seed)),
        workers=trainer.machine.workers,
    )
    reporter.say(
        f"range test: recipe {recipe.name}, {endless.resolution} px, up to {number} steps from "
        f"{low:g} to {high:g}"
    )
    with reporter.bar(number, "range test") as bar:
        for index, batch in zip(range(number), batches, strict=False):
            rate = low * (high / low) ** (index / max(1, number - 1))
            if not len(batch.labels):
                continue
            try:
                points.append((rate, trainer.move(batch, index, settings.seed, rate)))
            except Diverged:
                break
            bar.update(index + 1, number, f"rate {rate:.1e}  loss {points[-1][1]:.3f}")
            smoothed = smooth([loss for _, loss in points])
            if smoothed[-1] > BLOWN * min(smoothed):
                break
    if not points:
        raise UserError(f"Not one step gave a finite loss, even at a rate of {low:g}; try --low.")
    rates, losses = zip(*points, strict=True)
    return RangeTest(recipe.name, recipe.optimizer.learning_rate, rates, losses, smooth(losses))
