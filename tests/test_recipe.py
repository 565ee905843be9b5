"""Recipes, schedules and plans: pure functions."""

import json
import math

import numpy as np
import pytest
import torch

from mbconv.errors import UserError
from mbconv.training import setup
from mbconv.training.head import solve
from mbconv.training.machine import Machine, find_device, measured
from mbconv.training.recipe import Phase, Recipe, finetune, growing, plan_epochs, scratch
from mbconv.training.schedule import ema_decay, learning_rate, steps, total_steps


def test_recipes_survive_json() -> None:
    for recipe in (finetune(500, 224), scratch(70, 96, epochs=3)):
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    with pytest.raises(UserError, match="does not fit"):
        Recipe.from_dict({**finetune(500, 224).to_dict(), "momentum": 0.9})


@pytest.mark.parametrize("wrong", [{"phases": ()}, {"batch_size": 0}, {"learning_rate": 0.0},
                                   {"phases": (Phase(0, 1),)}])  # fmt: skip
def test_impossible_recipes_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        Recipe(**{"name": "t", "phases": (Phase(32, 1),), **wrong})  # type: ignore[arg-type]


def test_epochs_follow_the_number_of_pictures() -> None:
    assert finetune(2761, 224).epochs == 4
    assert finetune(100_000, 224).epochs == 4
    assert finetune(50, 224).epochs == 40
    assert finetune(50, 224, epochs=7).epochs == 7


@pytest.mark.parametrize(
    ("resolution", "epochs", "phases"),
    [
        (224, 4, [(160, 2), (224, 2)]),
        (224, 5, [(160, 2), (224, 3)]),
        (224, 1, [(224, 1)]),
        (96, 10, [(96, 10)]),
        (128, 4, [(96, 2), (128, 2)]),
    ],
)
def test_resolution_grows(resolution: int, epochs: int, phases: list[tuple[int, int]]) -> None:
    assert [(p.resolution, p.epochs) for p in growing(resolution, epochs)] == phases


def test_a_plan_fills_its_budget_and_no_more() -> None:
    recipe, rate, pictures = finetune(1000, 224), 1e6, 1000
    before = 0
    for seconds in (60.0, 200.0, 700.0):
        plan = plan_epochs(recipe, pictures, seconds, rate)
        cost = sum(p.epochs * p.resolution**2 for p in plan.phases) * pictures / rate
        one_more = growing(224, plan.epochs + 1)
        longer = sum(p.epochs * p.resolution**2 for p in one_more) * pictures / rate
        assert cost <= seconds < longer
        assert plan.epochs > before
        before = plan.epochs
    with pytest.raises(UserError, match=r"one epoch at 224 px takes about 50 s here"):
        plan_epochs(recipe, pictures, 40.0, rate)


def test_a_small_budget_shrinks_the_pictures() -> None:
    sizes = {"train": 1000, "val": 100, "test": 100}
    rate = 1e6
    sides = [setup.fit_budget(finetune(1000, 224), rate, seconds, sizes).resolution
             for seconds in (60.0, 120.0, 2000.0)]  # fmt: skip
    assert sides == sorted(sides)
    assert sides[0] < 224 == sides[-1]
    with pytest.raises(UserError, match="longer --budget"):
        setup.fit_budget(finetune(1000, 224), rate, 5.0, sizes)


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


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [learning_rate(i, 100, 0.5, 0.1) for i in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[9] == pytest.approx(0.5)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[54] == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 45 / 91)))
    assert 0 < rates[-1] < 0.001
    assert learning_rate(0, 1, 0.5, 0.1) == pytest.approx(0.5)


def test_the_average_forgets_its_first_weights() -> None:
    assert [ema_decay(n, 0.98) for n in (0, 8, 10_000)] == [0.1, 0.5, 0.98]


def test_the_head_is_the_optimum() -> None:
    """At a minimum of the convex objective its gradient vanishes; checked in float64."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(60, 5))).float()
    targets = torch.from_numpy(rng.integers(0, 3, 60))
    weight, bias = solve(features, targets, 3, penalty=0.05, smoothing=0.1)
    w, b = weight.double().requires_grad_(), bias.double().requires_grad_()
    logits = features.double() @ w.T + b
    log_p = logits.log_softmax(1)
    goal = 0.9 * torch.nn.functional.one_hot(targets, 3) + 0.1 / 3
    loss = -(goal * log_p).sum(1).mean() + 0.05 * (w**2).sum()
    loss.backward()
    assert w.grad is not None
    assert b.grad is not None
    assert max(w.grad.abs().max().item(), b.grad.abs().max().item()) < 1e-4


def test_the_fastest_setting_is_chosen_and_all_trials_are_kept() -> None:
    def seconds(machine: Machine) -> float:
        mixed = machine.dtype == "bfloat16" and machine.frozen_dtype == "float32"
        return 1.0 if mixed else 2.0 if machine.dtype == "bfloat16" else 3.0

    chosen = measured(Machine(), seconds)
    assert (chosen.dtype, chosen.frozen_dtype, chosen.channels_last) == (
        "bfloat16", "float32", True,
    )  # fmt: skip
    assert len(chosen.trials) == 5
    assert Machine.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen
    with pytest.raises(UserError, match="does not fit"):
        Machine.from_dict({"warp": 9})


def test_devices() -> None:
    assert find_device("cpu") == "cpu"
    assert find_device("auto") in {"cpu", "cuda", "mps"}
    with pytest.raises(UserError, match="available: auto"):
        find_device("abacus")
