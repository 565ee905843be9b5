"""Each native kernel, in each instruction set this processor has, against the float64 reference."""

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from mbconv.kernels import native, reference
from mbconv.kernels.reference import ACTIVATIONS, Act, After, Geometry

SETS = [name for name in native.usable() if name in native.compiled()]
pytestmark = pytest.mark.skipif(not SETS, reason="the install found no compiler")
DTYPES = [torch.float32, torch.bfloat16]
LIBRARY = native.library  # the tests put others in its place


@pytest.fixture(scope="module", params=SETS, autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    native.library()  # has the OpenMP runtime shared
    loaded = ctypes.CDLL(str(native.FOLDER / f"{request.param}.so"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: (loaded, request.param))
        yield request.param


def agree(found: Tensor | None, expected: Tensor | None, within: float = 1e-5) -> None:
    """By the relative error over the whole tensor, of a map or of float32 sums."""
    if found is None or expected is None:
        assert found is expected
        return
    assert found.shape == expected.shape
    if not expected.numel():
        return
    # A map of one value may be off by half a unit in bfloat16's last place, which is 2^-8 of it.
    bound = within + (2**-8 if found.dtype == torch.bfloat16 else 0)
    error = (found.double() - expected).norm() / expected.norm().clamp_min(1e-6 * expected.numel())
    assert error < bound, f"{error:.2e}"


def exactness(act: Act, x: Tensor) -> float:
    """How exact what follows an activation is: of bf16 maps SiLU is taken to 1.4e-4 of itself."""
    return 1.5e-4 if act == "silu" and x.dtype == torch.bfloat16 else 1e-5


@st.composite
def maps(draw: st.DrawFn) -> Tensor:
    shape = [draw(st.integers(0, 3)), *(draw(st.integers(1, 12)) for _ in range(2))]
    channels = draw(st.sampled_from((1, 3, 8, 16, 17, 31, 32, 33, 40, 70)))
    seed = draw(st.integers(0, 1000))
    x = torch.randn(*shape, channels, generator=torch.Generator().manual_seed(seed))
    return x.to(draw(st.sampled_from(DTYPES)))


def like(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def norms(channels: int) -> Tensor:
    norm = like((4, channels), 2)
    norm[1] = norm[1].abs() + 0.5
    return norm


acts = st.sampled_from(ACTIVATIONS)


@given(x=maps(), mean=st.sampled_from((0.0, 1e3)))
def test_moments(x: Tensor, mean: float) -> None:
    x = (x + mean).to(x.dtype)
    found, expected = native.moments(x), reference.moments(x.double())
    for own, wide in zip(found, expected, strict=True):
        agree(own, wide)


@given(x=maps(), mean=st.sampled_from((0.0, 1e3)))
def test_covariance(x: Tensor, mean: float) -> None:
    x = (x + mean).to(x.dtype)
    found = native.covariance(x)
    agree(found[0], reference.covariance(x.double())[0])
    agree(found[1:], reference.covariance(x.double())[1:])
    assert torch.equal(found[1:], found[1:].t())


@given(x=maps(), outputs=st.sampled_from((1, 8, 16, 17, 40, 48, 100)), turned=st.booleans())
def test_products(x: Tensor, outputs: int, turned: bool) -> None:
    weight = like((x.shape[3], outputs), 5).t() if turned else like((outputs, x.shape[3]), 5)
    found = native.product(x, weight)
    agree(found, reference.product(x.double(), weight.to(x.dtype).double()))
    grad = like((*x.shape[:3], outputs), 6).to(x.dtype)
    dw = native.weight_gradient(grad, x)
    wide = reference.weight_gradient(grad.double(), x.double())
    agree(dw.to(x.dtype), wide)  # as exact as the library, where it does it


def test_variance_does_not_cancel() -> None:
    x = 1e5 + torch.arange(64.0).reshape(1, 8, 8, 1).repeat(2, 1, 1, 20)
    torch.testing.assert_close(native.moments(x)[1], torch.full((20,), (64**2 - 1) / 12))
    x = x[:, :, :, :1].expand(2, 8, 8, 20).contiguous()
    weight = torch.zeros(20, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    _, found = native.depthwise(x, None, "none", weight, Geometry(3, 1, 1, 1), statistics=True)
    assert found is not None
    torch.testing.assert_close(found[1], torch.full((20,), (64**2 - 1) / 12))


@given(x=maps(), act=acts, with_factor=st.booleans(), with_addend=st.booleans())
def test_normalise_and_pool(x: Tensor, act: Act, with_factor: bool, with_addend: bool) -> None:
    norm = norms(x.shape[3])
    factor = like((x.shape[0], x.shape[3])) if with_factor else None
    addend = like(x.shape, 3).to(x.dtype) if with_addend else None
    found = native.normalise(x, norm, act, factor, addend)
    wide = reference.normalise(x.double(), norm.double(), act, factor, addend)
    agree(found, wide, exactness(act, x))
    pooled = reference.pool(x.double(), norm.double(), act)
    agree(native.pool(x, norm, act), pooled, exactness(act, x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_at_its_ends(dtype: torch.dtype) -> None:
    ends = [-1e30, -200.0, -88.0, -20.0, -1e-30, 0.0, 1e-30, 20.0, 200.0, 1e30, float("nan")]
    x = torch.tensor(ends).to(dtype).view(1, 1, 1, -1)
    norm = torch.tensor([0.0, 1.0, 1.0, 0.0])[:, None].expand(4, len(ends)).contiguous()
    y = native.normalise(x, norm, "silu")
    torch.testing.assert_close(
        y, F.silu(x.double()).to(dtype), rtol=0.01, atol=1e-7, equal_nan=True
    )


@given(x=maps(), act=acts, gated=st.booleans(), output=st.booleans(), with_grad=st.booleans())
def test_normalise_backward(
    x: Tensor, act: Act, gated: bool, output: bool, with_grad: bool
) -> None:
    norm, wide = norms(x.shape[3]), x.double()
    grad = like(x.shape, 3).to(x.dtype) if with_grad else None
    factor, offset = (like((x.shape[0], x.shape[3]), seed) for seed in (4, 5))
    gated = gated or not with_grad
    output = output and with_grad
    options = {"gated": gated, "factor": factor if output else None, "output": output}
    found, y = native.reduce(x, grad, norm, act, **options)
    expected, wide_y = reference.reduce(wide, grad, norm.double(), act, **options)
    agree(found, expected, exactness(act, x))
    agree(y, wide_y, exactness(act, x))
    means = like((2, x.shape[3]), 6)
    for f, o in ((factor, offset), (None, offset), (factor, None), (None, None)):
        dx = native.apply(x, grad, norm, act, means, factor=f, offset=o)
        agree(dx, reference.apply(wide, grad, norm.double(), act, means, factor=f, offset=o),
              exactness(act, x))  # fmt: skip


@given(x=maps(), act=acts, kernel=st.sampled_from((3, 5, 7)), stride=st.sampled_from((1, 2)),
       dilation=st.integers(1, 4), same=st.booleans(), normed=st.booleans(),
       with_bias=st.booleans())  # fmt: skip
def test_depthwise(
    x: Tensor, act: Act, kernel: int, stride: int, dilation: int, same: bool, normed: bool,
    with_bias: bool,
) -> None:  # fmt: skip
    channels, wide = x.shape[3], x.double()
    geometry = Geometry(kernel, stride, *(_before(n, kernel, stride, same) for n in x.shape[1:3]))
    if stride == 1:
        geometry = Geometry(kernel, 1, *[kernel // 2 * dilation] * 2, dilation)
    weight, norm = like((channels, 1, kernel, kernel)), norms(channels) if normed else None
    bias = like((channels,), 3) if with_bias else None
    norm64 = None if norm is None else norm.double()
    found, own = native.depthwise(x, norm, act, weight, geometry, bias=bias, statistics=True)
    bias64 = None if bias is None else bias.double()
    expected, _ = reference.depthwise(wide, norm64, act, weight.double(), geometry, bias=bias64)
    within = exactness(act, x) if normed else 1e-5
    agree(found, expected, within)
    assert own is not None
    for mine, statistic in zip(own, reference.moments(found.double()), strict=True):
        agree(mine, statistic)  # of what it writes
    grad = like(found.shape, 4).to(x.dtype)
    results = native.depthwise_backward(x, grad, norm, act, weight, geometry)
    wanted = reference.depthwise_backward(wide, grad, norm64, act, weight.double(), geometry)
    agree(results[0], wanted[0], within)
    agree(results[1], wanted[1], within)
    if norm64 is None:
        assert not results[2].any()
    elif found.numel():
        # Each term is as exact as dz; the sum of them may be next to nothing.
        terms = wanted[0].abs() * torch.stack(
            [torch.ones_like(wide), reference._normal(wide, norm64)]
        )
        size = terms.abs().sum((1, 2, 3)).norm()
        assert (results[2] - wanted[2]).norm() <= within / 2 * size


def test_small_samples_share_a_task() -> None:
    """Forty of nine pixels: their sums are one task's."""
    x, norm, weight = like((40, 3, 3, 33)), norms(33), like((33, 1, 3, 3), 5)
    geometry, grad = Geometry(3, 1, 1, 1), like((40, 3, 3, 33), 4)
    found, own = native.depthwise(x, norm, "silu", weight, geometry, statistics=True)
    wide = x.double(), norm.double(), "silu", weight.double(), geometry
    expected, statistics = reference.depthwise(*wide, statistics=True)
    agree(found, expected)
    assert own is not None
    assert statistics is not None
    agree(own[0], statistics[0])
    agree(own[1], statistics[1])
    results = native.depthwise_backward(x, grad, norm, "silu", weight, geometry)
    wanted = reference.depthwise_backward(wide[0], grad.double(), *wide[1:])
    for part in range(3):
        agree(results[part], wanted[part])


@given(x=maps(), act=acts, stride=st.sampled_from((1, 2)), dilation=st.sampled_from((1, 2)),
       factored=st.booleans(), offset=st.booleans())  # fmt: skip
def test_the_way_back_through_what_follows_a_depthwise_convolution(
    x: Tensor, act: Act, stride: int, dilation: int, factored: bool, offset: bool
) -> None:
    channels, wide = x.shape[3], x.double()
    dilation = dilation if stride == 1 else 1
    geometry = Geometry(3, stride, dilation, dilation, dilation)
    weight, norm, (height, width) = like((channels, 1, 3, 3)), norms(channels), x.shape[1:3]
    y = like((x.shape[0], *geometry.output(height, width), channels), 7).to(x.dtype)
    grad = like(y.shape, 4).to(x.dtype)
    after = After(
        y, norms(channels).flip(1).contiguous(), like((2, channels), 6),
        like((x.shape[0], channels), 8) if factored else None,
        like((x.shape[0], channels), 9) if offset else None,
    )  # fmt: skip
    after64 = After(*(None if part is None else part.double() for part in after))  # type: ignore[arg-type]
    found = native.depthwise_backward(x, grad, norm, act, weight, geometry, after)
    wanted = reference.depthwise_backward(
        wide, grad.double(), norm.double(), act, weight.double(), geometry, after64
    )
    for own, expected in zip(found, wanted, strict=True):
        agree(own, expected, exactness(act, x))


def _before(size: int, kernel: int, stride: int, same: bool) -> int:
    total = max((size - 1) // stride * stride + kernel - size, 0)
    return total // 2 if same else kernel // 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype) -> None:
    x, norm = like((3, 30, 27, 40)).to(dtype), norms(40)
    weight, geometry = like((40, 1, 5, 5)), Geometry(5, 2, 2, 2)
    before, seen = torch.get_num_threads(), []
    for threads in (1, 2, 4, 2):
        torch.set_num_threads(threads)
        y, statistics = native.depthwise(x, norm, "silu", weight, geometry, statistics=True)
        assert statistics is not None
        backward = native.depthwise_backward(x, y, norm, "silu", weight, geometry)
        sums, _ = native.reduce(x, x, norm, "silu", gated=True)
        seen.append((y, *statistics, *backward, sums, native.moments(x), native.covariance(x)))
    torch.set_num_threads(before)
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            assert torch.equal(a, b)


@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.booleans(),
)
def test_resampling_is_that_of_a_triangle(
    whole: tuple[int, int], size: tuple[int, int], cut: tuple[float, ...], mirrored: bool
) -> None:
    """Any part, fractions of pixels too: the formula in float64, to half a level."""
    pixels = np.random.default_rng(whole).integers(0, 256, (*whole, 3), dtype=np.uint8)
    edges = []
    for length, (a, b) in zip(whole, (cut[:2], cut[2:]), strict=True):
        low, high = sorted((a * length, b * length))
        low = min(low, length - 0.25)
        edges.append((low, max(high, low + 0.25)))
    (top, bottom), (left, right) = edges
    found = native.resample(pixels, (left, top, right, bottom), size, mirrored)
    rows, columns = (triangle(*e, n) for e, n in zip(edges, size, strict=True))
    rows = np.pad(rows, ((0, 0), (0, whole[0] - rows.shape[1])))
    columns = np.pad(columns, ((0, 0), (0, whole[1] - columns.shape[1])))
    exact = np.einsum("ih,hwc,jw->ijc", rows, pixels.astype(float), columns)
    exact = exact[:, ::-1] if mirrored else exact
    assert np.abs(found - exact).max() < 0.501


def triangle(start: float, end: float, count: int) -> NDArray[np.float64]:
    """[count, ceil(end)]: weights of the pixels for each of `count` equal parts of start..end."""
    scale = (end - start) / count
    middles = start + scale * (np.arange(count) + 0.5)
    pixels = np.arange(int(np.ceil(end)))
    weights = 1 - np.abs(pixels + 0.5 - middles[:, None]) / max(scale, 1)
    weights = np.where(pixels >= int(start), weights.clip(0), 0)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def test_resampling_refuses_what_lies_outside() -> None:
    pixels = np.zeros((4, 5, 3), np.uint8)
    for box in ((0, 0, 5.1, 4), (-0.1, 0, 5, 4), (0, 2, 5, 2), (0, 0, 5, 4.5)):
        with pytest.raises(AssertionError):
            native.resample(pixels, box, (2, 2))
    for wrong in (pixels[:, ::2], pixels.astype(np.int8), pixels[..., :2]):
        with pytest.raises(AssertionError):
            native.resample(wrong, (0, 0, 2, 2), (2, 2))


def test_kernels_of_another_version_are_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an update of the sources that was not followed by an install."""
    monkeypatch.setattr(native, "INTERFACE", 1)
    loaded, reason = LIBRARY.__wrapped__()
    assert loaded is None
    assert "install it again" in reason


def test_what_is_not_a_number_stays_so() -> None:
    for act in ACTIVATIONS:
        x = torch.tensor([float("nan"), 1.0, float("inf"), -5.0]).reshape(1, 1, 1, 4)
        norm = torch.tensor([[0.0], [1.0], [1.0], [0.0]]).expand(4, 4).contiguous()
        for dtype in DTYPES:
            y = native.normalise(x.to(dtype), norm, act).flatten().isnan()
            assert y.tolist() == [True, False, y[2], False]
