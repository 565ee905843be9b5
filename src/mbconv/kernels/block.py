"""A whole MBConv block as one operator with one backward.

For backward it keeps the block's input and each convolution's output once (expanded e, depthwise
d, projected p), in the format that they are computed in, and small vectors; plain modules keep
about twice as much of every width. Everything else is recomputed inside the passes that need it.
The 1x1 convolutions are matrix products of the library, on [pixels, channels].
"""

from types import ModuleType

import torch
from torch import Tensor

from mbconv.kernels.dispatch import backend
from mbconv.kernels.norm import channels_last, wide
from mbconv.kernels.parts import (
    Gate,
    Norms,
    nothing,
    per_channel,
    present,
    product,
    product_backward,
    weight_grad,
    widths,
)
from mbconv.kernels.reference import Geometry


@torch.library.custom_op("mbconv::block", mutates_args=())
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
    lean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """MBConv: expand, norm, act, depthwise, norm, act, gate, project, norm, drop-path, shortcut.

    x [N, C, H, W], expand [E, C, 1, 1] or None, depthwise [E, 1, k, k], project [C', E, 1, 1];
    affine [2, sum of widths]: gamma and beta of the norms in order. `running` of that shape holds
    means and variances that are constants; without it the batch's are taken. The gate is
    squeeze-and-excitation with the activation `gate_act` inside and `gate_sigmoid` (sigmoid or
    hard_sigmoid) at its end; with four times None there is none. `keep` [N] multiplies the
    branch (drop-path). geometry: kernel, stride, rows of zeros above, columns left.

    Returns y [N, C', H', W'], and without gradient: e, d, p ([N, H, W, channels]), the batch's
    statistics [2, sum of widths], the gate's means [N, E]; empty where there is none (e also when
    `lean`, which recomputes it).
    """
    k, maps, place = backend(x), channels_last(x), Geometry(*geometry)
    given = None if running is None else running.to(wide(x))
    norms = Norms(affine.to(wide(x)), given, eps, widths(expand, depthwise, project))
    e, first = maps, None
    if expand is not None:
        e = product(maps, expand)
        first = norms.next(lambda: k.moments(e))
    weight = depthwise.to(wide(x)).contiguous()
    d, moments = k.depthwise(e, first, act, weight, place, statistics=given is None)
    second = norms.next(lambda: moments)
    gate = present(gate_reduce, gate_reduce_bias, gate_expand, gate_expand_bias)
    scale = pooled = None
    if gate:
        pooled = k.pool(d, second, act)
        scale = Gate(pooled, gate_act, gate_sigmoid, gate).scale
    p = product(k.normalise(d, second, act, scale), project)
    third = norms.next(lambda: k.moments(p))
    factor = None if keep is None else per_channel(keep, p)
    y = k.normalise(p, third, "none", factor, maps if residual else None)
    return (
        y.permute(0, 3, 1, 2),
        nothing(x) if expand is None or lean else e,
        d,
        p,
        torch.cat(norms.taken, 1) if norms.taken else nothing(third),
        nothing(third) if pooled is None else pooled,
    )


@torch.library.custom_op("mbconv::block_backward", mutates_args=())
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
    norms = Norms(affine.to(wide(x)), statistics.to(wide(x)), eps,
                  widths(expand, depthwise, project))  # fmt: skip
    first = None if expand is None else norms.next(lambda: None)
    second, third = norms.next(lambda: None), norms.next(lambda: None)
    gate = present(gate_reduce, gate_reduce_bias, gate_expand, gate_expand_bias)
    squeeze = Gate(pooled, gate_act, gate_sigmoid, gate) if gate else None

    dp, project_sums = _norm_backward(k, p, g, third, frozen, keep)
    db = product_backward(dp, project)
    dd, b, sums, dgate = _gated_backward(k, d, db, second, act, squeeze, frozen)
    dproject = weight_grad(dp, b, project)
    del dp, db, b

    if expand is None:
        e = maps
    elif not e.numel():
        e = product(maps, expand)
    weight = depthwise.to(wide(x)).contiguous()
    dz, ddepthwise, first_sums = k.depthwise_backward(e, dd, first, act, weight, place)
    del dd
    all_sums, dexpand = [sums, project_sums], nothing(x)
    if expand is None or first is None:
        dx = dz + g if residual else dz
    else:
        all_sums.insert(0, first_sums)
        de = k.apply(e, dz, first, "none", _means(first_sums, e, frozen))
        dexpand = weight_grad(de, maps, expand)
        dx = product_backward(de, expand, g if residual else None) if need_dx else nothing(x)
    return (
        dx.permute(0, 3, 1, 2) if need_dx else nothing(x),
        dexpand,
        ddepthwise.to(depthwise.dtype),
        dproject,
        torch.cat(all_sums, 1).flip(0).to(affine.dtype),
        *(dgate or [nothing(x) for _ in range(4)]),
    )


def _means(sums: Tensor, of: Tensor, frozen: bool) -> Tensor:
    """What a norm's backward subtracts; nothing where its statistics are constants."""
    return torch.zeros_like(sums) if frozen else sums / (of.numel() // of.shape[3])


def _norm_backward(
    k: ModuleType, p: Tensor, g: Tensor, norm: Tensor, frozen: bool, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Through drop-path and the projection's norm: gradient at p, sums [2, C] for its affine."""
    factor = None if keep is None else per_channel(keep, p)
    sums = k.reduce(p, g, norm, "none")[0][:, :2]
    sums = sums.sum(0) if factor is None else (sums * factor[:, None]).sum(0)
    return k.apply(p, g, norm, "none", _means(sums, p, frozen), factor=factor), sums


def _gated_backward(
    k: ModuleType, d: Tensor, db: Tensor, norm: Tensor, act: str, gate: Gate | None, frozen: bool
) -> tuple[Tensor, Tensor, Tensor, list[Tensor] | None]:
    """Through gate, activation and norm of the depthwise convolution.

    Returns the gradient at d, the gate's output b anew, the sums [2, C], the gate's gradients.
    """
    scale = gate.scale if gate else None
    sums, b = k.reduce(d, db, norm, act, gated=gate is not None, factor=scale, output=True)
    offset = dgate = None
    if gate:
        dpooled, dgate = gate.backward(sums[:, 4])
        offset = dpooled / (d.shape[1] * d.shape[2])
        sums = sums[:, :2] * gate.scale[:, None] + sums[:, 2:4] * offset[:, None]
    sums = sums[:, :2].sum(0)
    means = _means(sums, d, frozen)
    return k.apply(d, db, norm, act, means, factor=scale, offset=offset), b, sums, dgate


def _empty_map(x: Tensor, height: int, width: int, channels: int) -> Tensor:
    return x.new_empty(x.shape[0], height, width, channels)


@block.register_fake
def _(x, expand, depthwise, project, affine, running, gate_reduce, gate_reduce_bias,  # type: ignore[no-untyped-def]
      gate_expand, gate_expand_bias, keep, act, gate_act, gate_sigmoid, geometry, eps, residual,
      lean):  # fmt: skip
    (height, width), middle, out = x.shape[2:], depthwise.shape[0], project.shape[0]
    size = Geometry(*geometry).output(height, width)
    vectors = affine.shape if running is None else (0,)
    means = (0,) if gate_reduce is None else (x.shape[0], middle)
    return (
        _empty_map(x, *size, out).permute(0, 3, 1, 2),
        nothing(x) if expand is None or lean else _empty_map(x, height, width, middle),
        _empty_map(x, *size, middle),
        _empty_map(x, *size, out),
        x.new_empty(vectors, dtype=wide(x)),
        x.new_empty(means, dtype=wide(x)),
    )


@block_backward.register_fake
def _(grad, x, expand, depthwise, project, affine, statistics, gate_reduce, gate_reduce_bias,  # type: ignore[no-untyped-def]
      gate_expand, gate_expand_bias, keep, e, d, p, pooled, act, gate_act, gate_sigmoid,
      geometry, eps, residual, frozen, need_dx):  # fmt: skip
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
    _, e, d, p, taken, pooled = output
    ctx.mark_non_differentiable(e, d, p, taken, pooled)
    ctx.set_materialize_grads(False)
    ctx.frozen = running is not None
    statistics = running if ctx.frozen else taken
    ctx.save_for_backward(
        x, expand, depthwise, project, affine, statistics, *gate_keep, e, d, p, pooled
    )


def _grad(ctx, grad, *_):  # type: ignore[no-untyped-def]
    needs = ctx.needs_input_grad
    if grad is None:
        return (None,) * len(needs)
    dx, dexpand, ddepthwise, dproject, daffine, *dgate = block_backward(
        grad, *ctx.saved_tensors, *ctx.numbers, ctx.frozen, needs[0]
    )
    grads = (dx, dexpand, ddepthwise, dproject, daffine, None, *dgate, None)
    given = (g if need else None for g, need in zip(grads, needs, strict=False))
    return *given, *[None] * (len(needs) - len(grads))


block.register_autograd(_grad, setup_context=_setup)
