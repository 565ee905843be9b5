"""What is known about another library: its networks, their numerics, and how it names modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mbconv.arch.spec import Spec
from mbconv.arch.zoo import get_spec
from mbconv.preprocessing import Preprocessing

# Ours -> theirs, module by module (`stem.conv` -> `conv_stem`). Parameters are called the same on
# both sides. A map may name modules that a network of ours lacks; those are passed over.
Layout = Callable[[Spec], dict[str, str]]


@dataclass(frozen=True)
class Network:
    """A network there: one of the zoo's under that library's numerics.

    `pixels` are the mean and standard deviation of its published weights' input, for pixels in
    0..1, where all weights of that network agree; None stands for ImageNet's usual ones.
    `version` is what the library wants to read in a state dict's `_metadata`, if anything.
    """

    zoo: str
    layout: Layout
    numerics: Mapping[str, Any]  # fields of Spec and Block
    pixels: tuple[float, float] | None = None
    version: int | None = None

    def spec(self, name: str) -> Spec:
        return get_spec(self.zoo).replace(name=name, **self.numerics)

    def preprocessing(self, resolution: int, resize: int) -> Preprocessing:
        if self.pixels is None:
            return Preprocessing(resolution=resolution, resize=resize)
        mean, std = self.pixels
        return Preprocessing(
            resolution=resolution, resize=resize, mean=(mean, mean, mean), std=(std, std, std)
        )


@dataclass(frozen=True)
class Library:
    """A library of networks; `name` is what it is called in MODEL and in `--from`."""

    name: str
    networks: Mapping[str, Network]
    # Our linear layers that are 1x1 convolutions there: weights [O, I] here, [O, I, 1, 1] there.
    pointwise: frozenset[str] = field(default=frozenset())


def table(
    names: Mapping[str, str],
    layout: Layout,
    numerics: Mapping[str, Any],
    pixels: tuple[float, float] | None = None,
    version: int | None = None,
) -> dict[str, Network]:
    """A table's rows, from names there -> zoo names."""
    return {name: Network(zoo, layout, numerics, pixels, version) for name, zoo in names.items()}
