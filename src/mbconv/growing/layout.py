"""The tensors of a network, by name and shape, from its spec alone."""

from collections.abc import Iterator

from mbconv.arch.block import Block, Conv, Gating, eca_kernel
from mbconv.arch.spec import Spec

Shape = tuple[int, ...]
Place = tuple[int, int]  # of a block: its stage, its number there
Named = Iterator[tuple[str, Shape]]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def tensor_shapes(spec: Spec) -> dict[str, Shape]:
    """Name -> shape of everything in the network's state dict, in its order."""
    return dict(_tensors(spec))


def is_parameter(name: str) -> bool:
    """Whether a tensor is trained; the others are batch-norm statistics."""
    return not name.endswith(STATISTICS)


def block_at(spec: Spec, place: Place) -> tuple[int, Block]:
    """The width of the block's input, and the block."""
    return next((x, block) for s, b, x, block in spec.blocks() if (s, b) == place)


def shortcut_conv(block: Block, in_channels: int) -> Conv | None:
    """The convolution on the block's shortcut, where it has one (ResNet-D)."""
    if not block.has_skip(in_channels) or block.keeps_shape(in_channels):
        return None
    return Conv(name="shortcut.project", in_channels=in_channels, out_channels=block.channels)


def _tensors(spec: Spec) -> Named:
    yield from _conv_norm("stem", spec.stem)
    for s, b, channels, block in spec.blocks():
        where = f"stages.{s}.{b}"
        for part in block.parts(channels):
            name = f"{where}.{part.name}"
            yield from _conv_norm(name, part) if isinstance(part, Conv) else _gate(name, part)
        shortcut = shortcut_conv(block, channels)
        if shortcut is not None:
            yield from _conv_norm(f"{where}.{shortcut.name}", shortcut)
    yield from _conv_norm("head.conv", spec.head_conv)
    width = spec.head_channels * (2 if spec.pooling == "concat" else 1)
    if spec.head_hidden is not None:
        yield "head.hidden.linear.weight", (spec.head_hidden, width)
        width = spec.head_hidden
        if spec.head_hidden_norm:
            yield from _norm("head.hidden.norm", width)
        else:
            yield "head.hidden.linear.bias", (width,)
    yield "head.classifier.weight", (spec.num_classes, width)
    yield "head.classifier.bias", (spec.num_classes,)


def _conv_norm(name: str, conv: Conv) -> Named:
    columns = conv.in_channels // conv.groups
    yield f"{name}.conv.weight", (conv.out_channels, columns, conv.kernel, conv.kernel)
    yield from _norm(f"{name}.norm", conv.out_channels)


def _norm(name: str, width: int) -> Named:
    for leaf in ("weight", "bias", *STATISTICS):
        yield f"{name}.{leaf}", () if leaf == "num_batches_tracked" else (width,)


def _gate(name: str, gate: Gating) -> Named:
    width, squeezed = gate.channels, gate.squeezed
    if gate.kind in ("se", "scse"):
        inner = f"{name}.channel" if gate.kind == "scse" else name
        yield f"{inner}.reduce.weight", (squeezed, width, 1, 1)
        yield f"{inner}.reduce.bias", (squeezed,)
        yield f"{inner}.expand.weight", (width, squeezed, 1, 1)
        yield f"{inner}.expand.bias", (width,)
    if gate.kind in ("sse", "scse"):
        inner = f"{name}.spatial" if gate.kind == "scse" else name
        yield f"{inner}.conv.weight", (1, width, 1, 1)
    if gate.kind == "eca":
        yield f"{name}.conv.weight", (1, 1, eca_kernel(width))
