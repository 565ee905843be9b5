"""Differences between two scores: published intervals, coverage, and what answers remember."""

import random

import numpy as np
import pytest

from mbconv.interval import (
    Discordant,
    answers,
    discordant,
    paired_difference,
    unpaired_difference,
    wilson,
)


def test_newcombes_published_interval() -> None:
    """56 of 70 against 48 of 80, method 10 of table II."""
    assert unpaired_difference((48, 80), (56, 70)) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    value, low, high = unpaired_difference((56, 70), (48, 80))
    assert (value, low, high) == pytest.approx((-0.2, -0.3339, -0.0524), abs=5e-5)


def test_a_large_paired_table_has_the_textbook_interval() -> None:
    """Approval of a prime minister, 1,600 asked twice: 150 and 86 changed their mind."""
    value, low, high = paired_difference(Discordant(1600, 86, 150))
    assert value == 0.04
    assert (low, high) == pytest.approx((0.021, 0.059), abs=5e-4)


def test_paired_intervals_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    for n, only_first, only_second in ((60, 0.05, 0.05), (100, 0.02, 0.1), (400, 0.08, 0.11)):
        drawn = rng.multinomial(n, [only_first, only_second, 1 - only_first - only_second], 2000)
        bounds = [paired_difference(Discordant(n, int(a), int(b)))[1:] for a, b, _ in drawn]
        held = np.mean([low <= only_second - only_first <= high for low, high in bounds])
        assert 0.935 < held < 0.985


def test_a_pair_without_any_difference_is_not_certain() -> None:
    assert paired_difference(Discordant(50, 0, 0))[0] == 0
    _, low, high = paired_difference(Discordant(50, 0, 0))
    assert low < -0.01 < 0.01 < high
    assert paired_difference(Discordant(3, 0, 3))[2] <= 1


def test_a_wider_interval_for_more_comparisons() -> None:
    assert wilson(8, 10, z=2.5)[0] < wilson(8, 10)[0]
    once, more = (paired_difference(Discordant(200, 10, 25), z)[1] for z in (1.96, 2.6))
    assert more < once


@pytest.mark.parametrize("n", [1, 7, 8, 9, 500])
def test_answers_are_compared_picture_by_picture(n: int) -> None:
    draw = random.Random(n)
    first = [(f"picture {i}", draw.random() < 0.7) for i in range(n)]
    second = [(name, draw.random() < 0.6) for name, _ in first]
    only_first = sum(a and not b for (_, a), (_, b) in zip(first, second, strict=True))
    only_second = sum(b and not a for (_, a), (_, b) in zip(first, second, strict=True))
    shuffled = draw.sample(second, n)  # the order in which they were scored does not matter
    assert discordant(answers(first), answers(shuffled)) == (n, only_first, only_second)


def test_answers_to_other_pictures_are_not_compared() -> None:
    first = answers([("a", True), ("b", False)])
    assert discordant(first, answers([("a", True), ("c", False)])) is None
    assert discordant(first, answers([("a", True)])) is None
    assert discordant(first, None) is None
    assert discordant({}, {}) is None
    assert discordant(answers([]), answers([])) is None
    assert discordant(first, {**first, "right": "no base64!"}) is None


def test_answers_are_small() -> None:
    assert len(answers((str(i), i % 3 > 0) for i in range(50_000))["right"]) < 8_500
