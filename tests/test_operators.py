"""Where a pass goes: operators, blocks, ceilings, and the sentence on the sigmoids."""

import json

import pytest
import torch
from click.testing import CliRunner

from mbconv.arch.cost import cost
from mbconv.cli import main
from mbconv.measure.ceilings import Ceilings, ceilings
from mbconv.measure.operators import profile, records
from mbconv.measure.subject import Subject
from mbconv.measure.task import Task, Way
from mbconv.nn.model import build
from mbconv.record import Record
from mbconv.report.operators import operator_lines, sigmoid_line
from small import SMALL


def task(mode: str = "inference", activation: str = "silu") -> Task:
    network = build(SMALL.replace(activation=activation))
    return Task(Subject("small", "mbconv", network, 32), Way(), mode, 2, 32)  # type: ignore[arg-type]


def test_operators_are_those_of_the_network() -> None:
    found = profile(task(), rounds=2)
    assert sum(op.flops for op in found.operators) == 2 * 2 * cost(SMALL).macs  # 2 pictures
    kinds = [op.kind for op in found.operators]
    assert kinds.count("depthwise convolution") == 4
    assert "3x3 convolution" in kinds
    assert kinds.count("sigmoid") == 1
    blocks = list(dict.fromkeys(op.block for op in found.operators))
    assert blocks == ["stem", "stages.0.0", "stages.1.0", "stages.2.0", "stages.2.1", "head"]
    gate = [op for op in found.operators if op.kind == "sigmoid"]
    assert gate[0].path.startswith("stages.1.0.gate")
    views = [op for op in found.operators if op.kind in ("view", "t")]
    assert views
    assert all(op.bytes == 0 for op in views)
    silu = next(op for op in found.operators if op.kind == "silu")
    assert silu.bytes == pytest.approx(4 * 2 * 8 * 16 * 16 * 3, rel=0.4)  # stem: in (and) out


def test_no_hook_is_left() -> None:
    from torch.nn.modules import module

    before = len(module._global_forward_hooks)
    profile(task(), rounds=1)
    assert len(module._global_forward_hooks) == before


def test_a_training_step() -> None:
    found = profile(task("training"), rounds=2)
    assert any(op.block == "backward" for op in found.operators)
    assert any("backward" in op.kind for op in found.operators)
    assert found.parts > 0


def test_ceilings_and_floors() -> None:
    most = ceilings()
    assert 1e8 < most.bandwidth < 1e13
    assert 1e9 < most.arithmetic < 1e15
    assert Ceilings(10, 100).floor(20, 100) == 2
    assert Ceilings(10, 100).floor(20, 400) == 4


def test_lines_are_made_from_records_alone() -> None:
    made = task()
    found = [
        Record.from_dict(json.loads(json.dumps(r.to_dict())))
        for r in records(made, profile(made, rounds=1))
    ]
    text = "\n".join(operator_lines(found))
    assert "small, pass of 2 at 32 px" in text
    assert "depthwise convolution" in text
    assert "stages.2.1" in text
    assert "SiLU and sigmoids cost" in text
    assert "the operators add up to" in text
    whole = next(r for r in found if r.name == "pass").value
    kinds = [r for r in found if r.name == "operator_kind"]
    blocks = [r for r in found if r.name == "block"]
    assert sum(r.value for r in kinds) == pytest.approx(sum(r.value for r in blocks))
    curves = sum(r.value for r in kinds if r.detail["label"] in ("silu", "sigmoid"))
    assert f"cost {curves:.1f} of {whole:.1f} ms" in sigmoid_line(found)


def test_the_command(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("ops") / "small.json"
    path.write_text(SMALL.replace(gate=None, activation="relu").to_json(), encoding="utf-8")
    out = path.with_suffix(".jsonl")
    args = ["bench", str(path), "--ops", "--batch", "2", "--out", str(out)]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.output
    assert "this network has none" in done.output
    assert out.is_file()
    done = CliRunner().invoke(main, ["bench", str(path), "--ops-training", "--train-batch", "2"])
    assert "training step of 2" in done.output
    done = CliRunner().invoke(
        main, ["bench", "timm:vit_tiny_patch16_224", "--ops", "--resolution", "33"]
    )
    assert done.exit_code == 2
    assert "fails at 33 px" in done.output


@pytest.mark.slow
def test_the_parts_add_up_to_the_whole() -> None:
    """Needs a quiet machine."""
    torch.manual_seed(0)
    from mbconv.measure.subject import open_subject

    made = Task(open_subject("efficientnet_b0"), Way(), "inference", 16, 224)
    found = profile(made)
    assert found.parts / found.whole == pytest.approx(1, abs=0.1)
