"""Plans of growth as data: every tensor has its place, sums add up, obstacles are named."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings

from grown import in_stage
from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec, Stage
from mbconv.arch.zoo import get_spec
from mbconv.errors import UserError
from mbconv.growing.layout import is_parameter, tensor_shapes
from mbconv.growing.nearest import nearest
from mbconv.growing.obstacles import obstacles
from mbconv.growing.plan import Move, Plan, Span, plan
from mbconv.growing.target import target_spec
from mbconv.weights.assemble import outline
from small import SMALL
from strategies import specs

CHAINS = {
    "efficientnet_b": [f"efficientnet_b{i}" for i in range(8)],
    "lite": [f"efficientnet_lite{i}" for i in range(5)],
    "v2": [f"efficientnetv2_b{i}" for i in range(4)],
    "mobilenetv2": [f"mobilenetv2_{w}" for w in ("035", "050", "075", "100", "130", "140")],
    "relu6_d": [f"efficientnet_b{i}_relu6_d" for i in range(8)],
    "v3": ["mobilenetv3_small_075", "mobilenetv3_small_100"],
    "v3_large": ["mobilenetv3_large_075", "mobilenetv3_large_100"],
    "mnasnet_a1": ["mnasnet_a1_035", "mnasnet_a1_050", "mnasnet_a1_075", "mnasnet_a1"],
}
PAIRS = [pair for names in CHAINS.values() for pair in pairwise(names)]


def moves_of(made: Plan) -> dict[str, Move]:
    return {move.name: move for move in made.moves}


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b1",
        "efficientnet_b0_relu6_d",
        "efficientnetv2_s",
        "efficientnet_es",
        "mobilenetv3_small_100",
        "mobilenetv4_conv_medium",
        "mnasnet_a1",
    ],
)
def test_layout_is_the_state_dict(name: str) -> None:
    expected = {k: tuple(v.shape) for k, v in outline(get_spec(name)).state_dict().items()}
    assert list(tensor_shapes(get_spec(name)).items()) == list(expected.items())


@settings(max_examples=50)
@given(specs())
def test_layout_of_any_network(spec: Spec) -> None:
    expected = {k: tuple(v.shape) for k, v in outline(spec).state_dict().items()}
    assert tensor_shapes(spec) == expected
    names = {name for name, _ in outline(spec).named_parameters()}
    assert {name for name in expected if is_parameter(name)} == names


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_neighbour_has_an_exact_plan(pair: tuple[str, str]) -> None:
    source, target = map(get_spec, pair)
    made = plan(source, target)
    figures = made.to_dict()
    assert {move.name: move.shape for move in made.moves} == tensor_shapes(target)
    assert figures["params"] == cost(target).params
    assert figures["effective"] == figures["source_params"] == cost(source).params
    taken = {move.source for move in made.moves}
    assert taken - {None} == set(tensor_shapes(source))
    assert json.loads(json.dumps(figures))["target_spec"] == target.to_dict()


def test_the_figures_of_b0_to_b1() -> None:
    figures = plan(get_spec("efficientnet_b0"), get_spec("efficientnet_b1")).to_dict()
    sums = [figures[name] for name in ("kept", "widened", "new")]
    # Nothing is wider: B0's own, five repeated blocks but for their last norms, two fresh blocks.
    assert sums == [5_288_548, 940_528, 1_565_108]


def test_a_width_grows_by_copies_whose_readers_share() -> None:
    wide = in_stage(SMALL, 3, channels=40)
    made = moves_of(plan(SMALL, wide))
    project = made["stages.2.1.project.conv.weight"]
    assert (project.source, project.start) == (project.name, "source")
    assert (project.rows, project.columns) == ((Span(24, 40),), (Span(48, 80),))
    assert project.counts() == (24 * (48 - 32), 40 * 80 - 24 * 16, 0)
    assert made["head.conv.conv.weight"].columns == (Span(24, 40),)
    assert made["head.conv.conv.weight"].counts() == (16 * (24 - 16), 16 * 40 - 16 * 8, 0)
    assert made["stages.2.1.depthwise.conv.weight"].columns == (Span(1, 1),)
    assert made["stages.1.0.project.conv.weight"].counts() == (16 * 16, 0, 0)


def test_a_larger_kernel_adds_zeros() -> None:
    larger = in_stage(SMALL, 3, kernel=5)
    move = moves_of(plan(SMALL, larger))["stages.2.0.depthwise.conv.weight"]
    assert (move.source_shape, move.shape) == ((32, 1, 3, 3), (32, 1, 5, 5))
    assert move.counts() == (32 * 9, 0, 32 * 16)


def test_new_blocks_come_from_the_stages_last_and_are_silent() -> None:
    stages = list(SMALL.stages)
    stages[2] = Stage(blocks=(*stages[2].blocks, stages[2].blocks[1]))
    stages[1] = Stage(blocks=(*stages[1].blocks, replace(stages[1].blocks[0], stride=1)))
    made = moves_of(plan(SMALL, replace(SMALL, stages=tuple(stages))))
    copied = made["stages.2.2.expand.conv.weight"]
    assert (copied.source, copied.repeated) == ("stages.2.1.expand.conv.weight", True)
    assert made["stages.1.1.expand.conv.weight"].start == "fresh"  # no block there has a shortcut
    for place in ("stages.2.2", "stages.1.1"):
        for leaf in ("weight", "bias"):
            last = made[f"{place}.project.norm.{leaf}"]
            assert (last.start, last.value) == ("constant", 0.0)
    assert made["stages.2.1.project.norm.weight"].start == "source"


SHRUNK: list[tuple[str, dict[str, Any], str]] = [
    ("stem", {"stem_channels": 7, "head_channels": 20}, "stem out_channels is 8 in the source, 7"),
    ("activation", {"activation": "relu"}, "stem activation is silu in the source, relu"),
    ("padding", {"padding": "same"}, "padding is symmetric in the source, same in the target"),
    ("classes", {"num_classes": 3}, "head.classifier num_classes is 4 in the source, 3"),
    ("input", {"in_channels": 1}, "in_channels is 3 in the source, 1 in the target"),
    ("hidden", {"head_hidden": 8}, "head head_hidden is None in the source, 8"),
    ("pooling", {"pooling": "max"}, "head pooling is avg in the source, max"),
    ("stem stride", {"stem_stride": 1}, "stem stride is 2 in the source, 1"),
]
IN_BLOCKS: list[tuple[str, int, dict[str, Any], str]] = [
    ("gate", 2, {"gate": None}, "stages.1.0.gate is missing in the target"),
    ("kind", 2, {"gate": "sse"}, "stages.1.0.gate kind is se in the source, sse"),
    ("sigmoid", 2, {"gate_sigmoid": "hard_sigmoid"}, "gate sigmoid is sigmoid in the source"),
    ("squeezed", 2, {"gate_ratio": 0.1}, "stages.1.0.gate squeezed is 2 in the source, 1"),
    ("expand", 3, {"expand": 1.5}, "stages.2.0.expand out_channels is 32 in the source, 24"),
    ("shortcut", 3, {"shortcut": None}, "stages.2.1 has the shortcut identity in the source, none"),
    ("first", 1, {"channels": 16}, "stages.0.0 has the shortcut identity in the source, none"),
    ("expanding", 1, {"expand": 2}, "stages.0.0.expand is new, and its silu would change"),
    ("dilation", 3, {"dilation": 2}, "stages.2.0.depthwise dilation is 1 in the source, 2"),
]  # fmt: skip


def check_refusal(target: Spec, words: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(SMALL, target)
    assert words in str(caught.value)
    assert "Take mode nearest" in str(caught.value)
    reachable = plan(SMALL, target, "nearest").target
    assert not obstacles(SMALL, reachable)


@pytest.mark.parametrize(("changes", "words"), [row[1:] for row in SHRUNK], ids=lambda v: str(v))
def test_what_cannot_be_kept_is_named(changes: dict[str, Any], words: str) -> None:
    check_refusal(SMALL.replace(**changes), words)


@pytest.mark.parametrize(("stage", "changes", "words"), [row[1:] for row in IN_BLOCKS])
def test_what_blocks_cannot_keep_is_named(stage: int, changes: dict[str, Any], words: str) -> None:
    check_refusal(in_stage(SMALL, stage, **changes), words)


def test_stages_that_differ_are_named() -> None:
    check_refusal(replace(SMALL, stages=SMALL.stages[:2]), "the number of stages is 3 in the")
    shorter = Stage(blocks=SMALL.stages[2].blocks[:1])
    fewer = replace(SMALL, stages=(*SMALL.stages[:2], shorter))
    check_refusal(fewer, "stages.2 has 2 blocks in the source, 1 in the target")
    check_refusal(get_spec("mobilenetv3_large_100"), "number of stages")


def test_a_new_block_needs_a_shortcut() -> None:
    block = replace(SMALL.stages[2].blocks[1], shortcut=None)
    longer = Stage(blocks=(*SMALL.stages[2].blocks, block))
    target = replace(SMALL, stages=(*SMALL.stages[:2], longer))
    check_refusal(target, "stages.2.2 is new and has no identity shortcut")


def test_kernel_one_with_a_stride_stays_under_same_padding() -> None:
    """Its one pixel is the first of two at even sizes, where a larger kernel's centre is not."""
    first = replace(SMALL.stages[1].blocks[0], kind="fused", kernel=1, gate=None)
    source = replace(SMALL, stages=(SMALL.stages[0], Stage(blocks=(first,)), SMALL.stages[2]))
    larger = in_stage(source, 2, kernel=3)
    assert not obstacles(source, larger)
    same = [spec.replace(padding="same") for spec in (source, larger)]
    assert obstacles(*same) == [
        "stages.1.0.expand has kernel 1 and a stride in the source, kernel 3 in the target"
    ]


@settings(max_examples=100)
@given(specs(), specs())
def test_the_nearest_target_can_always_be_reached(source: Spec, target: Spec) -> None:
    made = plan(source, target, "nearest")
    assert not obstacles(source, made.target)
    assert {move.name: move.shape for move in made.moves} == tensor_shapes(made.target)
    figures = made.to_dict()
    assert figures["effective"] == cost(source).params
    assert figures["params"] == cost(made.target).params
    assert min(figures[name] for name in ("kept", "widened", "new")) >= 0


def test_the_nearest_is_the_maximum() -> None:
    """Of two widths of one family it is the larger; of two that cross, both maxima."""
    small, large = get_spec("mobilenetv2_050"), get_spec("mobilenetv2_100")
    assert cost(nearest(small, large)).params == cost(large).params
    assert nearest(large, small).stages == large.stages
    crossed = in_stage(SMALL, 3, channels=16, expand=8).replace(head_channels=40)
    found = nearest(SMALL, crossed)
    assert (found.stages[2].channels, found.head_channels) == (24, 40)
    assert found.stages[2].blocks[1].expanded(24) == 192


def test_transplants_move_what_fits() -> None:
    wide = in_stage(SMALL, 3, channels=40)
    made = plan(SMALL, wide, "transplant")
    shapes, others = tensor_shapes(SMALL), tensor_shapes(wide)
    assert {m.name for m in made.moves if m.start == "source"} == {
        name for name in shapes if shapes[name] == others[name]
    }
    assert set(made.left) == {
        name for name in shapes if shapes[name] != others[name] and is_parameter(name)
    }
    assert not made.exact
    bare = moves_of(plan(SMALL, wide, "convolutions"))
    assert bare["stem.conv.weight"].start == "source"
    assert {m.start for name, m in bare.items() if ".norm." in name} == {"fresh"}


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(UserError, match="it must be exact, nearest, transplant, convolutions"):
        plan(SMALL, SMALL, "exactly")  # type: ignore[arg-type]


def test_a_name_leaves_ends_and_numerics_to_the_source() -> None:
    own = get_spec("efficientnet_b0").replace(
        num_classes=10, padding="symmetric", bn_eps=1e-5, pooling="concat"
    )
    found = target_spec("efficientnet_b1", own)
    assert (found.num_classes, found.padding, found.bn_eps) == (10, "symmetric", 1e-5)
    assert (found.pooling, found.num_blocks) == ("concat", get_spec("efficientnet_b1").num_blocks)
    assert not obstacles(own, found)
    assert target_spec(get_spec("efficientnet_b1"), own).num_classes == 1000
