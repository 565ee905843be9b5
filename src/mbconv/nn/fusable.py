"""What a module must be for a fused operator to compute it; if it is not, why."""

from typing import TYPE_CHECKING, Any

from torch import nn

from mbconv.nn.gate import SE

if TYPE_CHECKING:
    from mbconv.nn.block import MBConvBlock
    from mbconv.nn.conv import Conv2d, ConvNormAct

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Identity: "none",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hard_swish",
}


SIGMOIDS: dict[type[nn.Module], str] = {nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hard_sigmoid"}


def branch(module: "MBConvBlock") -> tuple["ConvNormAct | None", "ConvNormAct", "ConvNormAct"]:
    """Expansion (if it is a convolution of its own), spatial convolution, projection."""
    expand, middle, project = module.expand, module.depthwise, module.project
    if middle is None:  # Fused-MBConv
        expand, middle = None, expand
    assert middle is not None
    assert project is not None
    return expand, middle, project


def norms_of(module: "MBConvBlock") -> list[nn.BatchNorm2d]:
    """Of the same, in order."""
    return [part.norm for part in branch(module) if part is not None]


def obstacle(module: "MBConvBlock") -> str | None:
    """Why the block is not one of two or three convolutions, SE and nothing else; None if it is."""
    if module.start is not None:
        return "a depthwise convolution before the expansion is not fused"
    if module.project is None or (module.depthwise is None and module.expand is None):
        return "a block of a single convolution is not fused"
    expand, middle, project = branch(module)
    for part in (expand, middle, project):
        found = None if part is None else strange_triple(part)
        if found is not None:
            return found
    if not (
        (is_depthwise(middle.conv) or (_is_dense(middle.conv) and expand is None))
        and is_pointwise(project.conv)
        and type(project.act) is nn.Identity
        and (expand is None or is_pointwise(expand.conv))
        and (expand is None or type(expand.act) is type(middle.act))
    ):
        return "convolutions or activations of this shape or order are not fused"
    if len({(n.eps, n.momentum, n.training) for n in norms_of(module)}) > 1:
        return "batch norms that differ in eps, momentum or mode are not fused"
    found = None if module.gate is None else _strange_gate(module.gate)
    if found is None and module.shortcut is not None:
        found = _strange(module.shortcut, nn.Identity)
        found = found or _strange(module.drop_path, type(module.drop_path))
    return found


def obstacles(model: nn.Module) -> dict[str, str | None]:
    """Each block of a model by its name, with what `obstacle` says."""
    from mbconv.nn.block import MBConvBlock

    modules = model.named_modules()
    return {name: obstacle(part) for name, part in modules if isinstance(part, MBConvBlock)}


def _strange_gate(gate: Any) -> str | None:
    return (
        _strange(gate, SE)
        or _strange(gate.reduce, nn.Conv2d)
        or _strange(gate.act, *ACTIVATIONS)
        or _strange(gate.expand, nn.Conv2d)
        or _strange(gate.sigmoid, *SIGMOIDS)
    )


def _strange(module: Any, *types: type[nn.Module]) -> str | None:
    """Unless it is exactly one of these types and nobody watches what goes in and out: why."""
    if type(module) not in types:
        return f"{type(module).__name__} is not fused"
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return f"{type(module).__name__} has hooks"
    return None


def strange_triple(module: Any) -> str | None:
    """Unless it is ConvNormAct of known parts, its norm affine, with statistics and momentum."""
    from mbconv.nn.conv import Conv2d, ConvNormAct

    found = _strange(module, ConvNormAct)
    if found is not None:
        return found
    norm = module.norm
    found = (
        _strange(module.conv, Conv2d)
        or _strange(norm, nn.BatchNorm2d)
        or _strange(module.act, *ACTIVATIONS)
    )
    if found is None and not (
        norm.affine and norm.running_mean is not None and norm.momentum is not None
    ):
        return "a batch norm without scale, statistics or momentum is not fused"
    return found


def is_depthwise(conv: "Conv2d") -> bool:
    return (
        1 < conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.kernel_size[0] in (3, 5, 7)
        and (conv.stride == (1, 1) or (conv.stride == (2, 2) and conv.dilation == (1, 1)))
    )


def _is_dense(conv: "Conv2d") -> bool:
    return conv.groups == 1 < conv.in_channels and conv.kernel_size[0] > 1


def is_pointwise(conv: "Conv2d") -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 and conv.bias is None
