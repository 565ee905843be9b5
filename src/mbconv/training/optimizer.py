"""Optimizers by a recipe: torch's AdamW and SGD, and three that torch lacks for convolutions."""

from collections.abc import Iterable, Mapping
from itertools import product
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mbconv.kernels.native import processor_features
from mbconv.training.recipe import Optimizer

Groups = Iterable[dict[str, Any]]


def make_optimizer(recipe: Optimizer, groups: Groups) -> torch.optim.Optimizer:
    """The optimizer of these parameter groups, each with its own `weight_decay`."""
    rate, momentum = recipe.learning_rate, recipe.momentum
    squares, epsilon = recipe.squares, recipe.epsilon
    if recipe.name == "sgd":
        nesterov = recipe.nesterov
        return torch.optim.SGD(groups, rate, momentum=momentum, nesterov=nesterov, fused=True)
    if recipe.name == "rmsprop_tf":
        return RMSpropTF(
            groups,
            rate,
            momentum=momentum,
            squares=0.9 if squares is None else squares,
            epsilon=epsilon or 1e-3,
        )
    betas = (momentum, 0.999 if squares is None else squares)
    if recipe.name == "lamb":
        return Lamb(groups, rate, betas=betas, epsilon=epsilon or 1e-6)
    if recipe.name == "muon":
        return Muon(groups, rate, betas=betas, epsilon=epsilon or 1e-8)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon or 1e-8, fused=True)


class _Own(torch.optim.Optimizer):
    """What those below share: a group's parameters with gradients, and their state."""

    initial: Mapping[str, float] = {}  # what is kept of each parameter, and what fills it at first

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move all parameters; a `closure` computes the loss first, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                group["steps"] = group.get("steps", 0) + 1
                self._move(group, parameters, [p.grad for p in parameters])
        return loss

    def _kept(self, parameters: list[Tensor], *names: str) -> list[list[Tensor]]:
        """A list of tensors, one a parameter, for each of these names of `initial`."""
        for parameter, name in product(parameters, names):
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.full_like(parameter, self.initial[name])
        return [[self.state[p][name] for p in parameters] for name in names]

    def _move(self, group: dict[str, Any], parameters: list[Tensor], grads: list[Tensor]) -> None:
        raise NotImplementedError


class RMSpropTF(_Own):
    """RMSprop as TensorFlow's `RMSPropOptimizer` computes it.

    With gradient g, to which `weight_decay` adds that many times the weight (an L2 penalty):
    ms = squares * ms + (1 - squares) * g^2, starting from ones;
    mom = momentum * mom + lr * g / sqrt(ms + epsilon); the weight becomes less by mom.
    Against torch's RMSprop: epsilon inside the root, ones at the start, and the learning rate
    inside the momentum, so that steps already gathered keep their size when the rate changes.
    """

    initial = MappingProxyType({"mean_square": 1.0, "momentum": 0.0})

    def __init__(
        self,
        groups: Groups,
        lr: float,
        *,
        momentum: float = 0.9,
        squares: float = 0.9,
        epsilon: float = 1e-3,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "squares": squares, "epsilon": epsilon,
                    "weight_decay": 0.0}  # fmt: skip
        super().__init__(groups, defaults)

    def _move(self, group: dict[str, Any], parameters: list[Tensor], grads: list[Tensor]) -> None:
        mean_squares, momenta = self._kept(parameters, "mean_square", "momentum")
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, parameters, alpha=group["weight_decay"]))
        torch._foreach_mul_(mean_squares, group["squares"])
        torch._foreach_addcmul_(mean_squares, grads, grads, 1 - group["squares"])
        roots = torch._foreach_add(mean_squares, group["epsilon"])
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_addcdiv_(momenta, grads, roots, group["lr"])
        torch._foreach_sub_(parameters, momenta)


class _Adam(_Own):
    """Adam's steps with bias correction, from which the two below make theirs."""

    initial = MappingProxyType({"mean": 0.0, "mean_square": 0.0})

    def __init__(
        self,
        groups: Groups,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-6,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "epsilon": epsilon, "weight_decay": 0.0}
        super().__init__(groups, defaults)

    def _adam(
        self, group: dict[str, Any], parameters: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        """Steps whose elements are about 1; the means go on in place."""
        first, second = group["betas"]
        means, mean_squares = self._kept(parameters, "mean", "mean_square")
        torch._foreach_lerp_(means, grads, 1 - first)
        torch._foreach_mul_(mean_squares, second)
        torch._foreach_addcmul_(mean_squares, grads, grads, 1 - second)
        roots = torch._foreach_div(mean_squares, 1 - second ** group["steps"])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["epsilon"])
        moves = torch._foreach_div(means, 1 - first ** group["steps"])
        torch._foreach_div_(moves, roots)
        return list(moves)


class Lamb(_Adam):
    """LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2, with the identity as phi).

    Adam's step with bias correction, plus `weight_decay` times the weight, is stretched to the
    weight's own length, times the learning rate. Vectors (norms, biases) take Adam's step as it
    is, and so does a weight or a step of length zero.
    """

    def _move(self, group: dict[str, Any], parameters: list[Tensor], grads: list[Tensor]) -> None:
        moves = self._adam(group, parameters, grads)
        if group["weight_decay"]:
            torch._foreach_add_(moves, parameters, alpha=group["weight_decay"])
        for parameter, move in zip(parameters, moves, strict=True):
            if parameter.ndim > 1:
                longer, shorter = parameter.norm(), move.norm()
                move.mul_(torch.where((longer > 0) & (shorter > 0), longer / shorter, 1.0))
        torch._foreach_add_(parameters, moves, alpha=-group["lr"])


class Muon(_Adam):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for convolutions, else AdamW.

    The kernel of a convolution that mixes channels is a matrix of outputs by (inputs * k * k). Its
    step is the nearest orthogonal matrix to its momentum, so that rare directions move as far as
    common ones, times 0.2 * sqrt(longer side): as long as AdamW's (Liu et al. 2025, arXiv
    2502.16982, section 2.2), so that one learning rate and weight decay serve both. Depthwise
    kernels, linear layers, norms and biases take AdamW's step.
    """

    def _move(self, group: dict[str, Any], parameters: list[Tensor], grads: list[Tensor]) -> None:
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for mixes, steps in ((True, self._orthogonal), (False, self._adam)):
            own = [n for n, p in enumerate(parameters) if mixes == (p.ndim == 4 and p.shape[1] > 1)]
            if own:
                chosen = [parameters[n] for n in own]
                moves = steps(group, chosen, [grads[n] for n in own])
                torch._foreach_add_(chosen, moves, alpha=-group["lr"])

    def _orthogonal(
        self, group: dict[str, Any], parameters: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        rate = 1 - group["betas"][0]
        (means,) = self._kept(parameters, "mean")
        torch._foreach_lerp_(means, grads, rate)
        ahead = torch._foreach_lerp(means, grads, rate)  # as Nesterov's momentum
        moves = []
        for mean in ahead:
            matrix = mean.flatten(1)
            length = 0.2 * max(matrix.shape) ** 0.5
            moves.append(orthogonal(matrix).mul_(length).view_as(mean))
        return moves


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """About the nearest matrix with orthonormal rows or columns, of the shape of `matrix`.

    Newton and Schulz's iteration with the coefficients of Muon: singular values end between 0.7
    and 1.2. A matrix of zeros stays one. In bfloat16, but on processors that lack its products.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    slow = matrix.device.type == "cpu" and "avx512_bf16" not in processor_features()
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / (x.norm() + 1e-7)).to(torch.float32 if slow else torch.bfloat16)
    for _ in range(rounds):
        square = x @ x.mT
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)
