"""Optimizers step by step against their papers' formulas in float64, and parameter groups."""

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mbconv
from mbconv.training import transfer
from mbconv.training.optimizer import Lamb, Muon, RMSpropTF, make_optimizer, orthogonal
from mbconv.training.recipe import Optimizer, Transfer
from small import SMALL

Array = NDArray[np.float64]
RATES = (0.1, 0.1, 0.03, 0.2, 0.0, 0.05)


def run(optimizer: torch.optim.Optimizer, seed: int = 0) -> Iterator[list[Array]]:
    """The weights after each step, with gradients that the weights do not decide."""
    rng = np.random.default_rng(seed)
    for rate in RATES:
        for group in optimizer.param_groups:
            group["lr"] = rate
            for p in group["params"]:
                p.grad = torch.from_numpy(rng.normal(size=p.shape))
        optimizer.step()
        yield [p.detach().numpy().copy() for g in optimizer.param_groups for p in g["params"]]


def gradients(shapes: list[tuple[int, ...]], seed: int = 0) -> Iterator[list[Array]]:
    rng = np.random.default_rng(seed)
    for _ in RATES:
        yield [rng.normal(size=shape) for shape in shapes]


def start(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    rng = np.random.default_rng(9)
    return [torch.nn.Parameter(torch.from_numpy(rng.normal(size=s))) for s in shapes]


def tensorflow_rmsprop(
    weights: list[Array], decay: float, momentum: float, epsilon: float, penalty: float
) -> Iterator[list[Array]]:
    """tf.train.RMSPropOptimizer as its documentation states it, one number at a time.

    mean_square = decay * mean_square + (1 - decay) * gradient ** 2, from ones;
    mom = momentum * mom + learning_rate * gradient / sqrt(mean_square + epsilon), from zeros;
    delta = -mom.
    """
    flat = [w.copy().reshape(-1) for w in weights]
    squares = [[1.0] * w.size for w in flat]
    moms = [[0.0] * w.size for w in flat]
    for rate, grads in zip(RATES, gradients([w.shape for w in weights]), strict=True):
        for w, g, s, m in zip(flat, grads, squares, moms, strict=True):
            for i, own in enumerate(g.reshape(-1)):
                gradient = own + penalty * w[i]
                s[i] = decay * s[i] + (1 - decay) * gradient**2
                m[i] = momentum * m[i] + rate * gradient / (s[i] + epsilon) ** 0.5
                w[i] -= m[i]
        yield [w.reshape(o.shape).copy() for w, o in zip(flat, weights, strict=True)]


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_rmsprop_is_tensorflows(penalty: float) -> None:
    parameters = start((3, 2), (4,))
    ours = RMSpropTF([{"params": parameters, "weight_decay": penalty}], 0.1, epsilon=1e-3)
    theirs = tensorflow_rmsprop(
        [p.detach().numpy().copy() for p in parameters], 0.9, 0.9, 1e-3, penalty
    )
    for found, wanted in zip(run(ours), theirs, strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_torchs_own_rmsprop_is_another() -> None:
    """So that the test above could fail."""
    ours, others = start((3, 2)), start((3, 2))
    plain = torch.optim.RMSprop(others, 0.1, alpha=0.9, eps=1e-3, momentum=0.9)
    pairs = zip(run(RMSpropTF([{"params": ours}], 0.1)), run(plain), strict=True)
    assert not any(np.allclose(a[0], b[0], rtol=1e-3) for a, b in pairs)


def lamb(weights: list[Array], penalty: float) -> Iterator[list[Array]]:
    """Algorithm 2 of You et al.; layers are matrices, vectors move as by Adam with decay."""
    weights = [w.copy() for w in weights]
    means, squares = [0.0 * w for w in weights], [0.0 * w for w in weights]
    shapes = [w.shape for w in weights]
    for t, (rate, grads) in enumerate(zip(RATES, gradients(shapes), strict=True), start=1):
        for i, g in enumerate(grads):
            means[i] = 0.9 * means[i] + 0.1 * g
            squares[i] = 0.999 * squares[i] + 0.001 * g * g
            ratio = (means[i] / (1 - 0.9**t)) / (np.sqrt(squares[i] / (1 - 0.999**t)) + 1e-6)
            move = ratio + penalty * weights[i]
            if weights[i].ndim > 1:
                move = move * np.sqrt((weights[i] ** 2).sum()) / np.sqrt((move**2).sum())
            weights[i] = weights[i] - rate * move
        yield [w.copy() for w in weights]


@pytest.mark.parametrize("penalty", [0.0, 0.02])
def test_lamb_is_the_papers(penalty: float) -> None:
    parameters = start((3, 2), (4,), (2, 2, 1, 1))
    ours = Lamb([{"params": parameters, "weight_decay": penalty}], 0.1)
    theirs = lamb([p.detach().numpy().copy() for p in parameters], penalty)
    for found, wanted in zip(run(ours), theirs, strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)


def test_lamb_moves_weights_of_length_zero() -> None:
    zero = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    for weights in run(Lamb([{"params": [zero]}], 0.1)):
        assert np.isfinite(weights[0]).all()
    assert zero.detach().abs().min() > 0


MIXING = ((8, 5, 1, 1), (4, 6, 3, 3))


@pytest.mark.parametrize("penalty", [0.0, 0.02])
def test_muon_is_torchs_for_convolutions_and_adamw_for_the_rest(penalty: float) -> None:
    """torch's own takes matrices only, and one learning rate for all of them."""
    kernels, others = start(*MIXING), start((4, 1, 3, 3), (6, 3), (4,))
    ours = Muon([{"params": kernels + others, "weight_decay": penalty}], 0.1, epsilon=1e-8)
    matrices = [torch.nn.Parameter(p.detach().flatten(1).clone()) for p in kernels]
    copies = [torch.nn.Parameter(p.detach().clone()) for p in others]
    muon = torch.optim.Muon(matrices, 0.1, momentum=0.9, weight_decay=penalty,
                            adjust_lr_fn="match_rms_adamw")  # fmt: skip
    adamw = torch.optim.AdamW(copies, 0.1, weight_decay=penalty)
    grads = gradients([p.shape for p in kernels + others])
    for found, rate, given in zip(run(ours), RATES, grads, strict=True):
        for parameter, grad in zip(matrices + copies, given, strict=True):
            parameter.grad = torch.from_numpy(grad).view_as(parameter)
        for optimizer in (muon, adamw):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        for a, b in zip(found, matrices, strict=False):
            b = b.detach().numpy().reshape(a.shape)
            assert np.abs(a - b).max() < 1e-2 * np.abs(b).max()  # both iterate in bfloat16
        for a, b in zip(found[len(matrices) :], copies, strict=True):
            np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-9)


def test_muon_keeps_no_squares_of_what_it_makes_orthogonal() -> None:
    kernels, others = start(*MIXING), start((4, 1, 3, 3))
    optimizer = Muon([{"params": kernels + others}], 0.1)
    next(run(optimizer))
    assert [set(optimizer.state[p]) for p in kernels] == [{"mean"}] * 2
    assert set(optimizer.state[others[0]]) == {"mean", "mean_square"}


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (1, 7), (16, 16)])
def test_orthogonal_is_near_the_polar_factor(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() <= values.max() < 1.25
    assert torch.nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), 0) > 0.97
    assert not orthogonal(torch.zeros(shape)).any()


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop_tf", "lamb", "muon"])
def test_every_optimizer_goes_on_from_its_state(name: str) -> None:
    recipe = Optimizer(name=name, momentum=0.8)  # type: ignore[arg-type]

    def made(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return make_optimizer(recipe, [{"params": parameters, "weight_decay": 0.01}])

    whole = start((3, 2), (4,), (2, 3, 1, 1))
    first = made(whole)
    list(run(first))
    copies = [torch.nn.Parameter(p.detach().clone()) for p in whole]
    second = made(copies)
    second.load_state_dict(deepcopy(first.state_dict()))  # else they share it
    for a, b in zip(run(first, seed=1), run(second, seed=1), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    fresh = made([torch.nn.Parameter(p.detach().clone()) for p in start((3, 2), (4,))])
    assert not fresh.state_dict()["state"]


def test_what_is_not_given_is_the_optimizers_usual() -> None:
    def group(**fields: object) -> dict[str, object]:
        optimizer = make_optimizer(Optimizer(**fields), [{"params": start((2,))}])  # type: ignore[arg-type]
        return dict(optimizer.param_groups[0])

    assert (group()["betas"], group()["eps"]) == ((0.9, 0.999), 1e-8)
    assert group(momentum=0.8, squares=0.95, epsilon=1e-3)["betas"] == (0.8, 0.95)
    tensorflow = group(name="rmsprop_tf")
    assert (tensorflow["squares"], tensorflow["epsilon"]) == (0.9, 1e-3)
    assert group(name="sgd")["nesterov"] is True
    assert group(name="sgd", nesterov=False, momentum=0)["momentum"] == 0
    with pytest.raises(mbconv.UserError, match="with nesterov"):
        group(name="sgd", momentum=0)


def test_layers_far_from_the_head_learn_more_slowly() -> None:
    network = mbconv.build(SMALL)
    recipe = Optimizer(weight_decay=0.3)
    groups, shares = transfer.parameter_groups(network, recipe, Transfer(layer_decay=0.5))
    share_of = {id(p): s for g, s in zip(groups, shares, strict=True) for p in g["params"]}
    decay_of = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    for name, parameter in network.named_parameters():
        stage = {"stem": 4, "head": 0}.get(name.split(".")[0])
        distance = 3 - int(name.split(".")[1]) if stage is None else stage
        assert share_of[id(parameter)] == 0.5**distance, name
        assert decay_of[id(parameter)] == (0.3 if parameter.ndim > 1 else 0.0), name
    whole, same = transfer.parameter_groups(network, recipe, Transfer())
    assert (len(whole), same) == (2, [1.0, 1.0])


def test_frozen_parts_are_in_no_group_and_are_told() -> None:
    network = mbconv.build(SMALL)
    assert transfer.describe(network, Transfer()) is None
    transfer.freeze(network, 2)
    groups, shares = transfer.parameter_groups(network, Optimizer(), Transfer(layer_decay=0.5))
    grouped = sum(p.numel() for g in groups for p in g["params"])
    parts = (network.stages[2], network.head)
    learning = sum(p.numel() for part in parts for p in part.parameters())
    assert grouped == learning
    assert shares == [0.5, 0.5, 1.0, 1.0]
    text = transfer.describe(network, Transfer(frozen_stages=2, norms="frozen"))
    total = sum(p.numel() for p in network.parameters())
    assert text == (
        "stem and first 2 stages frozen, batch-norm statistics stay: "
        f"{learning:,} of {total:,} parameters learn"
    )
