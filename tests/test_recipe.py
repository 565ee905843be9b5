"""Recipes and plans: pure functions."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from mbconv.errors import UserError
from mbconv.training.budget import fit_budget, plan_epochs
from mbconv.training.head import solve
from mbconv.training.machine import Machine, find_device, measured
from mbconv.training.override import changed
from mbconv.training.recipe import Phase, Recipe
from mbconv.training.recipes import RECIPES, find_recipe, finetune, growing

PLAIN = Recipe(name="t", phases=(Phase(32, 1),))


@pytest.mark.parametrize("name", RECIPES)
def test_named_recipes_are_whole_and_survive_json(name: str) -> None:
    make = find_recipe(name)
    for pictures, resolution, epochs in ((70, 96, 3), (10_000, 224, None), (1_281_167, 300, 1)):
        recipe = make(pictures, resolution, epochs=epochs)
        assert recipe.name == name
        assert recipe.resolution == resolution
        assert epochs is None or recipe.epochs == epochs
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    text = make.__doc__ or ""
    assert all(word in text for word in ("Command:", "Hardware:", "Score:"))


def test_the_usual_recipes_keep_their_numbers() -> None:
    tuned, fresh = finetune(2761, 224), find_recipe("scratch")(2761, 224)
    assert [(p.resolution, p.epochs) for p in tuned.phases] == [(160, 2), (224, 2)]
    assert (tuned.optimizer.name, tuned.optimizer.learning_rate) == ("adamw", 4e-4)
    assert (tuned.optimizer.weight_decay, tuned.regularization.ema_decay) == (0.01, 0.98)
    assert (tuned.transfer.frozen_stages, tuned.transfer.head_resolution) == (4, 160)
    assert (tuned.schedule.kind, tuned.schedule.warmup, tuned.batch_size) == ("cosine", 0.1, 32)
    assert (tuned.augmentation.policy, tuned.augmentation.crop_scale) == ("none", 0.35)
    assert (fresh.optimizer.learning_rate, fresh.optimizer.weight_decay) == (3e-3, 0.05)
    assert (fresh.regularization.ema_decay, fresh.regularization.drop_path) == (0.998, None)
    assert fresh.transfer.head_resolution is None
    assert fresh.epochs == 40


def test_progressive_learning_raises_everything_together() -> None:
    phases = find_recipe("efficientnetv2_progressive")(10_000, 300).phases
    assert [p.resolution for p in phases] == [128, 185, 243, 300]
    assert [p.epochs for p in phases] == [88, 88, 87, 87]
    assert [p.magnitude for p in phases] == [5, 6.67, 8.33, 10]
    assert [p.mixup for p in phases] == [0, 0.067, 0.133, 0.2]
    assert [p.dropout for p in phases] == [0.1, 0.2, 0.3, 0.4]


def test_the_phase_of_an_epoch() -> None:
    recipe = Recipe(name="t", phases=(Phase(32, 2), Phase(64, 1)))
    assert [recipe.phase(n).resolution for n in (1, 2, 3, 4)] == [32, 32, 64, 64]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("batch_size=0", "recipe: batch_size is 0"),
        ("phases=[]", "at least one phase"),
        ("phases.0.resolution=0", "phases: resolution is 0"),
        ("phases.0.magnitude=11", "magnitude is 11.0; it must be from 0 to 10"),
        ("phases=[3]", "must be an object"),
        ('phases=[{"resolution": 32}]', "incomplete"),
        ("optimizer.learning_rate=0", "learning_rate is 0.0; it must be above zero"),
        ("optimizer.learning_rate=NaN", "learning_rate is nan"),
        ("optimizer.learning_rate=fast", "'fast'; it must be a finite number"),
        ("optimizer.name=adam", "one of adamw, sgd, rmsprop_tf, lamb"),
        ("optimizer.momentum=1", "below 1"),
        ("optimizer.clip=-1", "clip is -1.0; it must be above zero"),
        ("schedule.warmup=2", "from 0 to 1"),
        ("augmentation.crop_scale=0", r"in \(0, 1\]"),
        ("augmentation.mixup=-0.1", "zero or more"),
        ("loss.label_smoothing=1", "below 1"),
        ("regularization.ema_decay=null", "ema_decay is None"),
        ("transfer.layer_decay=0", "above 0"),
        ("transfer.frozen_stages=1.5", "a whole number"),
    ],
)
def test_impossible_values_are_refused(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        changed(PLAIN, [change])


def test_single_fields_can_be_set() -> None:
    recipe = changed(
        PLAIN,
        ["optimizer.clip=1", "schedule.kind=one_cycle", "augmentation.flip=false",
         "phases.0.epochs=4", "regularization.drop_path=0.1", "optimizer.clip = 2.5"],
    )  # fmt: skip
    assert (recipe.optimizer.clip, recipe.schedule.kind) == (2.5, "one_cycle")
    assert recipe.augmentation.flip is False
    assert (recipe.epochs, recipe.regularization.drop_path) == (4, 0.1)
    assert changed(recipe, ["regularization.drop_path=null"]).regularization.drop_path is None
    assert changed(PLAIN, []) == PLAIN


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optimizer.clip", "write PATH=VALUE"),
        ("learning_rate=1", "did you mean optimizer.learning_rate"),
        ("optimizer.learnin_rate=1", "did you mean optimizer.learning_rate"),
        ("phases.7.epochs=1", "phases.0.epochs"),
        ("xyzzy=1", "mbconv recipe show NAME lists them"),
    ],
)
def test_an_unknown_path_gets_the_nearest(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        changed(PLAIN, [change])


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean scratch"):
        find_recipe("scrach")
    with pytest.raises(UserError, match="has no field 'momentum'"):
        Recipe.from_dict({**PLAIN.to_dict(), "momentum": 0.9})
    with pytest.raises(UserError, match="did you mean clip"):
        Recipe.from_dict({**PLAIN.to_dict(), "optimizer": {"clp": 1}})


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
    rate, pictures = 1e6, 1000
    make = partial(finetune, pictures, 224)
    before = 0
    for seconds in (60.0, 200.0, 700.0):
        plan = plan_epochs(lambda n: make(epochs=n), pictures, seconds, rate)
        cost = sum(p.epochs * p.resolution**2 for p in plan.phases) * pictures / rate
        one_more = growing(224, plan.epochs + 1)
        longer = sum(p.epochs * p.resolution**2 for p in one_more) * pictures / rate
        assert cost <= seconds < longer
        assert plan.epochs > before
        before = plan.epochs
    with pytest.raises(UserError, match=r"one epoch at 224 px takes about 50 s here"):
        plan_epochs(lambda n: make(epochs=n), pictures, 40.0, rate)


def test_a_small_budget_shrinks_the_pictures() -> None:
    sizes = {"train": 1000, "val": 100, "test": 100}

    def planned(seconds: float) -> Recipe:
        def make(resolution: int, epochs: int) -> Recipe:
            return finetune(1000, resolution, epochs=epochs)

        return fit_budget(make, finetune(1000, 224), 1e6, seconds, sizes)

    sides = [planned(seconds).resolution for seconds in (60.0, 120.0, 2000.0)]
    assert sides == sorted(sides)
    assert sides[0] < 224 == sides[-1]
    assert planned(60.0).transfer.head_resolution == planned(60.0).phases[0].resolution
    with pytest.raises(UserError, match="longer --budget"):
        planned(5.0)


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
