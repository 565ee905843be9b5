"""Compound scaling (EfficientNet, arXiv 1905.11946, section 3.3): pure functions Spec -> Spec.

The rounding rules are fields of the Spec: `width_divisor`, `width_tenth_rule`, `depth_rounding`
and `scale_ends`.
"""

import math
from dataclasses import replace

from mbconv.arch.spec import Block, Spec, Stage, round_width
from mbconv.errors import UserError

_LIMIT = 64.0  # the largest published coefficient is 5.3; beyond this a slip of the keyboard


def scale(
    spec: Spec, *, width: float = 1.0, depth: float = 1.0, resolution: int | None = None
) -> Spec:
    """A wider, deeper or larger-eyed copy of `spec`.

    `width` multiplies all channels of stem, stages and head; `depth` multiplies the number of
    blocks of each stage, which repeats its last block (at stride 1) or loses its last ones, never
    all. Where `spec.scale_ends` is False (EfficientNet-Lite) the stem, the head and the depth of
    the first and last stage stay. `resolution` is the new picture side in pixels; None keeps it.
    A coefficient of 1 changes nothing, not even channels that the divisor does not divide.

    Raises UserError for coefficients that are not in (0, 64] and for a resolution below 1.
    """
    width = _coefficient("width", width)
    depth = _coefficient("depth", depth)
    last = len(spec.stages) - 1
    stages = []
    for index, stage in enumerate(spec.stages):
        stays = not spec.scale_ends and index in (0, last)
        number = len(stage.blocks) if stays else _depth(spec, len(stage.blocks), depth)
        blocks = (replace(b, channels=_width(spec, b.channels, width)) for b in stage.blocks)
        stages.append(Stage(blocks=_repeat(tuple(blocks), number)))
    ends = width if spec.scale_ends else 1.0
    same = width == 1.0 and depth == 1.0
    return replace(
        spec,
        name=spec.name if same else f"{spec.name}_w{width:g}_d{depth:g}",
        source=spec.source if same else "",
        stages=tuple(stages),
        stem_channels=_width(spec, spec.stem_channels, ends),
        head_channels=_width(spec, spec.head_channels, ends),
        resolution=spec.resolution if resolution is None else resolution,
    )


def _coefficient(name: str, value: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= _LIMIT:
        raise UserError(
            f"scale: {name} is {value!r}; it must be a number above 0 and at most {_LIMIT:g}."
        )
    return float(value)


def _width(spec: Spec, channels: int, width: float) -> int:
    if width == 1.0:
        return channels
    return round_width(channels * width, spec.width_divisor, spec.width_tenth_rule)


def _depth(spec: Spec, blocks: int, depth: float) -> int:
    exact = round(blocks * depth, 9)  # 25 * 2.2 is 55.00000000000001; ceil must give 55
    return max(1, math.ceil(exact) if spec.depth_rounding == "ceil" else round(exact))


def _repeat(blocks: tuple[Block, ...], number: int) -> tuple[Block, ...]:
    extra = replace(blocks[-1], stride=1)
    return blocks[:number] + (extra,) * (number - len(blocks))
