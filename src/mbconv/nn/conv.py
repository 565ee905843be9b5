"""Convolution with either padding rule, and the conv, norm, act triple."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbconv import kernels
from mbconv.arch.block import Conv
from mbconv.arch.spec import Padding, Spec
from mbconv.nn import fused
from mbconv.nn.activation import make_activation


class Conv2d(nn.Conv2d):
    """Square convolution without bias, odd kernel: [N, C, H, W] -> [N, C', ceil(H/s), ceil(W/s)].

    `symmetric` pads kernel // 2 * dilation on every side. `same` is TensorFlow's rule: the least
    padding that gives the output size, and where it is odd, the extra row goes to the bottom and
    the extra column to the right. The two differ only at stride 2 on even sizes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: Padding = "symmetric",
    ) -> None:
        # At stride 1, SAME is symmetric whatever the size is, so only stride 2 pads on its own.
        self.pads_by_size = padding == "same" and kernel > 1 and stride > 1
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            stride,
            padding=0 if self.pads_by_size else kernel // 2 * dilation,
            dilation=dilation,
            groups=groups,
            bias=False,
        )

    def forward(self, input: Tensor) -> Tensor:
        return self.convolve(input, self.weight)

    def convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The same convolution with other numbers: `weight` shaped as its own, `bias` [C']."""
        whole = fused.depthwise(self, input, weight, bias)
        if whole is not None:
            return whole
        input = self.padded(input)
        y: Tensor
        if input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            wanted = torch.get_autocast_dtype("cpu")
            format = kernels.library_format(wanted)
            with torch.autocast("cpu", enabled=False):
                if self.groups > 1 and torch.is_grad_enabled():
                    # Without our kernels: in bfloat16 the library's depthwise backward takes up to
                    # ten times as long as in float32 (oneDNN in torch 2.14, AVX-512), which eats
                    # what the 1x1 convolutions gain.
                    y = self._conv_forward(input.float(), weight.float(), bias)
                    return y
                if format != wanted:  # the same numbers as in `wanted`
                    given, own = input.to(wanted).to(format), weight.to(wanted).to(format)
                    y = self._conv_forward(given, own, bias).to(wanted)
                    return y
        y = self._conv_forward(input, weight, bias)
        return y

    def padded(self, input: Tensor) -> Tensor:
        """The input with what `same` pads at stride 2; otherwise the convolution pads itself."""
        if not self.pads_by_size:
            return input
        height, width = input.shape[-2:]
        return F.pad(input, (*self._sides(width), *self._sides(height)))

    def _sides(self, size: int) -> tuple[int, int]:
        """SAME padding before and after, for one axis."""
        kernel, stride = (self.kernel_size[0] - 1) * self.dilation[0] + 1, self.stride[0]
        total = max((size - 1) // stride * stride + kernel - size, 0)
        return total // 2, total - total // 2


class ConvNormAct(nn.Module):
    """The convolution that `conv` describes, batch norm and activation.

    Padding rule and batch-norm numerics come from the spec. Where no fused operator computes it, a
    batch norm in evaluation mode is folded into the convolution on the way, also in training with
    frozen statistics: the same function and gradients without a pass of its own over the map.
    """

    def __init__(self, spec: Spec, conv: Conv) -> None:
        super().__init__()
        self.conv = Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel,
            stride=conv.stride,
            dilation=conv.dilation,
            groups=conv.groups,
            padding=spec.padding,
        )
        self.norm = nn.BatchNorm2d(conv.out_channels, eps=spec.bn_eps, momentum=spec.bn_momentum)
        self.act = make_activation(conv.activation)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', ceil(H/stride), ceil(W/stride)]."""
        whole = fused.conv_norm_act(self, x)
        if whole is not None:
            return whole
        if self.norm.training:
            y: Tensor = self.act(self.norm(self.conv(x)))
            return y
        weight, bias = self.folded()
        y = self.act(self.conv.convolve(x, weight, bias))
        return y

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight [C', C / groups, k, k] and bias [C'] of convolution and batch norm in one."""
        norm = self.norm
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return self.conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale
