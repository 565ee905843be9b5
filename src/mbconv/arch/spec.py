"""A network as data: Spec > Stage > Block, frozen, validated on construction, JSON both ways.

Everything numeric about a network is a field here; no behaviour hangs on a name. Nothing in this
package imports torch, so that tables and help are instant.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from dataclasses import replace as dataclass_replace
from functools import cache
from typing import Any, Literal, get_args, get_origin

from mbconv.errors import UserError

SPEC_FORMAT = 1

Activation = Literal["relu", "relu6", "silu", "hard_swish", "gelu"]
Gate = Literal["se", "sse", "scse", "eca"]
Shortcut = Literal["identity", "resnet_d"]
Padding = Literal["same", "symmetric"]
Pooling = Literal["avg", "max", "concat"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One MBConv block: expand 1x1, depthwise k x k, gate, project 1x1, shortcut.

    An `expand` of 1 has no expansion convolution (MBConv1 of the EfficientNet paper).
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    expand: float = 6.0
    activation: Activation = "silu"
    gate: Gate | None = None
    gate_ratio: float = 0.25  # squeezed width / reference width
    gate_base: Literal["input", "expanded"] = "input"  # the reference: the block's input or E
    gate_divisor: int = 1  # the squeezed width is rounded to a multiple of it
    shortcut: Shortcut | None = "identity"  # identity: where shapes allow; resnet_d: everywhere

    def __post_init__(self) -> None:
        where = "Block"
        _check_types(where, self)
        _check(where, "kernel", self.kernel, self.kernel in (3, 5, 7), "3, 5 or 7")
        _check(where, "stride", self.stride, self.stride in (1, 2), "1 or 2")
        _check(where, "expand", self.expand, 1 <= self.expand <= 32, "between 1 and 32")
        _check(where, "gate_ratio", self.gate_ratio, 0 < self.gate_ratio <= 1, "in (0, 1]")

    def expanded(self, in_channels: int) -> int:
        """Width of the expanded map, `in_channels * expand`."""
        return round(in_channels * self.expand)

    def squeezed(self, in_channels: int) -> int:
        """Width inside the gate's squeeze, at least 1."""
        base = in_channels if self.gate_base == "input" else self.expanded(in_channels)
        width = base * self.gate_ratio
        if self.gate_divisor == 1:
            return max(1, int(width))
        return round_width(width, self.gate_divisor)

    def keeps_shape(self, in_channels: int) -> bool:
        """Whether input and output have one shape, so that an identity shortcut is possible."""
        return self.stride == 1 and in_channels == self.channels

    def has_skip(self, in_channels: int) -> bool:
        """Whether the block carries a shortcut, given its input's width."""
        if self.shortcut == "resnet_d":
            return True
        return self.shortcut == "identity" and self.keeps_shape(in_channels)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive blocks; the first may change width and stride, the others may not."""

    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", _members("Stage", "blocks", self.blocks, Block))
        if not self.blocks:
            raise UserError("Stage needs at least one block; remove the stage instead.")
        for number, block in enumerate(self.blocks[1:], start=1):
            _check(f"Stage block {number}", "stride", block.stride, block.stride == 1,
                   "1: only a stage's first block may reduce")  # fmt: skip
            _check(f"Stage block {number}", "channels", block.channels,
                   block.channels == self.channels,
                   f"{self.channels} as in the first block")  # fmt: skip

    @property
    def channels(self) -> int:
        return self.blocks[0].channels

    @property
    def stride(self) -> int:
        return self.blocks[0].stride


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A whole network: stem, stages, head and the numerics that training and weights depend on."""

    name: str = "custom"
    stages: tuple[Stage, ...]
    source: str = ""  # paper and table, or who trained it
    resolution: int = 224  # side of the square picture it was designed for
    in_channels: int = 3
    num_classes: int = 1000
    stem_channels: int = 32
    stem_kernel: int = 3
    stem_stride: int = 2
    head_channels: int = 1280
    activation: Activation = "silu"  # of stem and head
    pooling: Pooling = "avg"  # concat: average and maximum side by side, twice the width
    dropout: float = 0.2  # before the classifier
    drop_path: float = 0.2  # the block with index i of n drops with drop_path * i / n
    padding: Padding = "symmetric"  # same: TensorFlow's, asymmetric at stride 2
    bn_eps: float = 1e-5
    bn_momentum: float = 0.1  # torch's meaning: weight of the new batch
    zero_gamma: bool = False  # blocks with a shortcut start as their shortcut
    width_divisor: int = 8  # rules that scale() follows
    width_tenth_rule: bool = True  # never round a width down by more than a tenth
    depth_rounding: Literal["ceil", "round"] = "ceil"
    scale_ends: bool = True  # False (Lite): stem, head and depth of first and last stage stay

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", _members("Spec", "stages", self.stages, Stage))
        if not self.stages:
            raise UserError("Spec needs at least one stage.")
        where = f"Spec {self.name!r}"
        _check_types(where, self)
        _check(where, "stem_kernel", self.stem_kernel, self.stem_kernel in (3, 5, 7), "3, 5 or 7")
        _check(where, "stem_stride", self.stem_stride, self.stem_stride in (1, 2), "1 or 2")
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            _check(where, name, value, 0 <= value < 1, "at least 0 and below 1")
        _check(where, "bn_eps", self.bn_eps, self.bn_eps > 0, "positive")
        _check(where, "bn_momentum", self.bn_momentum, 0 < self.bn_momentum <= 1, "in (0, 1]")

    @property
    def num_blocks(self) -> int:
        return sum(len(stage.blocks) for stage in self.stages)

    @property
    def skippable(self) -> int:
        """Number of blocks that can carry an identity shortcut, whether or not they have one."""
        return sum(block.keeps_shape(channels) for _, _, channels, block in self.blocks())

    @property
    def hash(self) -> str:
        """Identity of the network: 16 hex digits over its fields, without names and defaults.

        The format version stays out too: a newer format must not rename old networks.
        """
        data = self.to_dict()
        for label in ("format", "name", "source"):
            data.pop(label, None)
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    def blocks(self) -> Iterator[tuple[int, int, int, Block]]:
        """Yield (stage index, index in the stage, input channels, block), in order."""
        channels = self.stem_channels
        for s, stage in enumerate(self.stages):
            for b, block in enumerate(stage.blocks):
                yield s, b, channels, block
                channels = block.channels

    def drop_path_rates(self) -> tuple[float, ...]:
        """One rate a block: `drop_path * index / number of blocks`; the first drops nothing."""
        return tuple(self.drop_path * i / self.num_blocks for i in range(self.num_blocks))

    def replace(self, **changes: Any) -> "Spec":
        """A copy with fields changed; a Block's field is set in every block.

        `activation` is a field of both: it changes stem, head and all blocks. Raises UserError
        for an unknown field, with the nearest names.
        """
        own = {f.name for f in fields(Spec)}
        of_block = {f.name for f in fields(Block)} - {"channels", "stride"}
        _known("Spec", changes, own | of_block)
        in_blocks = {k: v for k, v in changes.items() if k in of_block}
        spec = dataclass_replace(self, **{k: v for k, v in changes.items() if k in own})
        if not in_blocks:
            return spec
        return spec.map_blocks(lambda block: dataclass_replace(block, **in_blocks))

    def map_blocks(self, change: Callable[[Block], Block]) -> "Spec":
        """A copy whose blocks are `change(block)`."""
        stages = tuple(
            Stage(blocks=tuple(change(b) for b in stage.blocks)) for stage in self.stages
        )
        return dataclass_replace(self, stages=stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the defaults left out; `from_dict` restores it exactly."""
        data = _changed(self)
        data["stages"] = [[_changed(block) for block in stage.blocks] for stage in self.stages]
        return {"format": SPEC_FORMAT, **data}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, data: Any) -> "Spec":
        """Build a Spec from `to_dict`'s data; UserError names the field that does not fit."""
        if not isinstance(data, dict) or not isinstance(data.get("stages"), list):
            raise UserError("A spec is a JSON object with a list `stages`; this is something else.")
        data = dict(data)
        version = data.pop("format", SPEC_FORMAT)
        if not isinstance(version, int) or version > SPEC_FORMAT:
            raise UserError(
                f"This spec has format {version!r}; this mbconv reads up to {SPEC_FORMAT}: "
                "upgrade mbconv."
            )
        _known("Spec", data, {f.name for f in fields(cls)})
        stages = []
        for number, blocks in enumerate(data.pop("stages"), start=1):
            if not isinstance(blocks, list) or not all(isinstance(b, dict) for b in blocks):
                raise UserError(f"Spec stage {number} must be a list of blocks.")
            for block in blocks:
                _known(f"Block in stage {number}", block, {f.name for f in fields(Block)})
                if "channels" not in block:
                    raise UserError(f"A block in stage {number} lacks `channels`.")
            stages.append(Stage(blocks=tuple(Block(**block) for block in blocks)))
        return cls(**data, stages=tuple(stages))

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"The spec is no valid JSON: {error}.") from error
        return cls.from_dict(data)


def round_width(width: float, divisor: int, tenth_rule: bool = True) -> int:
    """Nearest multiple of `divisor`, at least `divisor`.

    With `tenth_rule` never more than a tenth below `width` (the reference code of MobileNet and
    EfficientNet V1; V2 drops the rule).
    """
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if tenth_rule and rounded < 0.9 * width else rounded


def eca_kernel(channels: int) -> int:
    """Kernel of ECA's 1-D convolution (arXiv 1910.03151, equation 12 with gamma 2 and b 1).

    The whole part of (log2 C + 1) / 2, made odd upwards.
    """
    size = int((math.log2(channels) + 1) / 2)
    return size + 1 - size % 2


def _changed(item: Block | Spec) -> dict[str, Any]:
    values = {f.name: getattr(item, f.name) for f in fields(item)}
    return {f.name: values[f.name] for f in fields(item) if values[f.name] != f.default}


def _known(where: str, given: dict[str, Any], known: set[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"known: {sorted(known)}."
            raise UserError(f"{where} has no field {name!r}; {hint}")


def _check(where: str, name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{where}: {name} is {value!r}; it must be {expected}.")


def _check_types(where: str, item: Block | Spec) -> None:
    """Hold every field against its annotation; whole numbers must be positive.

    Numbers become floats where the field is one: `expand=4` and `expand=4.0` are one network and
    must have one hash.
    """
    for f in fields(item):
        value = getattr(item, f.name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if f.type is int:
            holds = whole and 0 < value < 2**31
            _check(where, f.name, value, holds, "a positive whole number below 2**31")
        elif f.type is float:
            holds = (whole and abs(value) < 2**31) or isinstance(value, float)
            _check(where, f.name, value, holds, "a finite number")
            object.__setattr__(item, f.name, float(value))
        elif f.type is bool:
            _check(where, f.name, value, isinstance(value, bool), "true or false")
        elif f.type is str:
            _check(where, f.name, value, isinstance(value, str), "a text")
        elif allowed := _choices(f.type):
            expected = "one of " + ", ".join(map(str, allowed))
            _check(where, f.name, value, value in allowed, expected)


@cache
def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values that `Literal[...]` or `Literal[...] | None` allows; () for anything else."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if annotation is type(None):
        return (None,)
    if isinstance(annotation, type) or get_origin(annotation) is tuple:
        return ()
    return tuple(value for part in get_args(annotation) for value in _choices(part))


def _members(where: str, name: str, value: Any, kind: type) -> tuple[Any, ...]:
    holds = isinstance(value, list | tuple) and all(isinstance(item, kind) for item in value)
    _check(where, name, value, holds, f"a tuple of {kind.__name__} objects")
    return tuple(value)
