"""A whole MBConv block in C++: what `block` computes step by step, as two calls.

A thread leads its samples through several steps at once, so that what one writes the next one reads
from the cache.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from mbconv.kernels.middle import dense, dense_backward
from mbconv.kernels.native import DepthwiseShape, address, depthwise_shape, run
from mbconv.kernels.parts import nothing
from mbconv.kernels.reference import ACTIVATIONS, Act, Geometry


class Parameters(NamedTuple):
    """What a block computes with, as `block` takes it."""

    expand: Tensor | None
    depthwise: Tensor
    project: Tensor
    affine: Tensor
    gate: tuple[Tensor | None, ...]  # four, or four times None
    keep: Tensor | None
    act: Act
    gate_act: Act
    gate_sigmoid: str
    place: Geometry
    eps: float
    residual: bool

    def fit(self, x: Tensor) -> bool:
        """Whether the compiled block takes them: pairs of bf16 are multiplied."""
        used = [self.project] if self.expand is None else [self.expand, self.project]
        even = all(w.shape[0] % 2 == w.shape[1] % 2 == 0 for w in used)
        into = x.shape[1] if self.expand is None else self.expand.shape[0]
        depthwise = self.depthwise.shape[:2] == (into, 1)
        known = self.place.kernel in (3, 5, 7) and self.place.stride in (1, 2)
        return (self.dense or (depthwise and known)) and (even or x.dtype == torch.float32)

    @property
    def dense(self) -> bool:
        """Fused-MBConv: the convolution is the library's, before the compiled block or behind."""
        return self.expand is None and self.depthwise.shape[1] > 1


class _Block(ctypes.Structure):
    _fields_ = [
        ("middle", DepthwiseShape),
        *((name, ctypes.c_int64) for name in (
            "in", "out", "squeezed", "half", "act", "gate_act", "gate_hard", "frozen", "residual",
            "dense", "threads",
        )),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in (
            "x", "expand", "depthwise", "project", "affine", "gate_reduce", "gate_reduce_bias",
            "gate_expand", "gate_expand_bias", "keep", "e", "d", "p", "statistics", "pooled",
            "spread",
        )),
    ]  # fmt: skip


class _Gradients(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("x", "expand", "depthwise", "project", "affine", "gate_reduce",
                     "gate_reduce_bias", "gate_expand", "gate_expand_bias", "behind_gate",
                     "behind_norm", "expanded")
    ]  # fmt: skip


def forward(
    x: Tensor, own: Parameters, running: Tensor | None, kept: str, narrow: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`block` of the map x [N, H, W, C]; `narrow`: the expansion's statistics by x's covariance."""
    (n, h, w, c), middle, out = x.shape, own.depthwise.shape[0], own.project.shape[0]
    oh, ow = own.place.output(h, w)
    waits = own.expand is not None and running is None and not narrow
    whole = waits or (own.expand is not None and kept == "all")
    passing = kept == "none" and running is not None  # maps are there for a few samples at a time
    e = x.new_empty(n, h, w, middle) if whole else nothing(x)
    d, p = (nothing(x) if passing else x.new_empty(n, oh, ow, width)
            for width in (0 if own.dense else middle, out))  # fmt: skip
    y = x.new_empty(n, oh, ow, out)
    if own.dense:
        d = dense(x, own.depthwise, own.place)
    pooled = x.new_empty((0,) if own.gate[0] is None else (n, middle), dtype=torch.float32)
    spread = x.new_empty((1 + c, c) if narrow and running is None else (0,), dtype=torch.float32)
    taken = x.new_empty((0,) if running is not None else own.affine.shape, dtype=torch.float32)
    statistics = taken if running is None else running.float().contiguous()
    block, alive = _block(x, own, (e, d, p, statistics, pooled, spread), running is not None)
    run("block", block, y)
    del alive
    e = e if kept == "all" else nothing(x)
    d, p = (nothing(x), nothing(x)) if kept == "none" else (d, p)
    return y.permute(0, 3, 1, 2), e, d, p, taken, pooled, spread


def backward(
    grad: Tensor,
    x: Tensor,
    own: Parameters,
    maps: tuple[Tensor, ...],
    statistics: Tensor,
    frozen: bool,
    need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`block_backward`; grad [N, H', W', C'], `maps` are e, d, p, pooled and spread."""
    *convolved, pooled, spread = maps
    known = (*convolved, statistics.float().contiguous(), pooled, spread)
    block, kept = _block(x, own, known, frozen)
    dx = torch.empty_like(x) if need_dx and not own.dense else nothing(x)
    params = (own.expand, own.depthwise, own.project, own.affine, *own.gate)
    weights = [nothing(x) if w is None else x.new_empty(w.shape, dtype=torch.float32)
               for w in params]  # fmt: skip
    d, waits = maps[1], own.expand is not None and not frozen and not spread.numel()
    behind_norm = x.new_empty(*x.shape[:3], d.shape[3]) if waits else nothing(x)
    expanded = torch.empty_like(behind_norm) if not maps[0].numel() else nothing(x)
    behind_gate = torch.empty_like(d)
    to = (dx, *weights, behind_gate, behind_norm, expanded)
    run("block_backward", block, grad, _Gradients(*map(address, to)))
    del kept
    if own.dense:
        dx, weights[1] = dense_backward(x, behind_gate, own.depthwise, own.place, need_dx)
        if own.residual and need_dx:
            dx += grad
    found = [g if w is None else g.to(w.dtype) for g, w in zip(weights, params, strict=True)]
    dexpand, ddepthwise, dproject, daffine, reduce, reduce_bias, widen, widen_bias = found
    dx = dx.permute(0, 3, 1, 2) if need_dx else dx
    return dx, dexpand, ddepthwise, dproject, daffine, reduce, reduce_bias, widen, widen_bias


def _block(
    x: Tensor, own: Parameters, known: tuple[Tensor, ...], frozen: bool
) -> tuple[_Block, list[Tensor | None]]:
    """The structure, and the tensors it points into."""
    (n, h, w, c), middle = x.shape, own.depthwise.shape[0]
    depthwise = None if own.dense else own.depthwise
    params = (own.expand, depthwise, own.project, own.affine, *own.gate, own.keep)
    floats = [None if t is None else t.float().contiguous() for t in params]
    kept = [x, *floats, *known]
    shape = depthwise_shape((n, h, w, middle), own.place)
    squeezed = 0 if own.gate[0] is None else own.gate[0].shape[0]
    kinds = (ACTIVATIONS.index(own.act), ACTIVATIONS.index(own.gate_act))
    hard, half = own.gate_sigmoid != "sigmoid", x.dtype == torch.bfloat16
    numbers = (c, own.project.shape[0], squeezed, half, *kinds, hard, frozen, own.residual,
               own.dense, torch.get_num_threads())  # fmt: skip
    return _Block(shape, *map(int, numbers), own.eps, *map(address, kept)), kept
