"""The MBConv block and what lies on its shortcut."""

import torch.nn.functional as F
from torch import Tensor, nn

from mbconv.arch.block import Block, Conv, Gating
from mbconv.arch.spec import Spec
from mbconv.nn import fused
from mbconv.nn.conv import ConvNormAct
from mbconv.nn.gate import make_gate

_BRANCH = ("start", "expand", "depthwise", "gate", "project")


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382), drawn for each sample.

    In training a sample's whole branch becomes zero with probability `rate`, and survivors are
    divided by 1 - rate, so that evaluation needs no change.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], 1, 1, 1), self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}"


class ResNetD(nn.Module):
    """Shortcut of a block that changes shape (ResNet-D, He et al. 2019, arXiv 1812.01187).

    2x2 average pooling where the block reduces, then a 1x1 convolution and batch norm. At odd
    sizes the last window averages the pixels that exist, so the map is as large as the branch's.
    """

    def __init__(self, spec: Spec, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.pool = (
            nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
            if stride == 2
            else nn.Identity()
        )
        self.project = ConvNormAct(
            spec, Conv(name="project", in_channels=in_channels, out_channels=out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', ceil(H/stride), ceil(W/stride)]."""
        y: Tensor = self.project(self.pool(x))
        return y


class MBConvBlock(nn.Module):
    """The branch that `block.parts` lists, plus the shortcut.

    `start`, `expand`, `depthwise`, `gate`, `project` and `shortcut` are None where the block has
    none; `drop_path` is the rate of stochastic depth, without effect where there is no shortcut.
    """

    start: ConvNormAct | None
    expand: ConvNormAct | None
    depthwise: ConvNormAct | None
    gate: nn.Module | None
    project: ConvNormAct | None
    shortcut: nn.Module | None

    def __init__(self, spec: Spec, block: Block, in_channels: int, drop_path: float = 0.0) -> None:
        super().__init__()
        parts = {part.name: part for part in block.parts(in_channels)}
        for name in _BRANCH:
            part = parts.get(name)
            self.register_module(name, None if part is None else _make_part(spec, part))
        self.shortcut = None
        if block.has_skip(in_channels):
            self.shortcut = (
                nn.Identity()
                if block.keeps_shape(in_channels)
                else ResNetD(spec, in_channels, block.channels, block.stride)
            )
            self.drop_path = DropPath(drop_path)
            if spec.zero_gamma and self.project is not None:  # behind a ReLU nothing would learn
                nn.init.zeros_(self.project.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', ceil(H/stride), ceil(W/stride)]."""
        whole = fused.block(self, x)
        if whole is not None:
            return whole
        y: Tensor = x
        for part in (self.start, self.expand, self.depthwise, self.gate, self.project):
            if part is not None:
                y = part(y)
        if self.shortcut is None:
            return y
        y = self.drop_path(y) + self.shortcut(x)
        return y


def _make_part(spec: Spec, part: Conv | Gating) -> nn.Module:
    return ConvNormAct(spec, part) if isinstance(part, Conv) else make_gate(part)
