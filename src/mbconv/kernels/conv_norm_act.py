"""Convolution, batch norm and activation as one operator: stem, head, and triples outside blocks.

For backward it keeps its input, the convolution's output and small vectors. The native kernels
compute 1x1 convolutions and those of a few input channels in compiled code; any other convolution
is the depthwise kernel's or the library's, between the native passes.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mbconv.kernels import native, native_conv
from mbconv.kernels.backward import norm_means
from mbconv.kernels.dispatch import backend
from mbconv.kernels.middle import convolve, convolve_backward
from mbconv.kernels.norm import channels_last, pack, wide
from mbconv.kernels.operator import differentiate, fake, operator
from mbconv.kernels.parts import act_named, nothing
from mbconv.kernels.reference import After, Geometry


@operator
def conv_norm_act(
    x: Tensor, weight: Tensor, affine: Tensor, act: str, geometry: list[int], eps: float,
    pooled: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """act(batch norm(convolution of x)); `pooled`: the mean of that over the pixels, and no map.

    x [N, C, H, W], weight [C', C, k, k], or depthwise [C, 1, k, k]; affine [2, C']: gamma and beta;
    geometry: kernel, stride, rows of zeros above, columns left, dilation. At least one pixel.

    Returns y [N, C', H', W'] or [N, C'], and without gradient the convolution's output
    [N, H', W', C'] and the batch's mean and biased variance [2, C'].
    """
    k, maps, place = backend(x), channels_last(x), Geometry(*geometry)
    if k is native and native_conv.fit(x, weight, place):
        return native_conv.forward(maps, weight, affine, act_named(act), place, eps, pooled)
    c, statistics = convolve(k, maps, None, "none", weight, place, statistics=True)
    assert statistics is not None
    norm = pack(affine.to(wide(x)), statistics, eps)
    if pooled:
        return k.pool(c, norm, act).to(x.dtype), c, statistics
    return k.normalise(c, norm, act).permute(0, 3, 1, 2), c, statistics


@operator
def conv_norm_act_backward(
    grad: Tensor, x: Tensor, weight: Tensor, affine: Tensor, c: Tensor, statistics: Tensor,
    act: str, geometry: list[int], eps: float, pooled: bool, need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients at x (empty if not needed), weight and affine; grad is that of y."""
    k, maps, place, kind = backend(x), channels_last(x), Geometry(*geometry), act_named(act)
    g = offset = None
    if pooled:
        offset = grad.to(wide(x)).contiguous() / (c.shape[1] * c.shape[2])
    else:
        g = channels_last(grad)
    if k is native and native_conv.fit(x, weight, place, need_dx):
        return native_conv.backward(
            maps, weight, affine, c, statistics, kind, place, eps, g, offset, need_dx
        )
    norm = pack(affine.to(wide(x)), statistics, eps)
    sums, _ = k.reduce(c, g, norm, kind, gated=pooled)
    total = sums[:, :2].sum(0) if offset is None else (sums[:, 2:4] * offset[:, None]).sum(0)
    means = norm_means(total, c, frozen=False)
    after = After(c, norm, means, None, offset)
    dx, dweight = convolve_backward(k, maps, g, kind, weight, place, after, need_dx)
    return (
        dx.permute(0, 3, 1, 2) if need_dx else nothing(x),
        torch.empty_like(weight).copy_(dweight),  # in its layout
        total.flip(0).to(affine.dtype),
    )


@fake(conv_norm_act)
def _(x, weight, affine, act, geometry, eps, pooled):  # type: ignore[no-untyped-def]
    n, size, channels = x.shape[0], Geometry(*geometry).output(*x.shape[2:]), weight.shape[0]
    c = x.new_empty(n, *size, channels)
    y = x.new_empty(n, channels) if pooled else torch.empty_like(c).permute(0, 3, 1, 2)
    return y, c, x.new_empty(2, channels, dtype=wide(x))


@fake(conv_norm_act_backward)
def _(grad, x, weight, affine, c, statistics, act, geometry, eps, pooled, need_dx):  # type: ignore[no-untyped-def]
    n, channels, height, width = x.shape
    dx = x.new_empty(n, height, width, channels).permute(0, 3, 1, 2) if need_dx else nothing(x)
    return dx, torch.empty_like(weight), torch.empty_like(affine)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, affine, *ctx.numbers = inputs  # act to pooled
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, affine, *output[1:])


def _grad(ctx, grad, *_):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 7
    need_dx = ctx.needs_input_grad[0]
    dx, dweight, daffine = conv_norm_act_backward(grad, *ctx.saved_tensors, *ctx.numbers, need_dx)
    return dx if need_dx else None, dweight, daffine, *[None] * 4


differentiate(conv_norm_act, _grad, _setup)


@register_flop_formula(torch.ops.mbconv.conv_norm_act)
def _(x, weight, affine, act, geometry, *_, out_shape, **__):  # type: ignore[no-untyped-def]
    return _flops(x, weight, geometry)


@register_flop_formula(torch.ops.mbconv.conv_norm_act_backward)
def _(grad, x, weight, affine, c, statistics, act, geometry, eps, pooled, need_dx, **_):  # type: ignore[no-untyped-def]
    return (1 + need_dx) * _flops(x, weight, geometry)


def _flops(x: Any, weight: Any, geometry: list[int]) -> int:
    """Two for each multiply-add, from shapes."""
    return int(2 * x[0] * prod(Geometry(*geometry).output(x[2], x[3])) * prod(weight))
