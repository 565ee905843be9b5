"""What the tables of named networks are written with."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from mbconv.arch.block import Block
from mbconv.arch.spec import Spec, Stage

# Numerics of the code that trained published weights, as fields of a Spec: TensorFlow's SAME
# padding and momentum 0.99 (0.01 in torch's meaning), and torch's own.
TENSORFLOW: dict[str, Any] = {"padding": "same", "bn_eps": 1e-3, "bn_momentum": 0.01}
TORCH: dict[str, Any] = {"padding": "symmetric", "bn_eps": 1e-5, "bn_momentum": 0.1}


class Row(NamedTuple):
    """A network as a scaling of a base: the coefficients that its paper's table gives."""

    name: str
    base: Spec
    width: float
    depth: float
    resolution: int
    dropout: float
    source: str


def blocks(number: int, *, stride: int = 1, **fields: Any) -> tuple[Block, ...]:
    """`number` equal blocks, of which the first has the stride."""
    return tuple(Block(stride=stride if i == 0 else 1, **fields) for i in range(number))


def stages(rows: Iterable[tuple[int, int, int, int, int]], **fields: Any) -> tuple[Stage, ...]:
    """Stages of equal blocks from rows of (expand, kernel, stride, channels, blocks)."""
    return tuple(
        Stage(
            blocks=blocks(
                number, expand=expand, kernel=kernel, stride=stride, channels=channels, **fields
            )
        )
        for expand, kernel, stride, channels, number in rows
    )


def gated(made: tuple[Stage, ...], numbers: Iterable[int]) -> tuple[Stage, ...]:
    """The same stages with SE in those that are numbered, from 1."""
    return Spec(stages=made).replace_in(numbers, gate="se").stages
