"""EfficientNet V1, Lite, EdgeTPU, V2, TinyNet and variants of B0: table rows with their source."""

from mbconv.arch.scale import B_TABLE
from mbconv.arch.spec import Spec, Stage
from mbconv.arch.table import TENSORFLOW, TORCH, Row, blocks, stages

# EfficientNet-B0, table 1 of arXiv 1905.11946. The table prints the resolution that enters a
# stage; the stride here is that of the stage's first block, as in the released code.
_B0_ROWS = (
    # expand, kernel, stride, channels, blocks
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)

# Numerics of the TensorFlow code that trained the published weights: batch norm with momentum
# 0.99 (torch's 0.01) and epsilon 1e-3, SAME padding, drop connect 0.2 over all blocks.
_B0 = Spec(
    stages=stages(_B0_ROWS, activation="silu", gate="se"),
    **TENSORFLOW,
    drop_path=0.2,
)
_LITE0 = _B0.replace(
    activation="relu6",
    gate=None,
    scale_stem=False,
    scale_head="never",
    scale_outer_depth=False,
)
# The forum thread's experiment: widths that 16 divides, expansions of 4 and 8, a fifth more
# parameters than B0, a fifth less kept for backward at 224 px (costs: 1.204 and 0.798 of B0's, in
# 1.027 of its multiply-adds). Of the combinations that meet both, this one comes nearest.
_B0_HW = _B0.replace(
    stages=stages(
        (
            (1, 3, 1, 16, 1),
            (4, 3, 2, 16, 2),
            (4, 5, 2, 48, 2),
            (4, 3, 2, 80, 3),
            (8, 5, 1, 112, 3),
            (4, 5, 2, 256, 4),
            (8, 3, 1, 320, 1),
        ),
        gate="se",
    ),
    width_divisor=16,
)
# The forum author's variant, meant to be trained with PyTorch and therefore with its numerics.
_RELU6_D = _B0.replace(
    activation="relu6",
    gate=None,
    shortcut="resnet_d",
    zero_gamma=True,
    **TORCH,
)
_TINY = _B0.replace(depth_rounding="round", scale_stem=False, scale_head="up", drop_path=0.0)


def _edge_stages() -> tuple[Stage, ...]:
    """Its first stage expands as if 24 channels entered it, whatever the stem's width is."""
    fused = (
        blocks(1, kind="fused", channels=24, expand=4, expand_from=24, shortcut=None),
        blocks(2, kind="fused", channels=32, expand=8, stride=2),
        blocks(4, kind="fused", channels=48, expand=8, stride=2),
    )
    rows = ((8, 5, 2, 96, 5), (8, 5, 1, 144, 4), (8, 5, 2, 192, 2))
    return (*(Stage(blocks=group) for group in fused), *stages(rows))


_EDGE = Spec(
    stages=_edge_stages(),
    **TENSORFLOW,
    drop_path=0.2,
).replace(activation="relu")

_Rows = tuple[tuple[int, int, int, int, int], ...]


def _v2(fused: _Rows, mbconv: _Rows, stem: int) -> Spec:
    """Fused stages without SE, then MBConv stages with it; SE counts from the block's input."""
    return Spec(
        stages=(*stages(fused, kind="fused"), *stages(mbconv, gate="se")),
        stem_channels=stem,
        **{**TENSORFLOW, "bn_momentum": 0.1},
        drop_path=0.2,
        width_tenth_rule=False,
    )


_V2_B0 = _v2(
    ((1, 3, 1, 16, 1), (4, 3, 2, 32, 2), (4, 3, 2, 48, 2)),
    ((4, 3, 2, 96, 3), (6, 3, 1, 112, 5), (6, 3, 2, 192, 8)),
    stem=32,
)
_V2_S = _v2(
    ((1, 3, 1, 24, 2), (4, 3, 2, 48, 4), (4, 3, 2, 64, 4)),
    ((4, 3, 2, 128, 6), (6, 3, 1, 160, 9), (6, 3, 2, 256, 15)),
    stem=24,
)
_V2_M = _v2(
    ((1, 3, 1, 24, 3), (4, 3, 2, 48, 5), (4, 3, 2, 80, 5)),
    ((4, 3, 2, 160, 7), (6, 3, 1, 176, 14), (6, 3, 2, 304, 18), (6, 3, 1, 512, 5)),
    stem=24,
)
_V2_L = _v2(
    ((1, 3, 1, 32, 4), (4, 3, 2, 64, 7), (4, 3, 2, 96, 7)),
    ((4, 3, 2, 192, 10), (6, 3, 1, 224, 19), (6, 3, 2, 384, 25), (6, 3, 1, 640, 7)),
    stem=32,
)
_V2_XL = _v2(
    ((1, 3, 1, 32, 4), (4, 3, 2, 64, 8), (4, 3, 2, 96, 8)),
    ((4, 3, 2, 192, 16), (6, 3, 1, 256, 24), (6, 3, 2, 512, 32), (6, 3, 1, 640, 8)),
    stem=32,
)

# For few epochs from fresh weights: EfficientNetV2's early blocks alone, wide and few. Dense
# kernels learn in a fraction of the steps that depthwise ones take (docs/results.md).
_SHALLOW = Spec(
    stages=stages(((2, 3, 2, 96, 2), (2, 3, 2, 192, 2), (2, 3, 2, 384, 2)), kind="fused"),
    **TORCH,
    stem_channels=64,
    head_channels=1024,
    drop_path=0.1,
)

_V1 = "EfficientNet, arXiv 1905.11946; tensorflow/tpu efficientnet_builder.py"
_B8_SOURCE = "AdvProp, arXiv 1911.09665; tensorflow/tpu efficientnet_builder.py"
_L2_SOURCE = "Noisy Student, arXiv 1911.04252; tensorflow/tpu efficientnet_builder.py"
_LITE = "EfficientNet-Lite; tensorflow/tpu efficientnet/lite/efficientnet_lite_builder.py"
_EDGE_SOURCE = "EfficientNet-EdgeTPU; tensorflow/tpu efficientnet/edgetpu"
_V2_SOURCE = "EfficientNetV2, arXiv 2104.00298, table 4; google/automl efficientnetv2"
_TINY_SOURCE = "TinyNet, arXiv 2010.14819, table 3; huawei-noah/Efficient-AI-Backbones"
_RELU6_D_SOURCE = "fast.ai forum, EfficientNet thread (2019): ReLU6, no SE, ResNet-D shortcuts"
_SHALLOW_SOURCE = "mbconv, docs/results.md; blocks of EfficientNetV2, arXiv 2104.00298"
_HW_SOURCE = "fast.ai forum, EfficientNet thread (2019): widths and expansions for hardware"

_DROPOUT = (0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5)  # of B0 to B8

ROWS = (
    # name, base, width, depth, resolution, dropout, source
    *(
        Row(f"efficientnet_b{i}", _B0, *scaling, dropout, _B8_SOURCE if i == 8 else _V1)
        for i, (scaling, dropout) in enumerate(zip(B_TABLE, _DROPOUT, strict=True))
    ),
    Row("efficientnet_l2", _B0, 4.3, 5.3, 800, 0.5, _L2_SOURCE),
    Row("efficientnet_lite0", _LITE0, 1.0, 1.0, 224, 0.2, _LITE),
    Row("efficientnet_lite1", _LITE0, 1.0, 1.1, 240, 0.2, _LITE),
    Row("efficientnet_lite2", _LITE0, 1.1, 1.2, 260, 0.3, _LITE),
    Row("efficientnet_lite3", _LITE0, 1.2, 1.4, 280, 0.3, _LITE),
    Row("efficientnet_lite4", _LITE0, 1.4, 1.8, 300, 0.3, _LITE),
    Row("efficientnet_es", _EDGE, 1.0, 1.0, 224, 0.2, _EDGE_SOURCE),
    Row("efficientnet_em", _EDGE, 1.0, 1.1, 240, 0.2, _EDGE_SOURCE),
    Row("efficientnet_el", _EDGE, 1.2, 1.4, 300, 0.3, _EDGE_SOURCE),
    Row("efficientnet_b0_hw", _B0_HW, 1.0, 1.0, 224, 0.2, _HW_SOURCE),
    *(
        Row(f"efficientnet_b{i}_relu6_d", _RELU6_D, *scaling, dropout, _RELU6_D_SOURCE)
        for i, (scaling, dropout) in enumerate(zip(B_TABLE[:8], _DROPOUT[:8], strict=True))
    ),
    Row("efficientnetv2_b0", _V2_B0, 1.0, 1.0, 224, 0.2, _V2_SOURCE),
    Row("efficientnetv2_b1", _V2_B0, 1.0, 1.1, 240, 0.2, _V2_SOURCE),
    Row("efficientnetv2_b2", _V2_B0, 1.1, 1.2, 260, 0.3, _V2_SOURCE),
    Row("efficientnetv2_b3", _V2_B0, 1.2, 1.4, 300, 0.3, _V2_SOURCE),
    Row("efficientnetv2_s", _V2_S, 1.0, 1.0, 384, 0.2, _V2_SOURCE),
    Row("efficientnetv2_m", _V2_M, 1.0, 1.0, 480, 0.3, _V2_SOURCE),
    Row("efficientnetv2_l", _V2_L, 1.0, 1.0, 480, 0.4, _V2_SOURCE),
    Row("efficientnetv2_xl", _V2_XL, 1.0, 1.0, 512, 0.4, _V2_SOURCE),
    Row("fused_shallow", _SHALLOW, 1.0, 1.0, 128, 0.2, _SHALLOW_SOURCE),
    Row("tinynet_a", _TINY, 1.0, 1.2, 192, 0.2, _TINY_SOURCE),
    Row("tinynet_b", _TINY, 0.75, 1.1, 188, 0.2, _TINY_SOURCE),
    Row("tinynet_c", _TINY, 0.54, 0.85, 184, 0.2, _TINY_SOURCE),
    Row("tinynet_d", _TINY, 0.54, 0.695, 152, 0.2, _TINY_SOURCE),
    Row("tinynet_e", _TINY, 0.51, 0.6, 106, 0.2, _TINY_SOURCE),
)  # fmt: skip
