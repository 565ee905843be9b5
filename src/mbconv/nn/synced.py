"""Batch norm over all processes' pictures; torch's own needs a GPU."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncBatchNorm(nn.BatchNorm2d):
    """In training the statistics are those of the whole batch, of all processes together.

    [N, C, H, W] or [N, C] -> the same. All processes must call it equally often. In evaluation,
    and outside a process group, it is batch norm. Never fused: its statistics cannot be known
    before the others' are.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(input)
        y: Tensor
        y, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return y

    def _check_input_dim(self, input: Tensor) -> None:
        """Two dimensions will do as well as four."""


def sync_norms(model: nn.Module) -> None:
    """Replace every batch norm of `model` by one over all processes, in place."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                synced = SyncBatchNorm(child.num_features, child.eps, child.momentum)
                synced.weight, synced.bias = child.weight, child.bias
                for buffer, value in child.named_buffers():
                    setattr(synced, buffer, value)
                setattr(parent, name, synced)


class _Normalise(torch.autograd.Function):
    """x [N, C, ...], weight and bias [C] -> y like x, mean [C], biased variance [C], count."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        wide = _wide(x)
        variance, mean = torch.var_mean(wide, _axes(x), correction=0)
        own = torch.cat([mean, variance, mean.new_tensor([x.numel() / x.shape[1]])])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        widths = [x.shape[1], x.shape[1], 1]
        means, variances, counts = torch.split(torch.stack(parts), widths, dim=1)
        total, shares = counts.sum(), counts / counts.sum()
        mean = (means * shares).sum(0)
        variance = ((variances + (means - mean).square()) * shares).sum(0)
        spread = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, spread, total)
        y = (wide - _along(mean, x)) * _along(spread * weight, x) + _along(bias, x)
        ctx.mark_non_differentiable(mean, variance, total)
        return y.to(x.dtype), mean, variance, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        x, weight, mean, spread, total = ctx.saved_tensors
        wide = _wide(grad)
        normal = (_wide(x) - _along(mean, x)) * _along(spread, x)
        bias_grad, weight_grad = wide.sum(_axes(x)), (wide * normal).sum(_axes(x))
        sums = torch.stack([bias_grad, weight_grad])
        dist.all_reduce(sums)
        offset, slope = sums / total
        rest = wide - _along(offset, x) - normal * _along(slope, x)
        return (rest * _along(spread * weight, x)).to(x.dtype), weight_grad, bias_grad, None


def _axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _along(values: Tensor, x: Tensor) -> Tensor:
    """[C] in a shape that spreads over x."""
    return values.view(-1, *[1] * (x.ndim - 2))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
