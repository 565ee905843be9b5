"""Networks of one family that cost as much as another network: by bisection over one number."""

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
    return _nearest(family, other, lambda spec: float(cost(spec, other.resolution).macs))


def same_milliseconds(family: Family, other: Spec) -> Spec:
    """The member of `family` whose pass of 16 pictures takes nearest to as long as `other`'s here.

    In float32, channels last, the least of five passes each.
    """
    from mbconv.nn.model import build
    from mbconv.training.machine import find_device, plain_machine

    machine = plain_machine(find_device())
    return _nearest(
        family, other, lambda spec: pass_seconds(build(spec), other.resolution, machine)
    )


def pass_seconds(network: "MBConvNet", resolution: int, machine: "Machine") -> float:
    """Seconds of one pass of 16 noisy pictures in evaluation mode, the least of five."""
    import torch

    from mbconv.training.machine import timed

    network = network.eval().to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
    pictures = torch.randn(PICTURES, network.spec.in_channels, resolution, resolution)
    pictures = pictures.to(machine.device).contiguous(memory_format=machine.memory_format)
    with torch.inference_mode(), machine.autocast(machine.frozen_dtype):
        return timed(lambda: network(pictures), repeats=_PASSES)


def _nearest(family: Family, other: Spec, measure: Callable[[Spec], float]) -> Spec:
    """Bisection; the nearest of all that were tried, since widths come in steps."""
    wanted, low, high = measure(other), LOW, HIGH
    tried: dict[float, Spec] = {}
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        try:
            spec = family(middle)
        except UserError:  # too small or too large to be a network: nearer to the one it is
            low, high = (middle, high) if middle < 0 else (low, middle)
            continue
        found = measure(spec)
        tried[abs(found / wanted - 1)] = spec
        low, high = (middle, high) if found < wanted else (low, middle)
    if not tried:
        raise UserError("No network of this family could be built; check what it is made from.")
    return tried[min(tried)]
