"""What a network costs, per operator, from the spec alone: parameters, multiply-adds, memory.

The spec is walked as plain PyTorch would run it, with shapes in place of tensors. That tells which
tensors eager mode keeps for backward, each counted once, at the operator that keeps it first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mbconv.arch.block import Activation, Block, Conv, Gating, eca_kernel
from mbconv.arch.spec import Spec

_FLOAT = 4  # bytes of an fp32 number


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One step of the network, for one picture.

    `name` is the dotted path of its module in `nn`. A `conv` or `depthwise` includes the batch
    norm and the activation behind it; a gate is one operator, and so is a ResNet-D shortcut.
    """

    name: str
    kind: str  # conv, depthwise, resnet_d, pool, dropout, linear, or the gate's name
    kernel: int = 1
    stride: int = 1
    in_channels: int
    out_channels: int
    height: int  # of the output
    width: int
    params: int = 0
    macs: int = 0  # convolutions and linear layers; no batch norm, no biases
    activation_bytes: int = 0  # outputs of convolutions, fp32
    saved_bytes: int = 0  # kept for backward in training, fp32


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The operators of a network at a resolution, and their sums.

    `params` counts everything that is trained. `macs`, `activation_bytes` (fp32 bytes of all
    convolution outputs) and `saved_bytes` (what plain PyTorch in training keeps for backward in
    fp32, without parameters, the picture itself, and what does not grow with the batch) are for
    one picture.
    """

    resolution: int
    operators: tuple[Operator, ...]

    @property
    def params(self) -> int:
        return sum(op.params for op in self.operators)

    @property
    def macs(self) -> int:
        return sum(op.macs for op in self.operators)

    @property
    def activation_bytes(self) -> int:
        return sum(op.activation_bytes for op in self.operators)

    @property
    def saved_bytes(self) -> int:
        return sum(op.saved_bytes for op in self.operators)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the sums included."""
        sums = {name: getattr(self, name)
                for name in ("params", "macs", "activation_bytes", "saved_bytes")}  # fmt: skip
        return {**sums, **asdict(self)}


def cost(spec: Spec, resolution: int | None = None) -> Cost:
    """Cost of `spec` for a square picture of `resolution` pixels, by default the spec's own.

    Raises UserError for a resolution that is no positive whole number.
    """
    if resolution is not None:
        spec = spec.replace(resolution=resolution)  # checks it
    picture = _Map(spec.in_channels, spec.resolution, spec.resolution)
    walk = _Walk(spec, picture)
    x = walk.conv("stem", picture, spec.stem)
    for s, b, _, block in spec.blocks():
        x = walk.block(f"stages.{s}.{b}", x, block)
    walk.head(x)
    return Cost(resolution=spec.resolution, operators=tuple(walk.operators))


@dataclass(frozen=True, eq=False)  # two maps of one shape are still two tensors
class _Map:
    """A tensor's shape, for one picture."""

    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def bytes(self) -> int:
        return _FLOAT * self.channels * self.pixels

    def like(self, channels: int | None = None, *, stride: int = 1) -> "_Map":
        """A new tensor, of other width or reduced by `stride`."""
        return _Map(channels or self.channels, -(-self.height // stride), -(-self.width // stride))


class _Walk:
    """Runs a spec with shapes; collects operators and which tensors are kept already."""

    def __init__(self, spec: Spec, picture: _Map) -> None:
        self.spec = spec
        self.operators: list[Operator] = []
        self._kept = {picture}  # the caller's, so it costs nothing

    def _add(
        self,
        name: str,
        kind: str,
        x: _Map,
        out: _Map,
        kept: Iterable[_Map],
        convolved: Sequence[_Map] = (),
        **figures: int,
    ) -> _Map:
        new = set(kept) - self._kept
        self._kept |= new
        self.operators.append(
            Operator(
                name=name,
                kind=kind,
                in_channels=x.channels,
                out_channels=out.channels,
                height=out.height,
                width=out.width,
                saved_bytes=sum(m.bytes for m in new),
                activation_bytes=sum(m.bytes for m in convolved),
                **figures,
            )
        )
        return out

    def conv(self, name: str, x: _Map, conv: Conv) -> _Map:
        """Convolution, batch norm and activation."""
        y = x.like(conv.out_channels, stride=conv.stride)
        out, kept = _conv_norm_act(_padded(self.spec, x, conv), y, conv.activation)
        weights = conv.kernel**2 * conv.in_channels // conv.groups * conv.out_channels
        kind = "conv" if conv.groups == 1 else "depthwise"
        return self._add(name, kind, x, out, kept, [y], kernel=conv.kernel, stride=conv.stride,
                         params=weights + 2 * conv.out_channels,
                         macs=weights * y.pixels)  # fmt: skip

    def block(self, name: str, x: _Map, block: Block) -> _Map:
        y = x
        for part in block.parts(x.channels):
            path = f"{name}.{part.name}"
            y = self.conv(path, y, part) if isinstance(part, Conv) else self._gate(path, y, part)
        if not block.has_skip(x.channels):
            return y
        if not block.keeps_shape(x.channels):
            self._resnet_d(f"{name}.shortcut", x, block)
        return y.like()  # the sum; adding keeps nothing

    def _gate(self, name: str, x: _Map, gate: Gating) -> _Map:
        """The gates multiply, and a product keeps both of its factors."""
        kind, squeezed = gate.kind, gate.squeezed
        kept = [x]
        convolved: list[_Map] = []
        params = macs = 0
        kernel = 1
        channels = _Map(x.channels, 1, 1)
        if kind in ("se", "scse"):  # mean, reduce, activation, expand, sigmoid
            reduced = _Map(squeezed, 1, 1)
            activated, kept_by_act = _activation(reduced, gate.activation)
            kept += [channels.like(), kept_by_act, activated, channels.like()]
            convolved += [reduced, channels]
            params += 2 * x.channels * squeezed + squeezed + x.channels
            macs += 2 * x.channels * squeezed
        if kind in ("sse", "scse"):  # 1x1 convolution to one channel, sigmoid
            place = x.like(1)
            kept += [place]
            convolved += [place]
            params += x.channels
            macs += x.channels * x.pixels
        if kind == "scse":  # the sum of both gates, as large as x
            kept += [x.like()]
        if kind == "eca":  # mean, 1-D convolution, sigmoid
            kernel = eca_kernel(x.channels)
            kept += [channels.like(), channels.like()]
            convolved += [channels]
            params += kernel
            macs += kernel * x.channels
        if gate.sigmoid == "hard_sigmoid" and kind != "scse":  # keeps its input, not its output
            kept += [x.like(1) if kind == "sse" else channels.like()]
        return self._add(name, kind, x, x.like(), kept, convolved,
                         kernel=kernel, params=params, macs=macs)  # fmt: skip

    def _resnet_d(self, name: str, x: _Map, block: Block) -> None:
        """Average pooling where the block reduces (it keeps its input), 1x1, batch norm."""
        pooled = x.like(stride=2) if block.stride == 2 else x
        y = pooled.like(block.channels)
        out, kept = _conv_norm_act(pooled, y, None)
        weights = x.channels * block.channels
        self._add(name, "resnet_d", x, out, [x, *kept], [y], stride=block.stride,
                  params=weights + 2 * block.channels, macs=weights * y.pixels)  # fmt: skip

    def head(self, x: _Map) -> None:
        spec = self.spec
        x = self.conv("head.conv", x, spec.head_conv)
        average, maximum = _Map(x.channels, 1, 1), _Map(x.channels, 1, 1)
        pooled = {"avg": average, "max": maximum, "concat": _Map(2 * x.channels, 1, 1)}
        kept = [] if spec.pooling == "avg" else [x, maximum]  # a mean needs only the size
        y = self._add("head.pool", "pool", x, pooled[spec.pooling], kept)
        if spec.head_hidden is not None:
            y = self._hidden(y, spec.head_hidden)
        if spec.dropout > 0:  # keeps its mask, in fp32 on a CPU
            y = self._add("head.dropout", "dropout", y, y.like(), [y.like()])
        classes, weights = _Map(spec.num_classes, 1, 1), y.channels * spec.num_classes
        self._add("head.classifier", "linear", y, classes, [y],
                  params=weights + spec.num_classes, macs=weights)  # fmt: skip

    def _hidden(self, x: _Map, width: int) -> _Map:
        """Linear layer with bias or batch norm, and an activation."""
        linear = x.like(width)
        norm = linear.like() if self.spec.head_hidden_norm else linear
        out, kept_by_act = _activation(norm, self.spec.activation)
        kept = [x, kept_by_act] if norm is linear else [x, linear, kept_by_act]
        biases = 2 * width if self.spec.head_hidden_norm else width
        weights = x.channels * width
        return self._add("head.hidden", "linear", x, out, kept,
                         params=weights + biases, macs=weights)  # fmt: skip


def _activation(x: _Map, activation: Activation | None) -> tuple[_Map, _Map]:
    """The activated map, and the one that backward needs: ReLU's output, the others' input."""
    if activation is None:
        return x, x
    out = x.like()
    return out, out if activation == "relu" else x


def _conv_norm_act(x: _Map, y: _Map, activation: Activation | None) -> tuple[_Map, list[_Map]]:
    """Convolution x -> y and batch norm keep their inputs. Returns the output and what is kept."""
    norm = y.like()
    out, kept_by_act = _activation(norm, activation)
    return out, [x, y] if activation is None else [x, y, kept_by_act]


def _padded(spec: Spec, x: _Map, conv: Conv) -> _Map:
    """What the convolution is given: SAME padding at stride 2 makes a padded copy first."""
    kernel, stride = (conv.kernel - 1) * conv.dilation + 1, conv.stride
    if spec.padding != "same" or kernel == 1 or stride == 1:
        return x

    def grown(size: int) -> int:
        return max((size - 1) // stride * stride + kernel, size)

    return _Map(x.channels, grown(x.height), grown(x.width))
