"""A whole MBConv block as one operator with one backward.

For backward it keeps the block's input and each convolution's output once (expanded e, depthwise
d, projected p), in the format that they are computed in, and small vectors; plain modules keep
about twice as much of every width. Everything else is recomputed inside the passes that need it.
The 1x1 convolutions are matrix products of the library, on [pixels, channels].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mbconv.kernels.dispatch import backend
from mbconv.kernels.norm import channels_last, pack, wide
from mbconv.kernels.reference import Act, Geometry, slope_of, value_of


class _Norms:
    """The block's norms in order, [4, C] each, and the statistics that were taken on the way."""

    def __init__(
        self, affine: Tensor, statistics: Tensor | None, eps: float, widths: list[int]
    ) -> None:
        self.eps = eps
        self.affine = list(torch.split(affine, widths, 1))
        self.given = None if statistics is None else list(torch.split(statistics, widths, 1))
        self.taken: list[Tensor] = []

    def next(self, moments: Callable[[], tuple[Tensor, Tensor] | None]) -> Tensor:
        """The next norm, by the statistics that were given, or else by these moments."""
        if self.given is not None:
            return pack(self.affine.pop(0), self.given.pop(0), self.eps)
        found = moments()
        assert found is not None
        self.taken.append(torch.stack(found))
        return pack(self.affine.pop(0), self.taken[-1], self.eps)


def _widths(expand: Tensor | None, depthwise: Tensor, project: Tensor) -> list[int]:
    middle = depthwise.shape[0]
    return [*([] if expand is None else [middle]), middle, project.shape[0]]


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """1x1 convolution: [N, H, W, C] and [C', C, 1, 1] -> [N, H, W, C']."""
    y = torch.mm(x.flatten(0, 2), weight.flatten(1).to(x.dtype).t())
    return y.view(*x.shape[:3], -1)


def _product_backward(grad: Tensor, weight: Tensor, addend: Tensor | None = None) -> Tensor:
    """Gradient at the input of a 1x1 convolution, plus `addend` of the same shape."""
    rows, matrix = grad.flatten(0, 2), weight.flatten(1).to(grad.dtype)
    if addend is None:
        return torch.mm(rows, matrix).view(*grad.shape[:3], -1)
    return torch.addmm(addend.flatten(0, 2), rows, matrix).view(addend.shape)


def _weight_grad(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    dw = torch.mm(grad.flatten(0, 2).t(), x.flatten(0, 2))
    return dw.view(weight.shape).to(weight.dtype)


class _Gate:
    """Squeeze-and-excitation from the pooled means [N, C]: its scale, and the way back."""

    def __init__(self, pooled: Tensor, act: str, parameters: list[Tensor]) -> None:
        self.pooled, self.act, self.parameters = pooled, act, parameters
        reduce, reduce_bias, expand, expand_bias = (
            p.to(pooled.dtype).flatten(1) if p.ndim > 1 else p.to(pooled.dtype) for p in parameters
        )
        self.reduce, self.expand = reduce, expand
        self.squeezed = torch.addmm(reduce_bias, pooled, reduce.t())
        self.hidden = value_of(self.squeezed, _act(act))
        self.scale = torch.sigmoid(torch.addmm(expand_bias, self.hidden, expand.t()))

    def backward(self, grad: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Gradient of the scale [N, C] -> gradients of the pooled means and the parameters."""
        outer = grad * self.scale * (1 - self.scale)
        inner = outer.mm(self.expand) * slope_of(self.squeezed, _act(self.act))
        grads = [inner.t().mm(self.pooled), inner.sum(0), outer.t().mm(self.hidden), outer.sum(0)]
        own = [g.view(p.shape).to(p.dtype) for g, p in zip(grads, self.parameters, strict=True)]
        return inner.mm(self.reduce), own


def _act(name: str) -> Act:
    return name  # type: ignore[return-value]


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
    geometry: list[int],
    eps: float,
    residual: bool,
    lean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """MBConv: expand, norm, act, depthwise, norm, act, gate, project, norm, drop-path, shortcut.

    x [N, C, H, W], expand [E, C, 1, 1] or None, depthwise [E, 1, k, k], project [C', E, 1, 1];
    affine [2, sum of widths]: gamma and beta of the norms in order. `running` of that shape holds
    means and variances that are constants; without it the batch's are taken. The gate is
    squeeze-and-excitation or, with four times None, there is none. `keep` [N] multiplies the
    branch (drop-path). geometry: kernel, stride, rows of zeros above, columns left.

    Returns y [N, C', H', W'], and without gradient: e, d, p ([N, H, W, channels]), the batch's
    statistics [2, sum of widths], the gate's means [N, E]; empty where there is none (e also when
    `lean`, which recomputes it).
    """
    k, maps, place = backend(x), channels_last(x), Geometry(*geometry)
    given = None if running is None else running.to(wide(x))
    norms = _Norms(affine.to(wide(x)), given, eps, _widths(expand, depthwise, project))
    e, first = maps, None
    if expand is not None:
        e = _product(maps, expand)
        first = norms.next(lambda: k.moments(e))
    weight = depthwise.to(wide(x)).contiguous()
    d, moments = k.depthwise(e, first, act, weight, place, statistics=given is None)
    second = norms.next(lambda: moments)
    gate = _present(gate_reduce, gate_reduce_bias, gate_expand, gate_expand_bias)
    scale = pooled = None
    if gate:
        pooled = k.pool(d, second, act)
        scale = _Gate(pooled, act, gate).scale
    p = _product(k.normalise(d, second, act, scale), project)
    third = norms.next(lambda: k.moments(p))
    factor = None if keep is None else _per_channel(keep, p)
    y = k.normalise(p, third, "none", factor, maps if residual else None)
    return (
        y.permute(0, 3, 1, 2),
        _nothing(x) if expand is None or lean else e,
        d,
        p,
        torch.cat(norms.taken, 1) if norms.taken else _nothing(third),
        _nothing(third) if pooled is None else pooled,
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
    norms = _Norms(affine.to(wide(x)), statistics.to(wide(x)), eps,
                   _widths(expand, depthwise, project))  # fmt: skip
    first = None if expand is None else norms.next(lambda: None)
    second, third = norms.next(lambda: None), norms.next(lambda: None)

    def means(sums: Tensor, of: Tensor) -> Tensor:
        """What the norm's own backward subtracts; nothing where its statistics are constants."""
        return torch.zeros_like(sums) if frozen else sums / (of.numel() // of.shape[3])

    factor = None if keep is None else _per_channel(keep, p)
    sums = k.reduce(p, g, third, "none")[0][:, :2]
    affine_sums = [sums.sum(0) if factor is None else (sums * factor[:, None]).sum(0)]
    dp = k.apply(p, g, third, "none", means(affine_sums[0], p), factor=factor)

    db = _product_backward(dp, project)
    gate = _present(gate_reduce, gate_reduce_bias, gate_expand, gate_expand_bias)
    squeeze = _Gate(pooled, act, gate) if gate else None
    scale = squeeze.scale if squeeze else None
    sums, b = k.reduce(d, db, second, act, gated=bool(gate), factor=scale, output=True)
    dproject = _weight_grad(dp, b, project)
    del dp, b
    offset, dgate = None, [_nothing(x) for _ in range(4)]
    if squeeze:
        dpooled, dgate = squeeze.backward(sums[:, 4])
        offset = dpooled / (d.shape[1] * d.shape[2])
        sums = sums[:, :2] * squeeze.scale[:, None] + sums[:, 2:4] * offset[:, None]
    affine_sums.insert(0, sums[:, :2].sum(0))
    dd = k.apply(d, db, second, act, means(affine_sums[0], d), factor=scale, offset=offset)
    del db

    if expand is None:
        e = maps
    elif not e.numel():
        e = _product(maps, expand)
    weight = depthwise.to(wide(x)).contiguous()
    dz, ddepthwise, sums = k.depthwise_backward(e, dd, first, act, weight, place)
    del dd
    dx, dexpand = dz, _nothing(x)
    if expand is None or first is None:
        dx = dz + g if residual else dz
    else:
        affine_sums.insert(0, sums)
        de = k.apply(e, dz, first, "none", means(sums, e))
        dexpand = _weight_grad(de, maps, expand)
        if need_dx:
            dx = _product_backward(de, expand, g if residual else None)
    return (
        dx.permute(0, 3, 1, 2) if need_dx else _nothing(x),
        dexpand,
        ddepthwise.to(depthwise.dtype),
        dproject,
        torch.cat(affine_sums, 1).flip(0).to(affine.dtype),
        *dgate,
    )


def _present(*parameters: Tensor | None) -> list[Tensor]:
    return [p for p in parameters if p is not None]


def _per_channel(keep: Tensor, p: Tensor) -> Tensor:
    """[N] -> [N, C]."""
    return keep.to(wide(p))[:, None].expand(-1, p.shape[3]).contiguous()


def _nothing(x: Tensor) -> Tensor:
    """Stands for a tensor that does not exist; each is one of its own, as operators demand."""
    return x.new_empty(0)


def _empty_map(x: Tensor, height: int, width: int, channels: int) -> Tensor:
    return x.new_empty(x.shape[0], height, width, channels)


@block.register_fake
def _(x, expand, depthwise, project, affine, running, gate_reduce, gate_reduce_bias,  # type: ignore[no-untyped-def]
      gate_expand, gate_expand_bias, keep, act, geometry, eps, residual, lean):  # fmt: skip
    (height, width), middle, out = x.shape[2:], depthwise.shape[0], project.shape[0]
    size = Geometry(*geometry).output(height, width)
    vectors = affine.shape if running is None else (0,)
    means = (0,) if gate_reduce is None else (x.shape[0], middle)
    return (
        _empty_map(x, *size, out).permute(0, 3, 1, 2),
        _nothing(x) if expand is None or lean else _empty_map(x, height, width, middle),
        _empty_map(x, *size, middle),
        _empty_map(x, *size, out),
        x.new_empty(vectors, dtype=wide(x)),
        x.new_empty(means, dtype=wide(x)),
    )


@block_backward.register_fake
def _(grad, x, expand, depthwise, project, affine, statistics, gate_reduce, gate_reduce_bias,  # type: ignore[no-untyped-def]
      gate_expand, gate_expand_bias, keep, e, d, p, pooled, act, geometry, eps, residual,
      frozen, need_dx):  # fmt: skip
    def like(weight: Tensor | None) -> Tensor:
        return _nothing(x) if weight is None else weight.new_empty(weight.shape)

    channels, height, width = x.shape[1:]
    return (
        _empty_map(x, height, width, channels).permute(0, 3, 1, 2) if need_dx else _nothing(x),
        like(expand), like(depthwise), like(project), like(affine),
        like(gate_reduce), like(gate_reduce_bias), like(gate_expand), like(gate_expand_bias),
    )  # fmt: skip


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    (x, expand, depthwise, project, affine, running, *gate_keep) = inputs[:11]
    ctx.act, ctx.geometry, ctx.eps, ctx.residual, _ = inputs[11:]
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
        grad, *ctx.saved_tensors, ctx.act, ctx.geometry, ctx.eps, ctx.residual, ctx.frozen,
        needs[0],
    )  # fmt: skip
    grads = (dx, dexpand, ddepthwise, dproject, daffine, None, *dgate, None)
    given = (g if need else None for g, need in zip(grads, needs, strict=False))
    return *given, *[None] * (len(needs) - len(grads))


block.register_autograd(_grad, setup_context=_setup)
