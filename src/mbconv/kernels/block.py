"""A whole MBConv block as one operator with one backward.

For backward it keeps the block's input and each convolution's output once (expanded e, depthwise
d, projected p), in the format that they are computed in, and small vectors; plain modules keep
about twice as much of every width. Everything else is recomputed inside the passes that need it.
The native kernels compute it as two calls of compiled code; what is below is the same step by step.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mbconv.kernels import native, native_block
from mbconv.kernels.backward import expanded_backward, gated_backward, norm_backward
from mbconv.kernels.dispatch import backend
from mbconv.kernels.middle import convolve, convolve_backward
from mbconv.kernels.native_block import Parameters
from mbconv.kernels.norm import channels_last, wide
from mbconv.kernels.operator import differentiate, fake, operator
from mbconv.kernels.parts import (
    Gate,
    Norms,
    act_named,
    is_narrow,
    nothing,
    output_moments,
    per_channel,
    present,
    waited_for,
    widths,
)
from mbconv.kernels.reference import Geometry


@operator
def block(
    x: Tensor,
    expand: Tensor | None,
    depthwise: Tensor,
    project: Tensor,
    affine: Tensor,
    running: Tensor | None,
    gate_reduce: Tensor | None,
    gate_reduce_bias: Tensor | None,
    gate_expand: Tensor | None,
    gate_expand_bias: Tensor | None,
    keep: Tensor | None,
    act: str,
    gate_act: str,
    gate_sigmoid: str,
    geometry: list[int],
    eps: float,
    residual: bool,
    kept: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """MBConv: expand, norm, act, depthwise, norm, act, gate, project, norm, drop-path, shortcut.

    x [N, C, H, W], expand [E, C, 1, 1] or None, depthwise [E, 1, k, k] (without expand it may be
    dense, [E, C, k, k]: Fused-MBConv), project [C', E, 1, 1];
    affine [2, sum of widths]: gamma and beta of the norms in order. `running` of that shape holds
    means and variances that are constants; without it the batch's are taken. The gate is
    squeeze-and-excitation with the activation `gate_act` inside and `gate_sigmoid` (sigmoid or
    hard_sigmoid) at its end; with four times None there is none. `keep` [N] multiplies the
    branch (drop-path). geometry: kernel, stride, rows of zeros above, columns left, dilation.

    Returns y [N, C', H', W'], and without gradient: e, d, p ([N, H, W, channels]), the batch's
    statistics [2, sum of widths], the gate's means [N, E], mean and covariance of a narrow x
    [1 + C, C]; empty where there is none. `kept`: "all" maps for backward, "lean" all but e, which
    is recomputed, or "none" of e, d and p, and there is no backward.
    """
    k, maps, place = backend(x), channels_last(x), Geometry(*geometry)
    own = Parameters(
        expand, depthwise, project, affine,
        (gate_reduce, gate_reduce_bias, gate_expand, gate_expand_bias), keep,
        act_named(act), act_named(gate_act), gate_sigmoid, place, eps, residual,
    )  # fmt: skip
    if k is native and own.fit(x):
        narrow = expand is not None and is_narrow(expand)
        return native_block.forward(maps, own, running, kept, narrow)
    given = None if running is None else running.to(wide(x))
    norms = Norms(affine.to(wide(x)), given, eps, widths(expand, depthwise, project))
    kind, learnt, spread = act_named(act), given is None, nothing(affine.to(wide(x)))
    e = nothing(x)
    if expand is None:
        d, moments = convolve(k, maps, None, kind, depthwise, place, learnt)
    else:
        if learnt and is_narrow(expand):
            spread = k.covariance(maps)
        whole = k.product(maps, expand.flatten(1))
        first = norms.next(lambda: (
            output_moments(spread, expand, x.dtype) if spread.numel() else k.moments(whole)
        ))  # fmt: skip
        d, moments = convolve(k, whole, first, kind, depthwise, place, learnt)
        e = whole if kept == "all" else e
    second = norms.next(lambda: moments)
    gate = present(gate_reduce, gate_reduce_bias, gate_expand, gate_expand_bias)
    scale = pooled = None
    if gate:
        pooled = k.pool(d, second, act)
        scale = Gate(pooled, gate_act, gate_sigmoid, gate).scale
    p = k.product(k.normalise(d, second, act, scale), project.flatten(1))
    third = norms.next(lambda: k.moments(p))
    factor = None if keep is None else per_channel(keep, p)
    y = k.normalise(p, third, "none", factor, maps if residual else None)
    return (
        y.permute(0, 3, 1, 2),
        e,
        nothing(x) if kept == "none" else d,
        nothing(x) if kept == "none" else p,
        torch.cat(norms.taken, 1) if norms.taken else nothing(third),
        nothing(third) if pooled is None else pooled,
        spread,
    )


@operator
def block_backward(
    grad: Tensor,
    x: Tensor,
    expand: Tensor | None,
    depthwise: Tensor,
    project: Tensor,
    affine: Tensor,
    statistics: Tensor,
    gate_reduce: Tensor | None,
    gate_reduce_bias: Tensor | None,
    gate_expand: Tensor | None,
    gate_expand_bias: Tensor | None,
    keep: Tensor | None,
    e: Tensor,
    d: Tensor,
    p: Tensor,
    pooled: Tensor,
    spread: Tensor,
    act: str,
    gate_act: str,
    gate_sigmoid: str,
    geometry: list[int],
    eps: float,
    residual: bool,
    frozen: bool,
    need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients at x, expand, depthwise, project, affine and the gate's four parameters.

    `frozen`: `statistics` are constants. What does not exist or is not needed is empty.
    """
    k, maps, g, place = backend(x), channels_last(x), channels_last(grad), Geometry(*geometry)
    own = Parameters(
        expand, depthwise, project, affine,
        (gate_reduce, gate_reduce_bias, gate_expand, gate_expand_bias), keep,
        act_named(act), act_named(gate_act), gate_sigmoid, place, eps, residual,
    )  # fmt: skip
    if k is native and own.fit(x):
        return native_block.backward(
            g, maps, own, (e, d, p, pooled, spread), statistics, frozen, need_dx
        )
    norms = Norms(affine.to(wide(x)), statistics.to(wide(x)), eps,
                  widths(expand, depthwise, project))  # fmt: skip
    first = None if expand is None else norms.next(lambda: None)
    second, third = norms.next(lambda: None), norms.next(lambda: None)
    gate = present(gate_reduce, gate_reduce_bias, gate_expand, gate_expand_bias)
    squeeze = Gate(pooled, gate_act, gate_sigmoid, gate) if gate else None

    dp, project_sums = norm_backward(k, p, g, third, frozen, keep)
    db, dproject, after, sums, dgate = gated_backward(
        k, d, dp, project, second, act, squeeze, frozen
    )
    del dp
    kind, all_sums, dexpand = act_named(act), [sums, project_sums], nothing(x)
    if expand is None or first is None:
        dx, ddepthwise = convolve_backward(k, maps, db, kind, depthwise, place, after, need_dx)
    else:
        dx, dexpand, ddepthwise, first_sums = expanded_backward(
            k, maps, e, db, expand, first, kind, depthwise.to(wide(x)).contiguous(), place, after,
            frozen,
        )  # fmt: skip
        all_sums.insert(0, first_sums)
    if residual and need_dx:
        dx = dx + g
    reduce, reduce_bias, widen, widen_bias = dgate or [nothing(x) for _ in range(4)]
    return (
        dx.permute(0, 3, 1, 2) if need_dx else nothing(x),
        dexpand,
        ddepthwise.to(depthwise.dtype),
        dproject,
        torch.cat(all_sums, 1).flip(0).to(affine.dtype),
        reduce,
        reduce_bias,
        widen,
        widen_bias,
    )


def _empty_map(x: Tensor, height: int, width: int, channels: int) -> Tensor:
    return x.new_empty(x.shape[0], height, width, channels)


@fake(block)
def _(x, expand, depthwise, project, affine, running, gate_reduce, gate_reduce_bias,  # type: ignore[no-untyped-def]
      gate_expand, gate_expand_bias, keep, act, gate_act, gate_sigmoid, geometry, eps, residual,
      kept):  # fmt: skip
    (height, width), middle, out = x.shape[2:], depthwise.shape[0], project.shape[0]
    size = Geometry(*geometry).output(height, width)
    vectors = affine.shape if running is None else (0,)
    means = (0,) if gate_reduce is None else (x.shape[0], middle)
    narrow = expand is not None and running is None and is_narrow(expand)
    spread = (1 + x.shape[1], x.shape[1]) if narrow else (0,)
    return (
        _empty_map(x, *size, out).permute(0, 3, 1, 2),
        _empty_map(x, height, width, middle)
        if expand is not None and kept == "all"
        else nothing(x),
        nothing(x) if kept == "none" else _empty_map(x, *size, middle),
        nothing(x) if kept == "none" else _empty_map(x, *size, out),
        x.new_empty(vectors, dtype=wide(x)),
        x.new_empty(means, dtype=wide(x)),
        x.new_empty(spread, dtype=wide(x)),
    )


@fake(block_backward)
def _(grad, x, expand, depthwise, project, affine, statistics, gate_reduce, gate_reduce_bias,  # type: ignore[no-untyped-def]
      gate_expand, gate_expand_bias, keep, e, d, p, pooled, spread, act, gate_act,
      gate_sigmoid, geometry, eps, residual, frozen, need_dx):  # fmt: skip
    def like(weight: Tensor | None) -> Tensor:
        return nothing(x) if weight is None else weight.new_empty(weight.shape)

    channels, height, width = x.shape[1:]
    return (
        _empty_map(x, height, width, channels).permute(0, 3, 1, 2) if need_dx else nothing(x),
        like(expand), like(depthwise), like(project), like(affine),
        like(gate_reduce), like(gate_reduce_bias), like(gate_expand), like(gate_expand_bias),
    )  # fmt: skip


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    (x, expand, depthwise, project, affine, running, *gate_keep) = inputs[:11]
    *ctx.numbers, _ = inputs[11:]  # as block_backward takes them: act to residual
    _, e, d, p, taken, pooled, spread = output
    ctx.mark_non_differentiable(e, d, p, taken, pooled, spread)
    ctx.set_materialize_grads(False)
    ctx.frozen = running is not None
    statistics = running if ctx.frozen else taken
    ctx.save_for_backward(
        x, expand, depthwise, project, affine, statistics, *gate_keep, e, d, p, pooled, spread
    )


def _grad(ctx, grad, *_):  # type: ignore[no-untyped-def]
    needs = ctx.needs_input_grad[:-1]  # the last is no input of ours
    if grad is None:
        return (None,) * len(needs)
    saved = ctx.saved_tensors  # to be unpacked once, checkpointing asks
    *_, p, _, _ = saved
    waited_for(p)
    dx, dexpand, ddepthwise, dproject, daffine, *dgate = block_backward(
        grad, *saved, *ctx.numbers, ctx.frozen, needs[0]
    )
    grads = (dx, dexpand, ddepthwise, dproject, daffine, None, *dgate, None)
    given = (g if need else None for g, need in zip(grads, needs, strict=False))
    return *given, *[None] * (len(needs) - len(grads))


differentiate(block, _grad, _setup)


@register_flop_formula(torch.ops.mbconv.block)
def _(x, expand, depthwise, project, affine, running, reduce, reduce_bias, widen, *_,  # type: ignore[no-untyped-def]
      out_shape, **__):  # fmt: skip
    return _flops(x, out_shape[0], expand, depthwise, project, reduce, widen)


@register_flop_formula(torch.ops.mbconv.block_backward)
def _(grad, x, expand, depthwise, project, affine, statistics, reduce, reduce_bias, widen, *_,  # type: ignore[no-untyped-def]
      **__):  # fmt: skip
    """Two for each of forward's, also where the input needs no gradient and one is left out."""
    return 2 * _flops(x, grad, expand, depthwise, project, reduce, widen)


def _flops(x: Any, y: Any, expand: Any, depthwise: Any, project: Any, *gate: Any) -> int:
    """Of the products, from shapes, as torch counts those of convolutions."""
    pictures, into, out = x[0], x[2] * x[3], y[2] * y[3]
    each = into * (prod(expand) if expand else 0) + out * (prod(depthwise) + prod(project))
    return int(2 * pictures * (each + sum(prod(weight) for weight in gate if weight)))
