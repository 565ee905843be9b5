"""Schedules as pure functions, and the order of the steps."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mbconv.data.loader import Draw
from mbconv.training.recipe import Phase, Recipe, Schedule

ONE_CYCLE_START = 1 / 25  # of the peak


@dataclass(frozen=True)
class Step:
    """One optimizer step: which pictures at which resolution, and where it lies in the run."""

    index: int  # from 0, over the whole run
    epoch: int  # from 1
    resolution: int
    draws: tuple[Draw, ...]
    ends_epoch: bool


def steps_per_epoch(pictures: int, batch_size: int) -> int:
    """Full batches of an epoch; a set smaller than one batch is one batch."""
    return max(1, pictures // batch_size)


def total_steps(recipe: Recipe, pictures: int) -> int:
    return recipe.epochs * steps_per_epoch(pictures, recipe.batch_size)


def steps(
    recipe: Recipe,
    pictures: int,
    seed: int,
    start: int = 0,
    labels: Sequence[int] | None = None,
) -> Iterator[Step]:
    """All steps from number `start` on; a pure function of its arguments.

    Each epoch is a fresh permutation; what does not fill a batch is left out of that epoch. Where
    the recipe balances by sampling, an epoch draws each class of `labels` equally often instead.
    """
    per_epoch, index, epoch = steps_per_epoch(pictures, recipe.batch_size), 0, 0
    sampled = None
    if recipe.loss.balance == "sampling" and labels is not None:
        sampled = np.asarray(labels)
    for phase in recipe.phases:
        for _ in range(phase.epochs):
            epoch += 1
            if index + per_epoch <= start:
                index += per_epoch
                continue
            rng = np.random.default_rng((seed, epoch))
            order = rng.permutation(pictures) if sampled is None else balanced_order(sampled, rng)
            turns = earlier_turns(order)
            for k in range(per_epoch):
                if index >= start:
                    part = slice(k * recipe.batch_size, (k + 1) * recipe.batch_size)
                    draws = _draws(order[part], turns[part], phase, (seed, epoch))
                    yield Step(index, epoch, phase.resolution, draws, k == per_epoch - 1)
                index += 1


def _draws(
    order: NDArray[np.int64], turns: NDArray[np.int64], phase: Phase, seed: tuple[int, int]
) -> tuple[Draw, ...]:
    """A step's pictures; each that comes again in its epoch has a seed of its own."""
    return tuple(
        Draw(picture, phase.resolution, (*seed, turn) if turn else seed, phase.magnitude)
        for picture, turn in zip(order.tolist(), turns.tolist(), strict=True)
    )


def earlier_turns(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each element has come before: [5, 7, 5, 5] -> [0, 0, 1, 2]."""
    places = np.argsort(order, kind="stable")
    ordered = order[places]
    turns = np.empty_like(order)
    turns[places] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return turns


def balanced_order(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """As many pictures as there are labels, each class equally often, give or take one.

    A class with too few comes again and again, each picture as often as the others; one with too
    many is sampled without repetition.
    """
    classes = rng.permutation(np.unique(labels))
    each, rest = divmod(len(labels), len(classes))
    parts = [
        np.resize(rng.permutation(np.flatnonzero(labels == c)), each + (place < rest))
        for place, c in enumerate(classes)
    ]
    return rng.permutation(np.concatenate(parts))


def learning_rate(
    step: int, total: int, per_epoch: int, *, peak: float, schedule: Schedule
) -> float:
    """The rate of a step: a rise over the warm-up, then what the schedule's kind says.

    cosine: linear rise, then a half cosine to zero (arXiv 1608.03983). one_cycle: half a cosine up
    from a 25th of the peak and another down to zero (arXiv 1708.07120). step and exponential:
    linear rise, then `factor` for every `every` epochs since the start, in steps or smoothly.
    """
    done, rising = step + 1, max(1.0, schedule.warmup * total)
    if done <= rising:
        if schedule.kind == "one_cycle":
            share = 0.5 * (1 - math.cos(math.pi * done / rising))
            return peak * (ONE_CYCLE_START + (1 - ONE_CYCLE_START) * share)
        return peak * done / rising
    if schedule.kind in ("cosine", "one_cycle"):
        return peak * 0.5 * (1 + math.cos(math.pi * (done - rising) / (total - rising + 1)))
    times = step / (schedule.every * per_epoch)
    return peak * schedule.factor ** (math.floor(times) if schedule.kind == "step" else times)


def ema_decay(updates: int, decay: float) -> float:
    """Warm-up of the moving average, so that it forgets the first weights: (1 + n) / (10 + n)."""
    return min(decay, (1 + updates) / (10 + updates))
