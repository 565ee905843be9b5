"""How far the arms of a study lie apart: across seeds, and on new pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbconv.interval import right_bits, t_quantile

CONFIDENCE = 0.95  # that all differences of a study hold at once
POWER = 0.8  # of the seeds that would be needed: in four of five studies they would do
MOST_SEEDS = 200

Cells = Mapping[tuple[str, int], float]  # (arm, seed) -> accuracy


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """An arm's accuracy minus that of the arm beside it; shares of 1.

    `across_seeds` speaks of new trainings on the same pictures; None where fewer than two seeds
    are there. `on_pictures` speaks of new pictures for these very networks; None where the runs do
    not say which pictures they got right. `needed` says what would show a difference this large.
    """

    seeds: int
    value: float
    across_seeds: Interval | None
    on_pictures: Interval | None
    needed_seeds: int | None = None
    needed_pictures: int | None = None

    @property
    def verdict(self) -> str:
        """better, worse or not distinguishable: both intervals must leave out zero."""
        known = [i for i in (self.across_seeds, self.on_pictures) if i is not None]
        if self.across_seeds is None:
            return "not distinguishable"
        if all(i.low > 0 for i in known):
            return "better"
        return "worse" if all(i.high < 0 for i in known) else "not distinguishable"


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean over seeds with its 95% interval (Student); of one value nothing but itself."""
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    half = t_quantile(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


class Fit:
    """Accuracy = arm + seed + noise, by least squares, with one size of noise for all arms.

    A seed's order of pictures and first weights are the same for all arms, so what it adds cancels
    in differences. With two arms this is the paired t test over the seeds; with more, all arms
    say how large the noise is, so that few seeds are enough (a randomised block design). Runs that
    are missing do no harm.
    """

    def __init__(self, cells: Cells) -> None:
        self.arms = list(dict.fromkeys(arm for arm, _ in cells))
        self.seeds = sorted({seed for _, seed in cells})
        design = np.zeros((len(cells), len(self.arms) + len(self.seeds)))
        for row, (arm, seed) in enumerate(cells):
            design[row, self.arms.index(arm)] = 1
            design[row, len(self.arms) + self.seeds.index(seed)] = 1
        y = np.array(list(cells.values()))
        self._effects, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
        self._inverse = np.linalg.pinv(design.T @ design)
        self.df = len(cells) - int(rank)
        residual = y - design @ self._effects
        self.variance = float(residual @ residual) / self.df if self.df > 0 else math.nan

    def difference(self, arm: str, beside: str) -> tuple[float, float]:
        """`arm` minus `beside`, and its standard error; nan where nothing is left to tell it by."""
        contrast = np.zeros(len(self._effects))
        contrast[self.arms.index(arm)], contrast[self.arms.index(beside)] = 1, -1
        error = math.sqrt(max(0.0, float(contrast @ self._inverse @ contrast)) * self.variance)
        return round(float(contrast @ self._effects), 12), error  # equal arms differ by nothing


def contrasts(
    cells: Cells, answers: Mapping[tuple[str, int], Any], beside: Mapping[str, str]
) -> dict[str, Contrast]:
    """Each arm of `beside` against the arm that stands there, where both have a run.

    The intervals are as wide as the number of arms asks for (Bonferroni), so that with 95%
    confidence all of a kind hold at once.
    """
    if not cells:
        return {}
    fit = Fit(cells)
    pairs = {arm: other for arm, other in beside.items() if {arm, other} <= set(fit.arms)}
    tail = (1 - CONFIDENCE) / 2 / max(1, len(pairs))
    made = {arm: _contrast(arm, other, fit, cells, answers, tail) for arm, other in pairs.items()}
    return {arm: contrast for arm, contrast in made.items() if contrast is not None}


def _contrast(
    arm: str,
    other: str,
    fit: Fit,
    cells: Cells,
    answers: Mapping[tuple[str, int], Any],
    tail: float,
) -> Contrast | None:
    seeds = [seed for seed in fit.seeds if (arm, seed) in cells and (other, seed) in cells]
    if not seeds:
        return None
    value, error = fit.difference(arm, other)
    across = None
    if fit.df > 0:
        half = t_quantile(1 - tail, fit.df) * error
        across = Interval(value, value - half, value + half)
    pairs = [(answers.get((other, seed)), answers.get((arm, seed))) for seed in seeds]
    z = NormalDist().inv_cdf(1 - tail)
    on_pictures, pictures = picture_difference(pairs, z)
    needed_seeds = needed_pictures = None
    if across is not None and across.low <= 0 <= across.high:
        needed_seeds = _seeds_needed(value, error * math.sqrt(len(seeds)), fit, tail)
    if on_pictures is not None and on_pictures.low <= 0 <= on_pictures.high and value:
        half = (on_pictures.high - on_pictures.low) / 2
        times = (half / z * (z + NormalDist().inv_cdf(POWER)) / value) ** 2
        needed_pictures = math.ceil(pictures * max(1.0, times))
    return Contrast(
        seeds=len(seeds),
        value=value,
        across_seeds=across,
        on_pictures=on_pictures,
        needed_seeds=needed_seeds,
        needed_pictures=needed_pictures,
    )


def _seeds_needed(value: float, spread: float, fit: Fit, tail: float) -> int | None:
    """How many seeds would show a difference of `value`; None: more than anybody would run.

    `spread` is the standard deviation of one seed's difference.
    """
    df_per_seed = fit.df / max(1, len(fit.seeds) - 1)
    for seeds in range(2, MOST_SEEDS + 1):
        df = max(1, round(df_per_seed * (seeds - 1)))
        least = (t_quantile(1 - tail, df) + NormalDist().inv_cdf(POWER)) * spread
        if least <= abs(value) * math.sqrt(seeds):
            return max(seeds, len(fit.seeds) + 1)
    return None


def picture_difference(pairs: Sequence[tuple[Any, Any]], z: float) -> tuple[Interval | None, int]:
    """Second minus first on the same pictures, over several seeds, and on how many pictures.

    Each pair has the `answers` of two runs of one seed. A picture's differences of all seeds are
    averaged first, since what they have in common does not average out. Half a picture is added to
    each case, as for a single pair of runs (Agresti and Min 2005, see `interval.py`).
    """
    groups: dict[str, list[NDArray[np.int8]]] = {}
    for first, second in pairs:
        bits = [right_bits(given) for given in (first, second)]
        if None in bits or first.get("pictures") != second.get("pictures"):
            return None, 0
        one, other = (_right(int(bit or 0)) for bit in bits)
        if not len(one) or len(one) != len(other):
            return None, 0
        groups.setdefault(first["pictures"], []).append(other - one)
    value = centre = variance = 0.0
    n = 0
    for seeds in groups.values():
        share, mean = len(seeds) / len(pairs), np.mean(seeds, axis=0)
        n = len(mean)
        value += share * float(mean.mean())
        centre += share * float(mean.sum()) / (n + 2)
        spread = float((mean**2).sum()) + 1 - float(mean.sum()) ** 2 / (n + 2)
        variance += share**2 * max(0.0, spread) / (n + 2) ** 2
    half = z * math.sqrt(variance)
    return Interval(value, max(-1.0, centre - half), min(1.0, centre + half)), n


def _right(bits: int) -> NDArray[np.int8]:
    """0 or 1 a picture, from bits behind a leading one."""
    digits = np.frombuffer(bin(bits)[3:].encode("ascii"), dtype=np.int8)
    return digits - np.int8(ord("0"))
