"""One block of a network as data, and the parts that it consists of."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from mbconv.arch.fields import check, check_types

Kind = Literal["mbconv", "fused", "uib"]
Activation = Literal["relu", "relu6", "silu", "hard_swish", "gelu"]
Gate = Literal["se", "sse", "scse", "eca"]
Sigmoid = Literal["sigmoid", "hard_sigmoid"]
Shortcut = Literal["identity", "resnet_d"]


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A convolution with batch norm and, unless `activation` is None, an activation."""

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    activation: Activation | None = None


@dataclass(frozen=True, kw_only=True)
class Gating:
    """A gate on a map of `channels`; `squeezed` is the width inside SE and scSE."""

    kind: Gate
    channels: int
    squeezed: int
    activation: Activation
    sigmoid: Sigmoid
    name: str = "gate"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A residual block whose middle is wider than its ends. Its `kind` is one of

    - `mbconv`: expand 1x1, depthwise k x k, gate, project 1x1 (MobileNetV2, arXiv 1801.04381).
      Without `expand`, where that is 1 (a depthwise-separable convolution);
    - `fused`: expand k x k, gate, project 1x1 (EfficientNetV2, arXiv 2104.00298). Where `expand`
      is 1, a single k x k convolution with an activation;
    - `uib`: MobileNetV4's universal inverted bottleneck (arXiv 2404.10518): as mbconv, with a
      depthwise convolution `start` before the expansion (its kernel is `start_kernel`, 0 for
      none), and without the middle one where `kernel` is 0.
    """

    channels: int
    kind: Kind = "mbconv"
    kernel: int = field(default=3, metadata={"least": 0})
    start_kernel: int = field(default=0, metadata={"least": 0})
    stride: int = 1
    dilation: int = 1  # of the k x k convolutions
    expand: float = 6.0
    expand_from: int | None = None  # what `expand` multiplies; None: the width of the input
    expand_divisor: int = 1  # the expanded width is rounded to a multiple of it
    activation: Activation = "silu"
    gate: Gate | None = None
    gate_ratio: float = 0.25  # squeezed width / reference width
    gate_base: Literal["input", "expanded"] = "input"  # the reference: the block's input or E
    gate_divisor: int = 1  # the squeezed width is rounded to a multiple of it
    gate_activation: Activation | None = None  # inside the gate; None: the block's
    gate_sigmoid: Sigmoid = "sigmoid"
    shortcut: Shortcut | None = "identity"  # identity: where shapes allow; resnet_d: everywhere

    def __post_init__(self) -> None:
        where = "Block"
        check_types(where, self)
        kernels = {"mbconv": (3, 5, 7), "fused": (1, 3, 5, 7), "uib": (0, 3, 5, 7)}[self.kind]
        *most, last = kernels
        expected = f"{', '.join(map(str, most))} or {last} in a {self.kind} block"
        check(where, "kernel", self.kernel, self.kernel in kernels, expected)
        starts = (0, 3, 5, 7) if self.kind == "uib" else (0,)
        expected = "0, 3, 5 or 7 in a uib block and 0 in others"
        check(where, "start_kernel", self.start_kernel, self.start_kernel in starts, expected)
        check(where, "stride", self.stride, self.stride in (1, 2), "1 or 2")
        reduces = self.stride == 1 or self.kernel + self.start_kernel > 0
        check(where, "stride", self.stride, reduces, "1 in a uib block without depthwise kernels")
        check(where, "dilation", self.dilation, self.dilation <= 64, "at most 64")
        check(where, "expand", self.expand, 1 <= self.expand <= 32, "between 1 and 32")
        check(where, "gate_ratio", self.gate_ratio, 0 < self.gate_ratio <= 1, "in (0, 1]")

    def expanded(self, in_channels: int) -> int:
        """Width of the expanded map, `in_channels * expand`."""
        if self.unexpanded:
            return in_channels
        width = (self.expand_from or in_channels) * self.expand
        return round(width) if self.expand_divisor == 1 else round_width(width, self.expand_divisor)

    @property
    def unexpanded(self) -> bool:
        """Whether the middle is as wide as the input, whatever that is."""
        return self.expand == 1 and self.expand_from is None

    def squeezed(self, in_channels: int) -> int:
        """Width inside the gate's squeeze, at least 1."""
        base = in_channels if self.gate_base == "input" else self.expanded(in_channels)
        width = base * self.gate_ratio
        if self.gate_divisor == 1:
            return max(1, int(width))
        return round_width(width, self.gate_divisor)

    def parts(self, in_channels: int) -> tuple[Conv | Gating, ...]:
        """What lies on the branch, in order, under the names of the modules."""
        return tuple(self._parts(in_channels))

    def _parts(self, x: int) -> Iterator[Conv | Gating]:
        width, act = self.expanded(x), self.activation
        spatial = {"kernel": self.kernel, "stride": self.stride, "dilation": self.dilation}
        if self.kind == "fused":
            width = self.channels if self.unexpanded else width
            yield Conv(name="expand", in_channels=x, out_channels=width, activation=act, **spatial)
        else:
            if self.start_kernel:
                stride = 1 if self.kernel else self.stride
                yield Conv(name="start", in_channels=x, out_channels=x, groups=x, stride=stride,
                           kernel=self.start_kernel, dilation=self.dilation)  # fmt: skip
            if self.kind == "uib" or not self.unexpanded:
                yield Conv(name="expand", in_channels=x, out_channels=width, activation=act)
            if self.kernel:
                yield Conv(name="depthwise", in_channels=width, out_channels=width, groups=width,
                           activation=act, **spatial)  # fmt: skip
        if self.gate is not None:
            yield Gating(kind=self.gate, channels=width, squeezed=self.squeezed(x),
                         activation=self.gate_activation or act,
                         sigmoid=self.gate_sigmoid)  # fmt: skip
        if self.kind != "fused" or not self.unexpanded:
            yield Conv(name="project", in_channels=width, out_channels=self.channels)

    def keeps_shape(self, in_channels: int) -> bool:
        """Whether input and output have one shape, so that an identity shortcut is possible."""
        return self.stride == 1 and in_channels == self.channels

    def has_skip(self, in_channels: int) -> bool:
        """Whether the block carries a shortcut, given its input's width."""
        if self.shortcut == "resnet_d":
            return True
        return self.shortcut == "identity" and self.keeps_shape(in_channels)


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
