"""Grown networks compute what their sources do, and all that is new in them learns."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from torch import nn

import mbconv
from grown import calibrated, in_stage, relative
from mbconv.arch.spec import Spec, Stage
from mbconv.arch.zoo import get_spec
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.growing.plan import plan
from mbconv.growing.transfer import grow
from mbconv.weights.file import tensor_hash
from small import SMALL
from strategies import specs
from test_growing_plan import PAIRS

QUICK = [
    ("efficientnet_b0", "efficientnet_b1"),
    ("efficientnet_lite1", "efficientnet_lite2"),
    ("mobilenetv2_035", "mobilenetv2_050"),
    ("mobilenetv3_small_075", "mobilenetv3_small_100"),
]


def deeper(spec: Spec, number: int, by: int = 1) -> Spec:
    stages = list(spec.stages)
    blocks = stages[number - 1].blocks
    extra = (replace(blocks[-1], stride=1),) * by
    stages[number - 1] = Stage(blocks=blocks + extra)
    return replace(spec, stages=tuple(stages))


# Behind a ReLU in a gate, units that are silent in the source stay silent in every copy.
RELU = SMALL.replace(activation="relu", gate_activation="silu")
SAME = SMALL.replace(padding="same")
FUSED = in_stage(SMALL, 1, kind="fused")
UIB = RELU.map_blocks(lambda b: replace(b, kind="uib", kernel=0, stride=1), [3])
HIDDEN = SMALL.replace(head_hidden=6)
NORMED = HIDDEN.replace(head_hidden_norm=True)
PLAIN = in_stage(SMALL, 2, gate=None)
CASES = {
    "depth": (SMALL, deeper(SMALL, 3, 2)),
    "depth from nothing": (SMALL, deeper(SMALL, 2, 2)),
    "stage": (SMALL, in_stage(SMALL, 3, channels=40)),
    "stem": (PLAIN, in_stage(PLAIN, 1, channels=12).replace(stem_channels=12)),
    "all": (SMALL, mbconv.scale(SMALL, width=1.5, depth=2.0)),
    "head": (SMALL, SMALL.replace(head_channels=40)),
    "kernel": (SMALL, in_stage(in_stage(SMALL, 3, kernel=7), 2, kernel=5)),
    "kernel same": (SAME, in_stage(in_stage(SAME, 3, kernel=5), 2, kernel=7)),
    "stem kernel": (SAME, SAME.replace(stem_kernel=5)),
    "expand": (SMALL, in_stage(SMALL, 3, expand=3)),
    "expand from one": (RELU, in_stage(RELU, 1, expand=3)),
    "fused from one": (FUSED, in_stage(FUSED, 1, expand=2, kernel=5)),
    "squeezed": (SMALL, in_stage(SMALL, 2, gate_ratio=0.7)),
    "se": (SMALL, in_stage(SMALL, 3, gate="se")),
    "hard se": (RELU, in_stage(RELU, 3, gate="se", gate_sigmoid="hard_sigmoid")),
    "sse": (SMALL, in_stage(SMALL, 3, gate="sse")),
    "scse": (SMALL, in_stage(SMALL, 3, gate="scse")),
    "eca": (SMALL, in_stage(SMALL, 3, gate="eca")),
    "resnet_d": (SMALL, SMALL.replace(shortcut="resnet_d")),
    "identity to resnet_d": (
        SMALL, in_stage(SMALL, 1, shortcut="resnet_d", channels=12)
    ),
    "start": (UIB, in_stage(UIB, 3, start_kernel=3)),
    "depthwise": (UIB, in_stage(UIB, 3, kernel=3)),
    "avg to concat": (SMALL, SMALL.replace(pooling="concat", head_channels=24)),
    "max to concat": (SMALL.replace(pooling="max"), SMALL.replace(pooling="concat")),
    "hidden": (HIDDEN, HIDDEN.replace(head_hidden=11)),
    "hidden norm": (NORMED, NORMED.replace(head_hidden=11)),
    "classes": (SMALL, SMALL.replace(num_classes=7)),
    "bn": (SMALL, SMALL.replace(bn_eps=0.1, bn_momentum=0.01)),
}  # fmt: skip


def check_function(source: mbconv.MBConvNet, target: Spec | str, sides: tuple[int, ...]) -> None:
    for tolerance, dtype in ((1e-4, torch.float32), (1e-10, torch.float64)):
        source = source.to(dtype)
        grown = grow(source, target)
        for side in sides:
            x = torch.randn(2, source.spec.in_channels, side, side + 5, dtype=dtype)
            assert relative(source, grown, x) <= tolerance, (dtype, side)


@pytest.mark.parametrize("name", CASES)
def test_growth_keeps_the_function(name: str) -> None:
    source, target = CASES[name]
    assert plan(source, target).exact
    check_function(calibrated(source), target, (32, 47))


@pytest.mark.parametrize("pair", QUICK, ids="-".join)
def test_neighbours_of_a_family(pair: tuple[str, str]) -> None:
    check_function(calibrated(get_spec(pair[0])), pair[1], (64, 75))


# Calibrated at 128 px: at 64 the deepest end at 2 x 2 pixels, and with statistics of so few
# float32's rounding grows over 45 blocks, in the source itself to 9e-5 of its logits.
@pytest.mark.slow
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair not in QUICK], ids="-".join)
def test_other_neighbours(pair: tuple[str, str]) -> None:
    check_function(calibrated(get_spec(pair[0]), 128), pair[1], (64, 75))


@settings(max_examples=200)
@given(specs(), specs())
def test_random_pairs(source: Spec, other: Spec) -> None:
    check_function(calibrated(source, 48), plan(source, other, "nearest").target, (32, 41))


@pytest.mark.parametrize("name", CASES)
def test_all_that_is_new_learns_within_two_steps(name: str) -> None:
    source, target = CASES[name]
    torch.manual_seed(1)
    model = grow(calibrated(source), target).double().train()
    # No drop-path: a block that happens to be dropped would learn later.
    for module in model.modules():
        if hasattr(module, "rate"):
            module.rate = 0.0
    x = torch.randn(8, 3, 64, 64, dtype=torch.float64)
    labels = torch.arange(8) % target.num_classes
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    moved = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        for parameter_name, parameter in model.named_parameters():
            moved[parameter_name] |= parameter.grad != 0
        optimizer.step()
    # A linear bottleneck's shift is taken out again by the next batch norm: it never learns much.
    shifts = "project.norm.bias"
    still = {n: int((~m).sum()) for n, m in moved.items() if not (m.all() or n.endswith(shifts))}
    assert not still
    state = model.state_dict()
    for move in plan(source, target).moves:
        if move.start != "source" or move.name not in moved or len(move.shape) < 2:
            continue
        for span in move.rows[:1]:
            for new in range(span.old, span.new if span.old else 0):
                copy, original = state[move.name][new], state[move.name][new % span.old]
                assert not torch.equal(copy, original), move.name


def test_statistics_come_along() -> None:
    source = calibrated(SMALL)
    grown = grow(source, in_stage(SMALL, 3, channels=40))
    old, new = (m.stages[2][1].project.norm for m in (source, grown))
    assert torch.equal(new.running_mean, old.running_mean[torch.arange(40) % 24])
    assert torch.equal(new.running_var, old.running_var[torch.arange(40) % 24])
    assert new.num_batches_tracked == old.num_batches_tracked


def test_a_seed_decides_everything_and_the_callers_generator_stays() -> None:
    source, target = calibrated(SMALL), deeper(in_stage(SMALL, 3, expand=3), 2)
    before = torch.get_rng_state()
    hashes = [tensor_hash(grow(source, target, seed=s).state_dict()) for s in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(before, torch.get_rng_state())


def test_labels_preprocessing_and_provenance_come_along() -> None:
    source = calibrated(SMALL)
    source.labels, source.provenance = ("a", "b", "c", "d"), {"license": "mit"}
    digest = tensor_hash(source.state_dict())
    grown = mbconv.grow(source, SMALL.replace(num_classes=6, resolution=48))
    assert grown.labels == ("a", "b", "c", "d", "added 1", "added 2")
    assert grown.preprocessing == source.preprocessing
    assert grown.provenance is not None
    assert grown.provenance["sha256"] == digest == tensor_hash(source.state_dict())
    assert (grown.provenance["grown_from"], grown.provenance["license"]) == ("small", "mit")
    assert not grown.training
    assert mbconv.grow(source, SMALL, resolution=48).preprocessing.resolution == 48


def test_transplants_carry_equal_tensors() -> None:
    source, target = calibrated(SMALL), in_stage(SMALL, 3, channels=40)
    whole, bare = (
        grow(source, target, mode=m).state_dict() for m in ("transplant", "convolutions")
    )
    old = source.state_dict()
    assert torch.equal(whole["stages.1.0.expand.norm.weight"], old["stages.1.0.expand.norm.weight"])
    assert torch.equal(bare["stages.1.0.expand.conv.weight"], old["stages.1.0.expand.conv.weight"])
    assert bool((bare["stages.1.0.expand.norm.weight"] == 1).all())


def test_the_command(tmp_path: Path) -> None:
    source = calibrated(SMALL)
    spec = tmp_path / "wide.json"
    spec.write_text(in_stage(SMALL, 3, channels=40, kernel=5).to_json())
    mbconv.save(source, tmp_path / "in.safetensors")
    given = ["grow", str(tmp_path / "in.safetensors"), "--to", str(spec)]
    out = tmp_path / "out.safetensors"
    done = CliRunner().invoke(main, [*given, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "of them effective at the start; on noise its logits" in done.output
    x = torch.randn(2, 3, 32, 32)
    assert relative(source, mbconv.load(out), x) < 1e-4
    shown = CliRunner().invoke(main, [*given, "--plan"]).output
    assert "kernel 3->5" in shown
    assert "in 24->40" in shown
    figures = json.loads(CliRunner().invoke(main, [*given, "--json"]).output)
    assert figures["params"] == sum(p.numel() for p in mbconv.load(out).parameters())
    refused = CliRunner().invoke(main, ["grow", str(out), "--to", str(tmp_path / "in.safetensors"),
                                        "--out", str(tmp_path / "x.safetensors")])  # fmt: skip
    assert refused.exit_code == 2
    assert "is 40 in the source, 24 in the target" in refused.output
    assert not (tmp_path / "x.safetensors").exists()
    assert CliRunner().invoke(main, given).exit_code == 2


def test_a_target_that_is_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="There is no network"):
        grow(calibrated(SMALL), "efficientnet_x9")
