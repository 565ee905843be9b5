"""The depthwise convolution alone, for networks whose norms are frozen and folded."""

from math import prod

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mbconv.kernels.dispatch import backend
from mbconv.kernels.norm import channels_last, wide
from mbconv.kernels.operator import differentiate, fake, operator
from mbconv.kernels.reference import Geometry


@operator
def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: list[int]) -> Tensor:
    """Depthwise convolution, [N, C, H, W] -> [N, C, ceil(H/stride), ceil(W/stride)].

    weight [C, 1, k, k], bias [C]; geometry: kernel, stride, rows of zeros above, columns left,
    dilation.
    """
    bias = None if bias is None else bias.to(wide(x)).contiguous()
    y, _ = backend(x).depthwise(
        channels_last(x), None, "none", weight.to(wide(x)).contiguous(), Geometry(*geometry),
        bias=bias,
    )  # fmt: skip
    result: Tensor = y.permute(0, 3, 1, 2)
    return result


@operator
def depthwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: list[int]
) -> tuple[Tensor, Tensor]:
    dx, dw, _ = backend(x).depthwise_backward(
        channels_last(x), channels_last(grad), None, "none", weight.to(wide(x)).contiguous(),
        Geometry(*geometry),
    )  # fmt: skip
    return dx.permute(0, 3, 1, 2), dw.to(weight.dtype)


@fake(depthwise)
def _(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: list[int]) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(n, *Geometry(*geometry).output(h, w), c).permute(0, 3, 1, 2)


@fake(depthwise_backward)
def _(grad: Tensor, x: Tensor, weight: Tensor, geometry: list[int]) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    dw = torch.empty_like(weight, memory_format=torch.contiguous_format)
    return x.new_empty(n, h, w, c).permute(0, 3, 1, 2), dw


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, bias, ctx.geometry = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight)


def _grad(ctx, grad):  # type: ignore[no-untyped-def]
    dx, dw = depthwise_backward(grad, *ctx.saved_tensors, ctx.geometry)
    learns = ctx.bias_dtype is not None and ctx.needs_input_grad[2]
    db = grad.sum((0, 2, 3), dtype=ctx.bias_dtype) if learns else None
    return dx, dw, db, None


differentiate(depthwise, _grad, _setup)


@register_flop_formula(torch.ops.mbconv.depthwise)
def _(x, weight, *_, out_shape, **__):  # type: ignore[no-untyped-def]
    return 2 * prod(out_shape) * prod(weight[1:])


@register_flop_formula(torch.ops.mbconv.depthwise_backward)
def _(grad, x, weight, *_, **__):  # type: ignore[no-untyped-def]
    return 4 * prod(grad) * prod(weight[1:])
