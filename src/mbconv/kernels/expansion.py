"""The expansion of a block, a 1x1 convolution with batch norm, by the moments of its input.

It is linear in each pixel. So the statistics of its output follow from those of its input, which
has a sixth of the channels, and are known before the output is there; and most of the way back
through the norm is done on the narrow side, too. With the weight w, s = gamma / deviation, and
means m0, m1 as `reference.apply` takes them, the gradient at the output is

    de = s (dz - m0 - m1 n),    n = w (x - mean(x)) / deviation

What multiplies de can multiply dz instead, with small matrices that correct it: no pass over the
wide map is left but those of the products themselves, and these need no more of it than a slab.
"""

from types import ModuleType

import torch
from torch import Tensor

from mbconv.kernels.norm import wide
from mbconv.kernels.parts import nothing, plus

NARROW = 48  # channels, up to which the input's covariance costs less than a pass over the output


def is_narrow(weight: Tensor) -> bool:
    """Whether the input's moments are to be used for this expansion [E, C, 1, 1]."""
    return weight.shape[1] <= NARROW and weight.shape[0] >= 3 * weight.shape[1]


def output_moments(spread: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean and biased variance [2, E] of the output, for maps stored as `dtype`.

    spread [1 + C, C]: the input's mean, then its covariance.
    """
    w = _matrix(weight, dtype)
    return torch.stack([w @ spread[0], ((w @ spread[1:]) * w).sum(1).clamp_min(0)])


class ExpansionBackward:
    """From gradients behind the norm, or at the output itself, to those at x and at the weight.

    x [N, H, W, C], weight [E, C, 1, 1], norm [4, E]. With `spread`, or where the norm's statistics
    are constants (`frozen`), the gradients that `add` is given are those behind the norm.
    """

    def __init__(
        self,
        k: ModuleType,
        x: Tensor,
        weight: Tensor,
        norm: Tensor,
        spread: Tensor,
        frozen: bool,
        need_dx: bool,
    ) -> None:
        self.weight, self.norm, self.spread, self.need_dx = weight, norm, spread, need_dx
        self.behind_norm = frozen or bool(spread.numel())
        self.maps = self.x = x
        self.own = _matrix(weight, x.dtype)
        scaled = self.own
        if self.behind_norm:
            self.scale = norm[2] * norm[1]
            scaled = self.scale[:, None] * self.own
        if spread.numel():  # less its mean
            one = torch.ones_like(spread[0])
            self.x = k.normalise(x, torch.stack([spread[0], one, one, 0 * one]), "none")
        self.k, self.columns = k, scaled.t()
        self.dx = torch.empty_like(x) if need_dx else nothing(x)
        self.dw: Tensor | None = None

    def add(self, part: slice, grad: Tensor) -> None:
        """The gradients [n, H, W, E] of these samples."""
        if self.need_dx:
            self.k.product(grad, self.columns, self.dx[part])
        self.dw = plus(self.dw, self.k.weight_gradient(grad, self.x[part]))

    def expanded(self, part: slice) -> Tensor:
        """The expansion's output for these samples, anew."""
        anew: Tensor = self.k.product(self.maps[part], self.weight.flatten(1))
        return anew

    def finish(self, means: Tensor, addend: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gradients at x (plus `addend`; empty unless needed) and at the weight.

        `means` [2, E] are those of `reference.apply`.
        """
        x, dw = self.x, self.dw
        assert dw is not None
        if self.behind_norm:
            dw = self.scale[:, None] * dw
        if self.spread.numel():
            along = self.scale * means[1] * self.norm[1]  # what is taken off along n
            taken = self.own * along[:, None]
            dw = dw - taken @ self.spread[1:] * (x.numel() // x.shape[3])
            if self.need_dx:
                matrix, row = taken.t() @ self.own, (self.scale * means[0]) @ self.own
                rest = torch.addmm(-row.to(x.dtype), x.flatten(0, 2), -matrix.to(x.dtype))
                self.dx += rest.view(x.shape)
        if addend is not None and self.need_dx:
            self.dx += addend
        return self.dx, dw.view(self.weight.shape).to(self.weight.dtype)


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[E, C], as exact as maps of `dtype` are multiplied with it."""
    rounded = weight.flatten(1).to(dtype)
    return rounded.to(wide(rounded))
