"""Parts of the networks against plain formulas, and any combination of options at all."""

from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mbconv.arch.block import Activation, Block, Conv, Gate, Gating, Shortcut, Sigmoid
from mbconv.arch.spec import Padding, Spec, Stage
from mbconv.nn import Conv2d, ConvNormAct, DropPath, MBConvBlock, MBConvNet, build
from mbconv.nn.activation import make_activation
from mbconv.nn.gate import make_gate
from strategies import specs

Array = npt.NDArray[np.float64]


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


# Convolution


def plain_conv(x: Array, weight: Array, stride: int, before: tuple[int, int]) -> Array:
    """Depthwise convolution by its definition; places outside the picture count as zero."""
    (height, width), kernel = x.shape[-2:], weight.shape[-1]
    out = np.zeros((x.shape[0], x.shape[1], -(-height // stride), -(-width // stride)))
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            for a in range(kernel):
                for b in range(kernel):
                    row, column = i * stride - before[0] + a, j * stride - before[1] + b
                    if 0 <= row < height and 0 <= column < width:
                        out[:, :, i, j] += x[:, :, row, column] * weight[:, 0, a, b]
    return out


def tensorflow_before(size: int, kernel: int, stride: int) -> int:
    """Top or left padding as TensorFlow's documentation of SAME states it."""
    rest = size % stride
    total = max(kernel - stride, 0) if rest == 0 else max(kernel - rest, 0)
    return total // 2


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", [(9, 11), (8, 11), (9, 6), (8, 10), (1, 2), (3, 1)])
def test_padding(padding: Padding, stride: int, kernel: int, size: tuple[int, int]) -> None:
    conv = Conv2d(2, 2, kernel, stride=stride, groups=2, padding=padding).double()
    x = normal(2, 2, *size)
    if padding == "same":
        top, left = (tensorflow_before(n, kernel, stride) for n in size)
    else:
        top = left = kernel // 2
    expected = plain_conv(x.numpy(), conv.weight.detach().numpy(), stride, (top, left))
    np.testing.assert_allclose(conv(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", get_args(Padding))
def test_conv_norm_act_with_frozen_statistics(padding: Padding) -> None:
    """Values and all gradients are those of its three parts, one after the other."""
    torch.manual_seed(0)
    spec = Spec(stages=(Stage(blocks=(Block(channels=4),)),), padding=padding, bn_eps=1e-3)
    conv = Conv(name="depthwise", in_channels=6, out_channels=6, kernel=5, stride=2, groups=6,
                activation="silu")  # fmt: skip
    module = ConvNormAct(spec, conv).double().eval()
    for tensor in (*module.norm.parameters(), *module.norm.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    x = normal(2, 6, 8, 11).requires_grad_()
    inputs = (x, *module.parameters())
    outputs = (module(x), module.act(module.norm(module.conv(x))))
    torch.testing.assert_close(*outputs)
    found, expected = (torch.autograd.grad(y.square().sum(), inputs) for y in outputs)
    torch.testing.assert_close(found, expected)


# Activations and gates


@pytest.mark.parametrize("name", get_args(Activation))
def test_activation_is_its_formula_and_leaves_its_input_alone(name: Activation) -> None:
    x = torch.linspace(-8, 8, 97, dtype=torch.float64)
    v = x.numpy().copy()
    erf = torch.erf(x / 2**0.5).numpy()
    formula = {
        "relu": np.maximum(v, 0),
        "relu6": np.clip(v, 0, 6),
        "silu": v * sigmoid(v),
        "hard_swish": v * np.clip(v + 3, 0, 6) / 6,
        "gelu": v * (1 + erf) / 2,
    }
    np.testing.assert_allclose(make_activation(name)(x).numpy(), formula[name], atol=1e-12)
    np.testing.assert_array_equal(x.numpy(), v)


def squeeze_excite(x: Array, state: dict[str, Array], prefix: str = "") -> Array:
    """Factors [N, C, 1, 1] of SE with ReLU inside."""
    means = x.mean((2, 3))
    reduce = state[prefix + "reduce.weight"][:, :, 0, 0]
    expand = state[prefix + "expand.weight"][:, :, 0, 0]
    hidden = np.maximum(means @ reduce.T + state[prefix + "reduce.bias"], 0)
    return sigmoid(hidden @ expand.T + state[prefix + "expand.bias"])[:, :, None, None]


def spatial(x: Array, weight: Array) -> Array:
    """Factors [N, 1, H, W] of sSE."""
    return sigmoid(np.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0]))


def efficient(x: Array, weight: Array) -> Array:
    """Factors [N, C, 1, 1] of ECA."""
    half = weight.shape[-1] // 2
    means = np.pad(x.mean((2, 3)), ((0, 0), (half, half)))
    channels = range(x.shape[1])
    mixed = [(means[:, c : c + weight.shape[-1]] * weight[0, 0]).sum(1) for c in channels]
    return sigmoid(np.stack(mixed, 1))[:, :, None, None]


def gating(kind: Gate, channels: int, sigmoid: Sigmoid = "sigmoid") -> Gating:
    return Gating(kind=kind, channels=channels, squeezed=6, activation="relu", sigmoid=sigmoid)


@pytest.mark.parametrize("kind", get_args(Gate))
def test_gate_is_its_formula(kind: Gate) -> None:
    torch.manual_seed(0)
    gate = make_gate(gating(kind, 40)).double()
    state = {k: v.numpy() for k, v in gate.state_dict().items()}
    x = normal(3, 40, 5, 7)
    v = x.numpy()
    if kind == "se":
        scale = squeeze_excite(v, state)
    elif kind == "sse":
        scale = spatial(v, state["conv.weight"])
    elif kind == "scse":
        scale = squeeze_excite(v, state, "channel.") + spatial(v, state["spatial.conv.weight"])
    else:
        scale = efficient(v, state["conv.weight"])
    np.testing.assert_allclose(gate(x).detach().numpy(), v * scale, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "kernel"), [(1, 1), (32, 3), (96, 3), (256, 5), (2304, 7)])
def test_eca_kernel_grows_with_the_width(channels: int, kernel: int) -> None:
    assert make_gate(gating("eca", channels)).get_parameter("conv.weight").shape[-1] == kernel


def test_gate_uses_the_blocks_activation_and_squeezed_width() -> None:
    block = Block(channels=16, gate="se", gate_base="expanded", gate_divisor=8, activation="gelu")
    module = MBConvBlock(Spec(stages=(Stage(blocks=(block,)),)), block, 16)
    reduce = module.get_submodule("gate.reduce")
    assert isinstance(reduce, nn.Conv2d)
    assert (reduce.in_channels, reduce.out_channels) == (96, 24)
    assert isinstance(module.get_submodule("gate.act"), nn.GELU)


# Drop-path


def b0_like(**changes: Any) -> Spec:
    """B0's blocks, narrow: the same strides and repeats."""
    rows = ((1, 1, 1, 4), (6, 2, 2, 6), (6, 2, 2, 8), (6, 2, 3, 10), (6, 1, 3, 12), (6, 2, 4, 14),
            (6, 1, 1, 16))  # fmt: skip
    stages = tuple(
        Stage(blocks=tuple(
            Block(channels=channels, expand=expand, stride=stride if i == 0 else 1)
            for i in range(repeats)
        ))
        for expand, stride, repeats, channels in rows
    )  # fmt: skip
    return Spec(
        **{"stages": stages, "stem_channels": 8, "head_channels": 20, "num_classes": 3, **changes}
    )


def blocks(model: MBConvNet) -> list[MBConvBlock]:
    return [m for m in model.modules() if isinstance(m, MBConvBlock)]


def training_but_for_norms(module: nn.Module) -> None:
    """Training mode in which samples cannot see each other, so that drops alone differ."""
    module.train()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


def test_drop_path_drops_whole_samples_and_scales_the_others() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.3), 1 + normal(4000, 2, 2, 3).abs()
    y = drop.train()(x)
    kept = (y != 0).flatten(1).any(1)
    torch.testing.assert_close(y, torch.where(kept[:, None, None, None], x / 0.7, 0))
    assert abs(float(kept.double().mean()) - 0.7) < 0.03  # four standard errors
    assert drop.eval()(x) is x


def test_a_block_in_training_is_its_shortcut_or_adds_the_scaled_branch() -> None:
    torch.manual_seed(0)
    block = Block(channels=8, gate="se")
    spec = Spec(stages=(Stage(blocks=(block,)),))
    module = MBConvBlock(spec, block, 8, drop_path=0.4).double()
    x = normal(64, 8, 6, 5)
    branch = module.eval()(x) - x
    training_but_for_norms(module)
    added = module(x) - x
    dropped = (added == 0).flatten(1).all(1)
    assert 0 < int(dropped.sum()) < 64
    torch.testing.assert_close(added[~dropped], branch[~dropped] / 0.6)


def test_rates_rise_linearly_over_all_blocks() -> None:
    """0.2 * index / 16; B0 has shortcuts in nine of its sixteen blocks."""
    rates = {
        i: block.drop_path.rate
        for i, block in enumerate(blocks(build(b0_like())))
        if block.shortcut is not None
    }
    skippable = (2, 4, 6, 7, 9, 10, 12, 13, 14)
    assert rates == pytest.approx({i: 0.2 * i / 16 for i in skippable})


@pytest.mark.parametrize(("rate", "differ"), [(0.5, True), (0.0, False)])
def test_only_drop_path_makes_equal_samples_differ(rate: float, differ: bool) -> None:
    torch.manual_seed(0)
    model = build(b0_like(drop_path=rate, dropout=0.0)).double()
    training_but_for_norms(model)
    logits = model(normal(1, 3, 40, 40).repeat(8, 1, 1, 1))
    assert bool((logits - logits[:1]).abs().max() > 1e-9) == differ


def test_the_first_block_drops_nothing() -> None:
    torch.manual_seed(0)
    stage = Stage(blocks=(Block(channels=8), Block(channels=8)))
    model = build(Spec(stages=(stage,), stem_channels=8, drop_path=0.9)).double()
    x = normal(32, 8, 6, 5)
    for block, drops in zip(blocks(model), (False, True), strict=True):
        expected = block.eval()(x)
        training_but_for_norms(block)
        assert torch.allclose(block(x), expected) != drops


# Shortcuts and zero-gamma


def test_resnet_d_shortcut_is_mean_of_four_then_projection() -> None:
    torch.manual_seed(0)
    block = Block(channels=5, stride=2, shortcut="resnet_d")
    module = MBConvBlock(Spec(stages=(Stage(blocks=(block,)),), bn_eps=1e-3), block, 3).double()
    x = normal(2, 3, 5, 8)
    means = np.stack(
        [
            [x[:, :, i : i + 2, j : j + 2].mean((2, 3)).numpy() for j in range(0, 8, 2)]
            for i in range(0, 5, 2)
        ]
    )  # [3, 4, N, C]
    assert module.shortcut is not None
    weight = module.shortcut.get_parameter("project.conv.weight").detach().numpy()[:, :, 0, 0]
    expected = np.einsum("hwnc,oc->nohw", means, weight) / np.sqrt(1 + 1e-3)
    found = module.shortcut.eval()(x).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("shortcut", [None, *get_args(Shortcut)])
def test_shortcuts_stand_where_shapes_or_resnet_d_allow(shortcut: Shortcut | None) -> None:
    model = build(b0_like().replace(shortcut=shortcut))
    found = [type(b.shortcut).__name__ for b in blocks(model)]
    first, other = {
        None: ("NoneType", "NoneType"),
        "identity": ("NoneType", "Identity"),
        "resnet_d": ("ResNetD", "Identity"),
    }[shortcut]
    repeats = (1, 2, 2, 3, 3, 4, 1)
    assert found == [name for n in repeats for name in [first] + [other] * (n - 1)]


@pytest.mark.parametrize("shortcut", get_args(Shortcut))
def test_zero_gamma_makes_each_block_its_shortcut_at_the_start(shortcut: Shortcut) -> None:
    torch.manual_seed(0)
    model = build(b0_like(zero_gamma=True, drop_path=0.0).replace(shortcut=shortcut, gate="se"))
    x = model.stem(normal(2, 3, 64, 48).float())
    for block in blocks(model):
        y = block(x)
        if block.shortcut is None:
            assert (block.project.norm.weight == 1).all()
        else:
            assert torch.equal(y, block.shortcut(x))
        x = y


# Any combination


@settings(max_examples=80, derandomize=True)
@given(spec=specs(), height=st.integers(1, 40), width=st.integers(1, 40))
def test_any_spec_builds_and_learns(spec: Spec, height: int, width: int) -> None:
    torch.manual_seed(0)
    model = build(spec).double()  # dead channels divide by the root of eps, block after block
    x = normal(3, spec.in_channels, height, width)
    logits = model.train()(x)
    assert logits.shape == (3, spec.num_classes)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name

    model.eval()
    logits = model(x)
    assert logits.isfinite().all()
    torch.testing.assert_close(model(x[1:2]), logits[1:2], rtol=1e-6, atol=1e-6)

    strides = [spec.stem_stride, *(stage.stride for stage in spec.stages)]
    widths = [spec.stem_channels, *(stage.channels for stage in spec.stages)]
    for m, stride, channels in zip(model.features(x).values(), strides, widths, strict=True):
        height, width = -(-height // stride), -(-width // stride)
        assert m.shape == (3, channels, height, width)
