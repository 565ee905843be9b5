"""Networks of one family that cost as much as another network: by bisection over one number."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec
from mbconv.errors import UserError

if TYPE_CHECKING:
    from mbconv.nn.model import MBConvNet
    from mbconv.training.machine import Machine

Family = Callable[[float], Spec]  # costs more the larger its argument is
LOW, HIGH = -16.0, 8.0  # of a phi, or of a width's binary logarithm
_HALVINGS = 12
PICTURES = 16  # of a timed pass
_PASSES = 5


def same_macs(family: Family, other: Spec) -> Spec:
    """The member of `family` whose multiply-adds are nearest to `other`'s, at its resolution."""
    wanted = cost(other, other.resolution).macs
    return _nearest(family, lambda spec: cost(spec, other.resolution).macs / wanted)


def same_milliseconds(family: Family, other: Spec) -> Spec:
    """The member of `family` whose pass of 16 pictures takes nearest to as long as `other`'s here.

    The two take turns, five passes each, and the least of each counts: what happens to the machine
    happens to both. In float32.
    """
    from mbconv.nn.model import build
    from mbconv.training.machine import find_device, plain_machine, timed

    machine = plain_machine(find_device())
    theirs = passing(build(other), other.resolution, machine)

    def ratio(spec: Spec) -> float:
        ours = passing(build(spec), other.resolution, machine)
        turns = [(timed(ours, repeats=1), timed(theirs, repeats=1)) for _ in range(_PASSES)]
        return min(own for own, _ in turns) / min(other for _, other in turns)

    return _nearest(family, ratio)


def passing(network: "MBConvNet", resolution: int, machine: "Machine") -> Callable[[], object]:
    """What passes 16 noisy pictures through a network in evaluation mode, once a call."""
    import torch

    network = network.eval().to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
    pictures = torch.randn(PICTURES, network.spec.in_channels, resolution, resolution)
    pictures = pictures.to(machine.device).contiguous(memory_format=machine.memory_format)

    def run() -> object:
        with torch.inference_mode(), machine.autocast(machine.frozen_dtype):
            return network(pictures)

    return run


def pass_seconds(network: "MBConvNet", resolution: int, machine: "Machine") -> float:
    """Seconds of such a pass, the least of five."""
    from mbconv.training.machine import timed

    return timed(passing(network, resolution, machine), repeats=_PASSES)


def _nearest(family: Family, ratio: Callable[[Spec], float]) -> Spec:
    """Bisection for a `ratio` of 1; the nearest of all tried, since widths come in steps."""
    low, high = LOW, HIGH
    tried: dict[float, Spec] = {}
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        try:
            spec = family(middle)
        except UserError:  # too small or too large to be a network: nearer to the one it is
            low, high = (middle, high) if middle < 0 else (low, middle)
            continue
        found = ratio(spec)
        tried[abs(math.log(found))] = spec
        low, high = (middle, high) if found < 1 else (low, middle)
    if not tried:
        raise UserError("No network of this family could be built; check what it is made from.")
    return tried[min(tried)]
