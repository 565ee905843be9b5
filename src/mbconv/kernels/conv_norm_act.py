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
from mbconv.kernels.parts import act_named, nothing, waited_for
from mbconv.kernels.reference import After, Geometry


@operator
def conv_norm_act(
    x: Tensor, weight: Tensor, affine: Tensor, running: Tensor | None, act: str,
    geometry: list[int], eps: float, pooled: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """act(batch norm(convolution of x)); `pooled`: the mean of that over the pixels, and no map.

    x [N, C, H, W], weight [C', C, k, k], or depthwise [C, 1, k, k]; affine [2, C']: gamma and beta;
    `running` of that shape holds mean and variance that are constants, without it the batch's are
    taken; geometry: kernel, stride, rows of zeros above, columns left, dilation. There is a pixel.

    Returns y [N, C', H', W'] or [N, C'], and without gradient the convolution's output
    [N, H', W', C'] (empty unless `keep`: backward needs it) and the batch's mean and biased
    variance [2, C'] (empty where they are constants).
    """
    k, maps, place = backend(x), channels_last(x), Geometry(*geometry)
    if compiled(x, weight, place):
        return native_conv.forward(
            maps, weight, affine, running, act_named(act), place, eps, pooled, keep
        )
    c, taken = convolve(k, maps, None, "none", weight, place, statistics=running is None)
    statistics = taken if running is None else running.to(wide(x))
    assert statistics is not None
    norm = pack(affine.to(wide(x)), statistics, eps)
    y = k.pool(c, norm, act).to(x.dtype) if pooled else k.normalise(c, norm, act)
    return (
        y if pooled else y.permute(0, 3, 1, 2),
        c if keep else nothing(x),
        statistics if running is None else nothing(statistics),
    )


def compiled(x: Tensor, weight: Tensor, place: Geometry, need_dx: bool = False) -> bool:
    """Whether one call of the native kernels computes it, x [N, C, H, W] in its format."""
    return backend(x) is native and native_conv.fit(x, weight, place, need_dx)


@operator
def conv_norm_act_backward(
    grad: Tensor, x: Tensor, weight: Tensor, affine: Tensor, c: Tensor, statistics: Tensor,
    act: str, geometry: list[int], eps: float, pooled: bool, frozen: bool, need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients at x (empty if not needed), weight and affine; grad is that of y.

    `frozen`: `statistics` are constants.
    """
    k, maps, place, kind = backend(x), channels_last(x), Geometry(*geometry), act_named(act)
    g = offset = None
    if pooled:
        offset = grad.to(wide(x)).contiguous() / (c.shape[1] * c.shape[2])
    else:
        g = channels_last(grad)
    if compiled(x, weight, place, need_dx):
        return native_conv.backward(
            maps, weight, affine, c, statistics, kind, place, eps, g, offset, frozen, need_dx
        )
    norm = pack(affine.to(wide(x)), statistics, eps)
    sums, _ = k.reduce(c, g, norm, kind, gated=pooled)
    total = sums[:, :2].sum(0) if offset is None else (sums[:, 2:4] * offset[:, None]).sum(0)
    means = norm_means(total, c, frozen)
    after = After(c, norm, means, None, offset)
    dx, dweight = convolve_backward(k, maps, g, kind, weight, place, after, need_dx)
    return (
        dx.permute(0, 3, 1, 2) if need_dx else nothing(x),
        torch.empty_like(weight).copy_(dweight),  # in its layout
        total.flip(0).to(affine.dtype),
    )


@fake(conv_norm_act)
def _(x, weight, affine, running, act, geometry, eps, pooled, keep):  # type: ignore[no-untyped-def]
    n, size, channels = x.shape[0], Geometry(*geometry).output(*x.shape[2:]), weight.shape[0]
    c = x.new_empty(n, *size, channels)
    y = x.new_empty(n, channels) if pooled else torch.empty_like(c).permute(0, 3, 1, 2)
    taken = x.new_empty(2 if running is None else 0, channels, dtype=wide(x))
    return y, c if keep else nothing(x), taken if running is None else nothing(taken)


@fake(conv_norm_act_backward)
def _(grad, x, weight, affine, c, statistics, act, geometry, eps, pooled, frozen, need_dx):  # type: ignore[no-untyped-def]
    n, channels, height, width = x.shape
    dx = x.new_empty(n, height, width, channels).permute(0, 3, 1, 2) if need_dx else nothing(x)
    return dx, torch.empty_like(weight), torch.empty_like(affine)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, affine, running, *ctx.numbers, _ = inputs  # act to pooled
    ctx.frozen = running is not None
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, affine, output[1], running if ctx.frozen else output[2])


def _grad(ctx, grad, *_):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 9
    need_dx, saved = ctx.needs_input_grad[0], ctx.saved_tensors  # to be unpacked once
    waited_for(saved[3])
    dx, dweight, daffine = conv_norm_act_backward(grad, *saved, *ctx.numbers, ctx.frozen, need_dx)
    return dx if need_dx else None, dweight, daffine, *[None] * 6


differentiate(conv_norm_act, _grad, _setup)


@register_flop_formula(torch.ops.mbconv.conv_norm_act)
def _(x, weight, affine, running, act, geometry, *_, out_shape, **__):  # type: ignore[no-untyped-def]
    return _flops(x, weight, geometry)


@register_flop_formula(torch.ops.mbconv.conv_norm_act_backward)
def _(grad, x, weight, affine, c, statistics, act, geometry, eps, pooled, frozen, need_dx, **_):  # type: ignore[no-untyped-def]
    return (1 + need_dx) * _flops(x, weight, geometry)


def _flops(x: Any, weight: Any, geometry: list[int]) -> int:
    """Two for each multiply-add, from shapes."""
    return int(2 * x[0] * prod(Geometry(*geometry).output(x[2], x[3])) * prod(weight))
