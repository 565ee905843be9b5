"""The fused operators in plain torch, on any device: what the native kernels are held against.

Maps are [N, H, W, C]. They may be stored in a shorter format; everything is computed in float32,
in float64 for float64. `norm` is [4, C]: mean, 1 / deviation, gamma, beta. `factor` and `offset`
are [N, C]. `act` is one of `ACTIVATIONS`. The backward formulas are written out, not derived by
autograd, because the native kernels follow them.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

Act = Literal["none", "relu", "relu6", "silu", "hard_swish"]
ACTIVATIONS: tuple[Act, ...] = ("none", "relu", "relu6", "silu", "hard_swish")


class Geometry(NamedTuple):
    """Of a convolution; `top` and `left` rows of zeros stand before the map.

    A dilated one has stride 1, and `top` and `left` are multiples of the dilation.
    """

    kernel: int
    stride: int
    top: int
    left: int
    dilation: int = 1

    @property
    def reach(self) -> int:
        """Rows from the first tap to the last, both included."""
        return (self.kernel - 1) * self.dilation + 1

    def output(self, height: int, width: int) -> tuple[int, int]:
        """H, W -> ceil(H / stride), ceil(W / stride), by either padding rule."""
        return -(-height // self.stride), -(-width // self.stride)


class After(NamedTuple):
    """What followed a depthwise convolution: its output y, and the rest as `apply` takes it."""

    y: Tensor
    norm: Tensor
    means: Tensor
    factor: Tensor | None = None
    offset: Tensor | None = None


def covariance(x: Tensor) -> Tensor:
    """The mean of the channels and their biased covariance, [1 + C, C]; zeros without pixels."""
    rows = _wide(x).flatten(0, 2)
    mean = rows.mean(0) if len(rows) else rows.sum(0)
    centred = rows - mean
    return torch.cat([mean[None], centred.t() @ centred / max(1, len(rows))])


def moments(x: Tensor) -> Tensor:
    """Mean and biased variance of each channel, [2, C]; zeros where there are no pixels."""
    if not x.numel():
        return _wide(x).new_zeros(2, x.shape[3])
    variance, mean = torch.var_mean(_wide(x), dim=(0, 1, 2), correction=0)
    return torch.stack([mean, variance])


def normalise(
    x: Tensor, norm: Tensor, act: Act, factor: Tensor | None = None, addend: Tensor | None = None
) -> Tensor:
    """act(norm(x)) * factor + addend, in x's format."""
    y = value_of(_normal(x, norm) * norm[2] + norm[3], act)
    if factor is not None:
        y = y * factor[:, None, None]
    if addend is not None:
        y = y + addend
    return y.to(x.dtype)


def pool(x: Tensor, norm: Tensor, act: Act) -> Tensor:
    """Mean of act(norm(x)) over a sample's pixels, [N, C]."""
    return value_of(_normal(x, norm) * norm[2] + norm[3], act).mean((1, 2))


def reduce(
    x: Tensor,
    grad: Tensor | None,
    norm: Tensor,
    act: Act,
    *,
    gated: bool = False,
    factor: Tensor | None = None,
    output: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What the backward of act(norm(x)) sums over a sample's pixels, [N, 5, C].

    0: sum g a', 1: sum g a' n, 2: sum a', 3: sum a' n, 4: sum g a, with g the gradient, n the
    normalised value, a and a' activation and slope; 2 to 4 are zeros unless `gated`. No `grad`
    means that 0, 1 and 4 are not asked for. With `output`, act(norm(x)) * factor comes beside.
    """
    normal = _normal(x, norm)
    z = normal * norm[2] + norm[3]
    value, slope = value_of(z, act), slope_of(z, act)
    none = torch.zeros_like(value[:, 0, 0])
    g = torch.zeros_like(value) if grad is None else grad.to(value.dtype)
    terms = [g * slope, g * slope * normal]
    terms += [slope, slope * normal, g * value] if gated else []
    sums = [term.sum((1, 2)) for term in terms] + [none] * (5 - len(terms))
    y = None
    if output:
        y = (value if factor is None else value * factor[:, None, None]).to(x.dtype)
    return torch.stack(sums, 1), y


def apply(
    x: Tensor,
    grad: Tensor | None,
    norm: Tensor,
    act: Act,
    means: Tensor,
    *,
    factor: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Gradient at x of act(norm(x)): gamma * inverse * (dz - means[0] - n * means[1]).

    dz = (grad * factor + offset) a'; `means` [2, C] is zeros where the statistics are constants.
    """
    normal = _normal(x, norm)
    g = torch.zeros_like(normal) if grad is None else grad.to(normal.dtype)
    if factor is not None:
        g = g * factor[:, None, None]
    if offset is not None:
        g = g + offset[:, None, None]
    dz = g * slope_of(normal * norm[2] + norm[3], act)
    return (norm[2] * norm[1] * (dz - means[0] - normal * means[1])).to(x.dtype)


def depthwise(
    x: Tensor,
    norm: Tensor | None,
    act: Act,
    weight: Tensor,
    geometry: Geometry,
    *,
    bias: Tensor | None = None,
    statistics: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Depthwise convolution of act(norm(x)), and with `statistics` the `moments` of its output.

    weight [C, 1, k, k]; without norm, x itself is convolved.
    """
    value = _wide(x) if norm is None else value_of(_normal(x, norm) * norm[2] + norm[3], act)
    padded = _padded(value, geometry)
    y = F.conv2d(
        padded, weight, bias, geometry.stride, 0, geometry.dilation, groups=weight.shape[0]
    )
    y = y.permute(0, 2, 3, 1).to(x.dtype).contiguous()
    return y, moments(y) if statistics else None


def depthwise_backward(
    x: Tensor,
    grad: Tensor,
    norm: Tensor | None,
    act: Act,
    weight: Tensor,
    geometry: Geometry,
    after: After | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient at norm(x) (at x without norm), at the weight, and the sums [2, C] of the first
    and of the first times the normalised value (zeros without norm).

    `grad` is that of the convolution's output or, with `after`, of what came after it.
    """
    if after is not None:
        grad = apply(after.y, grad, after.norm, act, after.means, factor=after.factor,
                     offset=after.offset)  # fmt: skip
    value, slope, normal = _wide(x), None, None
    if norm is not None:
        normal = _normal(x, norm)
        z = normal * norm[2] + norm[3]
        value, slope = value_of(z, act), slope_of(z, act)
    padded, g = _padded(value, geometry), grad.to(value.dtype).permute(0, 3, 1, 2)
    channels, (height, width) = weight.shape[0], x.shape[1:3]
    numbers = (geometry.stride, 0, geometry.dilation, channels)
    back: Tensor = conv2d_input(padded.shape, weight, g, *numbers)  # type: ignore[no-untyped-call]
    dw: Tensor = conv2d_weight(padded, weight.shape, g, *numbers)  # type: ignore[no-untyped-call]
    dz = F.pad(back, [-p for p in pads(value, geometry)]).permute(0, 2, 3, 1)
    assert dz.shape[1:3] == (height, width)
    sums = dz.new_zeros(2, channels)
    if slope is not None and normal is not None:
        dz = dz * slope
        sums = torch.stack([dz.sum((0, 1, 2)), (dz * normal).sum((0, 1, 2))])
    # The library may give a side of 1 any stride; gradients shall lie as their weights do.
    return dz.to(x.dtype).contiguous(), dw.reshape(-1).view(weight.shape), sums


def product(x: Tensor, weight: Tensor) -> Tensor:
    """1x1 convolution: [N, H, W, C] and [C', C], rounded to x's format -> [N, H, W, C']."""
    # Lying by columns the weight is 6% faster where it is the wide one (oneDNN, bfloat16).
    matrix = weight.to(x.dtype).contiguous().t()
    return torch.mm(x.flatten(0, 2), matrix).view(*x.shape[:3], weight.shape[0])


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient [C', C] at the weight of a 1x1 convolution, from maps of C' and C channels."""
    g, rows = grad.flatten(0, 2), x.flatten(0, 2)
    # The library copies the operand that it transposes: let it be the narrow one.
    dw = torch.mm(rows.t(), g).t() if g.shape[1] > rows.shape[1] else torch.mm(g.t(), rows)
    format = torch.float64 if dw.dtype == torch.float64 else torch.float32
    return dw.to(format, memory_format=torch.contiguous_format)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _normal(x: Tensor, norm: Tensor) -> Tensor:
    return (_wide(x) - norm[0]) * norm[1]


def value_of(z: Tensor, act: Act) -> Tensor:
    """The activation."""
    match act:
        case "relu":
            return F.relu(z)
        case "relu6":
            return F.relu6(z)
        case "silu":
            return F.silu(z)
        case "hard_swish":
            return F.hardswish(z)
    return z


def slope_of(z: Tensor, act: Act) -> Tensor:
    """Its derivative; at a kink, what torch gives."""
    match act:
        case "relu":
            return (z > 0).to(z.dtype)
        case "relu6":
            return ((z > 0) & (z < 6)).to(z.dtype)
        case "silu":
            s = torch.sigmoid(z)
            return s + z * s * (1 - s)
        case "hard_swish":
            middle = (z / 3 + 0.5).masked_fill(z < -3, 0.0)
            return middle.masked_fill(z > 3, 1.0)
    return torch.ones_like(z)


def pads(x: Tensor, geometry: Geometry) -> list[int]:
    """Left, right, top, bottom; what the last output does not read is cut off (negative)."""
    height, width = x.shape[1:3]
    oh, ow = geometry.output(height, width)
    bottom = (oh - 1) * geometry.stride + geometry.reach - geometry.top - height
    right = (ow - 1) * geometry.stride + geometry.reach - geometry.left - width
    return [geometry.left, right, geometry.top, bottom]


def _padded(x: Tensor, geometry: Geometry) -> Tensor:
    return F.pad(x.permute(0, 3, 1, 2), pads(x, geometry))
