"""Where a module may be computed by a fused operator, and how.

Each function takes a module of this package and its input, and returns what the operator gives,
or None where the plain modules are to compute: without gradients, while a program is exported,
with hooks, with parts of another type (SyncBatchNorm, a subclass, a gate or activation that is
not fused), or where the choice of `mbconv.kernels` says so.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbconv import kernels
from mbconv.kernels.block import block as block_operator
from mbconv.kernels.depthwise import depthwise as depthwise_operator
from mbconv.kernels.norm import norm_act, norm_act_pool
from mbconv.nn.gate import SE

if TYPE_CHECKING:
    from mbconv.nn.block import MBConvBlock
    from mbconv.nn.conv import Conv2d, ConvNormAct

_ACTS: dict[type[nn.Module], str] = {
    nn.Identity: "none",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hard_swish",
}


_SIGMOIDS: dict[type[nn.Module], str] = {nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hard_sigmoid"}


def depthwise(conv: "Conv2d", x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The convolution with these numbers, if it is depthwise."""
    dtype = _dtype(x)
    if not _learns(x, weight) or not _is_depthwise(conv) or not kernels.applies(x, dtype):
        return None
    y: Tensor = depthwise_operator(x.to(dtype), weight, bias, _geometry(conv, x))
    return y


def conv_norm_act(module: "ConvNormAct", x: Tensor) -> Tensor | None:
    """Convolution, then batch norm and activation in one operator."""
    found = _conv_and_affine(module, x)
    if found is None:
        return None
    x, affine = found
    y: Tensor
    y, statistics = norm_act(x, affine, _ACTS[type(module.act)], module.norm.eps)
    _update(module.norm, statistics, y.numel() // y.shape[1])
    return y


def conv_norm_act_mean(module: "ConvNormAct", x: Tensor) -> Tensor | None:
    """The same and the mean over the pixels, [N, C]: the map itself is never written."""
    found = _conv_and_affine(module, x)
    if found is None:
        return None
    x, affine = found
    mean: Tensor
    mean, statistics = norm_act_pool(x, affine, _ACTS[type(module.act)], module.norm.eps)
    _update(module.norm, statistics, x.numel() // x.shape[1])
    return mean


def block(module: "MBConvBlock", x: Tensor) -> Tensor | None:
    """The whole block, if it is an inverted residual of convolutions, SE and nothing else."""
    dtype = _dtype(x)
    if not (_computes(x) and kernels.applies(x, dtype) and _fits(module, x)):
        return None
    depthwise, project = module.depthwise, module.project
    assert depthwise is not None
    assert project is not None
    norms = _norms(module)
    frozen, gate, keep = not norms[0].training, _gate_parameters(module.gate), None
    affine = _side_by_side(norms, "weight", "bias")
    running = _side_by_side(norms, "running_mean", "running_var") if frozen else None
    if module.shortcut is not None and module.training and module.drop_path.rate > 0:
        keep = F.dropout(affine.new_ones(x.shape[0]), module.drop_path.rate)
    y: Tensor
    with torch.autocast(x.device.type, enabled=False):
        y, _, _, _, statistics, _ = block_operator(
            x.to(dtype),
            None if module.expand is None else module.expand.conv.weight,
            depthwise.conv.weight,
            project.conv.weight,
            affine,
            running,
            *gate,
            keep,
            _ACTS[type(depthwise.act)],
            *_gate_functions(module.gate),
            _geometry(depthwise.conv, x),
            norms[0].eps,
            module.shortcut is not None,
            kernels.memory() == "lean",
        )
    if not frozen:
        into, out = x.numel() // x.shape[1], y.numel() // y.shape[1]
        counts = [into, out, out][-len(norms) :]
        widths = [n.num_features for n in norms]
        for norm, own, count in zip(norms, statistics.split(widths, 1), counts, strict=True):
            _update(norm, own, count)
    return y


def _norms(module: "MBConvBlock") -> list[nn.BatchNorm2d]:
    """Of expansion (if there is one), depthwise convolution and projection."""
    parts = (module.expand, module.depthwise, module.project)
    return [part.norm for part in parts if part is not None]


def _side_by_side(norms: list[Any], first: str, second: str) -> Tensor:
    """Two vectors of every norm, [2, sum of widths]."""
    return torch.stack([torch.cat([getattr(n, name) for n in norms]) for name in (first, second)])


def _gate_functions(gate: Any) -> tuple[str, str]:
    """The activation inside and the sigmoid at the end, by the operator's names."""
    if gate is None:
        return "none", "sigmoid"
    return _ACTS[type(gate.act)], _SIGMOIDS[type(gate.sigmoid)]


def _gate_parameters(gate: Any) -> tuple[Tensor | None, ...]:
    if gate is None:
        return (None,) * 4
    return gate.reduce.weight, gate.reduce.bias, gate.expand.weight, gate.expand.bias


def _computes(x: Tensor) -> bool:
    """With pixels and gradients, and not while a program is only written down or counted."""
    described = torch.compiler.is_exporting() or x.device.type == "meta"
    return torch.is_grad_enabled() and x.numel() > 0 and not described


def _learns(x: Tensor, weight: Tensor) -> bool:
    return _computes(x) and (x.requires_grad or weight.requires_grad)


def _dtype(x: Tensor) -> torch.dtype:
    """The format that a convolution of x would be computed in."""
    device = x.device.type
    available = torch.amp.is_autocast_available(device)
    if available and x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _plain(module: Any, *types: type[nn.Module]) -> bool:
    """Exactly one of these types, and nobody watches or changes what goes in and out."""
    return type(module) in types and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _plain_triple(module: Any) -> bool:
    """ConvNormAct of known parts, its norm affine, with statistics and a momentum."""
    from mbconv.nn.conv import Conv2d, ConvNormAct

    if not (_plain(module, ConvNormAct) and _plain(module.conv, Conv2d)):
        return False
    norm = module.norm
    return (
        _plain(norm, nn.BatchNorm2d)
        and _plain(module.act, *_ACTS)
        and norm.affine
        and norm.running_mean is not None
        and norm.momentum is not None
    )


def _is_depthwise(conv: "Conv2d") -> bool:
    return (
        1 < conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.kernel_size[0] in (3, 5, 7)
        and conv.stride in ((1, 1), (2, 2))
        and conv.dilation == (1, 1)
    )


def _is_pointwise(conv: "Conv2d") -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 and conv.bias is None


def _geometry(conv: "Conv2d", x: Tensor) -> list[int]:
    """Kernel, stride, rows of zeros above and columns to the left."""
    kernel = conv.kernel_size[0]
    top, left = kernel // 2, kernel // 2
    if conv.pads_by_size:
        (top, _), (left, _) = (conv._sides(size) for size in x.shape[2:])
    return [kernel, conv.stride[0], top, left]


def _conv_and_affine(module: "ConvNormAct", x: Tensor) -> tuple[Tensor, Tensor] | None:
    """The convolution's output and [2, C] gamma and beta, where batch norm is to be fused."""
    dtype = _dtype(x)
    if not (_computes(x) and kernels.applies(x, dtype) and _plain_triple(module)):
        return None
    norm = module.norm
    if not norm.training:
        return None
    if _is_pointwise(module.conv):
        y = F.linear(x.permute(0, 2, 3, 1), module.conv.weight.flatten(1)).permute(0, 3, 1, 2)
    else:
        y = module.conv(x)
    if y.numel() == y.shape[1]:
        return None  # one value a channel has no statistics; the plain norm says so
    return y, torch.stack([norm.weight, norm.bias])


def _fits(module: "MBConvBlock", x: Tensor) -> bool:
    """Whether the block is what the operator computes."""
    if module.start is not None or module.depthwise is None or module.project is None:
        return False
    parts = [p for p in (module.expand, module.depthwise, module.project) if p is not None]
    if not all(_plain_triple(part) for part in parts):
        return False
    norms = _norms(module)
    stride, act = module.depthwise.conv.stride[0], type(module.depthwise.act)
    pixels = x.shape[0] * -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
    gate = module.gate
    return (
        len({(n.eps, n.training) for n in norms}) == 1
        and (pixels > 1 or not norms[0].training)
        and _is_depthwise(module.depthwise.conv)
        and _is_pointwise(module.project.conv)
        and type(module.project.act) is nn.Identity
        and (module.expand is None or _is_pointwise(module.expand.conv))
        and (module.expand is None or type(module.expand.act) is act)
        and (gate is None or _plain_gate(gate))
        and (module.shortcut is None or _plain(module.shortcut, nn.Identity))
        and (module.shortcut is None or _plain(module.drop_path, type(module.drop_path)))
    )


def _plain_gate(gate: Any) -> bool:
    return _plain(gate, SE) and all(
        _plain(part, *kinds)
        for part, kinds in (
            (gate.reduce, (nn.Conv2d,)),
            (gate.act, _ACTS),
            (gate.expand, (nn.Conv2d,)),
            (gate.sigmoid, _SIGMOIDS),
        )
    )


@torch.no_grad()
def _update(norm: nn.BatchNorm2d, statistics: Tensor, count: int) -> None:
    """The running statistics, as batch norm updates them: with the unbiased variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    mean, variance = statistics.to(norm.running_mean.dtype)
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
