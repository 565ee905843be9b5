"""Fused blocks against the plain modules: values, gradients, memory, and what must stay plain."""

import copy
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mbconv import kernels
from mbconv.arch.block import Activation, Block, Conv, Sigmoid
from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec, Stage
from mbconv.errors import UserError
from mbconv.kernels import dispatch, native
from mbconv.kernels.block import block as block_operator
from mbconv.kernels.conv_norm_act import conv_norm_act
from mbconv.kernels.depthwise import depthwise
from mbconv.nn import ConvNormAct, MBConvBlock, MBConvNet, build
from mbconv.nn.fusable import branch

Grads = dict[str, Tensor]
FUSED_ACTS = [act for act in get_args(Activation) if act != "gelu"]


def operators(call: Callable[[], object]) -> set[str]:
    """Which of our operators a call runs."""
    with torch.profiler.profile() as profile:
        call()
    names = {event.name for event in profile.events()}
    return {name.removeprefix("mbconv::") for name in names if name.startswith("mbconv::")}


def plain(call: Callable[[], Any]) -> Any:
    with kernels.plain():
        return call()


def learn(module: nn.Module, x: Tensor, *, amp: bool = False) -> Grads:
    """Output, gradients and statistics after one step of a copy."""
    module, x = copy.deepcopy(module), x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        y = module(x)
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    (y * weights).sum().backward()
    assert x.grad is not None
    return {
        "output": y.detach(), "input": x.grad,
        **{name: p.grad for name, p in module.named_parameters() if p.grad is not None},
        **dict(module.named_buffers()),
    }  # fmt: skip


def errors(found: Grads, exact: Grads) -> dict[str, float]:
    """Relative error of each tensor. Gradients that are zero but for rounding are held against
    the largest of the others of their kind."""
    assert found.keys() == exact.keys()
    norms = {k: float(v.double().norm()) for k, v in exact.items()}
    floor = 1e-3 * max(norms[k] for k in norms if k not in ("output", "input"))
    return {
        k: float((found[k].double() - exact[k].double()).norm()) / max(norms[k], floor)
        for k in exact
    }


def narrow(block: Block, channels: int, **spec: Any) -> MBConvBlock:
    torch.manual_seed(0)
    module = MBConvBlock(Spec(stages=(Stage(blocks=(block,)),), **spec), block, channels)
    for name, parameter in module.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5)
    return module


@st.composite
def blocks(draw: st.DrawFn) -> tuple[MBConvBlock, Tensor]:
    channels = draw(st.sampled_from((4, 7, 16, 20, 50)))
    stride = draw(st.sampled_from((1, 2)))
    block = Block(
        kind=draw(st.sampled_from(("mbconv", "mbconv", "fused"))),
        channels=draw(st.sampled_from((channels, 9))),
        kernel=draw(st.sampled_from((3, 5, 7))),
        stride=stride,
        dilation=draw(st.integers(1, 3)) if stride == 1 else 1,
        expand=draw(st.sampled_from((1, 2, 6))),
        activation=draw(st.sampled_from(FUSED_ACTS)),
        gate=draw(st.sampled_from((None, "se"))),
        gate_activation=draw(st.sampled_from((None, "relu"))),
        gate_sigmoid=draw(st.sampled_from(get_args(Sigmoid))),
        shortcut=draw(st.sampled_from((None, "identity"))),
    )
    module = narrow(block, channels, padding=draw(st.sampled_from(("same", "symmetric"))))
    frozen = draw(st.booleans())
    for part in module.modules():
        part.train(not (frozen and isinstance(part, nn.BatchNorm2d)))
    height, width = (draw(st.integers(1, 9)) for _ in "hw")
    places = -(-height // block.stride) * -(-width // block.stride)
    # Two values a channel are normalised to +1 and -1 whatever they are: the gradients vanish and
    # leave nothing but rounding to compare.
    pictures = max(draw(st.integers(2, 4)), -(-8 // places))
    x = torch.randn(pictures, channels, height, width)
    layout = torch.channels_last if draw(st.booleans()) else torch.contiguous_format
    return module, x.contiguous(memory_format=layout)


@given(case=blocks(), memory=st.sampled_from(get_args(kernels.Memory)))
def test_a_block_learns_as_its_plain_modules_do(
    case: tuple[MBConvBlock, Tensor], memory: kernels.Memory
) -> None:
    module, x = case
    exact = plain(lambda: learn(copy.deepcopy(module).double(), x.double()))
    kernels.use("reference", memory=memory)
    wide = errors(learn(copy.deepcopy(module).double(), x.double()), exact)
    hard = any(isinstance(part, nn.Hardsigmoid) for part in module.modules())
    # Torch's own backward of the hard sigmoid has its sixth in float32, whatever the format.
    assert max(wide.values()) < (1e-7 if hard else 1e-9), wide
    kernels.use("auto", memory=memory)
    found = errors(learn(module, x), exact)
    own = plain(lambda: errors(learn(module, x), exact))  # large where the case is ill-conditioned
    assert max(found.values()) < 1e-5 + 4 * max(own.values()), (found, own)


@pytest.mark.parametrize("gate", [None, "se"])
@pytest.mark.parametrize("act", FUSED_ACTS)
@pytest.mark.parametrize("frozen", [False, True])
def test_bfloat16_is_as_exact_as_the_plain_modules(act: Any, gate: Any, frozen: bool) -> None:
    """Under autocast; the errors of all gradients together, against float64."""
    module = narrow(Block(channels=24, kernel=5, activation=act, gate=gate), 24)
    module.train()
    if frozen:
        for part in module.modules():
            part.train(not isinstance(part, nn.BatchNorm2d))
    x = torch.randn(8, 24, 14, 14).bfloat16().contiguous(memory_format=torch.channels_last)
    exact = plain(lambda: learn(copy.deepcopy(module).double(), x.double()))
    found = errors(learn(module, x, amp=True), exact)
    own = plain(lambda: errors(learn(module, x, amp=True), exact))
    for part in ("output", "input"):
        assert found[part] < 1.5 * own[part], (part, found[part], own[part])
    assert sum(found.values()) < 1.5 * sum(own.values())


@pytest.mark.parametrize("there", [False, True])
def test_networks_in_bfloat16_need_no_instructions_for_it(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stem, head and dense convolutions by the library, in float32 where these are missing."""
    monkeypatch.setattr(dispatch, "LIBRARY_BFLOAT16", there)
    stages = (Stage(blocks=(Block(channels=8, kind="fused", expand=2),)),)
    model, x = small_net(stages=stages, drop_path=0.0).train(), PICTURES
    exact = plain(lambda: learn(copy.deepcopy(model).double(), x.double()))
    convolve, computed = F.conv2d, set()

    def told(*given: Any) -> Tensor:
        y: Tensor = convolve(*given)
        computed.add(y.dtype)
        return y

    monkeypatch.setattr(F, "conv2d", told)
    found = learn(model, x, amp=True)
    assert found["output"].dtype == torch.bfloat16
    assert 1e-4 < errors(found, exact)["output"] < 0.02
    assert errors(found, exact)["stem.conv.weight"] < 0.05
    assert computed == {torch.bfloat16 if there else torch.float32}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.stem.conv(x).dtype == torch.bfloat16, "maps are stored in it all the same"


def small_net(**changes: Any) -> MBConvNet:
    torch.manual_seed(0)
    stages = (
        Stage(blocks=(Block(channels=8, expand=1, gate="se"),)),
        Stage(blocks=(Block(channels=12, kernel=5, stride=2, gate="se"),) + (
            Block(channels=12, kernel=5, gate="se"),) * 2),
    )  # fmt: skip
    return build(Spec(**{"stages": stages, "stem_channels": 8, "head_channels": 40,
                         "num_classes": 5, "dropout": 0.0, **changes}))  # fmt: skip


PICTURES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def test_every_part_of_a_network_is_fused() -> None:
    kernels.use("reference")
    model = small_net().train()
    assert operators(lambda: model(PICTURES)) == {"conv_norm_act", "block"}
    for part in model.modules():
        part.train(not isinstance(part, nn.BatchNorm2d))
    assert operators(lambda: model(PICTURES)) == {"block"}


def test_a_network_and_its_statistics() -> None:
    model = small_net(drop_path=0.0).train()
    exact = plain(lambda: learn(copy.deepcopy(model).double(), PICTURES.double()))
    kernels.use("reference")
    found = learn(copy.deepcopy(model).double(), PICTURES.double())
    assert max(errors(found, exact).values()) < 1e-9
    for name, count in found.items():
        if "num_batches" in name:
            assert count == 1, name


def test_drop_path_draws_what_the_plain_modules_draw() -> None:
    module = narrow(Block(channels=8), 8).double().train()
    module.drop_path.rate = 0.5
    x = torch.randn(16, 8, 5, 5).double()
    torch.manual_seed(1)
    expected = plain(lambda: learn(module, x))
    kernels.use("reference")
    torch.manual_seed(1)
    assert max(errors(learn(module, x), expected).values()) < 1e-9


def changed_subclass(module: MBConvBlock) -> None:
    class Own(nn.SiLU):
        pass

    module.depthwise.act = Own()


def changed_sync(module: MBConvBlock) -> None:
    module.project.norm = nn.SyncBatchNorm(8)


def changed_hook(module: MBConvBlock) -> None:
    module.depthwise.norm.register_forward_hook(lambda *_: None)


def changed_eps(module: MBConvBlock) -> None:
    module.project.norm.eps = 0.1


def changed_mode(module: MBConvBlock) -> None:
    module.project.norm.eval()


def changed_norm(module: MBConvBlock) -> None:
    module.depthwise.norm = nn.BatchNorm2d(48, affine=False)


@pytest.mark.parametrize(
    "change",
    [changed_subclass, changed_sync, changed_hook, changed_eps, changed_mode, changed_norm],
)
def test_what_is_not_known_stays_plain(change: Callable[[MBConvBlock], None]) -> None:
    kernels.use("reference")
    module, x = narrow(Block(channels=8, gate="se"), 8).train(), torch.randn(4, 8, 6, 6)
    assert "block" in operators(lambda: module(x))
    change(module)
    assert "block" not in operators(lambda: module.depthwise(module.expand(x)))
    if change is not changed_sync:  # which needs a GPU to run
        assert "block" not in operators(lambda: module(x))


@pytest.mark.parametrize(("gate", "act"), [("eca", "silu"), ("scse", "silu"), (None, "gelu")])
def test_gates_and_activations_that_are_not_fused_stay_plain(gate: Any, act: Any) -> None:
    kernels.use("reference")
    module = narrow(Block(channels=8, gate=gate, activation=act), 8).train()
    assert "block" not in operators(lambda: module(torch.randn(2, 8, 6, 6)))


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("training", [False, True])
def test_passes_without_gradients_take_the_operators_too(mode: str, training: bool) -> None:
    model = small_net(drop_path=0.0).train(training)
    twin = copy.deepcopy(model)
    kernels.use(mode)  # type: ignore[arg-type]
    with torch.inference_mode():
        expected, found = plain(lambda: twin(PICTURES)), model(PICTURES)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    for (name, own), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6, msg=name)
    with torch.no_grad():
        assert ("block" in operators(lambda: model(PICTURES))) == usable(mode)


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_passes_in_bfloat16_are_as_near_as_plain_ones(mode: str) -> None:
    model = small_net().eval()
    kernels.use(mode)  # type: ignore[arg-type]
    with torch.no_grad():
        exact = plain(lambda: copy.deepcopy(model).double()(PICTURES.double()))
        with torch.autocast("cpu", torch.bfloat16):
            own, found = plain(lambda: model(PICTURES)), model(PICTURES)
    assert (found - exact).norm() < 1.5 * (own - exact).norm()


def usable(mode: str) -> bool:
    return mode == "reference" or native.library()[0] is not None


def test_plain_computes_by_the_modules_in_there_only() -> None:
    kernels.use("reference")
    model = small_net()
    with kernels.plain():
        assert operators(lambda: model(PICTURES)) == set()
    assert "block" in operators(lambda: model(PICTURES))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")  # some converters want it
def test_what_is_written_down_is_plain() -> None:
    kernels.use("reference")
    model = small_net().eval()
    with torch.no_grad():
        assert "mbconv::" not in str(torch.export.export(model, (PICTURES,)).graph)
        assert "mbconv::" not in str(torch.jit.trace(model, PICTURES).inlined_graph)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_torchs_counter_knows_the_operators_work(mode: str) -> None:
    """Backward is two products for each of forward's but the stem's, whose input needs none.

    Of plain modules torch counts too much: depthwise gradients as if they mixed channels.
    """
    kernels.use(mode if usable(mode) else "reference")  # type: ignore[arg-type]
    model = small_net().train()
    with FlopCounterMode(display=False) as flops:
        y = model(PICTURES)
        forward = flops.get_total_flops()
        y.sum().backward()
    costs = cost(model.spec, PICTURES.shape[-1])
    each = 2 * len(PICTURES)
    assert forward == each * costs.macs
    assert flops.get_total_flops() == 3 * forward - each * costs.operators[0].macs


def test_an_empty_batch_and_one_value_a_channel_are_as_in_plain_modules() -> None:
    module = narrow(Block(channels=8), 8).train()
    assert module(torch.zeros(0, 8, 6, 6)).shape == (0, 8, 6, 6)
    triple = ConvNormAct(
        Spec(stages=(Stage(blocks=(Block(channels=4),)),)),
        Conv(name="conv", in_channels=4, out_channels=4, activation="silu"),
    )
    for one in (module, triple):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            one(torch.zeros(1, 8 if one is module else 4, 1, 1))


def test_channels_that_are_constant_and_means_that_are_huge() -> None:
    module = narrow(Block(channels=8, expand=1), 8).train()
    x = torch.randn(4, 8, 6, 6)
    x[:, 0], x[:, 1] = 3.0, x[:, 1] + 1e4
    exact = plain(lambda: learn(copy.deepcopy(module).double(), x.double()))
    found, own = learn(module, x), plain(lambda: learn(module, x))
    assert all(v.isfinite().all() for v in found.values())
    for name, error in errors(found, exact).items():
        assert error < 1e-4 + 2 * errors(own, exact)[name], name


@pytest.mark.parametrize("amp", [False, True])
def test_compiles_without_a_graph_break(amp: bool) -> None:
    model = small_net(drop_path=0.0).train()
    whole = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        expected, found = model(PICTURES), whole(PICTURES)
    torch.testing.assert_close(found, expected)
    for y in (expected, found):
        y.float().square().sum().backward()
    for a, b in zip(whole.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_checkpointing_gives_the_same_gradients() -> None:
    module, x = narrow(Block(channels=8, gate="se"), 8).train(), torch.randn(4, 8, 6, 6)
    results = []
    for run in (module, lambda y: checkpoint(module, y, use_reentrant=False)):
        x = x.detach().requires_grad_()
        module.zero_grad()
        run(x).square().sum().backward()
        assert x.grad is not None
        results.append([x.grad, *(p.grad.clone() for p in module.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_learns_under_distributed_data_parallel(tmp_path: Path) -> None:
    model = small_net(drop_path=0.0).train()
    alone = learn(model, PICTURES)
    distributed = torch.distributed
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        together = nn.parallel.DistributedDataParallel(model)
        y = together(PICTURES)
        generator = torch.Generator().manual_seed(7)
        weights = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
        (y * weights).sum().backward()
    finally:
        distributed.destroy_process_group()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, alone[name])


def test_the_same_step_gives_the_same_bits() -> None:
    model = small_net(drop_path=0.0).train()
    first, second = (learn(model, PICTURES, amp=True) for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def kept(module: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps, of each storage once, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x)
    return sum(found.values())


@pytest.mark.parametrize("gate", [None, "se"])
def test_a_block_keeps_its_input_and_three_maps(gate: Any) -> None:
    module = narrow(Block(channels=16, gate=gate), 16).train()
    x = torch.randn(4, 16, 20, 20)
    small = 4 * 20_000  # vectors of channels and samples
    pixels = 4 * 4 * 20 * 20
    kernels.use("reference")
    assert 0 <= kept(module, x) - pixels * (16 + 96 + 96 + 16) < small
    kernels.use("reference", memory="lean")
    assert 0 <= kept(module, x) - pixels * (16 + 96 + 16) < small
    assert plain(lambda: kept(module, x)) > 2 * pixels * (16 + 96 + 96 + 16)


# Running statistics, which wait for the end of a network's pass


class Twice(nn.Module):
    """One block, used two times."""

    def __init__(self, block: nn.Module, wrong: bool = False) -> None:
        super().__init__()
        self.block, self.wrong = block, wrong

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(self.block(x))
        if self.wrong:
            raise RuntimeError("halfway")
        return y


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items() if "running" in k or "num_" in k}


def test_a_block_that_is_used_twice_updates_twice() -> None:
    model = small_net(drop_path=0.0).double().train()
    model.stages[1] = Twice(narrow(Block(channels=8, gate="se"), 8).double())
    model.head = nn.Flatten()
    wanted = copy.deepcopy(model)
    plain(lambda: wanted(PICTURES.double()))
    kernels.use("reference")
    model(PICTURES.double())
    found = statistics(model)
    assert found["stages.1.block.project.norm.num_batches_tracked"] == 2
    for name, value in statistics(wanted).items():
        torch.testing.assert_close(found[name], value)


def test_a_block_whose_convolutions_share_a_norm() -> None:
    block = narrow(Block(channels=8), 8).double().train()
    expand, middle, _ = branch(block)
    assert expand is not None
    expand.norm = middle.norm
    wanted, x = copy.deepcopy(block), torch.randn(2, 8, 6, 6, dtype=torch.float64)
    plain(lambda: wanted(x))
    kernels.use("reference")
    block(x)
    for name, value in statistics(wanted).items():
        torch.testing.assert_close(statistics(block)[name], value)


def test_what_ran_before_an_error_is_updated() -> None:
    kernels.use("reference")
    model = small_net(drop_path=0.0).train()
    model.stages[1] = Twice(narrow(Block(channels=8, gate="se"), 8), wrong=True)
    with pytest.raises(RuntimeError, match="halfway"):
        model(PICTURES)
    assert statistics(model)["stem.norm.num_batches_tracked"] == 1


def test_a_network_within_a_network_updates_at_its_own_end() -> None:
    kernels.use("reference")
    inner, seen = small_net().train(), []

    class Around(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inner(x)
            seen.append(statistics(inner)["stem.norm.num_batches_tracked"].item())
            return x

    outer = small_net().train()
    outer.stem = nn.Sequential(Around(), outer.stem)
    outer(PICTURES)
    assert seen == [1]


# The operators themselves


def test_a_second_derivative_is_refused() -> None:
    kernels.use("reference")
    model = small_net(drop_path=0.0).train()
    x = PICTURES.clone().requires_grad_()
    with pytest.raises(UserError, match=r"no second derivative.*use\('plain'\)"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
    plain(lambda: torch.autograd.grad(model(x).sum(), x, create_graph=True))


def test_weights_on_another_device_are_refused_by_torch() -> None:
    model = small_net().train()
    for part, x in ((model.stem, PICTURES), (model.stages[1][0], torch.randn(2, 8, 8, 8))):
        with pytest.raises((RuntimeError, NotImplementedError)):
            part.to("meta")(x)


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("need_dx", [False, True])
def test_gradients_lie_in_memory_as_the_weights(mode: Any, need_dx: bool) -> None:
    """As the operators' fake versions say, which torch.compile relies on."""
    kernels.use(mode)
    for layout in (torch.channels_last, torch.contiguous_format):
        for channels in (3, 12):  # a stem, and a convolution that is the library's
            x = torch.randn(2, channels, 9, 9, requires_grad=need_dx)
            weight = torch.randn(8, channels, 3, 3).to(memory_format=layout).requires_grad_()
            affine = torch.ones(2, 8)
            y, *_ = conv_norm_act(
                x, weight, affine, None, "silu", [3, 2, 1, 1, 1], 1e-3, False, True
            )
            (grad,) = torch.autograd.grad(y.square().sum(), weight)
            assert grad.stride() == weight.stride()


def running_statistics(channels: int) -> Tensor:
    return torch.rand(2, channels, dtype=torch.float64) + 0.5


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("act", FUSED_ACTS)
def test_gradients_of_the_reference(act: str) -> None:
    torch.manual_seed(0)
    x = numbers(3, 4, 3, 5)
    check = torch.autograd.gradcheck
    for triple in ([1, 1, 0, 0, 1], [3, 2, 1, 1, 1]):
        weights = numbers(2, 4, triple[0], triple[0]), numbers(2, 2)
        for pooled, running in itertools.product((False, True), (None, running_statistics(2))):
            rest = (running, act, triple, 1e-3, pooled, True)
            assert check(lambda *a, rest=rest: conv_norm_act(*a, *rest)[0], (x, *weights))
    for geometry in ([3, 1, 1, 1], [5, 2, 1, 2], [3, 2, 0, 1]):
        weight = numbers(4, 1, geometry[0], geometry[0])
        assert check(lambda *a, g=geometry: depthwise(*a, g), (x, weight, numbers(4)))


def block_arguments(dtype: torch.dtype, *, gate: bool, frozen: bool, lean: bool) -> list[Any]:
    torch.manual_seed(0)
    shapes = [(2, 3, 4, 5), (6, 3, 1, 1), (6, 1, 3, 3), (3, 6, 1, 1), (2, 15)]
    gates = [(2, 6, 1, 1), (2,), (6, 2, 1, 1), (6,)]
    tensors = [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]
    running = torch.rand(2, 15).to(dtype) + 0.5 if frozen else None
    squeeze = [torch.randn(s, dtype=dtype, requires_grad=True) if gate else None for s in gates]
    keep = torch.tensor([2.0, 0.5]).to(dtype)
    sigmoid = "hard_sigmoid" if frozen else "sigmoid"
    return [
        *tensors,
        running,
        *squeeze,
        keep,
        "silu",
        "relu6",
        sigmoid,
        [3, 1, 1, 1],
        1e-3,
        True,
        "lean" if lean else "all",
    ]


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_the_reference_block(gate: bool, frozen: bool) -> None:
    arguments = block_arguments(torch.float64, gate=gate, frozen=frozen, lean=not gate)
    assert torch.autograd.gradcheck(lambda *a: block_operator(*a)[0], arguments)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own check runs into it
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_keep_torchs_rules(dtype: torch.dtype) -> None:
    """Schema, fake tensors, autograd registration: what torch.compile relies on."""
    torch.manual_seed(0)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor",
              "test_aot_dispatch_dynamic")  # fmt: skip
    x = torch.randn(2, 4, 6, 5, dtype=dtype, requires_grad=True)
    affine = torch.randn(2, 4, dtype=dtype, requires_grad=True)
    weight = torch.randn(4, 1, 3, 3, dtype=dtype, requires_grad=True)
    head = torch.randn(4, 4, 1, 1, dtype=dtype, requires_grad=True)
    stem = torch.randn(4, 4, 3, 3, dtype=dtype, requires_grad=True)
    running = running_statistics(4).to(dtype)
    free = [x.detach(), head.detach(), affine.detach()]
    without = [a.detach() if isinstance(a, Tensor) else a
               for a in block_arguments(dtype, gate=True, frozen=True, lean=True)]  # fmt: skip
    calls: list[tuple[Any, list[Any]]] = [
        (conv_norm_act, [x, head, affine, None, "silu", [1, 1, 0, 0, 1], 1e-3, True, True]),
        (
            conv_norm_act,
            [x.detach(), stem, affine, None, "silu", [3, 2, 1, 1, 1], 1e-3, False, True],
        ),
        (conv_norm_act, [x, head, affine, running, "silu", [1, 1, 0, 0, 1], 1e-3, True, True]),
        (conv_norm_act, [*free, running, "silu", [1, 1, 0, 0, 1], 1e-3, False, False]),
        (depthwise, [x, weight, None, [3, 2, 1, 1]]),
        (block_operator, block_arguments(dtype, gate=True, frozen=False, lean=False)),
        (block_operator, block_arguments(dtype, gate=False, frozen=True, lean=True)),
        (block_operator, [*without[:-1], "none"]),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator, tuple(arguments), test_utils=checks)


def test_a_pass_that_kept_nothing_has_no_backward() -> None:
    arguments = block_arguments(torch.float32, gate=True, frozen=True, lean=True)
    calls = [
        block_operator(*arguments[:-1], "none"),
        conv_norm_act(arguments[0], torch.randn(4, 3, 1, 1), torch.randn(2, 4),
                      running_statistics(4), "silu", [1, 1, 0, 0, 1], 1e-3, False, False),
    ]  # fmt: skip
    for y, *_ in calls:
        with pytest.raises(RuntimeError, match="kept no maps"):
            y.sum().backward()


# The choice


def test_a_wrong_choice_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'fast' is none of auto, native, reference, plain"):
        kernels.use("fast")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="none of normal, lean"):
        kernels.use("auto", memory="small")  # type: ignore[arg-type]
    monkeypatch.setattr(dispatch.native, "library", lambda: (None, "no compiler"))
    with pytest.raises(UserError, match="no native kernels: no compiler"):
        kernels.use("native")


def test_the_environment_chooses() -> None:
    script = "from mbconv import kernels; print(kernels.status()['mode'])"
    for mode, answer in (("reference", "reference"), ("fast", "MBCONV_KERNELS is wrong")):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                              env={**dispatch.os.environ, "MBCONV_KERNELS": mode})  # fmt: skip
        assert answer in done.stdout + done.stderr


@pytest.mark.skipif(not dispatch._loaded, reason="there are no native kernels here")
def test_native_kernels_share_torchs_openmp_runtime() -> None:
    """In the whole process there is one, after a parallel kernel has run."""
    script = """
import torch
from mbconv.kernels import native
native.moments(torch.randn(4, 9, 9, 40))
maps = open("/proc/self/maps").read().splitlines()
print(*{line.split()[-1] for line in maps if "omp.so" in line or "omp-" in line or "omp5" in line})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.split()) == 1, done.stdout
