"""The steps of a block's backward, from its end to its beginning. Maps are [N, H, W, C]."""

from types import ModuleType

import torch
from torch import Tensor

from mbconv.kernels.parts import Gate, per_channel
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
    scale, offset, dgate = gate.scale if gate else None, None, None
    db = k.product(dp, project.flatten(1).t())
    sums, b = k.reduce(d, db, norm, act, gated=gate is not None, factor=scale, output=True)
    dproject = k.weight_gradient(dp, b)
    if gate:
        dpooled, dgate = gate.backward(sums[:, 4])
        offset = dpooled / (d.shape[1] * d.shape[2])
        sums = sums[:, :2] * gate.scale[:, None] + sums[:, 2:4] * offset[:, None]
    sums = sums[:, :2].sum(0)
    after = After(d, norm, norm_means(sums, d, frozen), scale, offset)
    return db, dproject.view(project.shape).to(project.dtype), after, sums, dgate


def expanded_backward(
    k: ModuleType,
    x: Tensor,
    e: Tensor,
    db: Tensor,
    expand: Tensor,
    norm: Tensor,
    act: Act,
    weight: Tensor,
    place: Geometry,
    after: After,
    frozen: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Through the depthwise convolution and the expansion; e is empty where it is recomputed.

    Returns the gradients at x and at both weights, and the sums [2, E] of the expansion's norm.
    """
    matrix = expand.flatten(1)
    own = e if e.numel() else k.product(x, matrix)
    dz, dw, sums = k.depthwise_backward(own, db, norm, act, weight, place, after)
    de = k.apply(own, dz, norm, "none", norm_means(sums, own, frozen))
    dexpand = k.weight_gradient(de, x).view(expand.shape).to(expand.dtype)
    return k.product(de, matrix.t()), dexpand, dw, sums
