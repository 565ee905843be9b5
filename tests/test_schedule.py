"""Schedules and the order of the steps: pure functions, against their closed forms."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbconv.training.recipe import Loss, Phase, Recipe, Schedule
from mbconv.training.schedule import (
    balanced_order,
    earlier_turns,
    ema_decay,
    learning_rate,
    steps,
    total_steps,
)


def rates(kind: str, total: int = 100, per_epoch: int = 10, **fields: float) -> list[float]:
    schedule = Schedule(kind=kind, **fields)  # type: ignore[arg-type]
    return [learning_rate(i, total, per_epoch, peak=0.5, schedule=schedule) for i in range(total)]


def test_cosine_rises_and_falls_to_zero() -> None:
    found = rates("cosine")
    assert found[0] == pytest.approx(0.05)
    assert max(found) == found[9] == pytest.approx(0.5)
    assert found[:10] == sorted(found[:10])
    assert found[9:] == sorted(found[9:], reverse=True)
    assert found[54] == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 45 / 91)))
    assert 0 < found[-1] < 0.001
    assert learning_rate(0, 1, 1, peak=0.5, schedule=Schedule()) == pytest.approx(0.5)


def test_one_cycle_rises_from_a_25th_by_a_cosine() -> None:
    found = rates("one_cycle", warmup=0.25)
    assert max(found) == found[24] == pytest.approx(0.5)
    for k in range(25):
        rise = (1 - math.cos(math.pi * (k + 1) / 25)) / 2
        assert found[k] == pytest.approx(0.02 + 0.48 * rise)
    assert found[:25] == sorted(found[:25])
    assert found[24:] == sorted(found[24:], reverse=True)
    assert found[-1] < 0.001


def test_steps_and_exponential_multiply_by_their_factor() -> None:
    stairs = rates("step", warmup=0.0, factor=0.97, every=2.4)
    smooth = rates("exponential", warmup=0.0, factor=0.97, every=2.4)
    for k in range(1, 100):
        assert stairs[k] == pytest.approx(0.5 * 0.97 ** (k // 24))
        assert smooth[k] == pytest.approx(0.5 * 0.97 ** (k / 24))
    assert stairs[23] == 0.5 > stairs[24] == stairs[47] > stairs[48]


def test_they_decay_from_the_start_and_not_from_the_warm_ups_end() -> None:
    """As in TensorFlow's code, whose warm-up replaces the first rates of the staircase."""
    found = rates("step", warmup=0.5, factor=0.5, every=2)
    assert found[:50] == pytest.approx([0.5 * (k + 1) / 50 for k in range(50)])
    assert found[50] == pytest.approx(0.5 * 0.5**2)


@given(
    kind=st.sampled_from(["cosine", "one_cycle", "step", "exponential"]),
    total=st.integers(1, 200),
    per_epoch=st.integers(1, 50),
    warmup=st.floats(0, 1),
    every=st.floats(0.5, 10),
)
def test_every_rate_is_above_zero_and_at_most_the_peak(
    kind: str, total: int, per_epoch: int, warmup: float, every: float
) -> None:
    found = rates(kind, total, per_epoch, warmup=warmup, every=every)
    assert all(0 < rate <= 0.5 * (1 + 1e-12) for rate in found)


def test_the_average_forgets_its_first_weights() -> None:
    assert [ema_decay(n, 0.98) for n in (0, 8, 10_000)] == [0.1, 0.5, 0.98]
    assert ema_decay(100, 0.0) == 0.0


def test_every_epoch_is_a_permutation_and_a_late_start_its_tail() -> None:
    recipe = Recipe(name="t", phases=(Phase(32, 2), Phase(64, 1)), batch_size=4)
    all_steps = list(steps(recipe, 14, seed=5))
    assert len(all_steps) == total_steps(recipe, 14) == 9
    assert [s.resolution for s in all_steps] == [32] * 6 + [64] * 3
    assert [s.epoch for s in all_steps if s.ends_epoch] == [1, 2, 3]
    for epoch in (1, 2, 3):
        drawn = [d.picture for s in all_steps if s.epoch == epoch for d in s.draws]
        assert len(drawn) == len(set(drawn)) == 12
    assert list(steps(recipe, 14, seed=5, start=4)) == all_steps[4:]
    assert list(steps(recipe, 14, seed=6)) != all_steps
    assert len(list(steps(recipe, 3, seed=0))) == 3  # fewer pictures than a batch: one batch


def test_phases_hand_their_magnitude_to_their_pictures() -> None:
    recipe = Recipe(name="t", phases=(Phase(32, 1), Phase(32, 1, magnitude=7)), batch_size=4)
    found = [{draw.magnitude for draw in step.draws} for step in steps(recipe, 8, seed=0)]
    assert found == [{None}, {None}, {7.0}, {7.0}]


def test_balanced_sampling_draws_each_class_equally_often() -> None:
    labels = np.array([0] * 80 + [1] * 15 + [2] * 5)
    order = balanced_order(labels, np.random.default_rng(0))
    assert len(order) == 100
    assert sorted(Counter(labels[order].tolist()).values()) == [33, 33, 34]
    times = Counter(order.tolist())
    assert {times[i] for i in range(80)} == {0, 1}  # of the large class a part
    assert {times[i] for i in range(80, 95)} <= {2, 3}
    assert {times[i] for i in range(95, 100)} <= {6, 7}
    other = balanced_order(labels, np.random.default_rng(1))
    assert order.tolist() != other.tolist()


def test_repeated_pictures_are_augmented_anew() -> None:
    labels = [0] * 9 + [1]
    phases = (Phase(32, 2),)
    recipe = Recipe(name="t", phases=phases, batch_size=5, loss=Loss(balance="sampling"))
    plan = list(steps(recipe, 10, seed=3, labels=labels))
    for epoch in (1, 2):
        seeds = [d.seed for s in plan if s.epoch == epoch for d in s.draws if d.picture == 9]
        assert seeds == [(3, epoch), *((3, epoch, turn) for turn in range(1, 5))]
    assert list(steps(recipe, 10, seed=3, start=3, labels=labels)) == plan[3:]
    unbalanced = replace(recipe, loss=Loss())
    drawn = [d.picture for s in steps(unbalanced, 10, 3, labels=labels) for d in s.draws]
    assert Counter(drawn) == dict.fromkeys(range(10), 2)


def test_earlier_turns_are_counted() -> None:
    assert earlier_turns(np.array([5, 7, 5, 5, 7, 1])).tolist() == [0, 0, 1, 2, 1, 0]
