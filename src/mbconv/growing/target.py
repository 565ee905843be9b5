"""What a network is to grow into, from what the user calls it."""

from pathlib import Path

from mbconv.arch.spec import Spec
from mbconv.weights.spec import find_spec

# What a name says nothing about: where the network begins and ends, and numerics of the weights.
_FOLLOWS = ("num_classes", "in_channels", "pooling", "padding", "bn_eps", "bn_momentum")


def target_spec(target: Spec | str | Path, source: Spec) -> Spec:
    """The spec that `target` stands for, for a network of `source` to grow into.

    A Spec, a spec file or a model is taken as it is. A name stands for widths, depths and kernels:
    classes, input channels, pooling, padding and batch norm's numerics are then those of `source`.
    """
    if isinstance(target, Spec):
        return target
    found = find_spec(target)
    if Path(target).exists() or str(target).startswith("hf-hub:"):
        return found
    return following(found, source)


def following(spec: Spec, source: Spec) -> Spec:
    """`spec` with what a name says nothing about as `source` has it."""
    return spec.replace(**{name: getattr(source, name) for name in _FOLLOWS})
