"""The compiled block: parts of a batch, threads, and the reference in float64."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from mbconv import kernels
from mbconv.kernels import dispatch, native_block
from mbconv.kernels.block import block
from mbconv.kernels.parts import is_narrow

pytestmark = pytest.mark.skipif(not dispatch._loaded, reason="there are no native kernels here")
OUT = 14
WIDTHS = {"no expansion": (20, 20), "narrow": (10, 60), "wide": (56, 112), "dense": (20, 60)}


@pytest.fixture(autouse=True)
def compiled() -> None:
    """Whatever MBCONV_KERNELS says: it is the compiled block that is looked at."""
    kernels.use("auto")


def case(kind: str, *, gate: bool, frozen: bool, lean: bool, batch: int = 9) -> list[Any]:
    """Arguments of the operator: nine samples make parts of three."""
    torch.manual_seed(0)
    (into, middle), inside = WIDTHS[kind], 6
    out = into if frozen else OUT  # with a shortcut
    expands, dense = kind in ("narrow", "wide"), kind == "dense"
    norms = (middle if expands else 0) + middle + out
    x = torch.randn(batch, into, 9, 7).contiguous(memory_format=torch.channels_last)
    expand = torch.randn(middle, into, 1, 1) / into**0.5 if expands else None
    spatial = torch.randn(middle, into if dense else 1, 5, 5) / (5 * into**0.5 if dense else 5)
    shapes = [(inside, middle, 1, 1), (inside,), (middle, inside, 1, 1), (middle,)]
    squeeze = [0.3 * torch.randn(s) if gate else None for s in shapes]
    project = torch.randn(out, middle, 1, 1) / middle**0.5
    affine = 1 + 0.2 * torch.randn(2, norms)
    tensors = [x, expand, spatial, project, affine]
    running = torch.rand(2, norms) + 0.5 if frozen else None
    keep = torch.rand(batch) + 0.5
    kinds = ("silu", "relu", "hard_sigmoid" if lean else "sigmoid")
    kept = "lean" if lean else "all"
    return [*tensors, running, *squeeze, keep, *kinds, [5, 1, 2, 2], 1e-3, frozen, kept]


def computed(arguments: list[Any], dtype: torch.dtype) -> list[Tensor]:
    """The output, the statistics, and the gradients at all that has one."""
    own = [a.detach().to(dtype if i in (0,) or dtype == torch.float64 else a.dtype)
           if isinstance(a, Tensor) else a for i, a in enumerate(arguments)]  # fmt: skip
    learnt = [
        a.requires_grad_() for i, a in enumerate(own) if isinstance(a, Tensor) and i not in (5, 10)
    ]
    y, _, _, _, statistics, *_ = block(*own)
    torch.manual_seed(1)
    weights = torch.randn(y.shape).to(y.dtype)
    grads = torch.autograd.grad((y * weights).sum(), learnt)
    return [y.detach(), *([statistics] if statistics.numel() else []), *grads]


def agree(found: list[Tensor], wanted: list[Tensor]) -> None:
    for own, expected in zip(found, wanted, strict=True):
        assert (own - expected).abs().max() <= 2e-5 * expected.abs().max().clamp_min(1e-3)


@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize(
    ("gate", "frozen", "lean"), [(True, False, False), (False, False, True), (True, True, True)]
)
def test_the_compiled_block_is_the_reference_in_float64(
    kind: str, gate: bool, frozen: bool, lean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = case(kind, gate=gate, frozen=frozen, lean=lean)
    assert arguments[1] is None or is_narrow(arguments[1]) == (kind == "narrow")
    calls, forward = [], native_block.forward
    monkeypatch.setattr(native_block, "forward", lambda *a: calls.append(1) or forward(*a))  # type: ignore[func-returns-value]
    found = computed(arguments, torch.float32)
    assert calls
    kernels.use("reference")
    wanted = computed(arguments, torch.float64)
    kernels.use("auto")
    agree(found, wanted)


@pytest.mark.parametrize("kind", ["no expansion", "narrow", "wide"])  # a dense one is the library's
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_has_the_same_bits_on_any_number_of_threads(kind: str, dtype: torch.dtype) -> None:
    arguments = case(kind, gate=True, frozen=False, lean=kind == "wide")
    before, seen = torch.get_num_threads(), []
    for threads in (1, 2, 3, 8):  # three parts: shared out, or one after the other
        torch.set_num_threads(threads)
        seen.append(computed(arguments, dtype))
    torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_one_sample_is_a_part() -> None:
    for batch in (1, 2, 5):
        arguments = case("wide", gate=True, frozen=False, lean=False, batch=batch)
        found = computed(arguments, torch.float32)
        kernels.use("reference")
        wanted = computed(arguments, torch.float64)
        kernels.use("auto")
        agree(found, wanted)


@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_nothing_is_kept_where_nobody_waits_for_it(
    kind: str, gate: bool, frozen: bool, mode: Literal["auto", "reference"]
) -> None:
    """And what is computed then is the same; by compiled code on any number of threads."""
    before = torch.get_num_threads()
    for batch in (1, 2, 9):
        arguments = case(kind, gate=gate, frozen=frozen, lean=False, batch=batch)
        for dtype in (torch.float32, torch.bfloat16):
            x, *rest = arguments[0].to(dtype), *arguments[1:-1]
            kernels.use(mode)
            wanted = block(x, *rest, "all")
            for threads in (1, 2, 3) if mode == "auto" else (before,):
                torch.set_num_threads(threads)
                y, e, d, p, *others = block(x, *rest, "none")
                assert torch.equal(y, wanted[0])
                assert e.numel() == d.numel() == p.numel() == 0
                assert all(torch.equal(a, b) for a, b in zip(others, wanted[4:], strict=True))
            torch.set_num_threads(before)
            kernels.use("auto")
