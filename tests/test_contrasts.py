"""Differences between arms: against scipy, against pairs of runs, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from mbconv.interval import Z95, discordant, paired_difference, t_quantile
from mbconv.report.contrasts import Fit, contrasts, mean_interval, picture_difference
from studies import hits, score

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 28, 133])
@pytest.mark.parametrize("p", [0.6, 0.9, 0.975, 0.9995])
def test_students_quantiles(df: int, p: float) -> None:
    assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-7)


def test_a_mean_has_students_interval() -> None:
    values = [0.71, 0.74, 0.69, 0.75]
    got = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (got.value, got.low, got.high) == pytest.approx((np.mean(values), low, high))
    assert math.isnan(mean_interval([0.7]).low)


def cells(table: dict[str, list[float]]) -> dict[tuple[str, int], float]:
    return {
        (arm, seed): value for arm, values in table.items() for seed, value in enumerate(values)
    }


def test_two_arms_are_the_paired_t_test() -> None:
    a, b = RNG.normal(0.7, 0.03, 6), RNG.normal(0.73, 0.03, 6)
    found = contrasts(cells({"a": list(a), "b": list(b)}), {}, {"b": "a"})["b"].across_seeds
    assert found is not None
    low, high = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(b - a), low, high))


def test_many_arms_share_their_noise_and_their_confidence() -> None:
    table = {name: list(RNG.normal(0.7, 0.03, 4)) for name in "abcde"}
    found = contrasts(cells(table), {}, dict.fromkeys("bcde", "a"))
    values = np.array(list(table.values()))
    noise = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    error = math.sqrt(2 * (noise**2).sum() / 12 / 4)  # 4 x 3 degrees of freedom, 4 seeds
    half = stats.t.ppf(1 - 0.025 / 4, 12) * error
    for row, name in enumerate("bcde", start=1):
        got = found[name].across_seeds
        assert got is not None
        assert got.value == pytest.approx((values[row] - values[0]).mean())
        assert got.high - got.low == pytest.approx(2 * half)


def test_a_missing_run_does_no_harm() -> None:
    """Seeds differ by ten points; the arm that lacks the worst seed must not gain from it."""
    table = cells({"a": [0.5, 0.6, 0.7], "b": [0.5, 0.6, 0.7], "c": [0.52, 0.62, 0.72]})
    del table["b", 0]
    assert Fit(table).difference("b", "a")[0] == pytest.approx(0, abs=1e-9)
    assert contrasts(table, {}, {"b": "a", "c": "a"})["b"].seeds == 2


def test_pictures_of_one_seed_are_the_paired_interval_of_two_runs() -> None:
    a, b = (score(hits(share, seed=s)).detail["answers"] for share, s in ((0.7, 1), (0.76, 2)))
    found, n = picture_difference([(a, b)], Z95)
    counts = discordant(a, b)
    assert counts is not None
    assert found is not None
    assert n == 400
    assert (found.value, found.low, found.high) == pytest.approx(paired_difference(counts, Z95))


def test_the_same_mistakes_at_every_seed_do_not_average_out() -> None:
    a, b = (score(hits(share)).detail["answers"] for share in (0.7, 0.74))
    once, _ = picture_difference([(a, b)], Z95)
    thrice, _ = picture_difference([(a, b)] * 3, Z95)
    assert once == thrice
    others = [tuple(score(list(RNG.random(400) < share)).detail["answers"] for share in (0.7, 0.74))
              for _ in range(3)]  # fmt: skip
    first, _ = picture_difference(others[:1], Z95)
    every, _ = picture_difference(others, Z95)
    assert first is not None
    assert every is not None
    assert (every.high - every.low) == pytest.approx((first.high - first.low) / 3**0.5, rel=0.1)


def test_other_pictures_and_old_records_have_no_interval_on_pictures() -> None:
    a, b = score(hits(0.7)).detail["answers"], score(hits(0.7, n=300)).detail["answers"]
    assert picture_difference([(a, b)], Z95) == (None, 0)
    assert picture_difference([(a, None)], Z95) == (None, 0)


def test_a_verdict_needs_both_intervals() -> None:
    table = cells({"a": [0.70, 0.71, 0.70], "b": [0.73, 0.74, 0.73]})
    assert contrasts(table, {}, {"b": "a"})["b"].verdict == "better"
    assert contrasts(table, {}, {"a": "b"})["a"].verdict == "worse"
    few = {key: score(hits(value, n=100)).detail["answers"] for key, value in table.items()}
    found = contrasts(table, few, {"b": "a"})["b"]
    assert found.verdict == "not distinguishable"  # three of a hundred pictures
    assert found.needed_seeds is None
    assert found.needed_pictures is not None
    assert 150 < found.needed_pictures < 1000


def test_seeds_that_would_be_needed() -> None:
    """With the number that is named, the difference is found in about four of five studies."""
    table = cells({"a": [0.70, 0.72, 0.71], "b": [0.71, 0.75, 0.71]})
    needed = contrasts(table, {}, {"b": "a"})["b"].needed_seeds
    assert needed is not None
    differences = np.array([0.01, 0.03, 0.0])
    draws = RNG.normal(differences.mean(), differences.std(ddof=1), (4000, needed))
    half = stats.t.ppf(0.975, needed - 1) * draws.std(1, ddof=1) / math.sqrt(needed)
    assert 0.7 < (np.abs(draws.mean(1)) > half).mean() < 0.92
    same = cells({"a": [0.70, 0.72, 0.71], "b": [0.72, 0.70, 0.7101]})
    assert contrasts(same, {}, {"b": "a"})["b"].needed_seeds is None


def test_equal_scores_are_not_told_apart_by_rounding() -> None:
    table = cells({name: [0.1, 0.7, 1 / 3] for name in "abc"})
    for found in contrasts(table, {}, {"b": "a", "c": "a"}).values():
        assert (found.value, found.verdict) == (0, "not distinguishable")


def test_one_seed_says_nothing_about_seeds() -> None:
    found = contrasts(cells({"a": [0.5], "b": [0.9]}), {}, {"b": "a"})["b"]
    assert found.across_seeds is None
    assert found.verdict == "not distinguishable"


def test_equal_arms_are_seldom_told_apart() -> None:
    """One false verdict, or more, in at most 5% of studies in which nothing matters."""
    wrong = 0
    for _ in range(200):
        seeds = RNG.normal(0, 0.05, 3)
        table = cells({name: list(0.7 + seeds + RNG.normal(0, 0.01, 3)) for name in "abcdef"})
        found = contrasts(table, {}, dict.fromkeys("bcdef", "a"))
        wrong += any(c.verdict != "not distinguishable" for c in found.values())
    assert wrong / 200 < 0.1
