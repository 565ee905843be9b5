"""A network as data: validation, JSON both ways, identity."""

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbconv.arch.block import Block, Conv, eca_kernel, round_width
from mbconv.arch.spec import Spec, Stage
from mbconv.errors import UserError
from strategies import specs

block: Any = Block  # without types, for the mistakes that a type checker would find
stage: Any = Stage
network: Any = Spec

TINY = Spec(
    stages=(
        Stage(blocks=(Block(channels=16, expand=1), Block(channels=16))),
        Stage(blocks=(Block(channels=24, stride=2, kernel=5),)),
    )
)

# Another valid value for every field; the test below fails when a new field is missing here.
BLOCK_CHANGES: dict[str, Any] = {
    "channels": 17, "kind": "uib", "kernel": 7, "start_kernel": 3, "stride": 2, "dilation": 2,
    "expand": 4, "expand_from": 8, "expand_divisor": 8, "activation": "gelu", "gate": "se",
    "gate_ratio": 0.5, "gate_base": "expanded", "gate_divisor": 8, "gate_activation": "relu",
    "gate_sigmoid": "hard_sigmoid", "shortcut": "resnet_d",
}  # fmt: skip
SPEC_CHANGES: dict[str, Any] = {
    "stages": (Stage(blocks=(Block(channels=8),)),), "resolution": 225, "in_channels": 1,
    "num_classes": 10, "stem_channels": 16, "stem_kernel": 5, "stem_stride": 1,
    "head_channels": 640, "head_hidden": 32, "head_hidden_norm": True, "activation": "relu",
    "pooling": "max", "dropout": 0.3, "drop_path": 0.1,
    "padding": "same", "bn_eps": 1e-3, "bn_momentum": 0.01, "zero_gamma": True,
    "width_divisor": 16, "width_tenth_rule": False, "depth_rounding": "round",
    "scale_stem": False, "scale_head": "up", "scale_outer_depth": False,
}  # fmt: skip


@given(specs())
def test_json_restores_the_spec_exactly(spec: Spec) -> None:
    again = Spec.from_json(spec.to_json())
    assert again == spec
    assert again.hash == spec.hash
    assert again.to_json() == spec.to_json()


@given(specs(), st.text(max_size=8))
def test_names_do_not_change_the_hash(spec: Spec, text: str) -> None:
    assert spec.replace(name=text, source=text).hash == spec.hash


def test_the_hash_is_the_same_in_every_version() -> None:
    # Records and runs refer to networks by this; a change here orphans them all.
    assert TINY.hash == "56b5bf09ccf22126"


@pytest.mark.parametrize("name", sorted(SPEC_CHANGES))
def test_every_field_of_a_spec_is_in_its_hash(name: str) -> None:
    changed = dataclasses.replace(TINY, **{name: SPEC_CHANGES[name]})
    assert changed.hash != TINY.hash
    assert Spec.from_json(changed.to_json()) == changed


@pytest.mark.parametrize("name", sorted(BLOCK_CHANGES))
def test_every_field_of_a_block_is_in_the_hash(name: str) -> None:
    kind = "uib" if name == "start_kernel" else "mbconv"  # which alone has it
    first = Block(channels=16, expand=1, kind=kind)
    other = dataclasses.replace(first, **{name: BLOCK_CHANGES[name]})
    before = Spec(stages=(Stage(blocks=(first,)),))
    changed = Spec(stages=(Stage(blocks=(other,)),))
    assert changed.hash != before.hash
    assert Spec.from_json(changed.to_json()) == changed


def test_the_lists_of_changes_are_complete() -> None:
    assert set(BLOCK_CHANGES) == {f.name for f in dataclasses.fields(Block)}
    assert {*SPEC_CHANGES, "name", "source"} == {f.name for f in dataclasses.fields(Spec)}


def test_whole_numbers_and_floats_are_one_network() -> None:
    assert TINY.replace(expand=4).hash == TINY.replace(expand=4.0).hash
    assert TINY.replace(dropout=0).to_json() == TINY.replace(dropout=0.0).to_json()


def test_defaults_stay_out_of_the_json() -> None:
    data = Spec(stages=(Stage(blocks=(Block(channels=8, gate=None, kernel=3),)),)).to_dict()
    assert data == {"format": 2, "stages": [[{"channels": 8}]]}


def test_replace_sets_every_block_and_the_ends() -> None:
    spec = TINY.replace(activation="relu6", gate="eca", num_classes=7)
    assert spec.activation == "relu6"
    assert spec.num_classes == 7
    assert {(b.activation, b.gate) for *_, b in spec.blocks()} == {("relu6", "eca")}
    assert [b.channels for *_, b in spec.blocks()] == [16, 16, 24]
    assert TINY.activation == "silu"


def test_replace_in_changes_numbered_stages() -> None:
    spec = TINY.replace_in([2], kernel=7, gate="se")
    assert [(b.kernel, b.gate) for *_, b in spec.blocks()] == [(3, None), (3, None), (7, "se")]
    for numbers, fields, message in (
        ([0], {"gate": None}, "stage is 0; it must be between 1 and 2"),
        ([3], {"gate": None}, "stage is 3"),
        ([1], {"stride": 2}, "no field 'stride'"),
        ([1], {"dropout": 0.1}, "no field 'dropout'"),
    ):
        with pytest.raises(UserError) as caught:
            TINY.replace_in(numbers, **fields)
        assert message in str(caught.value)


def test_taps_name_every_map_and_the_pyramid_the_last_of_each_size() -> None:
    found = [(tap.name, tap.channels, tap.reduction) for tap in TINY.taps()]
    assert found == [("stem", 32, 2), ("stage1", 16, 2), ("stage2", 24, 4)]
    assert [tap.name for tap in TINY.pyramid()] == ["stage1", "stage2"]


def test_the_first_format_had_one_field_for_all_ends() -> None:
    data = TINY.to_dict() | {"format": 1, "scale_ends": False}
    spec = Spec.from_dict(data)
    assert (spec.scale_stem, spec.scale_head, spec.scale_outer_depth) == (False, "never", False)
    assert Spec.from_dict(TINY.to_dict() | {"format": 1, "scale_ends": True}) == TINY
    with pytest.raises(UserError, match="no field 'scale_ends'"):
        Spec.from_dict(data | {"format": 2})


def test_replace_takes_stages_and_block_fields_together() -> None:
    spec = TINY.replace(stages=TINY.stages[:1], gate="se")
    assert [b.gate for *_, b in spec.blocks()] == ["se", "se"]


def test_map_blocks_changes_some() -> None:
    spec = TINY.map_blocks(lambda b: dataclasses.replace(b, kernel=7) if b.stride == 2 else b)
    assert [b.kernel for *_, b in spec.blocks()] == [3, 3, 7]


def test_blocks_come_with_their_place_and_input_width() -> None:
    assert [item[:3] for item in TINY.blocks()] == [(0, 0, 32), (0, 1, 16), (1, 0, 16)]
    assert TINY.num_blocks == 3
    assert TINY.skippable == 1
    assert TINY.replace(shortcut="resnet_d").skippable == 1  # what shapes allow


def test_drop_path_grows_linearly_from_zero() -> None:
    assert TINY.replace(drop_path=0.3).drop_path_rates() == pytest.approx((0, 0.1, 0.2))


def test_shortcuts() -> None:
    identity = Block(channels=16)
    assert identity.has_skip(16)
    assert not identity.has_skip(8)
    assert not dataclasses.replace(identity, stride=2).has_skip(16)
    assert not dataclasses.replace(identity, shortcut=None).has_skip(16)
    assert dataclasses.replace(identity, shortcut="resnet_d", stride=2).has_skip(8)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({}, ["expand 8->48 1", "depthwise 48->48 3/2", "project 48->16 1"]),
        ({"expand": 1}, ["depthwise 8->8 3/2", "project 8->16 1"]),
        ({"kind": "fused"}, ["expand 8->48 3/2", "project 48->16 1"]),
        ({"kind": "fused", "expand": 1}, ["expand 8->16 3/2"]),
        ({"kind": "fused", "expand": 1, "gate": "se"}, ["expand 8->16 3/2", "se 16 2"]),
        ({"kind": "uib", "expand": 1},
         ["expand 8->8 1", "depthwise 8->8 3/2", "project 8->16 1"]),
        ({"kind": "uib", "start_kernel": 5, "gate": "se"},
         ["start 8->8 5", "expand 8->48 1", "depthwise 48->48 3/2", "se 48 2",
          "project 48->16 1"]),
        ({"kind": "uib", "start_kernel": 5, "kernel": 0},
         ["start 8->8 5/2", "expand 8->48 1", "project 48->16 1"]),
        ({"expand_from": 4}, ["expand 8->24 1", "depthwise 24->24 3/2", "project 24->16 1"]),
        ({"expand": 2.3, "expand_divisor": 8},
         ["expand 8->24 1", "depthwise 24->24 3/2", "project 24->16 1"]),
    ],
)  # fmt: skip
def test_parts(fields: dict[str, Any], parts: list[str]) -> None:
    found = []
    for part in Block(channels=16, stride=2, **fields).parts(8):
        if isinstance(part, Conv):
            stride = f"/{part.stride}" if part.stride > 1 else ""
            assert part.groups == (part.in_channels if part.name in ("start", "depthwise") else 1)
            assert (part.activation is None) == (part.name in ("start", "project"))
            found.append(f"{part.name} {part.in_channels}->{part.out_channels} "
                         f"{part.kernel}{stride}")  # fmt: skip
        else:
            found.append(f"{part.kind} {part.channels} {part.squeezed}")
    assert found == parts


@pytest.mark.parametrize(
    ("fields", "squeezed"),
    [
        ({}, 6),  # EfficientNet: a quarter of the input
        ({"gate_base": "expanded"}, 36),
        ({"gate_base": "expanded", "gate_divisor": 8}, 40),  # MobileNetV3: 36 rounds to 40
        ({"gate_ratio": 0.01}, 1),
    ],
)
def test_squeezed_width(fields: dict[str, Any], squeezed: int) -> None:
    assert Block(channels=24, **fields).squeezed(24) == squeezed


@pytest.mark.parametrize(
    ("width", "divisor", "tenth_rule", "expected"),
    [
        (35.2, 8, True, 32),  # EfficientNet-B2's stem
        (26.4, 8, True, 24),  # 24 >= 0.9 * 26.4
        (11, 8, True, 16),  # 8 would lose more than a tenth
        (11, 8, False, 8),
        (3, 8, True, 8),
        (12, 8, True, 16),  # halves round up
        (100.4, 1, True, 100),
    ],
)
def test_round_width(width: float, divisor: int, tenth_rule: bool, expected: int) -> None:
    assert round_width(width, divisor, tenth_rule) == expected


@given(st.floats(1, 4000), st.sampled_from((1, 4, 8, 16, 32)), st.booleans())
def test_rounded_widths_are_multiples_nearby(width: float, divisor: int, tenth: bool) -> None:
    rounded = round_width(width, divisor, tenth)
    assert rounded % divisor == 0
    assert rounded >= divisor
    assert abs(rounded - width) <= (divisor if tenth or width < divisor else divisor / 2)
    assert not tenth or rounded >= 0.9 * width


def test_eca_kernels_of_the_paper() -> None:
    assert [eca_kernel(c) for c in (1, 16, 64, 256, 512, 2048)] == [1, 3, 3, 5, 5, 7]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: block(channels=0), "channels is 0"),
        (lambda: block(channels=8.0), "channels is 8.0"),
        (lambda: block(channels=True), "channels is True"),
        (lambda: block(channels=10**12), "to 2**31 - 1"),
        (lambda: block(channels=8, kernel=4), "3, 5 or 7"),
        (lambda: block(channels=8, kernel=0), "3, 5 or 7 in a mbconv block"),
        (lambda: block(channels=8, kernel=0, kind="fused"), "1, 3, 5 or 7 in a fused block"),
        (lambda: block(channels=8, kernel=1, kind="uib"), "0, 3, 5 or 7 in a uib block"),
        (lambda: block(channels=8, kernel=-3), "from 0 to"),
        (lambda: block(channels=8, start_kernel=3), "and 0 in others"),
        (lambda: block(channels=8, kernel=0, kind="uib", stride=2), "without depthwise kernels"),
        (lambda: block(channels=8, dilation=65), "at most 64"),
        (lambda: block(channels=8, expand_from=0), "or None"),
        (lambda: block(channels=8, kind="ghost"), "one of mbconv, fused, uib"),
        (lambda: block(channels=8, kernel=3.0), "kernel is 3.0"),
        (lambda: block(channels=8, stride=3), "1 or 2"),
        (lambda: block(channels=8, expand="6"), "expand is '6'"),
        (lambda: block(channels=8, expand=math.nan), "expand is nan"),
        (lambda: block(channels=8, expand=0.5), "between 1 and 32"),
        (lambda: block(channels=8, gate="cbam"), "one of se, sse, scse, eca, None"),
        (lambda: block(channels=8, gate=["se"]), "one of se, sse"),
        (lambda: block(channels=8, activation="swish"), "relu, relu6, silu"),
        (lambda: block(channels=8, activation=None), "relu, relu6, silu"),
        (lambda: stage(blocks=()), "at least one block"),
        (lambda: stage(blocks=({"channels": 8},)), "Block objects"),
        (lambda: stage(blocks=(block(channels=8), block(channels=8, stride=2))), "stride is 2"),
        (lambda: network(stages=()), "at least one stage"),
        (lambda: network(stages=TINY.stages[0]), "Stage objects"),
        (lambda: TINY.replace(resolution=-1), "resolution is -1"),
        (lambda: TINY.replace(dropout=1), "below 1"),
        (lambda: TINY.replace(drop_path=-0.1), "at least 0"),
        (lambda: TINY.replace(bn_eps=0), "positive"),
        (lambda: TINY.replace(bn_momentum=2), "in (0, 1]"),
        (lambda: TINY.replace(zero_gamma="no"), "true or false"),
        (lambda: TINY.replace(name=7), "a text"),
        (lambda: TINY.replace(padding="SAME"), "same, symmetric"),
        (lambda: TINY.replace(actvation="relu"), "did you mean activation"),
        (lambda: TINY.replace(channels=8), "no field 'channels'"),
    ],
)
def test_mistakes_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ("[]", "a JSON object"),
        ('{"stages": 3}', "a JSON object"),
        ('{"stages": []}', "at least one stage"),
        ('{"stages": [3]}', "stage 1 must be a list"),
        ('{"stages": [[]]}', "at least one block"),
        ('{"stages": [[{"kernel": 3}]]}', "lacks `channels`"),
        ('{"stages": [[{"channels": 8, "kernal": 3}]]}', "did you mean kernel"),
        ('{"stages": [[{"channels": 8, "expand": NaN}]]}', "expand is nan"),
        ('{"stages": [[{"channels": 8, "expand": 1%s}]]}' % ("0" * 400), "expand is"),
        ('{"stages": [[{"channels": "8"}]]}', "channels is '8'"),
        ('{"stages": [[{"channels": 8}]], "stem_widht": 8}', "no field 'stem_widht'"),
        ('{"format": 3, "stages": [[{"channels": 8}]]}', "upgrade mbconv"),
        ('{"format": "x", "stages": [[{"channels": 8}]]}', "format 'x'"),
    ],
)
def test_broken_json_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Spec.from_json(text)
    assert message in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.data())
def test_any_json_in_place_of_a_field_is_a_spec_or_a_user_error(data: st.DataObject) -> None:
    plain = json.loads(TINY.to_json())
    target = data.draw(st.sampled_from((plain, plain["stages"][0][0])))
    names = SPEC_CHANGES if target is plain else BLOCK_CHANGES
    target[data.draw(st.sampled_from(sorted(names)))] = data.draw(json_values)
    try:
        spec = Spec.from_dict(plain)
    except UserError:
        return
    assert Spec.from_json(spec.to_json()) == spec


def test_networks_as_data_need_no_torch() -> None:
    code = (
        "import sys; import mbconv.arch.zoo, mbconv.arch.cost, mbconv.report.network; "
        "sys.exit(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
