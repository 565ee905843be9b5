"""Which layers INT8 harms most, and how few of them must stay in floating point.

Sensitivity is measured in torch, a layer at a time: its weights (a scale for each output channel)
and its input (one scale, over the range that the calibration pictures give it) are rounded to 8
bits, all else stays in float32, and the logits' mean square error counts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mbconv.export.network import FoldedConv, folded
from mbconv.nn.model import MBConvNet
from mbconv.runtime.predictor import Logits

PICTURES = 32  # of the calibration's, for the ranking
LARGEST_SHARE = 0.5  # of the layers; with more of them in floating point INT8 has no point


def most_sensitive(model: MBConvNet, batches: Sequence[Logits]) -> list[str]:
    """The names of the layers that INT8 quantises, the most sensitive first.

    `batches` are normalised pictures, float32 [N, C, R, R] each.
    """
    network = folded(model)
    x = torch.cat([torch.from_numpy(b) for b in batches])[:PICTURES]
    layers = dict(_layers(network))
    with torch.inference_mode():
        ranges = _input_ranges(network, layers, x)
        exact: Tensor = network(x)
        errors = {}
        for name, layer in layers.items():
            with _rounded(layer, ranges[name]):
                errors[name] = float((network(x) - exact).square().mean())
    return sorted(errors, key=lambda name: -errors[name])


def fewest(most: int, enough: Callable[[int], bool]) -> int | None:
    """The smallest count from 1 to `most` that is enough, by doubling, then halving the gap.

    None where `most` is not enough either. More is taken to be never worse.
    """
    too_few, count = 0, 1
    while not enough(count):
        if count >= most:
            return None
        too_few, count = count, min(2 * count, most)
    while count - too_few > 1:
        middle = (too_few + count) // 2
        if enough(middle):
            count = middle
        else:
            too_few = middle
    return count


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Convolutions and linear layers by the names that their nodes have in a graph."""
    inside = set()
    for name, module in network.named_modules():
        if isinstance(module, FoldedConv):
            inside.add(module.conv)
            yield name, module
        elif isinstance(module, nn.Conv2d | nn.Linear) and module not in inside:
            yield name, module


def _input_ranges(
    network: nn.Module, layers: dict[str, nn.Module], x: Tensor
) -> dict[str, tuple[float, float]]:
    """The least and greatest value of each layer's input."""
    found: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            low, high = torch.aminmax(inputs[0])
            found[name] = float(low), float(high)

        return hook

    handles = [m.register_forward_pre_hook(watch(name)) for name, m in layers.items()]
    network(x)
    for handle in handles:
        handle.remove()
    return found


@contextmanager
def _rounded(layer: nn.Module, limits: tuple[float, float]) -> Iterator[None]:
    """The layer as INT8 would compute it; inside the block."""
    holder = layer.conv if isinstance(layer, FoldedConv) else layer
    weight = holder.weight
    assert isinstance(weight, nn.Parameter)
    scales = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    step = max((high - low) / 255, 1e-12)
    zero = round(-low / step)

    def round_input(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (torch.fake_quantize_per_tensor_affine(inputs[0], step, zero, 0, 255),)

    handle = layer.register_forward_pre_hook(round_input)
    holder.weight = nn.Parameter(
        torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -127, 127)
    )
    try:
        yield
    finally:
        handle.remove()
        holder.weight = weight
