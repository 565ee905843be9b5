"""Batch norm and activation as operators that keep the convolution's output and no more.

Several norms travel in one tensor: `affine` [2, C] holds gamma and beta, `statistics` [2, C] mean
and biased variance, C being the channels of all of them, one after the other.
"""

import torch
from torch import Tensor

from mbconv.kernels.dispatch import backend
from mbconv.kernels.reference import Act


def wide(x: Tensor) -> torch.dtype:
    """The format that maps like x are computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def channels_last(x: Tensor) -> Tensor:
    """[N, C, H, W] in any layout -> [N, H, W, C] without gaps; no copy where it lies so."""
    return x.permute(0, 2, 3, 1).contiguous()


def pack(affine: Tensor, statistics: Tensor, eps: float) -> Tensor:
    """[2, C] and [2, C] -> mean, 1 / deviation, gamma, beta: [4, C]."""
    packed = torch.cat([statistics, affine])
    packed[1].add_(eps).rsqrt_()
    return packed


@torch.library.custom_op("mbconv::norm_act", mutates_args=())
def norm_act(x: Tensor, affine: Tensor, act: str, eps: float) -> tuple[Tensor, Tensor]:
    """act(batch norm(x)), and the batch's statistics [2, C], which have no gradient.

    x [N, C, H, W] with at least one pixel, affine [2, C].
    """
    k, maps = backend(x), channels_last(x)
    statistics = k.moments(maps)
    y = k.normalise(maps, pack(affine.to(wide(x)), statistics, eps), act)
    return y.permute(0, 3, 1, 2), statistics


@torch.library.custom_op("mbconv::norm_act_backward", mutates_args=())
def norm_act_backward(
    grad: Tensor, x: Tensor, affine: Tensor, statistics: Tensor, act: str, eps: float
) -> tuple[Tensor, Tensor]:
    k, maps, g = backend(x), channels_last(x), channels_last(grad)
    norm = pack(affine.to(wide(x)), statistics, eps)
    sums = k.reduce(maps, g, norm, act)[0][:, :2].sum(0)
    dx = k.apply(maps, g, norm, act, sums / (maps.numel() // maps.shape[3]))
    return dx.permute(0, 3, 1, 2), sums.flip(0).to(affine.dtype)


@torch.library.custom_op("mbconv::norm_act_pool", mutates_args=())
def norm_act_pool(x: Tensor, affine: Tensor, act: str, eps: float) -> tuple[Tensor, Tensor]:
    """Mean over the pixels of act(batch norm(x)), [N, C] in x's format, and the statistics."""
    k, maps = backend(x), channels_last(x)
    statistics = k.moments(maps)
    mean = k.pool(maps, pack(affine.to(wide(x)), statistics, eps), act)
    return mean.to(x.dtype), statistics


@torch.library.custom_op("mbconv::norm_act_pool_backward", mutates_args=())
def norm_act_pool_backward(
    grad: Tensor, x: Tensor, affine: Tensor, statistics: Tensor, act: str, eps: float
) -> tuple[Tensor, Tensor]:
    k, maps = backend(x), channels_last(x)
    norm = pack(affine.to(wide(x)), statistics, eps)
    pixels = maps.shape[1] * maps.shape[2]
    offset = grad.to(wide(x)).contiguous() / pixels
    sums = (k.reduce(maps, None, norm, act, gated=True)[0][:, 2:4] * offset[:, None]).sum(0)
    dx = k.apply(maps, None, norm, act, sums / (pixels * maps.shape[0]), offset=offset)
    return dx.permute(0, 3, 1, 2), sums.flip(0).to(affine.dtype)


def _like(x: Tensor) -> Tensor:
    """An empty tensor as the operators return maps: channels last."""
    n, c, h, w = x.shape
    return x.new_empty(n, h, w, c).permute(0, 3, 1, 2)


def _statistics(x: Tensor) -> Tensor:
    return x.new_empty(2, x.shape[1], dtype=wide(x))


@norm_act.register_fake
def _(x: Tensor, affine: Tensor, act: str, eps: float) -> tuple[Tensor, Tensor]:
    return _like(x), _statistics(x)


@norm_act_pool.register_fake
def _(x: Tensor, affine: Tensor, act: str, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], x.shape[1]), _statistics(x)


@norm_act_backward.register_fake
@norm_act_pool_backward.register_fake
def _backward_fake(
    grad: Tensor, x: Tensor, affine: Tensor, statistics: Tensor, act: str, eps: float
) -> tuple[Tensor, Tensor]:
    return _like(x), torch.empty_like(affine)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, affine, ctx.act, ctx.eps = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, affine, output[1])


def _norm_act_grad(ctx, grad, _):  # type: ignore[no-untyped-def]
    if grad is None:
        return None, None, None, None
    return *norm_act_backward(grad, *ctx.saved_tensors, ctx.act, ctx.eps), None, None


def _norm_act_pool_grad(ctx, grad, _):  # type: ignore[no-untyped-def]
    if grad is None:
        return None, None, None, None
    return *norm_act_pool_backward(grad, *ctx.saved_tensors, ctx.act, ctx.eps), None, None


norm_act.register_autograd(_norm_act_grad, setup_context=_setup)
norm_act_pool.register_autograd(_norm_act_pool_grad, setup_context=_setup)

__all__ = ["Act", "channels_last", "norm_act", "norm_act_pool", "pack", "wide"]
