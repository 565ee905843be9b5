"""Optimizers by a recipe: torch's AdamW and SGD, and two that torch does not have."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

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
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon or 1e-8, fused=True)


class _Own(torch.optim.Optimizer):
    """What the two below share: a group's parameters with gradients, and their state."""

    state_names: tuple[str, ...] = ()
    initial: tuple[float, ...] = ()

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

    def _kept(self, parameters: list[Tensor]) -> list[list[Tensor]]:
        """A list of tensors for each of `state_names`, filled with `initial` at the start."""
        for parameter in parameters:
            state = self.state[parameter]
            for name, value in zip(self.state_names, self.initial, strict=True):
                if name not in state:
                    state[name] = torch.full_like(parameter, value)
        return [[self.state[p][name] for p in parameters] for name in self.state_names]

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

    state_names = ("mean_square", "momentum")
    initial = (1.0, 0.0)

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
        mean_squares, momenta = self._kept(parameters)
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, parameters, alpha=group["weight_decay"]))
        torch._foreach_mul_(mean_squares, group["squares"])
        torch._foreach_addcmul_(mean_squares, grads, grads, 1 - group["squares"])
        roots = torch._foreach_add(mean_squares, group["epsilon"])
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_addcdiv_(momenta, grads, roots, group["lr"])
        torch._foreach_sub_(parameters, momenta)


class Lamb(_Own):
    """LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2, with the identity as phi).

    Adam's step with bias correction, plus `weight_decay` times the weight, is stretched to the
    weight's own length, times the learning rate. Vectors (norms, biases) take Adam's step as it
    is, and so does a weight or a step of length zero.
    """

    state_names = ("mean", "mean_square")
    initial = (0.0, 0.0)

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

    def _move(self, group: dict[str, Any], parameters: list[Tensor], grads: list[Tensor]) -> None:
        first, second = group["betas"]
        means, mean_squares = self._kept(parameters)
        torch._foreach_lerp_(means, grads, 1 - first)
        torch._foreach_mul_(mean_squares, second)
        torch._foreach_addcmul_(mean_squares, grads, grads, 1 - second)
        roots = torch._foreach_div(mean_squares, 1 - second ** group["steps"])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["epsilon"])
        moves = torch._foreach_div(means, 1 - first ** group["steps"])
        torch._foreach_div_(moves, roots)
        if group["weight_decay"]:
            torch._foreach_add_(moves, parameters, alpha=group["weight_decay"])
        for parameter, move in zip(parameters, moves, strict=True):
            if parameter.ndim > 1:
                longer, shorter = parameter.norm(), move.norm()
                move.mul_(torch.where((longer > 0) & (shorter > 0), longer / shorter, 1.0))
        torch._foreach_add_(parameters, moves, alpha=-group["lr"])
