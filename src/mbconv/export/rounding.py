"""INT8's rounding in torch: what a layer's weights and its input become, differentiably.

Weights have a scale for each output channel, the input has one over the range that it is given;
a gradient passes as if nothing had been rounded, and not at all beyond the range.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mbconv.export.network import FoldedConv

Range = tuple[float, float]


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers of a folded network, by the names that their nodes have."""
    found: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for name, module in network.named_modules():
        if isinstance(module, FoldedConv):
            inside.add(module.conv)
            found[name] = module
        elif isinstance(module, nn.Conv2d | nn.Linear) and module not in inside:
            found[name] = module
    return found


def input_ranges(
    network: nn.Module, layers: dict[str, nn.Module], batches: Sequence[Tensor]
) -> dict[str, Range]:
    """The least and greatest value of each layer's input."""
    found: dict[str, Range] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            low, high = map(float, torch.aminmax(inputs[0]))
            known = found.get(name, (low, high))
            found[name] = min(low, known[0]), max(high, known[1])

        return hook

    with ExitStack() as stack, torch.inference_mode():
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(watch(name)).remove)
        for x in batches:
            network(x)
    return found


@contextmanager
def rounded(layers: dict[str, nn.Module], ranges: dict[str, Range]) -> Iterator[None]:
    """These layers as INT8 would compute them; inside the block."""
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(_rounded(layer, ranges[name]))
        yield


@contextmanager
def _rounded(layer: nn.Module, limits: Range) -> Iterator[None]:
    holder = layer.conv if isinstance(layer, FoldedConv) else layer
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    step = max((high - low) / 255, 1e-12)
    zero = round(-low / step)

    def round_input(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (torch.fake_quantize_per_tensor_affine(inputs[0], step, zero, 0, 255),)

    handle = layer.register_forward_pre_hook(round_input)
    parametrize.register_parametrization(holder, "weight", _RoundedWeight())
    try:
        yield
    finally:
        handle.remove()
        parametrize.remove_parametrizations(holder, "weight", leave_parametrized=False)


class _RoundedWeight(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        scales = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -127, 127)
