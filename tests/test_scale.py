"""Compound scaling: published sizes, rounding rules, properties."""

import dataclasses
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mbconv.arch.cost import cost
from mbconv.arch.scale import scale
from mbconv.arch.spec import Block, Spec, Stage
from mbconv.arch.zoo import get_spec
from mbconv.errors import UserError
from strategies import specs, steady

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


@steady
@given(specs())
def test_coefficients_of_one_change_nothing(spec: Spec) -> None:
    assert scale(spec) == spec
    assert scale(spec, resolution=spec.resolution) == spec


@steady
@given(specs(), coefficients, coefficients)
def test_scaled_widths_follow_the_divisor(spec: Spec, width: float, depth: float) -> None:
    assume(width != 1)
    scaled = scale(spec, width=width, depth=depth)
    widths = [stage.channels for stage in scaled.stages]
    if spec.scale_ends:
        widths += [scaled.stem_channels, scaled.head_channels]
    else:
        assert scaled.stem_channels == spec.stem_channels
        assert scaled.head_channels == spec.head_channels
    assert all(w % spec.width_divisor == 0 for w in widths)
    assert [s.stride for s in scaled.stages] == [s.stride for s in spec.stages]


@steady
@given(specs(), coefficients)
def test_depth_is_rounded_by_the_specs_rule(spec: Spec, depth: float) -> None:
    assume(all(abs(len(s.blocks) * depth % 0.5) > 1e-6 for s in spec.stages))
    rule = math.ceil if spec.depth_rounding == "ceil" else round
    scaled = scale(spec, depth=depth)
    for index, (old, new) in enumerate(zip(spec.stages, scaled.stages, strict=True)):
        number = len(old.blocks)
        if spec.scale_ends or index not in (0, len(spec.stages) - 1):
            number = max(1, rule(number * depth))
        assert len(new.blocks) == number
        assert new.blocks[: len(old.blocks)] == old.blocks[:number]
        repeated = dataclasses.replace(old.blocks[-1], stride=1)
        assert all(block == repeated for block in new.blocks[len(old.blocks) :])


@steady
@given(specs(), st.lists(coefficients, min_size=2, max_size=2), coefficients)
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


@pytest.mark.parametrize("value", [0, -1, 65, math.nan, math.inf, "1.2", None, True])
@pytest.mark.parametrize("name", ["width", "depth"])
def test_coefficients_are_validated(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"scale: {name} is"):
        scale(get_spec("efficientnet_b0"), **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -8, 224.0, "224"])
def test_the_resolution_is_validated(value: object) -> None:
    with pytest.raises(UserError, match="resolution is"):
        scale(get_spec("efficientnet_b0"), resolution=value)  # type: ignore[arg-type]
