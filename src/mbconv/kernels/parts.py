"""What an MBConv block consists of besides its kernels: norms in order, products, the gate."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mbconv.kernels.norm import pack, wide
from mbconv.kernels.reference import Act, slope_of, value_of

NARROW = 48  # channels


class Norms:
    """The block's norms in order, [4, C] each, and the statistics that were taken on the way."""

    def __init__(
        self, affine: Tensor, statistics: Tensor | None, eps: float, sizes: list[int]
    ) -> None:
        self.eps = eps
        self.affine = list(torch.split(affine, sizes, 1))
        self.given = None if statistics is None else list(torch.split(statistics, sizes, 1))
        self.taken: list[Tensor] = []

    def next(self, moments: Callable[[], Tensor | None]) -> Tensor:
        """The next norm, by the statistics that were given, or else by these moments."""
        if self.given is not None:
            return pack(self.affine.pop(0), self.given.pop(0), self.eps)
        found = moments()
        assert found is not None
        self.taken.append(found)
        return pack(self.affine.pop(0), found, self.eps)


def widths(expand: Tensor | None, depthwise: Tensor, project: Tensor) -> list[int]:
    """Channels of each norm, in order."""
    middle = depthwise.shape[0]
    return [*([] if expand is None else [middle]), middle, project.shape[0]]


def is_narrow(expand: Tensor) -> bool:
    """Whether the statistics of what this expansion [E, C, 1, 1] gives follow from its input's.

    It is linear, so they can; with few channels that costs less than a pass over the output.
    """
    return expand.shape[1] <= NARROW and expand.shape[0] >= 3 * expand.shape[1]


def output_moments(spread: Tensor, expand: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean and biased variance [2, E] of an expansion's output, for maps stored as `dtype`.

    spread [1 + C, C]: the input's mean, then its covariance.
    """
    w = expand.flatten(1).to(dtype).to(spread.dtype)
    return torch.stack([w @ spread[0], ((w @ spread[1:]) * w).sum(1).clamp_min(0)])


class Gate:
    """Squeeze-and-excitation from the pooled means [N, C]: its scale, and the way back."""

    def __init__(self, pooled: Tensor, act: str, sigmoid: str, parameters: list[Tensor]) -> None:
        self.pooled, self.act, self.parameters = pooled, act, parameters
        reduce, reduce_bias, expand, expand_bias = (
            p.to(pooled.dtype).flatten(1) if p.ndim > 1 else p.to(pooled.dtype) for p in parameters
        )
        self.reduce, self.expand = reduce, expand
        self.squeezed = torch.addmm(reduce_bias, pooled, reduce.t())
        self.hidden = value_of(self.squeezed, act_named(act))
        factors = torch.addmm(expand_bias, self.hidden, expand.t())
        self.scale = torch.sigmoid(factors) if sigmoid == "sigmoid" else F.hardsigmoid(factors)
        if sigmoid == "sigmoid":
            self.slope = self.scale * (1 - self.scale)
        else:  # as torch has it: 1/6 between -3 and 3
            self.slope = (factors.abs() < 3).to(factors.dtype) / 6

    def backward(self, grad: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Gradient of the scale [N, C] -> gradients of the pooled means and the parameters."""
        outer = grad * self.slope
        inner = outer.mm(self.expand) * slope_of(self.squeezed, act_named(self.act))
        grads = [inner.t().mm(self.pooled), inner.sum(0), outer.t().mm(self.hidden), outer.sum(0)]
        own = [g.view(p.shape).to(p.dtype) for g, p in zip(grads, self.parameters, strict=True)]
        return inner.mm(self.reduce), own


def act_named(name: str) -> Act:
    """Operators take the activation as a plain string."""
    return name  # type: ignore[return-value]


def present(*parameters: Tensor | None) -> list[Tensor]:
    """Those that are not None."""
    return [p for p in parameters if p is not None]


def per_channel(keep: Tensor, p: Tensor) -> Tensor:
    """[N] -> [N, C]."""
    return keep.to(wide(p))[:, None].expand(-1, p.shape[3]).contiguous()


def waited_for(kept: Tensor) -> None:
    """RuntimeError where a map that backward reads was not kept."""
    if not kept.numel():
        raise RuntimeError("This pass kept no maps (grad mode was off), so it has no backward.")


def nothing(x: Tensor) -> Tensor:
    """Stands for a tensor that does not exist; each is one of its own, as operators demand."""
    return x.new_empty(0)
