"""Which tensor of a larger network starts from which of a smaller one: pure data.

A channel that the source lacks is a copy of one that it has (Net2Net, Chen et al. 2015, arXiv
1511.05641): the copies' incoming weights and batch-norm statistics are the original's, and
whoever reads them shares the original's weight out among original and copies. That holds through
activations, batch norm, depthwise convolutions, gates' means and shortcuts alike.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from mbconv.arch.block import Block, Gating
from mbconv.arch.spec import Spec
from mbconv.errors import UserError
from mbconv.growing.layout import (
    Place,
    Shape,
    block_at,
    is_parameter,
    shortcut_conv,
    tensor_shapes,
)
from mbconv.growing.nearest import nearest
from mbconv.growing.obstacles import obstacles, template

Mode = Literal["exact", "nearest", "transplant", "convolutions"]
MODES: tuple[Mode, ...] = ("exact", "nearest", "transplant", "convolutions")
Start = Literal["source", "identity", "drawn", "constant", "fresh"]

_SQUEEZED_BIAS = 1.0  # of a new gate's squeeze, so that its ReLU lets every unit learn
_SHOWN = 3  # obstacles in a sentence


class Span(NamedTuple):
    """`new` channels that come from `old` ones: themselves, then copies in turn. 0: from none."""

    old: int
    new: int


Axis = tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class Move:
    """How one tensor of the target starts.

    From a tensor of the source, or an identity convolution of `source_shape`: rows (axis 0) are
    copied, columns (axis 1) shared out among copies, kernels padded with zeros, everything
    multiplied by `factor`. Or drawn with the deviation `value`, or constant, or as fresh networks
    start. The weights of a `repeated` block, which is silent at first, get a tenth of noise, so
    that two copies of one block part.
    """

    name: str
    shape: Shape
    start: Start
    source: str | None = None
    source_shape: Shape = ()
    rows: Axis = ()
    columns: Axis = ()
    factor: float = 1.0
    value: float = 0.0
    repeated: bool = False

    def counts(self) -> tuple[int, int, int]:
        """Elements that stay as they are, that are copies or shares, that are new."""
        size = math.prod(self.shape)
        if self.start != "source":
            return 0, 0, size
        taps = math.prod(self.source_shape[2:])
        kept_rows, rows = sum(s.old for s in self.rows), sum(s.new for s in self.rows if s.old)
        columns = sum(s.new for s in self.columns if s.old) if self.columns else 1
        alone = sum(max(0, 2 * s.old - s.new) for s in self.columns) if self.columns else 1
        moved = rows * columns * taps
        kept = 0 if self.repeated or self.factor != 1 else kept_rows * alone * taps
        return kept, moved - kept, size - moved


@dataclass(frozen=True, kw_only=True)
class Plan:
    """From `source` to `target`: a move for each of the target's tensors.

    `exact`: the grown network computes what the source did. `left` names the source's parameters
    that have no place in the target.
    """

    source: Spec
    target: Spec
    mode: Mode
    moves: tuple[Move, ...]
    left: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        return self.mode in ("exact", "nearest")

    @property
    def effective(self) -> int:
        """Parameters of the source that the target starts with; copies and zeros add none."""
        shapes = tensor_shapes(self.source)
        used = {move.source for move in self.moves if move.source and is_parameter(move.name)}
        return sum(math.prod(shapes[name]) for name in used)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the names, the sums, every move."""
        sums = [move.counts() for move in self.moves if is_parameter(move.name)]
        kept, widened, new = (sum(column) for column in zip(*sums, strict=True))
        shapes = tensor_shapes(self.source)
        return {
            "source": self.source.name,
            "target": self.target.name,
            "mode": self.mode,
            "exact": self.exact,
            "source_params": sum(math.prod(s) for n, s in shapes.items() if is_parameter(n)),
            "params": kept + widened + new,
            "kept": kept,
            "widened": widened,
            "new": new,
            "effective": self.effective,
            "left": list(self.left),
            "moves": [
                {**asdict(move), "counts": move.counts() if is_parameter(move.name) else (0, 0, 0)}
                for move in self.moves
            ],
            "target_spec": self.target.to_dict(),
        }


def plan(source: Spec, target: Spec, mode: Mode = "exact") -> Plan:
    """How a network of `source` becomes one of `target`.

    `exact` keeps the function: equal logits in evaluation mode, up to rounding; UserError names
    what does not allow it. `nearest` does so towards the nearest target that allows it, which is
    the plan's `target`. `transplant` moves the tensors whose name and shape agree and starts the
    others afresh; `convolutions` does the same without batch norms.
    """
    if mode not in MODES:
        raise UserError(f"mode is {mode!r}; it must be {', '.join(MODES)}.")
    if mode in ("transplant", "convolutions"):
        return _transplant(source, target, mode)
    if mode == "nearest":
        target = nearest(source, target)
    found = obstacles(source, target)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UserError(
            f"{source.name} cannot grow into {target.name} without changing its answers: "
            f"{'; '.join(found[:_SHOWN])}{more}. Take mode nearest, the maximum of both networks "
            "that allows it, or mode transplant, which moves what fits and starts the rest afresh."
        )
    return Plan(source=source, target=target, mode=mode, moves=tuple(_exact(source, target)))


def _transplant(source: Spec, target: Spec, mode: Mode) -> Plan:
    old, moves = tensor_shapes(source), []
    for name, shape in tensor_shapes(target).items():
        fits = old.get(name) == shape and not (mode == "convolutions" and ".norm." in name)
        if fits:
            move = _moved(name, shape, name, shape)
        else:
            move = Move(name=name, shape=shape, start="fresh")
        moves.append(move)
    taken = {move.source for move in moves}
    left = tuple(name for name in old if name not in taken and is_parameter(name))
    return Plan(source=source, target=target, mode=mode, moves=tuple(moves), left=left)


def _moved(name: str, shape: Shape, source: str, source_shape: Shape, **more: Any) -> Move:
    """A tensor from the source, wider where its shape is."""
    spans = {"rows": _axis(source_shape[:1], shape[:1]),
             "columns": _axis(source_shape[1:2], shape[1:2])}  # fmt: skip
    return Move(name=name, shape=shape, start="source", source=source,
                source_shape=source_shape, **{**spans, **more})  # fmt: skip


def _axis(old: Shape, new: Shape) -> Axis:
    return tuple(Span(*sizes) for sizes in zip(old, new, strict=True))


def _exact(source: Spec, target: Spec) -> Iterator[Move]:
    """The moves of an exact plan, in the order of the target's tensors."""
    old = tensor_shapes(source)
    origins = _origins(source, target)
    special = _Special()
    for place, found in origins.items():
        _block(special, source, target, place, found)
    _ends(special, source, target)
    for name, shape in tensor_shapes(target).items():
        fields = special.get(name, {})
        block, found, came_from = _block_of(name), None, name
        if block is not None:
            found = origins[block]
            came_from = name if found is None else _path(found) + name.removeprefix(_path(block))
        if "start" in fields:
            yield Move(name=name, shape=shape, **fields)
        elif came_from in old and (block is None or found is not None):
            fields = {"repeated": block != found, **fields}
            yield _moved(name, shape, came_from, old[came_from], **fields)
        else:
            yield Move(name=name, shape=shape, start="fresh")


def _path(place: Place) -> str:
    return f"stages.{place[0]}.{place[1]}"


def _block_of(name: str) -> Place | None:
    """stages.1.2.expand.conv.weight -> (1, 2); None for stem and head."""
    parts = name.split(".")
    return (int(parts[1]), int(parts[2])) if parts[0] == "stages" else None


def _origins(source: Spec, target: Spec) -> dict[Place, Place | None]:
    """Block of the target -> block of the source that it starts from, None for fresh ones."""
    return {(s, b): template(source, target, s, b) for s, b, _, _ in target.blocks()}


class _Special(dict[str, dict[str, Any]]):
    """Fields of the moves that are not plain ones, by the tensor's name."""

    def add(self, name: str, **fields: Any) -> None:
        self.setdefault(name, {}).update(fields)

    def constant(self, name: str, value: float) -> None:
        self.add(name, start="constant", value=value)

    def silent(self, name: str) -> None:
        """A convolution whose batch norm starts with zeros: it gives nothing, and learns."""
        self.constant(f"{name}.norm.weight", 0.0)
        self.constant(f"{name}.norm.bias", 0.0)

    def identity(self, name: str, shape: Shape, new: Shape, bn_eps: float) -> None:
        """A convolution that hands its input on; `shape` as wide as the source."""
        self.add(f"{name}.conv.weight", start="identity", source_shape=shape,
                 rows=_axis(shape[:1], new[:1]), columns=_axis(shape[1:2], new[1:2]))  # fmt: skip
        self.constant(f"{name}.norm.weight", math.sqrt(1 + bn_eps))
        for leaf, value in (("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0),
                            ("num_batches_tracked", 0.0)):  # fmt: skip
            self.constant(f"{name}.norm.{leaf}", value)

    def gate(self, name: str, gate: Gating, new_block: bool) -> None:
        """A gate that starts at one half whatever comes in, where its gradient is largest.

        In a new block, which is silent, its last weights start afresh: zeros behind zeros would
        take a third step to learn.
        """
        if gate.kind in ("se", "scse"):
            inner = f"{name}.channel" if gate.kind == "scse" else name
            deviation = gate.channels**-0.5
            self.add(f"{inner}.reduce.weight", start="drawn", value=deviation)
            self.constant(f"{inner}.reduce.bias", _SQUEEZED_BIAS)
            if not new_block:
                self.constant(f"{inner}.expand.weight", 0.0)
                self.constant(f"{inner}.expand.bias", 0.0)
        if gate.kind != "se" and not new_block:
            inner = f"{name}.spatial" if gate.kind == "scse" else name
            self.constant(f"{inner}.conv.weight", 0.0)


def _block(
    special: _Special, source: Spec, target: Spec, place: Place, found: Place | None
) -> None:
    """What does not simply move: parts that the source lacks, the end of a new block."""
    x, block = block_at(target, place)
    where, parts = _path(place), block.parts(x)
    new_block = place[1] >= len(source.stages[place[0]].blocks)
    before: set[str] = set()
    if found is not None:
        old_x, old = block_at(source, found)
        before = {part.name for part in old.parts(old_x)}
        _shortcut(special, where, (old_x, old), (x, block), target.bn_eps)
    for part in parts:
        name = f"{where}.{part.name}"
        if part.name in before:
            continue
        if isinstance(part, Gating):
            special.gate(name, part, new_block)
            if not new_block and part.kind != "scse":  # whose two halves make one
                special.add(f"{where}.project.conv.weight", factor=2.0)
        elif found is not None:
            width = {"depthwise": old.expanded(old_x), "project": old.channels}
            channels, dense = width.get(part.name, old_x), part.name in ("expand", "project")
            shape = (channels, channels if dense else 1, 1, 1)
            new = (part.out_channels, part.in_channels if dense else 1)
            special.identity(name, shape, new, target.bn_eps)
    if new_block:
        special.silent(f"{where}.{parts[-1].name}")


def _shortcut(
    special: _Special, where: str, old: tuple[int, Block], new: tuple[int, Block], bn_eps: float
) -> None:
    """A ResNet-D shortcut that the source lacks: silent, or its identity shortcut's stand-in."""
    conv = shortcut_conv(new[1], new[0])
    if conv is None or shortcut_conv(old[1], old[0]) is not None:
        return
    if old[1].has_skip(old[0]):
        shape = (old[0], old[0], 1, 1)
        special.identity(f"{where}.{conv.name}", shape, (conv.out_channels, conv.in_channels),
                         bn_eps)  # fmt: skip
    else:
        special.silent(f"{where}.{conv.name}")


def _ends(special: _Special, source: Spec, target: Spec) -> None:
    """The columns that read the pooled channels, and the classifier's new rows."""
    reader = "head.classifier" if source.head_hidden is None else "head.hidden.linear"
    special.add(f"{reader}.weight", columns=_pooled(source, target))
    classes = source.num_classes, target.num_classes
    rows = (Span(classes[0], classes[0]), Span(0, classes[1] - classes[0]))
    for leaf in ("weight", "bias"):
        special.add(f"head.classifier.{leaf}", rows=rows)


def _pooled(source: Spec, target: Spec) -> Axis:
    """Average and maximum lie side by side; one that the source lacks is not read at first."""
    old, new = source.head_channels, target.head_channels
    if target.pooling != "concat":
        return (Span(old, new),)
    had = {"avg": (True, False), "max": (False, True), "concat": (True, True)}[source.pooling]
    return tuple(Span(old if there else 0, new) for there in had)
