"""Compound scaling: published sizes, rounding rules, properties."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mbconv.arch.block import Block
from mbconv.arch.cost import cost
from mbconv.arch.scale import scale, small_map, with_output_stride
from mbconv.arch.spec import Spec, Stage
from mbconv.arch.zoo import get_spec
from mbconv.errors import UserError
from strategies import specs

coefficients = st.floats(0.1, 4)


# EfficientNet's formula below B0: depth 1.2^phi, width 1.1^phi, resolution 1.15^phi to a multiple
# of 8. The figures were counted on an independent implementation.
@pytest.mark.parametrize(
    ("phi", "resolution", "params", "mmacs"),
    [(-1, 192, 4548152, 253.9), (-2, 168, 3463750, 173.7), (-3, 144, 2795998, 98.3)],
)
def test_the_papers_formula_below_b0(phi: int, resolution: int, params: int, mmacs: float) -> None:
    assert round(224 * 1.15**phi / 8) * 8 == resolution
    small = scale(get_spec("efficientnet_b0"), width=1.1**phi, depth=1.2**phi,
                  resolution=resolution)  # fmt: skip
    found = cost(small)
    assert found.params == params
    assert found.macs / 1e6 == pytest.approx(mmacs, abs=0.051)


@given(specs())
def test_coefficients_of_one_change_nothing(spec: Spec) -> None:
    assert scale(spec) == spec
    assert scale(spec, resolution=spec.resolution) == spec


@given(specs(), coefficients, coefficients)
def test_scaled_widths_follow_the_divisor(spec: Spec, width: float, depth: float) -> None:
    assume(width != 1)
    scaled = scale(spec, width=width, depth=depth)
    widths = [stage.channels for stage in scaled.stages]
    if spec.scale_stem:
        widths.append(scaled.stem_channels)
    else:
        assert scaled.stem_channels == spec.stem_channels
    if spec.scale_head == "always" or (spec.scale_head == "up" and width > 1):
        widths.append(scaled.head_channels)
    else:
        assert scaled.head_channels == spec.head_channels
    assert all(w % spec.width_divisor == 0 for w in widths)
    assert [s.stride for s in scaled.stages] == [s.stride for s in spec.stages]


@given(specs(), coefficients)
def test_depth_is_rounded_by_the_specs_rule(spec: Spec, depth: float) -> None:
    assume(all(abs(len(s.blocks) * depth % 0.5) > 1e-6 for s in spec.stages))
    rule = math.ceil if spec.depth_rounding == "ceil" else round
    scaled = scale(spec, depth=depth)
    for index, (old, new) in enumerate(zip(spec.stages, scaled.stages, strict=True)):
        number = len(old.blocks)
        if spec.scale_outer_depth or index not in (0, len(spec.stages) - 1):
            number = max(1, rule(number * depth))
        assert len(new.blocks) == number
        assert new.channels == old.channels
        kept = min(number, len(old.blocks))
        assert new.blocks[: kept - 1] == old.blocks[: kept - 1]
        assert new.blocks[kept - 1] == dataclasses.replace(
            old.blocks[kept - 1], channels=old.channels
        )
        repeated = dataclasses.replace(old.blocks[-1], stride=1)
        assert all(block == repeated for block in new.blocks[len(old.blocks) :])


@given(specs(one_width=True), st.lists(coefficients, min_size=2, max_size=2), coefficients)
def test_cost_grows_with_every_coefficient(spec: Spec, pair: list[float], other: float) -> None:
    small, large = sorted(pair)
    assume(1.0 not in pair)  # which keeps widths that the divisor does not divide
    for name, fixed in (("width", "depth"), ("depth", "width")):
        a = cost(scale(spec, **{name: small, fixed: other}))  # type: ignore[arg-type]
        b = cost(scale(spec, **{name: large, fixed: other}))  # type: ignore[arg-type]
        assert a.params <= b.params
        assert a.macs <= b.macs


@pytest.mark.parametrize(
    ("tenth_rule", "divisor", "channels"), [(True, 8, 16), (False, 8, 8), (False, 4, 12)]
)
def test_widths_follow_the_specs_rule(tenth_rule: bool, divisor: int, channels: int) -> None:
    """0.7 * 16 is 11.2, and 8 would lose more than a tenth of it."""
    spec = Spec(stages=(Stage(blocks=(Block(channels=16),)),), stem_channels=16, head_channels=16,
                width_divisor=divisor, width_tenth_rule=tenth_rule)  # fmt: skip
    scaled = scale(spec, width=0.7)
    assert scaled.stages[0].channels == channels
    assert (scaled.stem_channels, scaled.head_channels) == (channels, channels)


def test_a_single_reducing_block_is_repeated_at_stride_one() -> None:
    spec = Spec(stages=(Stage(blocks=(Block(channels=16, stride=2, kernel=5),)),))
    scaled = scale(spec, depth=2.5)
    assert [(b.stride, b.kernel) for b in scaled.stages[0].blocks] == [(2, 5), (1, 5), (1, 5)]


def test_rounding_noise_adds_no_block() -> None:
    stage = Stage(blocks=(Block(channels=16),) * 25)
    assert 25 * 2.2 > 55
    assert scale(Spec(stages=(stage,)), depth=2.2).num_blocks == 55


def test_a_scaled_network_does_not_carry_the_old_name() -> None:
    spec = get_spec("efficientnet_b0")
    assert scale(spec, width=1.3).name == "efficientnet_b0_w1.3_d1"
    assert scale(spec, width=1.3).source == ""
    assert scale(spec, resolution=128).name == "efficientnet_b0"


@pytest.mark.parametrize("value", [0, -1, 65, math.nan, math.inf, "1.2", True])
@pytest.mark.parametrize("name", ["width", "depth"])
def test_coefficients_are_validated(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"scale: {name} is"):
        scale(get_spec("efficientnet_b0"), **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -8, 224.0, "224"])
def test_the_resolution_is_validated(value: object) -> None:
    with pytest.raises(UserError, match="resolution is"):
        scale(get_spec("efficientnet_b0"), resolution=value)  # type: ignore[arg-type]


B0 = get_spec("efficientnet_b0")


@pytest.mark.parametrize(
    ("phi", "resolution", "params", "mmacs"),
    [(-1, 192, 4548152, 253.9), (-2, 168, 3463750, 173.7), (-3, 144, 2795998, 98.3)],
)
def test_phi_follows_the_papers_formula(
    phi: int, resolution: int, params: int, mmacs: float
) -> None:
    small = scale(B0, phi=phi)
    assert small == scale(B0, width=1.1**phi, depth=1.2**phi, resolution=resolution).replace(
        name=small.name
    )
    assert (cost(small).params, small.resolution) == (params, resolution)
    assert cost(small).macs / 1e6 == pytest.approx(mmacs, abs=0.051)
    assert small.name == f"efficientnet_b0_phi{phi}"


@pytest.mark.parametrize("row", range(9))
def test_the_tables_whole_numbers_are_the_published_networks(row: int) -> None:
    published = get_spec(f"efficientnet_b{row}")
    own = {"name": "x", "source": "", "dropout": 0.2}
    assert scale(B0, phi=row, mode="table").replace(**own) == published.replace(**own)


def test_between_and_beyond_the_tables_rows() -> None:
    def figures(phi: float) -> tuple[int, int, int]:
        spec = scale(B0, phi=phi, mode="table")
        return spec.head_channels, spec.num_blocks, spec.resolution

    assert figures(3.5) == (1664, 29, 340)  # width 1.3, depth 1.6, halfway from 300 to 380
    assert figures(9) == (round(1280 * 2.2 * 1.1 / 8) * 8, 72, 776)  # 3.6 * 1.2 in depth
    assert scale(B0, phi=-2, mode="table") == scale(B0, phi=-2)
    assert scale(B0, phi=0) == scale(B0, phi=0, mode="table") == B0
    assert scale(B0, phi=2, resolution=96).resolution == 96


def test_the_table_scales_another_networks_resolution_alike() -> None:
    assert scale(B0.replace(resolution=112), phi=4, mode="table").resolution == 190 // 4 * 4 + 4


@given(specs(one_width=True), st.lists(st.floats(-8, 8), min_size=2, max_size=2))
def test_cost_grows_with_phi(spec: Spec, pair: list[float]) -> None:
    assume(0.0 not in pair)  # which keeps widths that the divisor does not divide
    small, large = (cost(scale(spec, phi=phi)) for phi in sorted(pair))
    assert small.params <= large.params
    assert small.macs <= large.macs


def test_down_to_a_hundred_thousand_parameters() -> None:
    phi, params = 0.0, cost(B0).params
    while params > 100_000:
        phi -= 1
        spec = scale(B0.replace(num_classes=100), phi=phi)
        params = cost(spec).params
    assert phi == -18
    assert spec.num_blocks == 7


@pytest.mark.parametrize("divisor", [16, 32, 64])
def test_widths_for_hardware(divisor: int) -> None:
    spec = scale(B0, divisor=divisor)
    widths = [spec.stem_channels, spec.head_channels, *(s.channels for s in spec.stages)]
    assert all(width % divisor == 0 for width in widths)
    assert spec.name == f"efficientnet_b0_r{divisor}"
    wider = scale(B0, width=1.3, divisor=divisor)
    assert wider == scale(B0.replace(width_divisor=divisor), width=1.3).replace(name=wider.name)


@pytest.mark.parametrize("dilate", [True, False])
@pytest.mark.parametrize("output_stride", [2, 8, 16])
@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnetv2_b0", "mobilenetv4_conv_small"])
def test_an_output_stride_keeps_weights_and_stops_the_reduction(
    name: str, output_stride: int, dilate: bool
) -> None:
    spec = get_spec(name)
    flat = with_output_stride(spec, output_stride, dilate=dilate)
    assert cost(flat).params == cost(spec).params
    assert max(tap.reduction for tap in flat.taps()) == output_stride
    # What each convolution spans, in pixels of the picture: the same as before.
    for (*_, before), (*_, after), was, now in zip(
        spec.blocks(), flat.blocks(), strides_before(spec), strides_before(flat), strict=True
    ):
        assert after.dilation == (was / now if dilate else 1)
        assert (before.kernel, before.channels) == (after.kernel, after.channels)
    assert with_output_stride(spec, 32) == spec


def test_a_last_map_below_four_is_warned_of() -> None:
    assert small_map(B0, 97) is None
    warning = small_map(B0, 96)
    assert warning is not None
    assert "At 96 px the last map is 3x3" in warning
    assert "at least 128 px" in warning
    assert "output stride of 16" in warning
    assert small_map(B0.replace(stem_stride=1), 64) is None
    assert small_map(with_output_stride(B0, 8, dilate=False), 32) is None


def strides_before(spec: Spec) -> list[int]:
    """The picture's side over that of the map which enters each block."""
    strides, product = [], spec.stem_stride
    for *_, block in spec.blocks():
        strides.append(product)
        product *= block.stride
    return strides


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phi": 1, "width": 2}, "either phi, or width and depth"),
        ({"phi": 1, "depth": 1.0}, "either phi, or width and depth"),
        ({"phi": math.nan}, "phi is nan"),
        ({"phi": 65}, "between -64 and 64"),
        ({"phi": "2"}, "phi is '2'"),
        ({"phi": 30}, "width is 17.4|depth is 237"),
        ({"phi": 1, "mode": "tabel"}, "mode is 'tabel'; it must be formula or table"),
        ({"divisor": 0}, "width_divisor is 0"),
    ],
)
def test_scaling_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scale(B0, **changes)


def test_the_output_stride_is_validated() -> None:
    with pytest.raises(UserError, match="output_stride is 12; it must be 2, 4, 8, 16 or 32"):
        with_output_stride(B0, 12)
