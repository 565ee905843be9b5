"""Gates: attention that rescales a feature map by channel, by place or by both.

Each takes and returns [N, C, H, W] of any size.
"""

from torch import Tensor, nn

from mbconv.arch.block import Activation, Gating, Sigmoid, eca_kernel
from mbconv.nn.activation import make_activation, make_sigmoid


class SE(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018, arXiv 1709.01507): one factor a channel.

    x * sigmoid(expand(act(reduce(mean over places)))); both convolutions are 1x1 with bias.
    """

    def __init__(
        self, channels: int, squeezed: int, activation: Activation, sigmoid: Sigmoid = "sigmoid"
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = make_activation(activation)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.sigmoid = make_sigmoid(sigmoid)

    def scale(self, x: Tensor) -> Tensor:
        """The factors, [N, C, H, W] -> [N, C, 1, 1], in 0..1."""
        squeezed = self.act(self.reduce(x.mean((2, 3), keepdim=True)))
        factors: Tensor = self.sigmoid(self.expand(squeezed))
        return factors

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x)


class SSE(nn.Module):
    """Spatial squeeze-and-excitation (Roy et al. 2018, arXiv 1803.02579): one factor a place.

    x * sigmoid(conv(x)); the 1x1 convolution to one channel has no bias, as in the paper.
    """

    def __init__(self, channels: int, sigmoid: Sigmoid = "sigmoid") -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1, bias=False)
        self.sigmoid = make_sigmoid(sigmoid)

    def scale(self, x: Tensor) -> Tensor:
        """The factors, [N, C, H, W] -> [N, 1, H, W], in 0..1."""
        factors: Tensor = self.sigmoid(self.conv(x))
        return factors

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x)


class SCSE(nn.Module):
    """Concurrent spatial and channel gates, added (Roy et al. 2018, arXiv 1803.02579)."""

    def __init__(
        self, channels: int, squeezed: int, activation: Activation, sigmoid: Sigmoid = "sigmoid"
    ) -> None:
        super().__init__()
        self.channel = SE(channels, squeezed, activation, sigmoid)
        self.spatial = SSE(channels, sigmoid)

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.channel.scale(x) + self.spatial.scale(x))


class ECA(nn.Module):
    """Efficient channel attention (Wang et al. 2020, arXiv 1910.03151): one factor a channel.

    A 1-D convolution without bias over the channels' means; its kernel grows with the width.
    """

    def __init__(self, channels: int, sigmoid: Sigmoid = "sigmoid") -> None:
        super().__init__()
        size = eca_kernel(channels)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)
        self.sigmoid = make_sigmoid(sigmoid)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3)).unsqueeze(1)  # [N, 1, C]
        scale: Tensor = self.sigmoid(self.conv(means))
        return x * scale.transpose(1, 2).unsqueeze(3)


def make_gate(gate: Gating) -> nn.Module:
    """The gate that `gate` describes, with fresh weights."""
    if gate.kind == "se":
        return SE(gate.channels, gate.squeezed, gate.activation, gate.sigmoid)
    if gate.kind == "sse":
        return SSE(gate.channels, gate.sigmoid)
    if gate.kind == "scse":
        return SCSE(gate.channels, gate.squeezed, gate.activation, gate.sigmoid)
    return ECA(gate.channels, gate.sigmoid)
