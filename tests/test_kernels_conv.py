"""Convolution, batch norm and activation as one operator, against the reference in float64."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbconv import kernels
from mbconv.kernels import dispatch, native_conv
from mbconv.kernels.conv_norm_act import conv_norm_act
from mbconv.kernels.reference import Act, Geometry, value_of

native = pytest.mark.skipif(not dispatch._loaded, reason="there are no native kernels here")


@pytest.fixture(autouse=True)
def compiled() -> None:
    """Whatever MBCONV_KERNELS says: native kernels are looked at, where there are any."""
    kernels.use("auto")


@dataclass(frozen=True)
class Case:
    """A convolution; `compiled`: whether native_conv takes it where the input needs no gradient."""

    into: int
    out: int
    kernel: int = 1
    stride: int = 1
    top: int | None = None  # symmetric padding by default
    size: tuple[int, int] = (13, 10)
    depthwise: bool = False
    compiled: bool = True

    @property
    def geometry(self) -> list[int]:
        pad = self.kernel // 2 if self.top is None else self.top
        return [self.kernel, self.stride, pad, pad, 1]

    def tensors(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        x = torch.randn(batch, self.into, *self.size) + 1
        fan = (1 if self.depthwise else self.into) * self.kernel**2
        shape = self.out, 1 if self.depthwise else self.into, self.kernel, self.kernel
        return x, torch.randn(shape) / fan**0.5, 1 + 0.2 * torch.randn(2, self.out)


CASES = {
    "stem": Case(3, 32, kernel=3, stride=2),
    "stem, SAME": Case(3, 24, kernel=3, stride=2, top=0, size=(12, 16)),
    "stem of one channel": Case(1, 18, kernel=3, stride=2),
    "stem of two, 5x5": Case(2, 10, kernel=5, stride=2, size=(9, 6)),
    "stem smaller than its kernel": Case(3, 8, kernel=5, stride=1, size=(2, 3), compiled=False),
    "head": Case(20, 70, size=(7, 7)),
    "dense": Case(12, 20, kernel=3, compiled=False),
    "depthwise": Case(20, 20, kernel=5, stride=2, depthwise=True, compiled=False),
}


def constants(case: Case, dtype: torch.dtype) -> Tensor:
    """Mean and variance [2, C'] of frozen norms."""
    return torch.linspace(0.5, 1.5, 2 * case.out, dtype=dtype).view(2, -1)


def computed(
    case: Case, tensors: tuple[Tensor, ...], dtype: torch.dtype, *, pooled: bool, need_dx: bool,
    act: str = "silu", frozen: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Output, statistics (none where they are `frozen`), and the gradients at weight, affine and
    perhaps x."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = tensors[0].to(dtype).requires_grad_(need_dx)
    weight, affine = (t.to(wide).requires_grad_() for t in tensors[1:])
    running = constants(case, wide) if frozen else None
    y, _, statistics = conv_norm_act(
        x, weight, affine, running, act, case.geometry, 1e-3, pooled, True
    )
    torch.manual_seed(1)
    loss = (y * torch.randn(y.shape, dtype=torch.float64).to(y.dtype)).sum()
    learnt = [weight, affine, *([x] if need_dx else [])]
    known = [] if frozen else [statistics]
    return [y.detach(), *known, *torch.autograd.grad(loss, learnt)]


def by_torch(
    case: Case, tensors: tuple[Tensor, ...], dtype: torch.dtype, *, need_dx: bool,
    act: Act = "silu", frozen: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Output and gradients of the plain functions, every map stored as `dtype`."""
    x, weight, affine = (t.clone().requires_grad_() for t in tensors)
    kernel, stride, top, left, _ = case.geometry
    size = Geometry(*case.geometry).output(*case.size)
    reach = [(n - 1) * stride + kernel for n in size]
    pads = (left, reach[1] - case.size[1] - left, top, reach[0] - case.size[0] - top)
    groups = case.into if case.depthwise else 1
    c = F.conv2d(F.pad(x.to(dtype), pads), weight.to(dtype), stride=stride, groups=groups)
    running = constants(case, affine.dtype) if frozen else (None, None)
    z = F.batch_norm(c, *running, affine[0], affine[1], training=not frozen, eps=1e-3)
    y = value_of(z, act)
    torch.manual_seed(1)
    loss = (y * torch.randn(y.shape, dtype=torch.float64).to(y.dtype)).sum()
    learnt = [weight, affine, *([x] if need_dx else [])]
    return [y.detach(), *torch.autograd.grad(loss, learnt)]


def errors(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """The largest error of each, as a share of the largest number there."""
    return [
        float((own.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-3))
        for own, exact in zip(found, wanted, strict=True)
    ]


@native
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("need_dx", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_native_is_the_reference_in_float64(
    name: str, pooled: bool, need_dx: bool, frozen: bool
) -> None:
    case = CASES[name]
    tensors = case.tensors(batch=9)  # makes parts of three
    place = Geometry(*case.geometry)
    assert native_conv.fit(tensors[0], tensors[1], place) == case.compiled
    assert native_conv.fit(*tensors[:2], place, need_dx=True) == (name == "head")
    how: dict[str, Any] = {"pooled": pooled, "need_dx": need_dx, "frozen": frozen}
    found = computed(case, tensors, torch.float32, **how)
    kernels.use("reference")
    wanted = computed(case, tensors, torch.float64, **how)
    assert max(errors(found, wanted)) < 1e-5


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_kept_where_nobody_waits_for_it(
    name: str, dtype: torch.dtype, mode: Literal["auto", "reference"]
) -> None:
    kernels.use(mode)
    case = CASES[name]
    x, *rest = case.tensors(batch=9)
    for running in (None, constants(case, torch.float32)):
        for pooled in (False, True):
            given = (x.to(dtype), *rest, running, "silu", case.geometry, 1e-3, pooled)
            y, c, statistics = conv_norm_act(*given, False)
            wanted, kept, same = conv_norm_act(*given, True)
            assert torch.equal(y, wanted)
            assert torch.equal(statistics, same)
            assert (c.numel(), kept.shape[-1]) == (0, case.out)
            assert statistics.numel() == (2 * case.out if running is None else 0)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_what_torch_computes(name: str, frozen: bool) -> None:
    """Convolution, batch norm and activation of torch, in float64."""
    case: Case = CASES[name]
    act: Act = "hard_swish"
    kernels.use("reference")
    tensors = tuple(t.double() for t in case.tensors(batch=3))
    how: dict[str, Any] = {"need_dx": True, "act": act, "frozen": frozen}
    found = computed(case, tensors, torch.float64, pooled=False, **how)
    wanted = by_torch(case, tensors, torch.float64, **how)
    assert max(errors([found[0], *found[1 if frozen else 2 :]], wanted)) < 1e-11


@native
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_as_exact_as_plain_modules(name: str, frozen: bool) -> None:
    case, first = CASES[name], 1 if frozen else 2  # what comes behind the statistics
    tensors = tuple(t.bfloat16().float() for t in case.tensors(batch=4))
    how: dict[str, Any] = {"need_dx": name == "head", "frozen": frozen}
    found = computed(case, tensors, torch.bfloat16, pooled=False, **how)
    kernels.use("reference")
    wanted = computed(case, tensors, torch.float64, pooled=False, **how)
    plain = by_torch(case, tensors, torch.bfloat16, **how)
    exact = [wanted[0], *wanted[first:]]
    own = errors([found[0], *found[first:]], exact)
    for error, allowed in zip(own, errors(plain, exact), strict=True):
        assert error <= 1.5 * allowed + 1e-3


@native
@pytest.mark.parametrize("name", ["stem", "head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_on_any_number_of_threads(name: str, dtype: torch.dtype) -> None:
    before, seen, case = torch.get_num_threads(), [], CASES[name]
    tensors = case.tensors(batch=9)
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        seen.append(computed(case, tensors, dtype, pooled=name == "head", need_dx=name == "head"))
    torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@native
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 5), into=st.integers(1, 4), out=st.integers(1, 40),
    kernel=st.sampled_from([1, 3]), stride=st.integers(1, 2), height=st.integers(1, 9),
    width=st.integers(1, 9), mean=st.sampled_from([0.0, 300.0]), flat=st.booleans(),
)  # fmt: skip
def test_any_shape(
    batch: int, into: int, out: int, kernel: int, stride: int, height: int, width: int, mean: float,
    flat: bool,
) -> None:  # fmt: skip
    case = Case(into, out, kernel, stride, size=(height, width))
    x, weight, affine = case.tensors(batch)
    x = x + mean
    if flat:
        weight[0] = 0  # a channel without variance
    found = computed(case, (x, weight, affine), torch.float32, pooled=False, need_dx=False)
    kernels.use("reference")
    wanted = computed(case, (x, weight, affine), torch.float64, pooled=False, need_dx=False)
    kernels.use("auto")
    # Where little varies around a large mean, float32 sums of products themselves are inexact.
    assert max(errors(found[:2], wanted[:2])) < (1e-5 if mean == 0 else 5e-2)
    assert all(torch.isfinite(t).all() for t in found)


@native
def test_a_picture_in_any_layout() -> None:
    case = CASES["stem"]
    x, weight, affine = case.tensors(batch=2)
    wanted = computed(case, (x, weight, affine), torch.float32, pooled=False, need_dx=False)
    wide = torch.stack([x, x], -1)[..., 0]  # with gaps
    last = x.contiguous(memory_format=torch.channels_last)
    for layout in (wide, last):
        found = computed(case, (layout, weight, affine), torch.float32, pooled=False, need_dx=False)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
