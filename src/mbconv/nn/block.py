"""The MBConv block and what lies on its shortcut."""

import torch.nn.functional as F
from torch import Tensor, nn

from mbconv.arch.spec import Block, Spec
from mbconv.nn import fused
from mbconv.nn.conv import ConvNormAct
from mbconv.nn.gate import make_gate


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
        self.project = ConvNormAct(spec, in_channels, out_channels, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', ceil(H/stride), ceil(W/stride)]."""
        y: Tensor = self.project(self.pool(x))
        return y


class MBConvBlock(nn.Module):
    """Inverted residual: expand 1x1, depthwise k x k, gate, project 1x1, plus the shortcut.

    MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), with the gate of MnasNet and EfficientNet
    (arXiv 1807.11626, 1905.11946) after the depthwise convolution. `expand`, `gate` and
    `shortcut` are None where the block has none; `drop_path` is the rate of stochastic depth,
    without effect where there is no shortcut.
    """

    def __init__(self, spec: Spec, block: Block, in_channels: int, drop_path: float = 0.0) -> None:
        super().__init__()
        act, width = block.activation, block.expanded(in_channels)
        self.expand = (
            None if block.expand == 1 else ConvNormAct(spec, in_channels, width, activation=act)
        )
        self.depthwise = ConvNormAct(
            spec, width, width, block.kernel, stride=block.stride, groups=width, activation=act
        )
        squeezed = block.squeezed(in_channels)
        self.gate = None if block.gate is None else make_gate(block.gate, width, squeezed, act)
        self.project = ConvNormAct(spec, width, block.channels, activation=None)
        self.shortcut: nn.Module | None = None
        if block.has_skip(in_channels):
            self.shortcut = (
                nn.Identity()
                if block.keeps_shape(in_channels)
                else ResNetD(spec, in_channels, block.channels, block.stride)
            )
            self.drop_path = DropPath(drop_path)
            if spec.zero_gamma:
                nn.init.zeros_(self.project.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', ceil(H/stride), ceil(W/stride)]."""
        whole = fused.block(self, x)
        if whole is not None:
            return whole
        y: Tensor = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        if self.gate is not None:
            y = self.gate(y)
        y = self.project(y)
        if self.shortcut is None:
            return y
        y = self.drop_path(y) + self.shortcut(x)
        return y
