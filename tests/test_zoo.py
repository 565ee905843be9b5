"""The named networks against their published figures."""

import pytest

from mbconv.arch.cost import cost
from mbconv.arch.spec import Spec
from mbconv.arch.zoo import get_spec, list_specs
from mbconv.errors import UserError

# Parameters, million multiply-adds (convolutions and linear layers) at that resolution, resolution
# and dropout: counted on the reference implementations' modules.
FIGURES = {
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
}

# The forum thread's table: blocks, and those that can carry an identity shortcut.
SKIPS = {
    "efficientnet_b0": (16, 9), "efficientnet_b1": (23, 16), "efficientnet_b2": (23, 16),
    "efficientnet_b3": (26, 19), "efficientnet_b4": (32, 25), "efficientnet_b5": (39, 32),
    "efficientnet_b6": (45, 38), "efficientnet_b7": (55, 48),
}  # fmt: skip


def test_the_list_is_complete_and_in_order() -> None:
    assert list_specs() == tuple(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_published_figures(name: str) -> None:
    params, mmacs, resolution, dropout = FIGURES[name]
    spec = get_spec(name)
    found = cost(spec)
    digits = 1 if "." in mmacs else 0
    assert found.params == params
    assert f"{found.macs / 1e6:.{digits}f}" == mmacs
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
def test_numerics_of_the_tensorflow_weights(name: str) -> None:
    spec = get_spec(name)
    assert (spec.bn_eps, spec.bn_momentum) == (1e-3, 0.01)
    assert spec.padding == "same"
    assert spec.drop_path == 0.2
    lite = "lite" in name
    assert {b.activation for *_, b in spec.blocks()} == {"relu6" if lite else "silu"}
    assert spec.activation == ("relu6" if lite else "silu")
    assert {b.gate for *_, b in spec.blocks()} == {None if lite else "se"}
    assert spec.scale_ends is not lite


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


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("efficientnet-b0", "efficientnet_b0"), ("efficientnet_lite9", "efficientnet_lite"),
     ("b3", "efficientnet_b3"), ("resnet50", "efficientnet_b0"), ("", "efficientnet_b0")],
)  # fmt: skip
def test_an_unknown_name_gets_the_nearest_ones(name: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        get_spec(name)
    assert repr(name) in str(caught.value)
    assert nearest in str(caught.value)
