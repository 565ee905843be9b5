"""Schedules as pure functions, and the order of the steps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mbconv.data.loader import Draw
from mbconv.training.recipe import Recipe


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


def steps(recipe: Recipe, pictures: int, seed: int, start: int = 0) -> Iterator[Step]:
    """All steps from number `start` on; a pure function of its arguments.

    Each epoch is a fresh permutation; what does not fill a batch is left out of that epoch.
    """
    per_epoch, index, epoch = steps_per_epoch(pictures, recipe.batch_size), 0, 0
    for phase in recipe.phases:
        for _ in range(phase.epochs):
            epoch += 1
            order = np.random.default_rng((seed, epoch)).permutation(pictures)
            for k in range(per_epoch):
                if index >= start:
                    chosen = order[k * recipe.batch_size : (k + 1) * recipe.batch_size]
                    draws = tuple(Draw(int(i), phase.resolution, (seed, epoch)) for i in chosen)
                    yield Step(index, epoch, phase.resolution, draws, k == per_epoch - 1)
                index += 1


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then a half cosine to zero (arXiv 1608.03983)."""
    done, rising = step + 1, max(1.0, warmup * total)
    if done <= rising:
        return peak * done / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (done - rising) / (total - rising + 1)))


def ema_decay(updates: int, decay: float) -> float:
    """Warm-up of the moving average, so that it forgets the first weights: (1 + n) / (10 + n)."""
    return min(decay, (1 + updates) / (10 + updates))
