"""Which layers INT8 harms most, and how few of them must stay in floating point.

Sensitivity is measured in torch, a layer at a time: its weights and its input, over the range that
the calibration pictures give it, are rounded to 8 bits, all else stays in float32, and the logits'
mean square error counts.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mbconv.export.network import folded
from mbconv.export.rounding import input_ranges, layers_of, rounded
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
    layers = layers_of(network)
    ranges = input_ranges(network, layers, [x])
    errors = {}
    with torch.no_grad():
        exact: Tensor = network(x)
        for name, layer in layers.items():
            with rounded({name: layer}, ranges):
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
