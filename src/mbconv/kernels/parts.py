"""What an MBConv block consists of besides its kernels: norms in order, products, the gate."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mbconv.kernels.norm import pack, wide
from mbconv.kernels.reference import Act, slope_of, value_of


class Norms:
    """The block's norms in order, [4, C] each, and the statistics that were taken on the way."""

    def __init__(
        self, affine: Tensor, statistics: Tensor | None, eps: float, sizes: list[int]
    ) -> None:
        self.eps = eps
        self.affine = list(torch.split(affine, sizes, 1))
        self.given = None if statistics is None else list(torch.split(statistics, sizes, 1))
        self.taken: list[Tensor] = []

    def next(self, moments: Callable[[], tuple[Tensor, Tensor] | None]) -> Tensor:
        """The next norm, by the statistics that were given, or else by these moments."""
        if self.given is not None:
            return pack(self.affine.pop(0), self.given.pop(0), self.eps)
        found = moments()
        assert found is not None
        self.taken.append(torch.stack(found))
        return pack(self.affine.pop(0), self.taken[-1], self.eps)


def widths(expand: Tensor | None, depthwise: Tensor, project: Tensor) -> list[int]:
    """Channels of each norm, in order."""
    middle = depthwise.shape[0]
    return [*([] if expand is None else [middle]), middle, project.shape[0]]


def product(x: Tensor, weight: Tensor) -> Tensor:
    """1x1 convolution: [N, H, W, C] and [C', C, 1, 1] -> [N, H, W, C']."""
    y = torch.mm(x.flatten(0, 2), weight.flatten(1).to(x.dtype).t())
    return y.view(*x.shape[:3], -1)


def product_backward(grad: Tensor, weight: Tensor, addend: Tensor | None = None) -> Tensor:
    """Gradient at the input of a 1x1 convolution, plus `addend` of the same shape."""
    # Lying by columns the weight is 6% faster here (oneDNN, bfloat16, B0's shapes).
    rows, matrix = grad.flatten(0, 2), weight.flatten(1).to(grad.dtype).t().contiguous().t()
    if addend is None:
        return torch.mm(rows, matrix).view(*grad.shape[:3], -1)
    return torch.addmm(addend.flatten(0, 2), rows, matrix).view(addend.shape)


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient at the weight of a 1x1 convolution, in the weight's format."""
    g, rows = grad.flatten(0, 2), x.flatten(0, 2)
    # The library copies the operand that it transposes: let it be the narrow one.
    wide = g.shape[1] > rows.shape[1]
    dw = torch.mm(rows.t(), g).t() if wide else torch.mm(g.t(), rows)
    return dw.to(weight.dtype).reshape(weight.shape).contiguous()


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


def nothing(x: Tensor) -> Tensor:
    """Stands for a tensor that does not exist; each is one of its own, as operators demand."""
    return x.new_empty(0)
