"""Where a module may be computed by a fused operator, and how.

Each function takes a module of this package and its input, and returns what the operator gives,
or None where the plain modules are to compute: while a program is exported, with hooks, with parts
of another type (SyncBatchNorm, a subclass, a gate or activation that is not fused), or where the
choice of `mbconv.kernels` says so. A depthwise convolution alone is fused where it learns.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mbconv import kernels
from mbconv.kernels.block import block as block_operator
from mbconv.kernels.conv_norm_act import compiled
from mbconv.kernels.conv_norm_act import conv_norm_act as conv_norm_act_operator
from mbconv.kernels.depthwise import depthwise as depthwise_operator
from mbconv.kernels.reference import Geometry
from mbconv.nn.fusable import (
    ACTIVATIONS,
    SIGMOIDS,
    branch,
    is_depthwise,
    norms_of,
    obstacle,
    strange_triple,
)

if TYPE_CHECKING:
    from mbconv.nn.block import MBConvBlock
    from mbconv.nn.conv import Conv2d, ConvNormAct

P = ParamSpec("P")
T = TypeVar("T")


def depthwise(conv: "Conv2d", x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The convolution with these numbers, if it is depthwise."""
    dtype = _dtype(x)
    if not _learns(x, weight) or not is_depthwise(conv) or not kernels.applies(x, dtype):
        return None
    y: Tensor = depthwise_operator(x.to(dtype), weight, bias, _geometry(conv, x))
    return y


def conv_norm_act(module: "ConvNormAct", x: Tensor, *, pooled: bool = False) -> Tensor | None:
    """Convolution, batch norm and activation in one operator.

    With frozen statistics only where compiled code computes all of it: a folded convolution is as
    good elsewhere. `pooled`: the mean over the pixels, [N, C']; the map itself is never written.
    """
    dtype = _dtype(x)
    if not (_computes(x) and kernels.applies(x, dtype) and strange_triple(module) is None):
        return None
    conv, norm, learns = module.conv, module.norm, torch.is_grad_enabled()
    frozen, place = not norm.training, Geometry(*_geometry(conv, x))
    count = x.shape[0] * prod(place.output(*x.shape[2:]))
    if not (conv.groups == 1 or is_depthwise(conv)):
        return None
    if x.shape[1] != conv.in_channels or x.device != conv.weight.device:
        return None  # the plain modules say what is wrong
    if count == 1 and not frozen:
        return None  # as they do here
    given = x.to(dtype)
    if frozen and not compiled(given, conv.weight, place, learns and x.requires_grad):
        return None
    running = _side_by_side([norm], "running_mean", "running_var") if frozen else None
    affine, act = _side_by_side([norm], "weight", "bias"), ACTIVATIONS[type(module.act)]
    y: Tensor
    with torch.autocast(x.device.type, enabled=False):
        y, _, statistics = conv_norm_act_operator(
            given, conv.weight, affine, running, act, list(place), norm.eps, pooled, learns
        )
    if not frozen:
        _update([norm], statistics, [count])
    return y


def block(module: "MBConvBlock", x: Tensor) -> Tensor | None:
    """The whole block, if it is an inverted residual of convolutions, SE and nothing else."""
    dtype = _dtype(x)
    if not (_computes(x) and kernels.applies(x, dtype) and _fits(module, x)):
        return None
    expand, middle, project = branch(module)
    norms = norms_of(module)
    frozen, gate, keep = not norms[0].training, _gate_parameters(module.gate), None
    kept = "none"
    if torch.is_grad_enabled():
        kept = "lean" if kernels.memory() == "lean" else "all"
    affine = _side_by_side(norms, "weight", "bias")
    running = _side_by_side(norms, "running_mean", "running_var") if frozen else None
    if module.shortcut is not None and module.training and module.drop_path.rate > 0:
        keep = F.dropout(affine.new_ones(x.shape[0]), module.drop_path.rate)
    y: Tensor
    with torch.autocast(x.device.type, enabled=False):
        y, _, _, _, statistics, *_ = block_operator(
            x.to(dtype),
            None if expand is None else expand.conv.weight,
            middle.conv.weight,
            project.conv.weight,
            affine,
            running,
            *gate,
            keep,
            ACTIVATIONS[type(middle.act)],
            *_gate_functions(module.gate),
            _geometry(middle.conv, x),
            norms[0].eps,
            module.shortcut is not None,
            kept,
        )
    if not frozen:
        into, out = x.numel() // x.shape[1], y.numel() // y.shape[1]
        _update(norms, statistics, [into, out, out][-len(norms) :])
    return y


def _side_by_side(norms: list[Any], first: str, second: str) -> Tensor:
    """Two vectors of every norm, [2, sum of widths]."""
    return torch.cat([getattr(n, name) for name in (first, second) for n in norms]).view(2, -1)


def _gate_functions(gate: Any) -> tuple[str, str]:
    """The activation inside and the sigmoid at the end, by the operator's names."""
    if gate is None:
        return "none", "sigmoid"
    return ACTIVATIONS[type(gate.act)], SIGMOIDS[type(gate.sigmoid)]


def _gate_parameters(gate: Any) -> tuple[Tensor | None, ...]:
    if gate is None:
        return (None,) * 4
    return gate.reduce.weight, gate.reduce.bias, gate.expand.weight, gate.expand.bias


def _computes(x: Tensor) -> bool:
    """With pixels, and not while the network is only written down."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[no-untyped-call,attr-defined]
        return False
    return x.numel() > 0 and x.device.type != "meta"


def _learns(x: Tensor, weight: Tensor) -> bool:
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return learns and _computes(x)


def _dtype(x: Tensor) -> torch.dtype:
    """The format that a convolution of x would be computed in."""
    device = x.device.type
    available = torch.amp.is_autocast_available(device)
    if available and x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _geometry(conv: "Conv2d", x: Tensor) -> list[int]:
    """Kernel, stride, rows of zeros above and columns to the left, dilation."""
    kernel, dilation = conv.kernel_size[0], conv.dilation[0]
    top = left = kernel // 2 * dilation
    if conv.pads_by_size:
        (top, _), (left, _) = (conv._sides(size) for size in x.shape[2:])
    return [kernel, conv.stride[0], top, left, dilation]


def _fits(module: "MBConvBlock", x: Tensor) -> bool:
    """Whether the block is what the operator computes."""
    if obstacle(module) is not None:
        return False
    middle = branch(module)[1]
    if x.device != middle.conv.weight.device:
        return False  # the plain modules say what is wrong
    stride = middle.conv.stride[0]
    pixels = x.shape[0] * -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
    return pixels > 1 or not middle.norm.training


class _Update(NamedTuple):
    """Statistics [2, C] of some norms' inputs, over so many values a channel each."""

    norms: list[Any]
    statistics: Tensor
    counts: list[int]


# Those that wait for the end of a network's forward pass, or None.
_waiting: ContextVar[list[_Update] | None] = ContextVar("waiting", default=None)


def update_together(forward: Callable[P, T]) -> Callable[P, T]:
    """Let every norm that takes statistics within this function update its running ones at the end.

    A few operators over all of them instead of as many for each: 3 of the 225 ms of B0's step.
    """

    @wraps(forward)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return forward(*args, **kwargs)
        updates: list[_Update] = []
        token = _waiting.set(updates)
        try:
            return forward(*args, **kwargs)
        finally:
            _waiting.reset(token)
            _update_now(updates)

    return wrapped


def _update(norms: list[Any], statistics: Tensor, counts: list[int]) -> None:
    """The running statistics, as batch norm updates them: with the unbiased variance."""
    waiting = None if torch.compiler.is_compiling() else _waiting.get()
    if waiting is None:
        _update_now([_Update(norms, statistics, counts)])
    else:
        waiting.append(_Update(norms, statistics, counts))


@torch.no_grad()
def _update_now(updates: list[_Update]) -> None:
    norms = [norm for update in updates for norm in update.norms]
    twice = len(set(norms)) < len(norms)  # a part that is used again: one after the other
    if twice and len(updates) > 1:
        for update in updates:
            _update_now([update])
        return
    by_kind: dict[tuple[Any, ...], list[_Update]] = {}
    for update in updates:
        norm, taken = update.norms[0], update.statistics
        kind = norm.momentum, norm.running_mean.dtype, taken.dtype, taken.device
        by_kind.setdefault(kind, []).append(update)
    for (momentum, dtype, *_), alike in by_kind.items():
        norms = [norm for update in alike for norm in update.norms]
        factors = [n / (n - 1) for update in alike for n in update.counts]
        means, variances = torch.cat([update.statistics for update in alike], 1).to(dtype)
        widths = [norm.num_features for norm in norms]
        unbiased = torch._foreach_mul(variances.split(widths), factors)
        running = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
        torch._foreach_lerp_(running, [*means.split(widths), *unbiased], momentum)
        torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
