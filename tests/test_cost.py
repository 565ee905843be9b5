"""Cost from the spec alone against the module: counted parameters, traced MACs, kept tensors."""

import json
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mbconv import kernels
from mbconv.arch.block import Block
from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec, Stage
from mbconv.arch.zoo import get_spec
from mbconv.errors import UserError
from mbconv.nn import build
from mbconv.report.network import info_dict, network_table, show, skip_rows, skip_table
from strategies import specs

MIB = 2**20


@pytest.fixture(autouse=True)
def plain_modules() -> None:
    """The costs are those of plain PyTorch, not of the fused operators, which keep less."""
    kernels.use("plain")


SMALL = Spec(
    stages=(
        Stage(blocks=(Block(channels=16, expand=1), Block(channels=16))),
        Stage(blocks=(Block(channels=24, stride=2, kernel=5), Block(channels=24, expand=3.5))),
    ),
    stem_channels=12,
    head_channels=64,
    num_classes=10,
    drop_path=0.0,
)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "same padding": {"padding": "same"},
    "same padding, kernel 7": {"padding": "same", "kernel": 7, "stem_kernel": 7},
    "se": {"gate": "se", "dropout": 0.0},
    "se of the expanded width": {"gate": "se", "gate_base": "expanded", "gate_divisor": 8},
    "sse": {"gate": "sse", "activation": "relu"},
    "scse": {"gate": "scse", "activation": "hard_swish"},
    "scse with relu": {"gate": "scse", "activation": "relu"},
    "eca": {"gate": "eca", "activation": "gelu", "padding": "same"},
    "resnet_d": {"shortcut": "resnet_d", "activation": "relu6"},
    "resnet_d, no expansion": {"shortcut": "resnet_d", "expand": 1, "padding": "same"},
    "no shortcut": {"shortcut": None, "zero_gamma": True, "activation": "relu"},
    "max pooling": {"pooling": "max", "dropout": 0.0},
    "concat pooling": {"pooling": "concat", "gate": "se", "activation": "relu"},
    "stem at stride 1": {"stem_stride": 1, "padding": "same", "in_channels": 1},
}


def kept_bytes(model: nn.Module, pictures: Tensor) -> int:
    """Bytes of all tensors that autograd keeps, each once, without parameters and pictures."""
    model.train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    own.add(pictures.untyped_storage().data_ptr())
    kept: dict[int, torch.UntypedStorage] = {}  # holds the storages, so that none is reused

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(pictures)
    total = sum(storage.nbytes() for storage in kept.values())
    del logits
    return total


def kept_by_each_picture(spec: Spec, resolution: int) -> int:
    """What one more picture adds: that leaves out what a batch needs once (its statistics)."""
    torch.manual_seed(0)
    model = build(spec)
    shape = (spec.in_channels, resolution, resolution)
    small, large = (kept_bytes(model, torch.randn(n, *shape)) for n in (2, 3))
    return large - small


def conv_outputs_and_macs(model: nn.Module, pictures: Tensor) -> tuple[int, int]:
    """fp32 bytes of all convolution outputs, and MACs, a picture, counted by hooks on the modules.

    In training mode: in evaluation mode batch norms are folded and their convolutions not called.
    """
    sizes, macs = [], []

    def hook(module: Any, _: Any, out: Tensor) -> None:
        if not isinstance(module, nn.Linear):
            sizes.append(4 * out.numel())
        inside = out.numel() if isinstance(module, nn.Linear) else out.numel() // out.shape[1]
        weights = module.in_features if isinstance(module, nn.Linear) else module.weight.numel()
        macs.append(inside * weights)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear):
            module.register_forward_hook(hook)
    with torch.no_grad():
        model.train()(pictures)
    return sum(sizes) // len(pictures), sum(macs) // len(pictures)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("resolution", [32, 37])
def test_kept_tensors_equal_those_of_autograd(name: str, resolution: int) -> None:
    spec = SMALL.replace(**VARIANTS[name])
    assert cost(spec, resolution).saved_bytes == kept_by_each_picture(spec, resolution)


@pytest.mark.parametrize("name", VARIANTS)
def test_kept_bytes_of_a_batch_of_two(name: str) -> None:
    spec = SMALL.replace(**VARIANTS[name], drop_path=0.2)
    torch.manual_seed(0)
    counted = kept_bytes(build(spec), torch.randn(2, spec.in_channels, 96, 96)) / 2
    assert cost(spec, 96).saved_bytes == pytest.approx(counted, rel=0.01)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(specs())
def test_any_network_costs_what_its_module_counts(spec: Spec) -> None:
    spec = spec.replace(drop_path=0)  # whose masks, four bytes a block, are not counted
    resolution = spec.resolution + 16  # batch norm needs more than one value
    found = cost(spec, resolution)
    model = build(spec)
    assert found.params == sum(p.numel() for p in model.parameters())
    for op in found.operators:
        assert op.params == sum(p.numel() for p in model.get_submodule(op.name).parameters())
    assert found.saved_bytes == kept_by_each_picture(spec, resolution)
    two = torch.randn(2, spec.in_channels, resolution, resolution)
    assert (found.activation_bytes, found.macs) == conv_outputs_and_macs(model, two)


def test_b0_at_its_own_resolution() -> None:
    spec = get_spec("efficientnet_b0")
    torch.manual_seed(0)
    counted = kept_bytes(build(spec), torch.randn(2, 3, 224, 224)) / 2
    assert cost(spec).saved_bytes == pytest.approx(counted, rel=0.01)
    # 22.0 million numbers by hand: the block's input, three of the expanded map, four of the
    # depthwise one, one of the projection; 84.1 MiB measured on another implementation, with the
    # 0.6 MiB of the picture itself.
    symmetric = cost(spec.replace(padding="symmetric")).saved_bytes / MIB
    assert symmetric + 4 * 3 * 224**2 / MIB == pytest.approx(84.1, abs=0.05)


def test_arithmetic_of_one_block_by_hand() -> None:
    spec = Spec(stages=(Stage(blocks=(Block(channels=8, expand=2, stride=2, gate="se"),)),),
                stem_channels=8, head_channels=4, num_classes=3, resolution=8)  # fmt: skip
    ops = {op.name: op for op in cost(spec).operators}
    block = "stages.0.0"
    assert list(ops) == [
        "stem", f"{block}.expand", f"{block}.depthwise", f"{block}.gate", f"{block}.project",
        "head.conv", "head.pool", "head.dropout", "head.classifier",
    ]  # fmt: skip
    expand, depthwise, gate = (ops[f"{block}.{n}"] for n in ("expand", "depthwise", "gate"))
    assert (expand.params, expand.macs) == (8 * 16 + 2 * 16, 8 * 16 * 4 * 4)
    assert (depthwise.kind, depthwise.kernel, depthwise.stride) == ("depthwise", 3, 2)
    assert (depthwise.height, depthwise.width) == (2, 2)
    assert (depthwise.params, depthwise.macs) == (9 * 16 + 2 * 16, 9 * 16 * 2 * 2)
    assert depthwise.activation_bytes == 4 * 16 * 4
    assert (gate.params, gate.macs) == (16 * 2 + 2 + 2 * 16 + 16, 2 * 16 * 2)
    assert gate.activation_bytes == 4 * (2 + 16)
    # the gate's input; mean, reduced map, its activation, factors
    assert gate.saved_bytes == 4 * (16 * 4 + 16 + 2 + 2 + 16)
    assert (ops["head.classifier"].params, ops["head.classifier"].macs) == (15, 12)
    assert ops["head.dropout"].saved_bytes == 4 * 4


def test_sums_and_plain_data() -> None:
    found = cost(SMALL, 64)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["resolution"] == found.resolution == 64
    for name in ("params", "macs", "activation_bytes", "saved_bytes"):
        assert data[name] == getattr(found, name) == sum(op[name] for op in data["operators"])
    assert cost(SMALL) == cost(SMALL, SMALL.resolution)


@pytest.mark.parametrize("resolution", [0, -1, 224.0, True, "224"])
def test_the_resolution_is_validated(resolution: Any) -> None:
    with pytest.raises(UserError, match="resolution is"):
        cost(SMALL, resolution)


def test_info_as_data() -> None:
    spec = get_spec("efficientnet_b0")
    data = json.loads(json.dumps(info_dict(spec, 128)))
    assert data["params"] == 5288548
    assert (data["blocks"], data["skippable"], data["resolution"]) == (16, 9, 128)
    assert data["macs"] == cost(spec, 128).macs
    assert data["saved_bytes"] > data["activation_bytes"] > 0
    assert Spec.from_dict(data["spec"]) == spec


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_l2"])
def test_the_table_fits_a_hundred_columns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = get_spec(name)
    show(network_table(spec))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "…" not in text
    for s, _, _, _ in spec.blocks():
        assert f"stage{s + 1} " in text
    assert f"{cost(spec).params:,}" in text
    assert sum(line.strip().startswith("stages.") for line in lines) == spec.num_blocks
    assert sum(" yes " in line for line in lines) == spec.skippable


def test_the_tables_print_anybodys_names(capsys: pytest.CaptureFixture[str]) -> None:
    spec = SMALL.replace(name="[/red] mine", shortcut="resnet_d", gate="scse", pooling="concat")
    show(network_table(spec), skip_table([spec]))
    out = capsys.readouterr().out
    assert out.count("[/red] mine") == 2
    assert "MBConv3.5 scSE" in out
    assert sum(" D " in line for line in out.splitlines()) == 3  # two of them in blocks


def test_skip_table_of_the_thread(capsys: pytest.CaptureFixture[str]) -> None:
    nets = [get_spec(f"efficientnet_b{i}") for i in range(8)]
    assert [row["ratio"] for row in skip_rows(nets)] == [
        0.5625, 0.6957, 0.6957, 0.7308, 0.7813, 0.8205, 0.8444, 0.8727,
    ]  # fmt: skip
    show(skip_table(nets))
    lines = capsys.readouterr().out.splitlines()
    assert "efficientnet_b4     32        25       7 0.7813" in " ".join(lines)
