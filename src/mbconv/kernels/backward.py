"""The steps of a block's backward, from its end to its beginning. Maps are [N, H, W, C]."""

from types import ModuleType

import torch
from torch import Tensor

from mbconv.kernels.expansion import ExpansionBackward
from mbconv.kernels.parts import Gate, per_channel, plus, slabs
from mbconv.kernels.reference import Act, After, Geometry


def norm_means(sums: Tensor, of: Tensor, frozen: bool) -> Tensor:
    """What a norm's backward subtracts; nothing where its statistics are constants."""
    return torch.zeros_like(sums) if frozen else sums / (of.numel() // of.shape[3])


def norm_backward(
    k: ModuleType, p: Tensor, g: Tensor, norm: Tensor, frozen: bool, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Through drop-path and the projection's norm: gradient at p, sums [2, C] for its affine."""
    factor = None if keep is None else per_channel(keep, p)
    sums = k.reduce(p, g, norm, "none")[0][:, :2]
    sums = sums.sum(0) if factor is None else (sums * factor[:, None]).sum(0)
    return k.apply(p, g, norm, "none", norm_means(sums, p, frozen), factor=factor), sums


def gated_backward(
    k: ModuleType,
    d: Tensor,
    dp: Tensor,
    project: Tensor,
    norm: Tensor,
    act: str,
    gate: Gate | None,
    frozen: bool,
) -> tuple[Tensor, Tensor, After, Tensor, list[Tensor] | None]:
    """Through the projection, and the sums for the way through gate, activation and norm of the
    depthwise convolution, whose own backward takes that way itself.

    Returns the gradient behind the gate, that of `project`, what the depthwise convolution's
    backward needs to know, the sums [2, C], the gate's gradients.
    """
    scale, found = gate.scale if gate else None, []
    db, dproject = torch.empty_like(d), None
    for part in slabs(d, d.shape[3]):
        k.product(dp[part], project.flatten(1).t(), db[part])
        factor = None if scale is None else scale[part]
        own, b = k.reduce(
            d[part], db[part], norm, act, gated=gate is not None, factor=factor, output=True
        )
        dproject = plus(dproject, k.weight_gradient(dp[part], b))
        found.append(own)
    assert dproject is not None
    sums, offset, dgate = found[0] if len(found) == 1 else torch.cat(found), None, None
    if gate:
        dpooled, dgate = gate.backward(sums[:, 4])
        offset = dpooled / (d.shape[1] * d.shape[2])
        sums = sums[:, :2] * gate.scale[:, None] + sums[:, 2:4] * offset[:, None]
    sums = sums[:, :2].sum(0)
    after = After(d, norm, norm_means(sums, d, frozen), scale, offset)
    return db, dproject.view(project.shape).to(project.dtype), after, sums, dgate


def expanded_backward(
    k: ModuleType,
    back: ExpansionBackward,
    e: Tensor,
    db: Tensor,
    act: Act,
    weight: Tensor,
    place: Geometry,
    after: After,
) -> tuple[Tensor, Tensor]:
    """Through the depthwise convolution and on to `back`; e is empty where it is recomputed.

    Returns the gradient at the depthwise weight and the sums [2, E] of the expansion's norm.
    """
    maps, norm = back.x, back.norm
    # Where the norm's backward needs the sums over the batch first, there is no going by slabs.
    parts = slabs(maps, len(weight)) if back.behind_norm else [slice(0, len(maps))]
    dw = sums = None
    for part in parts:
        own = e[part] if e.numel() else back.expanded(part)
        dz, own_dw, own_sums = k.depthwise_backward(
            own, db[part], norm, act, weight, place, after.of(part)
        )
        if not back.behind_norm:
            dz = k.apply(own, dz, norm, "none", norm_means(own_sums, own, False))
        back.add(part, dz)
        dw, sums = plus(dw, own_dw), plus(sums, own_sums)
    assert dw is not None
    assert sums is not None
    return dw, sums
