"""Scaling (EfficientNet, arXiv 1905.11946, section 3.3) and reshaping: pure functions Spec -> Spec.

The rounding rules are fields of the Spec: `width_divisor`, `width_tenth_rule`, `depth_rounding`,
`scale_stem`, `scale_head` and `scale_outer_depth`.
"""

import math
from dataclasses import replace
from typing import Literal

from mbconv.arch.block import Block, round_width
from mbconv.arch.spec import Spec, Stage
from mbconv.errors import UserError

_LIMIT = 64.0  # the largest published coefficient is 5.3; beyond this a slip of the keyboard
_GROWTH = (1.1, 1.2, 1.15)  # of width, depth and resolution for each whole step of phi
_GRID = 8  # the formula's resolutions are multiples of it
_LEAST_MAP = 4  # of the last map's side
_TABLE_GRID = 4  # the published ones are multiples of it

# Width, depth and resolution of EfficientNet B0 to B8 (table 1 and the released code; B8 from
# AdvProp, arXiv 1911.09665). They are not the formula's whole steps: B1 is near its phi of 0.5.
B_TABLE = (
    (1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 300), (1.4, 1.8, 380),
    (1.6, 2.2, 456), (1.8, 2.6, 528), (2.0, 3.1, 600), (2.2, 3.6, 672),
)  # fmt: skip


def scale(
    spec: Spec,
    *,
    phi: float | None = None,
    mode: Literal["formula", "table"] = "formula",
    width: float | None = None,
    depth: float | None = None,
    resolution: int | None = None,
    divisor: int | None = None,
) -> Spec:
    """A larger or smaller copy of `spec`: wider, deeper, for larger pictures, or the reverse.

    Either by one coefficient: `phi`, any real number, 0 for `spec` itself. With `mode="formula"`
    width grows by 1.1, depth by 1.2 and resolution by 1.15 for each step (to a multiple of 8);
    `mode="table"` takes the published B0 to B8 for 0 to 8, interpolates between them, and goes on
    by the formula's growth outside. Or by hand: `width` multiplies all channels of stem, stages
    and head; `depth` multiplies the number of blocks of each stage, which repeats its last block
    (at stride 1) or loses its last ones, never all and never its output's width. `resolution` is
    the new picture side in pixels; None takes that of phi, or keeps it. `divisor` (16, 32, 64)
    rounds all widths to its multiples, for hardware that likes them; by default
    `spec.width_divisor` holds, and a width of 1 changes no channels.

    Raises UserError for phi beside width or depth, and for values out of range.
    """
    if phi is None:
        width = 1.0 if width is None else _checked("width", width)
        depth = 1.0 if depth is None else _checked("depth", depth)
        suffix, same = f"_w{width:g}_d{depth:g}", width == depth == 1
        side = spec.resolution
    elif width is None and depth is None:
        width, depth, side = _coefficients(phi, mode, spec.resolution)
        suffix, same = f"_phi{phi:g}", phi == 0
    else:
        raise UserError("scale: give either phi, or width and depth; phi decides both.")
    if divisor is not None:
        spec = spec.replace(width_divisor=divisor)
        suffix, same = f"{'' if same else suffix}_r{divisor}", False
    return replace(
        _multiply(spec, width, depth, exact=divisor is None),
        name=spec.name if same else spec.name + suffix,
        source=spec.source if same else "",
        resolution=side if resolution is None else resolution,
    )


def with_output_stride(spec: Spec, output_stride: int, *, dilate: bool = True) -> Spec:
    """A copy whose maps shrink to 1/`output_stride` at most, with the parameters of the original.

    Strides beyond become dilation of everything that follows (DeepLab, arXiv 1706.05587), so that
    each convolution of a pretrained network sees what it saw; `dilate=False` leaves them out, for
    training on small pictures from scratch. Raises UserError unless `output_stride` is 2, 4, 8,
    16 or 32.
    """
    if output_stride not in (2, 4, 8, 16, 32):
        raise UserError(
            f"with_output_stride: output_stride is {output_stride!r}; it must be 2, 4, 8, 16 or 32."
        )
    reduction, dilation = spec.stem_stride, 1
    stages = []
    for stage in spec.stages:
        blocks = []
        for block in stage.blocks:
            replaced = block.stride > 1 and reduction * block.stride > output_stride
            stride = 1 if replaced else block.stride
            blocks.append(replace(block, stride=stride, dilation=block.dilation * dilation))
            dilation *= block.stride if replaced and dilate else 1
            reduction *= stride
        stages.append(Stage(blocks=tuple(blocks)))
    return replace(spec, stages=tuple(stages))


def small_map(spec: Spec, resolution: int) -> str | None:
    """A warning where the last map of a square picture is smaller than 4x4, or None."""
    reduction = spec.taps()[-1].reduction
    side = -(-resolution // reduction)
    if side >= _LEAST_MAP:
        return None
    return (
        f"At {resolution} px the last map is {side}x{side}, too small to tell places apart: take "
        f"at least {_LEAST_MAP * reduction} px, or a network that reduces less (stem_stride=1, or "
        f"an output stride of {max(2, reduction // 2)})."
    )


def _multiply(spec: Spec, width: float, depth: float, exact: bool) -> Spec:
    def channels(old: int, factor: float = width) -> int:
        if exact and factor == 1.0:
            return old
        return round_width(old * factor, spec.width_divisor, spec.width_tenth_rule)

    def scaled(block: Block) -> Block:
        counted = block.expand_from and channels(block.expand_from)
        return replace(block, channels=channels(block.channels), expand_from=counted)

    last = len(spec.stages) - 1
    stages = []
    for index, stage in enumerate(spec.stages):
        stays = not spec.scale_outer_depth and index in (0, last)
        number = len(stage.blocks) if stays else _depth(spec, len(stage.blocks), depth)
        stages.append(Stage(blocks=_repeat(tuple(map(scaled, stage.blocks)), number)))
    head = {"always": width, "never": 1.0, "up": max(1.0, width)}[spec.scale_head]
    return replace(
        spec,
        stages=tuple(stages),
        stem_channels=channels(spec.stem_channels, width if spec.scale_stem else 1.0),
        head_channels=channels(spec.head_channels, head),
    )


def _coefficients(phi: float, mode: str, resolution: int) -> tuple[float, float, int]:
    """Width, depth and resolution at `phi`."""
    if mode not in ("formula", "table"):
        raise UserError(f"scale: mode is {mode!r}; it must be formula or table.")
    number = isinstance(phi, int | float) and not isinstance(phi, bool)
    if not number or not abs(phi) <= _LIMIT:
        raise UserError(f"scale: phi is {phi!r}; it must be between -{_LIMIT:g} and {_LIMIT:g}.")
    low = high = B_TABLE[0] if mode == "formula" or phi < 0 else B_TABLE[-1]
    rest, share = float(phi), 0.0  # what the formula adds, and the place between two rows
    if mode == "table" and phi >= 0:
        row = min(math.floor(phi), len(B_TABLE) - 1)
        low, high = B_TABLE[row], B_TABLE[min(row + 1, len(B_TABLE) - 1)]
        rest, share = (phi - row, 0.0) if low == high else (0.0, phi - row)
    width, depth, side = (
        (a + (b - a) * share) * growth**rest
        for a, b, growth in zip(low, high, _GROWTH, strict=True)
    )
    _checked("width", width)
    _checked("depth", depth)
    grid = _GRID if mode == "formula" or rest else _TABLE_GRID
    pixels = side / B_TABLE[0][2] * resolution
    return width, depth, resolution if phi == 0 else max(grid, round(pixels / grid) * grid)


def _checked(name: str, value: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= _LIMIT:
        raise UserError(
            f"scale: {name} is {value!r}; it must be a number above 0 and at most {_LIMIT:g}."
        )
    return float(value)


def _depth(spec: Spec, blocks: int, depth: float) -> int:
    exact = round(blocks * depth, 9)  # 25 * 2.2 is 55.00000000000001; ceil must give 55
    return max(1, math.ceil(exact) if spec.depth_rounding == "ceil" else round(exact))


def _repeat(blocks: tuple[Block, ...], number: int) -> tuple[Block, ...]:
    extra = replace(blocks[-1], stride=1)
    kept = blocks[:number] + (extra,) * (number - len(blocks))
    return (*kept[:-1], replace(kept[-1], channels=blocks[-1].channels))
