"""Convolution, batch norm and activation in C++: what `conv_norm_act` computes, as two calls."""

import ctypes

import torch
from torch import Tensor

from mbconv.kernels.native import address, run
from mbconv.kernels.parts import nothing
from mbconv.kernels.reference import ACTIVATIONS, Act, Geometry

PATCH = 64  # numbers that an output sees: more would be copied than multiplying them takes


class _Convolution(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "n", "h", "w", "in", "oh", "ow", "out", "kernel", "stride", "top", "left", "half",
            "act", "frozen", "threads",
        )),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "affine", "c", "statistics")),
    ]  # fmt: skip


def fit(x: Tensor, weight: Tensor, place: Geometry, need_dx: bool = False) -> bool:
    """Whether compiled code takes this convolution of x [N, C, H, W]."""
    out, channels, kernel, _ = weight.shape
    if channels != x.shape[1] or place.dilation > 1:
        return False
    if kernel == place.stride == 1:
        return x.dtype == torch.float32 or channels % 2 == out % 2 == 0  # pairs are multiplied
    return kernel > 1 and not need_dx and channels * kernel**2 <= PATCH


def forward(
    x: Tensor, weight: Tensor, affine: Tensor, running: Tensor | None, act: Act, place: Geometry,
    eps: float, pooled: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`conv_norm_act` of the map x [N, H, W, C]."""
    n, out, frozen = x.shape[0], weight.shape[0], running is not None
    size = (n, *place.output(*x.shape[1:3]), out)
    c = x.new_empty(size) if keep or not frozen else nothing(x)
    taken = x.new_empty(0 if frozen else (2, out), dtype=torch.float32)
    statistics = taken if running is None else running.float().contiguous()
    shape, kept = _shape(x, weight, affine, c, statistics, act, place, eps, frozen)
    if pooled:
        mean = x.new_empty(n, out, dtype=torch.float32)
        run("convolution", shape, None, mean)
        y = mean.to(x.dtype)
    else:
        y = x.new_empty(size)
        run("convolution", shape, y, None)
        y = y.permute(0, 3, 1, 2)
    del kept
    return y, c if keep else nothing(x), taken


def backward(
    x: Tensor, weight: Tensor, affine: Tensor, c: Tensor, statistics: Tensor, act: Act,
    place: Geometry, eps: float, grad: Tensor | None, offset: Tensor | None, frozen: bool,
    need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`conv_norm_act_backward`; grad [N, H', W', C'], or offset [N, C'] for each pixel."""
    known = statistics.float().contiguous()
    shape, kept = _shape(x, weight, affine, c, known, act, place, eps, frozen)
    dx = torch.empty_like(x) if need_dx else None
    dweight = torch.empty_like(weight, dtype=torch.float32)  # lies in memory as the weight does
    rows = dweight.permute(0, 2, 3, 1)
    if not rows.is_contiguous():
        rows = torch.empty_like(rows, memory_format=torch.contiguous_format)
    daffine = x.new_empty(affine.shape, dtype=torch.float32)
    run("convolution_backward", shape, grad, offset, dx, rows, daffine)
    del kept
    if rows.data_ptr() != dweight.data_ptr():
        dweight.copy_(rows.permute(0, 3, 1, 2))
    return (
        nothing(x) if dx is None else dx.permute(0, 3, 1, 2),
        dweight.to(weight.dtype),
        daffine.to(affine.dtype),
    )


def _shape(
    x: Tensor, weight: Tensor, affine: Tensor, c: Tensor, statistics: Tensor, act: Act,
    place: Geometry, eps: float, frozen: bool,
) -> tuple[_Convolution, list[Tensor]]:  # fmt: skip
    """The structure, and the tensors it points into."""
    rows = weight.permute(0, 2, 3, 1).float().contiguous()
    kept = [x, rows, affine.float().contiguous(), c, statistics]
    half, threads = x.dtype == torch.bfloat16, torch.get_num_threads()
    numbers = (*x.shape, *place.output(*x.shape[1:3]), weight.shape[0], place.kernel, place.stride,
               place.top, place.left, half, ACTIVATIONS.index(act), frozen, threads)  # fmt: skip
    return _Convolution(*map(int, numbers), eps, *map(address, kept)), kept
