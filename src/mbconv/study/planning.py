"""From a study's function to a plan that fits a budget: build and time arms, choose epochs."""

import fnmatch
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from mbconv.arch.spec import Spec
from mbconv.data.source import Sample
from mbconv.errors import UserError
from mbconv.measure.accuracy import collect
from mbconv.measure.memory import keep_freed_memory
from mbconv.nn.model import MBConvNet
from mbconv.report.words import count, duration
from mbconv.runtime.predictor import Predictor
from mbconv.study.grid import Arm, Grid, Study, cross
from mbconv.study.matching import PICTURES, pass_seconds
from mbconv.study.plan import Asked, Plan, PlannedArm
from mbconv.study.ready import question
from mbconv.training import setup
from mbconv.training.budget import LOADED
from mbconv.training.console import Reporter
from mbconv.training.loop import Trainer
from mbconv.training.machine import DTYPES, Machine, find_device, plain_machine, timed
from mbconv.training.recipe import Recipe
from mbconv.training.schedule import steps_per_epoch
from mbconv.weights.assemble import outline
from mbconv.weights.model import create_model
from mbconv.weights.spec import find_spec

BASE = "efficientnet_b0"
MOMENTUM = 0.1  # of batch norms, at least: TensorFlow's 0.01 is too slow for few epochs
RESERVE = 1 / 8  # of a budget
END = 3.0  # seconds of a run for its explained mistakes, its report and small things
_SCORED = 64  # pictures that evaluation is timed with


@dataclass
class Bench:
    """What runs of this study cost here, measured as far as it is asked for."""

    classes: tuple[str, ...]
    machine: Machine
    pictures: dict[str, int]
    samples: Sequence[Sample]  # for evaluation
    opening: float  # seconds to find and audit the pictures again
    steps: dict[tuple[str, int], float] = field(default_factory=dict)
    scoring: dict[tuple[str, int], float] = field(default_factory=dict)

    def seconds(self, arm: Arm, recipe: Recipe) -> float:
        """That one run is expected to take."""
        per_epoch = steps_per_epoch(self.pictures["train"], recipe.batch_size)
        scored = self.pictures.get("val", 0) * (2 if recipe.regularization.ema_decay else 1)
        seconds = self.opening + END
        for phase in recipe.phases:
            side = phase.resolution
            step, score = self.step(arm, recipe, side), self.score(arm, side)
            seconds += phase.epochs * (per_epoch * step * LOADED + scored * score)
        if recipe.transfer.head_resolution:  # the head's fit is a pass over all of them
            score = self.score(arm, recipe.transfer.head_resolution)
            seconds += (self.pictures["train"] + scored) * score
        last = self.pictures.get("test", self.pictures.get("val", 0))
        return seconds + last * self.score(arm, recipe.resolution)

    def step(self, arm: Arm, recipe: Recipe, side: int) -> float:
        """Seconds of a training step of a whole batch, the optimizer's part included."""
        return self.steps.get((arm.name, side)) or self.time_step(arm, recipe, side)

    def time_step(self, arm: Arm, recipe: Recipe, side: int) -> float:
        """Measure it, or measure it again; the least counts."""
        at = replace(recipe, phases=(replace(recipe.phases[0], resolution=side),))
        network = self.network(arm)
        batch = setup.random_batch(network, at, recipe.batch_size)
        trainer = Trainer(network, at, self.machine, total=1, counts=[1] * len(self.classes))
        seconds = timed(lambda: trainer.move(batch, 0, 0, rate=0.0))  # or it might diverge
        least = min(seconds, self.steps.get((arm.name, side), seconds))
        self.steps[arm.name, side] = least
        return least

    def score(self, arm: Arm, side: int) -> float:
        """Seconds to decode and score a picture."""
        key = (arm.name, side)
        if key not in self.scoring:
            network = self.network(arm).eval()
            preprocessing = network.preprocessing.at(side)
            dtype = DTYPES[self.machine.frozen_dtype]
            predictor = Predictor(
                network, device=self.machine.device, dtype=dtype, preprocessing=preprocessing
            )
            collect(predictor, self.samples[:16])
            begun = time.perf_counter()
            collect(predictor, self.samples)
            self.scoring[key] = (time.perf_counter() - begun) / len(self.samples)
        return self.scoring[key]

    def network(self, arm: Arm) -> MBConvNet:
        """The arm's network; UserError names the arm whose network cannot be built."""
        try:
            network = create_model(arm.model, num_classes=len(self.classes))
        except UserError as error:
            raise UserError(f"Arm {arm.name!r}: {error}") from error
        network.labels = self.classes
        return network


def make_plan(study: Study, asked: Asked, budget: float | None, reporter: Reporter) -> Plan:
    """Open the data, build the grid, time each arm here, choose how long to train.

    `budget` (seconds, from now) is for all runs one after another. Raises UserError where not one
    epoch, or not the epochs asked for, of all arms and seeds fit into it, with what would fit.
    """
    begun = time.perf_counter()
    keep_freed_memory()
    dataset, found = setup.open_data(asked.data, 0, reporter)
    again = time.perf_counter()
    setup.open_data(asked.data, 0, Reporter(quiet=True))  # the audit is remembered from now on
    opening = time.perf_counter() - again
    pictures = {name: len(samples) for name, samples in dataset.splits.items()}
    base = find_spec(asked.model or BASE)
    side = asked.resolution or setup.choose_resolution(outline(base), found, None)
    base = base.replace(
        resolution=side, num_classes=len(dataset.classes),
        bn_momentum=max(base.bn_momentum, MOMENTUM),
    )  # fmt: skip
    grid = _grid(study, base, asked)
    makers = {arm.name: _maker(arm, grid, asked, pictures["train"], side) for arm in grid.arms}
    machine = plain_machine(find_device(asked.device))
    first = next(arm for arm in grid.arms if arm.name == grid.baseline)
    samples = dataset.splits["val"][:_SCORED]
    bench = Bench(dataset.classes, machine, pictures, samples, opening)
    network, recipe = bench.network(first), makers[first.name](1)
    setup.warn_of_small_maps(network, recipe, reporter)
    bench.machine = setup.choose_machine(network, recipe, machine)
    torch.set_num_threads(bench.machine.threads)
    _time_all(grid, makers, bench, reporter)
    left = None if budget is None else budget - (time.perf_counter() - begun)
    seeds = asked.seeds or grid.seeds
    epochs = _fit(_Offer(grid, makers, bench, seeds), asked, left, budget)
    arms = tuple(_planned(arm, grid, makers[arm.name](epochs), bench) for arm in grid.arms)
    name, about = asked.study.rpartition(":")[2], inspect.getdoc(study) or ""
    return Plan(name=name, question=grid.question or question(study), about=about, asked=asked,
                resolution=side, classes=dataset.classes, pictures=pictures,
                seeds=seeds, baseline=str(grid.baseline), arms=arms,
                machine=bench.machine)  # fmt: skip


def _time_all(
    grid: Grid, makers: dict[str, Callable[[int | None], Recipe]], bench: Bench, reporter: Reporter
) -> None:
    """Every arm's step and score, the steps twice: one figure beside other programs says little."""
    arms = [*grid.arms, *reversed(grid.arms)]
    with reporter.bar(len(arms), "timing a step of each arm") as bar:
        for done, arm in enumerate(arms):
            bar.update(done, len(arms), arm.name)
            recipe = makers[arm.name](1)
            bench.time_step(arm, recipe, recipe.resolution)
            bench.seconds(arm, recipe)


def _grid(study: Study, base: Spec, asked: Asked) -> Grid:
    """The study's grid for this base, with the user's axes and only the arms that are wanted."""
    try:
        grid = study(base)
    except UserError:
        raise
    except Exception as error:  # whatever the user's function raises
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"The study {asked.study} fails: {said}.") from error
    if not isinstance(grid, Grid):
        raise UserError(
            f"The study {asked.study} returned {type(grid).__name__}; it must return a "
            "mbconv.study.grid.Grid."
        )
    for axis in asked.axes:
        path, given, levels = axis.partition("=")
        if not given:
            raise UserError(f"--axis {axis}: write PATH=A,B, as in --axis epochs=5,20.")
        grid = cross(grid, path.strip(), levels.split(","))
    if not asked.arms:
        return grid
    for pattern in asked.arms:
        if not fnmatch.filter([arm.name for arm in grid.arms], pattern):
            names = ", ".join(arm.name for arm in grid.arms[:8])
            raise UserError(f"--arms {pattern!r} fits none of the study's arms: {names}.")
    needed = {arm.name for arm in grid.arms
              if any(fnmatch.fnmatchcase(arm.name, pattern) for pattern in asked.arms)}  # fmt: skip
    while more := {b for a in grid.arms if a.name in needed and (b := grid.beside(a))} - needed:
        needed |= more  # what they are compared with, and what that is compared with
    return replace(grid, arms=[arm for arm in grid.arms if arm.name in needed])


def _maker(
    arm: Arm, grid: Grid, asked: Asked, pictures: int, side: int
) -> Callable[[int | None], Recipe]:
    """The arm's recipe for so many epochs, unless the arm says them itself."""
    named = arm.recipe or asked.recipe or grid.recipe
    settings = setup.Settings(recipe=named, changes=(*asked.changes, *arm.changes))

    def make(epochs: int | None) -> Recipe:
        try:
            made = setup.choose_recipe(settings, side, pictures, False, arm.epochs or epochs)
        except UserError as error:
            raise UserError(f"Arm {arm.name!r}: {error}") from error
        # Who names a MODEL instead of a spec means its weights.
        named = isinstance(arm.model, str)
        return replace(made, transfer=replace(made.transfer, fresh=False)) if named else made

    return make


def _planned(arm: Arm, grid: Grid, recipe: Recipe, bench: Bench) -> PlannedArm:
    network, side = bench.network(arm), recipe.resolution
    return PlannedArm(
        name=arm.name,
        slug=arm.slug,
        model=arm.model if isinstance(arm.model, str) else None,
        spec=network.spec.to_dict(),
        recipe=recipe,
        levels=arm.levels,
        beside=grid.beside(arm),
        cache=setup.choose_cache("auto", recipe, bench.pictures["train"]),
        ms_per_step=round(1000 * bench.step(arm, recipe, side), 2),
        ms_per_picture=round(1000 / PICTURES * pass_seconds(network, side, bench.machine), 3),
        seconds=round(bench.seconds(arm, recipe), 1),
    )


@dataclass(frozen=True)
class _Offer:
    """What all runs take, by the number of epochs."""

    grid: Grid
    makers: dict[str, Callable[[int | None], Recipe]]
    bench: Bench
    seeds: int

    def a_seed(self, epochs: int) -> float:
        """Seconds of all arms on one seed."""
        arms = self.grid.arms
        return sum(self.bench.seconds(arm, self.makers[arm.name](epochs)) for arm in arms)

    def most(self, seconds: float, epochs: int) -> int:
        """The most epochs, of at most `epochs`, that fit; 0 where none do."""
        numbers = range(epochs, 0, -1)
        return next((n for n in numbers if self.seeds * self.a_seed(n) <= seconds), 0)


def _fit(offer: _Offer, asked: Asked, left: float | None, budget: float | None) -> int:
    """How many epochs; those asked for, or the most that fit into `left` seconds."""
    epochs = asked.epochs or offer.grid.epochs
    if left is None or budget is None:
        return epochs
    usable = left * (1 - RESERVE)
    most = offer.most(usable, epochs)
    if most and (most == epochs or asked.epochs is None):
        return most
    least = asked.epochs or 1
    arms, a_seed = len(offer.grid.arms), offer.a_seed(least)
    ways = [f"--seeds {int(usable // a_seed)}"] if a_seed <= usable else []
    ways += [f"--epochs {most}"] if most else []
    if not ways and usable > a_seed / arms * 2:
        few = int(usable // (a_seed / arms))
        ways = [f"{few} of the arms on one seed (--arms, --seeds 1)"]
    needed = offer.seeds * a_seed / (1 - RESERVE) + budget - left
    ways += [f"--budget {-(-needed // 60):.0f}m", "a smaller --resolution or --model"]
    raise UserError(
        f"{count(arms, 'arm')}, {count(offer.seeds, 'seed')} and {count(least, 'epoch')} take "
        f"about {duration(needed)} here; the budget is {duration(budget)}. What would fit: "
        f"{', or '.join(ways)}."
    )
