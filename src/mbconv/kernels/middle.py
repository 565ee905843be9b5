"""A convolution among fused operators: depthwise, behind an expansion or not, or dense.

The dense one (of Fused-MBConv, or outside of blocks) is the library's. Maps are [N, H, W, C].
"""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from mbconv.kernels.dispatch import library_format
from mbconv.kernels.norm import wide
from mbconv.kernels.reference import Act, After, Geometry, pads


def convolve(
    k: ModuleType,
    x: Tensor,
    norm: Tensor | None,
    act: Act,
    weight: Tensor,
    place: Geometry,
    statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    """Convolution of act(norm(x)), of x without norm; with `statistics` its output's moments."""
    if _is_depthwise(x, weight):
        own = weight.to(wide(x)).contiguous()
        found: tuple[Tensor, Tensor | None] = k.depthwise(
            x, norm, act, own, place, statistics=statistics
        )
        return found
    y = dense(x, weight, place)
    return y, k.moments(y) if statistics else None


def dense(x: Tensor, weight: Tensor, place: Geometry) -> Tensor:
    format = _format(x)
    whole, padding = _operand(x.to(format), place)
    own = weight.to(x.dtype).to(format)
    y = F.conv2d(whole, own, None, place.stride, padding, place.dilation)
    return y.to(x.dtype).permute(0, 2, 3, 1).contiguous()


def convolve_backward(
    k: ModuleType,
    x: Tensor,
    grad: Tensor | None,
    act: Act,
    weight: Tensor,
    place: Geometry,
    after: After,
    need_dx: bool,
) -> tuple[Tensor, Tensor]:
    """`grad`, that of what came `after`, -> gradients at x and at the weight; without norm.

    No `grad`: zeros, where `after` has an offset.
    """
    if _is_depthwise(x, weight):
        grad = torch.zeros_like(after.y) if grad is None else grad
        own = weight.to(wide(x)).contiguous()
        dx, dw, _ = k.depthwise_backward(x, grad, None, act, own, place, after)
        return dx, dw
    dy = k.apply(after.y, grad, after.norm, act, after.means, factor=after.factor,
                 offset=after.offset)  # fmt: skip
    return dense_backward(x, dy, weight, place, need_dx)


def dense_backward(
    x: Tensor, dy: Tensor, weight: Tensor, place: Geometry, need_dx: bool
) -> tuple[Tensor, Tensor]:
    """The gradient at its output -> at x (empty if not needed) and at the weight."""
    format, two = _format(x), [0, 0]
    whole, padding = _operand(x.to(format), place)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy.to(format).permute(0, 3, 1, 2), whole, weight.to(x.dtype).to(format), None,
        [place.stride] * 2, padding, [place.dilation] * 2, False, two, 1, [need_dx, True, False],
    )  # fmt: skip
    if not need_dx:
        return x.new_empty(0), dw.contiguous()
    if padding == two:
        dx = dx[:, :, place.top :, place.left :][:, :, : x.shape[1], : x.shape[2]]
    return dx.to(x.dtype).permute(0, 2, 3, 1).contiguous(), dw.contiguous()


def _is_depthwise(x: Tensor, weight: Tensor) -> bool:
    """Of one channel alone a convolution is as well dense."""
    return x.shape[3] > 1 and weight.shape[:2] == (x.shape[3], 1)


def _format(x: Tensor) -> torch.dtype:
    return library_format(x.dtype) if x.device.type == "cpu" else x.dtype


def _operand(x: Tensor, place: Geometry) -> tuple[Tensor, list[int]]:
    """The map as the library takes it, and the padding that is left to it: none where the two
    sides differ so much that its own, which is the same on both, would not do."""
    maps, sides = x.permute(0, 3, 1, 2), [place.top, place.left]
    size = [(n + 2 * p - place.reach) // place.stride + 1
            for n, p in zip(x.shape[1:3], sides, strict=True)]  # fmt: skip
    if tuple(size) == place.output(*x.shape[1:3]):
        return maps, sides
    padded = F.pad(maps, pads(x, place))
    return padded.contiguous(memory_format=torch.channels_last), [0, 0]
