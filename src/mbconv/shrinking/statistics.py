"""What flows through a network on some pictures, as far as removals have to know it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbconv.nn.block import MBConvBlock
from mbconv.nn.conv import Conv2d
from mbconv.nn.model import MBConvNet
from mbconv.shrinking.change import HEAD
from mbconv.shrinking.refit import Moments

_PATCHES = 16  # pictures whose patches are kept: already thousands for 25 weights


@dataclass
class Statistics:
    """By module: moments of what its last layer reads, of depthwise patches, of gates' inputs.

    `read` and `gated` are of vectors [E] at every place (of the head one a picture), `patches` of
    [E, k * k].
    """

    read: dict[str, Moments] = field(default_factory=dict)
    patches: dict[str, Moments] = field(default_factory=dict)
    gated: dict[str, Moments] = field(default_factory=dict)


@torch.no_grad()
def statistics(model: MBConvNet, batches: Iterable[Tensor]) -> Statistics:
    """Run normalised pictures [N, C, H, W] through the network, in evaluation mode."""
    found, seen = Statistics(), 0
    with ExitStack() as hooks:
        for name, block in named_blocks(model):
            if block.project is not None and block.expand is not None:
                found.read[name] = Moments()
                hooks.enter_context(_watch(block.project, _add_map(found.read[name])))
                if block.gate is not None:
                    found.gated[name] = Moments()
                    hooks.enter_context(_watch(block.gate, _add_map(found.gated[name])))
        found.read[HEAD] = Moments()
        reader = model.head.hidden or model.head.dropout
        hooks.enter_context(_watch(reader, found.read[HEAD].add))
        for x in batches:
            with ExitStack() as first:
                if seen < _PATCHES:
                    for name, block in named_blocks(model):
                        if block.depthwise is not None and block.depthwise.conv.kernel_size[0] > 3:
                            moments = found.patches.setdefault(name, Moments())
                            conv = block.depthwise.conv
                            first.enter_context(
                                _watch(block.depthwise, _add_patches(moments, conv))
                            )
                model(x)
            seen += len(x)
    return found


def named_blocks(model: MBConvNet) -> Iterator[tuple[str, MBConvBlock]]:
    """The blocks in order, as `stages.<s>.<b>`."""
    for name, module in model.named_modules():
        if isinstance(module, MBConvBlock):
            yield name, module


@contextmanager
def _watch(module: nn.Module, look: Callable[[Tensor], None]) -> Iterator[None]:
    """Show `look` what enters the module."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        look(inputs[0])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _add_map(moments: Moments) -> Callable[[Tensor], None]:
    """Vectors of a map [N, C, H, W], one a place."""
    return lambda x: moments.add(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]))


def _add_patches(moments: Moments, conv: Conv2d) -> Callable[[Tensor], None]:
    """What a depthwise convolution sees at each place, channel by channel: [C, places, k * k]."""

    def look(x: Tensor) -> None:
        size = conv.kernel_size[0]
        padding = 0 if conv.pads_by_size else size // 2 * conv.dilation[0]
        for part in x[:_PATCHES].tensor_split(4):  # 25 times as large for a moment
            columns = F.unfold(conv.padded(part), size, conv.dilation, padding, conv.stride)
            columns = columns.view(len(part), x.shape[1], size * size, -1)
            moments.add(columns.permute(1, 0, 3, 2).reshape(x.shape[1], -1, size * size))

    return look
