"""From a Spec to a network."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mbconv.arch.fields import known
from mbconv.arch.spec import Pooling, Spec
from mbconv.nn import fused
from mbconv.nn.activation import make_activation
from mbconv.nn.block import MBConvBlock
from mbconv.nn.conv import ConvNormAct
from mbconv.preprocessing import Preprocessing

CROP = 0.875  # share of the resized picture's side that is kept: 224 of 256


class Pool(nn.Module):
    """Global pooling, [N, C, H, W] -> [N, C], or [N, 2C] for `concat` (average, then maximum)."""

    def __init__(self, kind: Pooling) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "avg":
            return x.mean((2, 3))
        if self.kind == "max":
            return x.amax((2, 3))
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)

    def extra_repr(self) -> str:
        return self.kind


class Hidden(nn.Module):
    """Linear layer behind the pooling (MobileNetV3), with batch norm (V4) or a bias; activation."""

    def __init__(self, spec: Spec, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=not spec.head_hidden_norm)
        self.norm: nn.BatchNorm1d | None = None
        if spec.head_hidden_norm:
            self.norm = nn.BatchNorm1d(out_features, eps=spec.bn_eps, momentum=spec.bn_momentum)
        self.act = make_activation(spec.activation)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C] -> [N, C']."""
        y: Tensor = self.linear(x)
        y = self.act(y if self.norm is None else self.norm(y))
        return y


class Head(nn.Module):
    """1x1 convolution, global pooling, hidden layer where there is one, dropout, classifier."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.conv = ConvNormAct(spec, spec.head_conv)
        self.pool = Pool(spec.pooling)
        width = spec.head_channels * (2 if spec.pooling == "concat" else 1)
        self.hidden: Hidden | None = None
        if spec.head_hidden is not None:
            self.hidden = Hidden(spec, width, spec.head_hidden)
            width = spec.head_hidden
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Linear(width, spec.num_classes)

    def pooled(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, classifier.in_features], before dropout."""
        mean = fused.conv_norm_act(self.conv, x, pooled=True) if self.pool.kind == "avg" else None
        y: Tensor = self.pool(self.conv(x)) if mean is None else mean
        return y if self.hidden is None else self.hidden(y)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> logits [N, num_classes]."""
        y: Tensor = self.classifier(self.dropout(self.pooled(x)))
        return y


class MBConvNet(nn.Module):
    """The network that `spec` describes: `stem`, `stages`, `head`.

    `labels` are the class names in the order of the logits, or None. `preprocessing` belongs to
    the weights; it starts as ImageNet's usual one at the spec's resolution. `provenance` says
    where the weights come from, and is None while they are fresh.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.labels: tuple[str, ...] | None = None
        self.provenance: dict[str, Any] | None = None
        self.preprocessing = Preprocessing(
            resolution=spec.resolution, resize=round(spec.resolution / CROP)
        )
        self.stem = ConvNormAct(spec, spec.stem)
        stages: list[list[MBConvBlock]] = [[] for _ in spec.stages]
        for (s, _, channels, block), rate in zip(
            spec.blocks(), spec.drop_path_rates(), strict=True
        ):
            stages[s].append(MBConvBlock(spec, block, channels, rate))
        self.stages = nn.Sequential(*(nn.Sequential(*blocks) for blocks in stages))
        self.head = Head(spec)

    @fused.update_together
    def forward(self, x: Tensor) -> Tensor:
        """Normalised pictures [N, in_channels, H, W], any H and W -> logits [N, num_classes]."""
        y: Tensor = self.head(self.stages(self.stem(x)))
        return y

    @fused.update_together
    def features(self, x: Tensor, taps: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The maps by name, in order: `stem`, then `stage1`, `stage2` and so on.

        Each is [N, C, H, W]; every stride on the way divides H and W by itself, rounding up.
        `spec.taps()` knows their widths and reductions, `spec.pyramid()` the last map of each
        reduction. `taps` names those to return; nothing behind the last of them is computed.
        Raises UserError for a name that is none of them.
        """
        names = [tap.name for tap in self.spec.taps()]
        wanted = set(names if taps is None else taps)
        known(f"The network {self.spec.name!r}", wanted, set(names), kind="map")
        maps: dict[str, Tensor] = {}
        for name, part in zip(names, (self.stem, *self.stages), strict=True):
            if len(maps) == len(wanted):
                break
            x = part(x)
            if name in wanted:
                maps[name] = x
        return maps

    @fused.update_together
    def pooled(self, x: Tensor) -> Tensor:
        """Normalised pictures -> [N, head.classifier.in_features]: what the dropout is given."""
        return self.head.pooled(self.stages(self.stem(x)))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one and forget the labels; the rest keeps its weights.

        Raises UserError unless `num_classes` is a positive whole number.
        """
        self.spec = self.spec.replace(num_classes=num_classes)
        old = self.head.classifier
        self.head.classifier = nn.Linear(
            old.in_features, num_classes, device=old.weight.device, dtype=old.weight.dtype
        )
        _init_linear(self.head.classifier)
        self.labels = None


def build(spec: Spec) -> MBConvNet:
    """A network with fresh weights, drawn from torch's global generator.

    Initialised as EfficientNet's reference code does: convolutions normal with variance
    2 / fan-out, where fan-out is k * k * out / groups; linear layers uniform within
    1 / sqrt(outputs); biases zero. ECA's 1-D convolutions keep torch's default.
    """
    model = MBConvNet(spec)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _init_conv(module)
        elif isinstance(module, nn.Linear):
            _init_linear(module)
    return model


def _init_conv(conv: nn.Conv2d) -> None:
    fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels / conv.groups
    nn.init.normal_(conv.weight, std=(2 / fan_out) ** 0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _init_linear(linear: nn.Linear) -> None:
    bound = linear.out_features**-0.5
    nn.init.uniform_(linear.weight, -bound, bound)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
