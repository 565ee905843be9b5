"""A network as data: Spec > Stage > Block, frozen, validated on construction, JSON both ways.

Everything numeric about a network is a field here; no behaviour hangs on a name. Nothing in this
package imports torch, so that tables and help are instant.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from dataclasses import replace as dataclass_replace
from typing import Any, Literal

from mbconv.arch.block import Activation, Block, Conv
from mbconv.arch.fields import check, check_types, known, members
from mbconv.errors import UserError

SPEC_FORMAT = 2

# Block fields that are set in several blocks at once; widths and strides are each block's own.
_SHARED = {f.name for f in fields(Block)} - {"channels", "stride"}

Padding = Literal["same", "symmetric"]
Pooling = Literal["avg", "max", "concat"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive blocks; the first may reduce, the others may not."""

    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", members("Stage", "blocks", self.blocks, Block))
        if not self.blocks:
            raise UserError("Stage needs at least one block; remove the stage instead.")
        for number, block in enumerate(self.blocks[1:], start=1):
            check(f"Stage block {number}", "stride", block.stride, block.stride == 1,
                   "1: only a stage's first block may reduce")  # fmt: skip

    @property
    def channels(self) -> int:
        """Width of the stage's output."""
        return self.blocks[-1].channels

    @property
    def stride(self) -> int:
        return self.blocks[0].stride


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A map that `features` can return: its name, its width, and the picture's side over its."""

    name: str
    channels: int
    reduction: int


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
    head_hidden: int | None = None  # width of a linear layer after pooling (MobileNetV3)
    head_hidden_norm: bool = False  # with batch norm instead of a bias (MobileNetV4)
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
    scale_stem: bool = True
    scale_head: Literal["always", "never", "up"] = "always"
    scale_outer_depth: bool = True  # False (Lite): the first and last stage are not repeated

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", members("Spec", "stages", self.stages, Stage))
        if not self.stages:
            raise UserError("Spec needs at least one stage.")
        where = f"Spec {self.name!r}"
        check_types(where, self)
        check(where, "stem_kernel", self.stem_kernel, self.stem_kernel in (3, 5, 7), "3, 5 or 7")
        check(where, "stem_stride", self.stem_stride, self.stem_stride in (1, 2), "1 or 2")
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            check(where, name, value, 0 <= value < 1, "at least 0 and below 1")
        check(where, "bn_eps", self.bn_eps, self.bn_eps > 0, "positive")
        check(where, "bn_momentum", self.bn_momentum, 0 < self.bn_momentum <= 1, "in (0, 1]")

    @property
    def stem(self) -> Conv:
        """The first convolution, from the picture."""
        return Conv(
            name="stem",
            in_channels=self.in_channels,
            out_channels=self.stem_channels,
            kernel=self.stem_kernel,
            stride=self.stem_stride,
            activation=self.activation,
        )

    @property
    def head_conv(self) -> Conv:
        """The last convolution, before pooling."""
        return Conv(
            name="conv",
            in_channels=self.stages[-1].channels,
            out_channels=self.head_channels,
            activation=self.activation,
        )

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

    def taps(self) -> tuple[Tap, ...]:
        """The maps that `features` returns, in order: `stem`, `stage1`, `stage2` and so on."""
        reduction = self.stem_stride
        taps = [Tap(name="stem", channels=self.stem_channels, reduction=reduction)]
        for number, stage in enumerate(self.stages, start=1):
            reduction *= stage.stride
            name = f"stage{number}"
            taps.append(Tap(name=name, channels=stage.channels, reduction=reduction))
        return tuple(taps)

    def pyramid(self) -> tuple[Tap, ...]:
        """The last map at each reduction: what a decoder or a feature pyramid is built on."""
        return tuple({tap.reduction: tap for tap in self.taps()}.values())

    def drop_path_rates(self) -> tuple[float, ...]:
        """One rate a block: `drop_path * index / number of blocks`; the first drops nothing."""
        return tuple(self.drop_path * i / self.num_blocks for i in range(self.num_blocks))

    def replace(self, **changes: Any) -> "Spec":
        """A copy with fields changed; a Block's field is set in every block.

        `activation` is a field of both: it changes stem, head and all blocks. Raises UserError
        for an unknown field, with the nearest names.
        """
        own = {f.name for f in fields(Spec)}
        known("Spec", changes, own | _SHARED)
        in_blocks = {k: v for k, v in changes.items() if k in _SHARED}
        spec = dataclass_replace(self, **{k: v for k, v in changes.items() if k in own})
        if not in_blocks:
            return spec
        return spec.map_blocks(lambda block: dataclass_replace(block, **in_blocks))

    def replace_in(self, stages: Iterable[int], **changes: Any) -> "Spec":
        """A copy with Block fields changed in some stages only, numbered from 1 as in `info`.

        `spec.replace_in(range(5, 8), gate=None, activation="relu6")` changes stages 5 to 7.
        Raises UserError for an unknown field and for a stage that there is not.
        """
        known("Block", changes, _SHARED)
        numbers = set(stages)
        for number in numbers:
            expected = f"between 1 and {len(self.stages)}"
            check(f"Spec {self.name!r}", "stage", number, 0 < number <= len(self.stages), expected)
        return self.map_blocks(lambda block: dataclass_replace(block, **changes), numbers)

    def map_blocks(
        self, change: Callable[[Block], Block], stages: Collection[int] | None = None
    ) -> "Spec":
        """A copy whose blocks, in all stages or in those numbers from 1, are `change(block)`."""
        changed = (
            Stage(blocks=tuple(map(change, stage.blocks)))
            if stages is None or number in stages
            else stage
            for number, stage in enumerate(self.stages, start=1)
        )
        return dataclass_replace(self, stages=tuple(changed))

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
        if not isinstance(version, int) or not 1 <= version <= SPEC_FORMAT:
            raise UserError(
                f"This spec has format {version!r}; this mbconv reads up to {SPEC_FORMAT}: "
                "upgrade mbconv."
            )
        if version == 1 and data.pop("scale_ends", True) is False:
            data |= {"scale_stem": False, "scale_head": "never", "scale_outer_depth": False}
        known("Spec", data, {f.name for f in fields(cls)})
        stages = []
        for number, blocks in enumerate(data.pop("stages"), start=1):
            if not isinstance(blocks, list) or not all(isinstance(b, dict) for b in blocks):
                raise UserError(f"Spec stage {number} must be a list of blocks.")
            for block in blocks:
                known(f"Block in stage {number}", block, {f.name for f in fields(Block)})
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


def _changed(item: Block | Spec) -> dict[str, Any]:
    values = {f.name: getattr(item, f.name) for f in fields(item)}
    return {f.name: values[f.name] for f in fields(item) if values[f.name] != f.default}
