"""Activations and sigmoids by the names that a Spec uses."""

from collections.abc import Callable

from torch import nn

from mbconv.arch.block import Activation, Sigmoid

# None works in place: feature maps taken from a hook or from `features` must not change later.
_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hard_swish": nn.Hardswish,
    "gelu": nn.GELU,
}


def make_activation(name: Activation | None) -> nn.Module:
    """A new elementwise activation; None stands for none.

    ReLU; ReLU6 (MobileNet, arXiv 1704.04861); SiLU, also called swish (arXiv 1702.03118,
    1710.05941); hard-swish (MobileNetV3, arXiv 1905.02244); GELU, the exact one (arXiv 1606.08415).
    """
    return nn.Identity() if name is None else _ACTIVATIONS[name]()


def make_sigmoid(name: Sigmoid) -> nn.Module:
    """The sigmoid, or its piecewise linear stand-in relu6(x + 3) / 6 (arXiv 1905.02244)."""
    return nn.Sigmoid() if name == "sigmoid" else nn.Hardsigmoid()
