"""The named networks against their published figures."""

from dataclasses import replace

import pytest

from mbconv.arch.block import Block
from mbconv.arch.cost import cost
from mbconv.arch.scale import scale
from mbconv.arch.spec import Spec
from mbconv.arch.zoo import get_spec, list_specs
from mbconv.errors import UserError

# Parameters, million multiply-adds (convolutions and linear layers) at that resolution, resolution
# and dropout: counted on the reference implementations' modules.
FIGURES: dict[str, tuple[int, str | None, int, float]] = {
    "efficientnet_b0": (5288548, "385.8", 224, 0.2),
    "efficientnet_b1": (7794184, "686.8", 240, 0.2),
    "efficientnet_b2": (9109994, "993.6", 260, 0.3),
    "efficientnet_b3": (12233232, "1827", 300, 0.3),
    "efficientnet_b4": (19341616, "4394", 380, 0.4),
    "efficientnet_b5": (30389784, "10266", 456, 0.4),
    "efficientnet_b6": (43040704, "19068", 528, 0.5),
    "efficientnet_b7": (66347960, "37746", 600, 0.5),
    "efficientnet_b8": (87413142, "62597", 672, 0.5),
    "efficientnet_l2": (480309308, "475704", 800, 0.5),
    "efficientnet_lite0": (4652008, "385.2", 224, 0.2),
    "efficientnet_lite1": (5416680, "600.2", 240, 0.2),
    "efficientnet_lite2": (6092072, "859.7", 260, 0.3),
    "efficientnet_lite3": (8197096, "1383", 280, 0.3),
    "efficientnet_lite4": (13006568, "2553", 300, 0.3),
    "efficientnetv2_b0": (7139704, "718.1", 224, 0.2),
    "efficientnetv2_b1": (8141052, "1197", 240, 0.2),
    "efficientnetv2_b2": (10096086, "1698", 260, 0.3),
    "efficientnetv2_b3": (14358406, "3011", 300, 0.3),
    "efficientnetv2_s": (21458488, "8366", 384, 0.2),
    "efficientnetv2_m": (54139356, "24582", 480, 0.3),
    "efficientnetv2_l": (118515272, "56080", 480, 0.4),
    "efficientnetv2_xl": (208119808, "93353", 512, 0.4),
    "mobilenetv2_035": (1677128, "59.3", 224, 0.2),
    "mobilenetv2_050": (1968680, "97.1", 224, 0.2),
    "mobilenetv2_075": (2636424, "209.1", 224, 0.2),
    "mobilenetv2_100": (3504872, "300.8", 224, 0.2),
    "mobilenetv2_130": (5386792, "509.4", 224, 0.2),
    "mobilenetv2_140": (6108776, "582.2", 224, 0.2),
    "mobilenetv3_large_100": (5483032, "216.6", 224, 0.2),
    "mobilenetv3_large_075": (3993528, "154.6", 224, 0.2),
    "mobilenetv3_large_minimal_100": (3924288, "209.1", 224, 0.2),
    "mobilenetv3_small_100": (2542856, "56.5", 224, 0.2),
    "mobilenetv3_small_075": (2041872, "43.4", 224, 0.2),
    "mobilenetv3_small_minimal_100": (2044736, "52.3", 224, 0.2),
    "mnasnet_a1": (3887038, "311.6", 224, 0.2),
    "mnasnet_a1_035": (1747018, "61.7", 224, 0.2),
    "mnasnet_a1_050": (2082006, "103.2", 224, 0.2),
    "mnasnet_a1_075": (2912278, "223.4", 224, 0.2),
    "mnasnet_a1_140": (6105992, "586.3", 224, 0.2),
    "mnasnet_b1": (4383312, "314.4", 224, 0.2),
    "mnasnet_b1_050": (2218512, "104.5", 224, 0.2),
    "mnasnet_b1_075": (3170208, "215.5", 224, 0.2),
    "mnasnet_b1_130": (6282256, "526.4", 224, 0.2),
    "mnasnet_small": (2030264, "68.3", 224, 0.2),
    "mobilenetv4_conv_small": (3774024, None, 224, 0.2),
    "mobilenetv4_conv_medium": (9715512, None, 224, 0.2),
    "mobilenetv4_conv_large": (32590864, None, 256, 0.2),
    "efficientnet_es": (5438392, None, 224, 0.2),
    "efficientnet_em": (6899496, None, 240, 0.2),
    "efficientnet_el": (10589712, None, 300, 0.3),
    "tinynet_a": (6187972, "336.9", 192, 0.2),
    "tinynet_b": (3730562, "200.7", 188, 0.2),
    "tinynet_c": (2457234, "99.5", 184, 0.2),
    "tinynet_d": (2338446, "51.6", 152, 0.2),
    "tinynet_e": (2042972, "24.4", 106, 0.2),
}
OWN = ["efficientnet_b0_hw", "fused_shallow"]
RELU6_D = [f"efficientnet_b{i}_relu6_d" for i in range(8)]

# The forum thread's table: blocks, and those that can carry an identity shortcut.
SKIPS = {
    "efficientnet_b0": (16, 9), "efficientnet_b1": (23, 16), "efficientnet_b2": (23, 16),
    "efficientnet_b3": (26, 19), "efficientnet_b4": (32, 25), "efficientnet_b5": (39, 32),
    "efficientnet_b6": (45, 38), "efficientnet_b7": (55, 48),
}  # fmt: skip


def test_the_list_is_complete() -> None:
    assert sorted(list_specs()) == sorted([*FIGURES, *RELU6_D, *OWN])


@pytest.mark.parametrize("name", FIGURES)
def test_published_figures(name: str) -> None:
    params, mmacs, resolution, dropout = FIGURES[name]
    spec = get_spec(name)
    found = cost(spec)
    assert found.params == params
    if mmacs is not None:
        assert f"{found.macs / 1e6:.{1 if '.' in mmacs else 0}f}" == mmacs
    assert (spec.name, spec.resolution, spec.dropout) == (name, resolution, dropout)
    assert found.resolution == resolution
    assert spec.source


def test_l2_at_the_resolution_that_it_was_trained_at() -> None:
    assert round(cost(get_spec("efficientnet_l2"), 475).macs / 1e6) == 170893


@pytest.mark.parametrize("name", SKIPS)
def test_skip_table(name: str) -> None:
    spec = get_spec(name)
    assert (spec.num_blocks, spec.skippable) == SKIPS[name]


@pytest.mark.parametrize("name", FIGURES)
def test_numerics_of_the_published_weights(name: str) -> None:
    """TensorFlow's for all but MobileNetV4, whose weights come from PyTorch."""
    spec = get_spec(name)
    tensorflow = "mobilenetv4" not in name
    assert spec.padding == ("same" if tensorflow else "symmetric")
    assert spec.bn_eps == (1e-3 if tensorflow else 1e-5)
    late = name.startswith(("efficientnetv2", "mobilenetv4"))
    assert spec.bn_momentum == (0.1 if late else 0.01)
    assert spec.drop_path == (0.2 if name.startswith("efficientnet") else 0)


def options(name: str) -> set[tuple[object, ...]]:
    return {
        (b.activation, b.gate, b.gate_base, b.gate_sigmoid) for *_, b in get_spec(name).blocks()
    }


def test_activations_and_gates() -> None:
    se, none = ("se", "input", "sigmoid"), (None, "input", "sigmoid")
    hard = ("se", "expanded", "hard_sigmoid")
    assert options("efficientnet_b3") == {("silu", *se)}
    assert options("efficientnet_lite3") == {("relu6", *none)}
    assert options("efficientnet_b3_relu6_d") == {("relu6", *none)}
    assert options("efficientnetv2_s") == {("silu", *none), ("silu", *se)}
    assert options("efficientnet_em") == options("mnasnet_b1") == {("relu", *none)}
    assert options("mnasnet_a1") == {("relu", *none), ("relu", *se)}
    assert options("mobilenetv2_100") == {("relu6", *none)}
    assert options("mobilenetv3_large_minimal_100") == {("relu", *none)}
    v3 = {("relu", *none), ("relu", *hard), ("hard_swish", *none), ("hard_swish", *hard)}
    assert options("mobilenetv3_large_100") == v3
    assert get_spec("mobilenetv3_small_100").activation == "hard_swish"
    assert {b.gate_activation for *_, b in get_spec("mobilenetv3_small_075").blocks()} == {
        None, "relu"
    }  # fmt: skip


def test_the_forum_authors_variant() -> None:
    spec = get_spec("efficientnet_b4_relu6_d")
    assert spec.zero_gamma
    assert {b.shortcut for *_, b in spec.blocks()} == {"resnet_d"}
    assert [s.channels for s in spec.stages] == [
        s.channels for s in get_spec("efficientnet_b4").stages
    ]


def test_b0_stage_by_stage() -> None:
    """Table 1 of the paper; strides in the first block of a stage only (a bug once swapped two)."""
    rows = [
        (s.blocks[0].expand, s.blocks[0].kernel, s.stride, s.channels, len(s.blocks))
        for s in get_spec("efficientnet_b0").stages
    ]
    assert rows == [
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    ]


def test_lite_keeps_its_ends() -> None:
    spec = get_spec("efficientnet_lite4")
    assert (spec.stem_channels, spec.head_channels) == (32, 1280)
    assert [len(s.blocks) for s in spec.stages] == [1, 4, 4, 6, 6, 8, 1]


def test_names_survive_json_and_hashes_differ() -> None:
    specs = [get_spec(name) for name in list_specs()]
    assert [Spec.from_json(spec.to_json()) for spec in specs] == specs
    assert len({spec.hash for spec in specs}) == len(specs)


def test_the_hardware_shaped_b0() -> None:
    """The thread's experiment: a fifth more parameters in four fifths of the memory."""
    b0, shaped = cost(get_spec("efficientnet_b0")), cost(get_spec("efficientnet_b0_hw"))
    assert shaped.params / b0.params == pytest.approx(1.2, abs=0.03)
    assert shaped.saved_bytes / b0.saved_bytes == pytest.approx(0.8, abs=0.03)
    spec = get_spec("efficientnet_b0_hw")
    assert {b.expand for *_, b in spec.blocks()} <= {1, 4, 8}
    assert all(s.channels % 16 == 0 for s in spec.stages)


def test_the_shallow_network_for_few_epochs() -> None:
    """Fused-MBConv blocks alone, and maps of a sixteenth of the side at the end."""
    spec = get_spec("fused_shallow")
    assert {block.kind for *_, block in spec.blocks()} == {"fused"}
    assert (spec.num_blocks, spec.taps()[-1].reduction) == (6, 16)
    ten = cost(spec.replace(num_classes=10))
    assert (ten.resolution, round(ten.params / 1e6, 2), round(ten.macs / 1e6)) == (128, 5.38, 790)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("efficientnet-b0", "efficientnet_b0"), ("efficientnet_lite9", "efficientnet_lite"),
     ("b3", "efficientnet_b3"), ("resnet50", "mobilenetv2_050"), ("", "efficientnet_b0")],
)  # fmt: skip
def test_an_unknown_name_gets_the_nearest_ones(name: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        get_spec(name)
    assert repr(name) in str(caught.value)
    assert nearest in str(caught.value)


def test_where_sources_disagree_a_field_gives_the_other_count() -> None:
    """V2-B3 with V1's rounding of widths; MobileNetV3 with expanded widths scaled as such."""
    v2 = get_spec("efficientnetv2_b0").replace(width_tenth_rule=True)
    assert cost(scale(v2, width=1.2, depth=1.4)).params == 14_377_062
    v3 = get_spec("mobilenetv3_large_100")
    inputs = iter([channels for *_, channels, _ in v3.blocks()])

    def absolute(block: Block) -> Block:
        expanded = block.expanded(next(inputs))
        return block if block.unexpanded else replace(block, expand_from=expanded, expand=1)

    same = v3.map_blocks(absolute)
    assert cost(same) == cost(v3)
    assert cost(scale(same, width=0.75)).params == 3_928_296
    assert cost(get_spec("mobilenetv3_large_075")).params == 3_993_528


def test_mobilenet_v3s_ends_on_an_efficientnet() -> None:
    """16 filters in the stem; pooling before the widest layer, in place of the last stage."""
    b0 = get_spec("efficientnet_b0")
    redone = b0.replace(stem_channels=16, stages=b0.stages[:-1], head_channels=960,
                        head_hidden=1280)  # fmt: skip
    ops = {op.name: op for op in cost(redone).operators}
    assert (ops["stem"].out_channels, ops["head.conv"].height) == (16, 7)
    assert ops["head.hidden"].params == 960 * 1280 + 1280
    assert cost(redone).macs < 0.9 * cost(b0).macs
