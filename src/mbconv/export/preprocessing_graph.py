"""Preprocessing as a graph: any RGB picture in, the normalised crop out, in plain operators.

Resizing is two matrix products, with the weights of Pillow's antialiased filters in the matrices,
so that the pixels are those of `data.transform.prepare` whatever runtime computes them; the
runtimes' own resizing operators differ in borders, antialiasing and rounding.
"""

from typing import Any

from mbconv.preprocessing import Preprocessing

# Tensors: `L` and `l` are an axis' length as an integer and a float, `t` the distance of each
# pixel [1, length] from the centre of each output pixel [R, 1], in units of the filter's width.
_AXIS = """
  {a}_L = Gather (shape, {a}_number)
  {a}_l = Cast <to = 1> ({a}_L)
  {a}_long = Mul (side, {a}_L)
  {a}_resized = Div ({a}_long, {divisor})
  {a}_r = Cast <to = 1> ({a}_resized)
  {a}_scale = Div ({a}_l, {a}_r)
  {a}_margins = Sub ({a}_r, crop)
  {a}_margin = Mul ({a}_margins, half)
  {a}_start = Round ({a}_margin)
  {a}_places = Add ({a}_start, centres)
  {a}_centres = Mul ({a}_places, {a}_scale)
  {a}_numbers = Range (zero_L, {a}_L, one_L)
  {a}_corners = Cast <to = 1> ({a}_numbers)
  {a}_pixels = Add ({a}_corners, half)
  {a}_distance = Sub ({a}_pixels, {a}_centres)
  {a}_width = Max ({a}_scale, one)
  {a}_signed = Div ({a}_distance, {a}_width)
  {a}_t = Abs ({a}_signed)
{filter}
  {a}_sum = ReduceSum <keepdims = 1> ({a}_raw, last)
  {a}_weights = Div ({a}_raw, {a}_sum)
"""
_BILINEAR = """
  {a}_slope = Sub (one, {a}_t)
  {a}_raw = Relu ({a}_slope)
"""
# Keys' cubic with a = -0.5: 1.5 t^3 - 2.5 t^2 + 1 up to 1, -0.5 t^3 + 2.5 t^2 - 4 t + 2 up to 2.
_BICUBIC = """
  {a}_n1 = Mul ({a}_t, c1_5)
  {a}_n2 = Sub ({a}_n1, c2_5)
  {a}_n3 = Mul ({a}_n2, {a}_t)
  {a}_n4 = Mul ({a}_n3, {a}_t)
  {a}_near = Add ({a}_n4, one)
  {a}_f1 = Mul ({a}_t, half)
  {a}_f2 = Sub (c2_5, {a}_f1)
  {a}_f3 = Mul ({a}_f2, {a}_t)
  {a}_f4 = Sub ({a}_f3, c4)
  {a}_f5 = Mul ({a}_f4, {a}_t)
  {a}_far = Add ({a}_f5, c2)
  {a}_is_near = Less ({a}_t, one)
  {a}_is_far = Less ({a}_t, c2)
  {a}_outer = Where ({a}_is_far, {a}_far, zero)
  {a}_raw = Where ({a}_is_near, {a}_near, {a}_outer)
"""
_GRAPH = """
<ir_version: {ir}, opset_import: ["": {opset}]>
preprocessing (uint8[{n}, height, width, 3] pictures) => (float[{n}, 3, {size}, {size}] normalised)
<
  int64 x_number = {{2}}, int64 y_number = {{1}}, int64[1] last = {{1}},
  int64 side = {{{side}}}, int64 zero_L = {{0}}, int64 one_L = {{1}},
  float crop = {{{size}}}, float half = {{0.5}}, float zero = {{0}}, float one = {{1}},
  float c1_5 = {{1.5}}, float c2 = {{2}}, float c2_5 = {{2.5}}, float c4 = {{4}},
  float white = {{255}},
  float[{size}, 1] centres = {{{centres}}},
  float[1, 3, 1, 1] factor = {{{factor}}}, float[1, 3, 1, 1] offset = {{{offset}}}
>
{{
  shape = Shape (pictures)
  H = Gather (shape, y_number)
  W = Gather (shape, x_number)
  short = Min (H, W)
{x}
{y}
  planes_8 = Transpose <perm = [0, 3, 1, 2]> (pictures)
  planes = Cast <to = 1> (planes_8)
  x_columns = Transpose <perm = [1, 0]> (x_weights)
  narrow_exact = MatMul (planes, x_columns)
  narrow_half = Add (narrow_exact, half)
  narrow_whole = Floor (narrow_half)
  narrow = Clip (narrow_whole, zero, white)
  small_exact = MatMul (y_weights, narrow)
  small_half = Add (small_exact, half)
  small_whole = Floor (small_half)
  small = Clip (small_whole, zero, white)
  scaled = Mul (small, factor)
  normalised = Add (scaled, offset)
}}
"""


def preprocessing_graph(
    preprocessing: Preprocessing, batch: int | None, *, ir: int, opset: int
) -> Any:
    """An ONNX model: uint8 `pictures` [batch, H, W, 3] -> float32 `normalised` [batch, 3, R, R].

    As Pillow does, it resamples along rows first and rounds to whole grey levels after each axis.
    """
    from onnx import parser

    p = preprocessing
    kernel = _BILINEAR if p.interpolation == "bilinear" else _BICUBIC

    def axis(a: str) -> str:
        # Without keep_aspect both sides become `side`: side * L // L.
        divisor = "short" if p.keep_aspect else f"{a}_L"
        return _AXIS.format(a=a, divisor=divisor, filter=kernel.format(a=a))

    text = _GRAPH.format(
        ir=ir,
        opset=opset,
        n=batch or "batch",
        size=p.resolution,
        side=p.resize,
        centres=", ".join(str(i + 0.5) for i in range(p.resolution)),
        factor=", ".join(repr(1 / (255 * s)) for s in p.std),
        offset=", ".join(repr(-m / s) for m, s in zip(p.mean, p.std, strict=True)),
        x=axis("x"),
        y=axis("y"),
    )
    return parser.parse_model(text)
