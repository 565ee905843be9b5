"""What is kept takes over from what goes: linear layers fitted again to their old outputs."""

import torch
from torch import Tensor

_RIDGE = 1e-6  # of the mean variance, so that copies of a channel have an inverse


class Moments:
    """Mean and covariance of vectors, over all that were added; `shape` [..., C]."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Vectors [..., N, C]."""
        rows = rows.double()
        self.count += rows.shape[-2]
        total, products = rows.sum(-2), rows.transpose(-1, -2) @ rows
        self._sum = total if self._sum is None else self._sum + total
        self._products = products if self._products is None else self._products + products

    @property
    def mean(self) -> Tensor:
        assert self._sum is not None
        return self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        assert self._products is not None
        mean = self.mean
        return self._products / self.count - mean.unsqueeze(-1) * mean.unsqueeze(-2)


def elimination(weight: Tensor, covariance: Tensor, count: int) -> list[int]:
    """Which `count` columns of `weight` [O, C] to leave out, the least missed first.

    Each time the one whose loss, made good by those that stay, changes the outputs least on
    inputs of that covariance [C, C]: Optimal Brain Surgeon (Hassibi and Stork 1993) of one layer.
    """
    weight = weight.double().clone()
    inverse = torch.linalg.inv(_ridged(covariance))
    gone = torch.zeros(weight.shape[1], dtype=torch.bool, device=weight.device)
    order = []
    for _ in range(count):
        diagonal = inverse.diagonal().clamp(min=torch.finfo(torch.float64).tiny)
        missed = weight.square().sum(0) / diagonal
        missed[gone] = torch.inf
        worst = int(missed.argmin())
        row = inverse[worst] / inverse[worst, worst]
        weight.addr_(weight[:, worst].clone(), row, alpha=-1)
        inverse.addr_(inverse[:, worst].clone(), row, alpha=-1)
        gone[worst] = True
        order.append(worst)
    return order


def refitted(weight: Tensor, moments: Moments, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [..., O, K] on the columns `kept` that come nearest to `weight` [..., O, C].

    Least squares on the inputs of `moments`; also by how much the mean output falls, [..., O],
    for a bias to make good.
    """
    given, covariance = weight.double(), _ridged(moments.covariance)
    columns = covariance[..., :, kept]
    fitted = torch.linalg.solve(columns[..., kept, :], (given @ columns).transpose(-1, -2))
    made = fitted.transpose(-1, -2)
    fall = given @ moments.mean.unsqueeze(-1) - made @ moments.mean[..., kept].unsqueeze(-1)
    return made.to(weight), fall.squeeze(-1).to(weight)


def _ridged(covariance: Tensor) -> Tensor:
    """The covariance with a little of its mean variance on the diagonal."""
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    ridge = _RIDGE * diagonal.mean(-1, keepdim=True) + torch.finfo(torch.float64).tiny
    return covariance + torch.diag_embed(ridge.expand_as(diagonal))
