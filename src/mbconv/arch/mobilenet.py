"""MobileNet V2, V3, V4 and MnasNet: table rows with their source."""

from mbconv.arch.block import Block
from mbconv.arch.spec import Spec, Stage
from mbconv.arch.table import TENSORFLOW, Row, blocks, gated, stages

# Numerics of the TensorFlow code that trained the published weights. None of them drops paths.
_TENSORFLOW = Spec(stages=stages([(1, 3, 1, 16, 1)]), **TENSORFLOW, drop_path=0.0)

# Table 2 of arXiv 1801.04381. The head never gets narrower than 1280.
_V2 = _TENSORFLOW.replace(
    stages=stages(
        (
            # expand, kernel, stride, channels, blocks
            (1, 3, 1, 16, 1),
            (6, 3, 2, 24, 2),
            (6, 3, 2, 32, 3),
            (6, 3, 2, 64, 4),
            (6, 3, 1, 96, 3),
            (6, 3, 2, 160, 3),
            (6, 3, 1, 320, 1),
        )
    ),
    scale_head="up",
).replace(activation="relu6")

# Figure 7 of arXiv 1807.11626 (A1) and the released code (B1, small). SE counts from the input.
_A1 = _TENSORFLOW.replace(
    stages=gated(
        stages(
            (
                (1, 3, 1, 16, 1),
                (6, 3, 2, 24, 2),
                (3, 5, 2, 40, 3),
                (6, 3, 2, 80, 4),
                (6, 3, 1, 112, 2),
                (6, 5, 2, 160, 3),
                (6, 3, 1, 320, 1),
            )
        ),
        (3, 5, 6),
    ),
    scale_head="never",
).replace(activation="relu").replace_in([1], shortcut=None)  # fmt: skip
_B1 = _TENSORFLOW.replace(
    stages=stages(
        (
            (1, 3, 1, 16, 1),
            (3, 3, 2, 24, 3),
            (3, 5, 2, 40, 3),
            (6, 5, 2, 80, 3),
            (6, 3, 1, 96, 2),
            (6, 5, 2, 192, 4),
            (6, 3, 1, 320, 1),
        )
    ),
    scale_head="never",
).replace(activation="relu").replace_in([1, 7], shortcut=None)  # fmt: skip
_SMALL = _TENSORFLOW.replace(
    stages=gated(
        stages(
            (
                (1, 3, 1, 8, 1),
                (3, 3, 2, 16, 1),
                (6, 3, 2, 16, 2),
                (6, 5, 2, 32, 4),
                (6, 3, 1, 32, 3),
                (6, 5, 2, 88, 3),
                (6, 3, 1, 144, 1),
            )
        ),
        (4, 5, 6),
    ),
    stem_channels=8,
    scale_head="never",
).replace(activation="relu")


def _v3(rows: tuple[tuple[tuple[float, int, int, int], ...], ...], head: int, hidden: int) -> Spec:
    """A MobileNetV3 from stages of (expand, kernel, stride, channels), minimal: ReLU and no SE.

    The widths of tables 1 and 2 of arXiv 1905.02244 are given there as such; here as multiples of
    the input's, from which the released code takes them at other widths too, rounded to 8.
    """
    made = tuple(
        Stage(
            blocks=tuple(
                Block(expand=expand, kernel=kernel, stride=stride, channels=channels,
                      expand_divisor=8)
                for expand, kernel, stride, channels in row
            )
        )
        for row in rows
    )  # fmt: skip
    return _TENSORFLOW.replace(
        stages=made, stem_channels=16, head_channels=head, head_hidden=hidden
    ).replace(activation="relu")


def _full(minimal: Spec, relu: set[int], large_kernels: set[int], with_se: set[int]) -> Spec:
    """MobileNetV3 from its minimal form: hard-swish but in the stages `relu`, 5x5 kernels, SE."""
    spec = minimal.replace(activation="hard_swish").replace_in(relu, activation="relu")
    spec = spec.replace_in(large_kernels, kernel=5)
    return spec.replace_in(
        with_se, gate="se", gate_base="expanded", gate_divisor=8, gate_activation="relu",
        gate_sigmoid="hard_sigmoid",
    )  # fmt: skip


_V3_LARGE_MINIMAL = _v3(
    (
        ((1, 3, 1, 16),),
        ((4, 3, 2, 24), (3, 3, 1, 24)),
        ((3, 3, 2, 40), *[(3, 3, 1, 40)] * 2),
        ((6, 3, 2, 80), (2.5, 3, 1, 80), *[(2.3, 3, 1, 80)] * 2),
        ((6, 3, 1, 112),) * 2,
        ((6, 3, 2, 160), *[(6, 3, 1, 160)] * 2),
    ),
    head=960,
    hidden=1280,
)
_V3_SMALL_MINIMAL = _v3(
    (
        ((1, 3, 2, 16),),
        ((4.5, 3, 2, 24), (3.67, 3, 1, 24)),
        ((4, 3, 2, 40), *[(6, 3, 1, 40)] * 2),
        ((3, 3, 1, 48),) * 2,
        ((6, 3, 2, 96), *[(6, 3, 1, 96)] * 2),
    ),
    head=576,
    hidden=1024,
)
_V3_LARGE = _full(_V3_LARGE_MINIMAL, relu={1, 2, 3}, large_kernels={3, 6}, with_se={3, 5, 6})
_V3_SMALL = _full(_V3_SMALL_MINIMAL, relu={1, 2}, large_kernels={3, 4, 5}, with_se={1, 3, 4, 5})

# MobileNetV4, tables 11 to 13 of arXiv 2404.10518. Its published weights come from PyTorch.


def _uib(rows: tuple[tuple[int, int, float], ...], channels: int) -> Stage:
    """Blocks of (start kernel, middle kernel, expand), the first of which reduces."""
    return Stage(
        blocks=tuple(
            Block(kind="uib", channels=channels, start_kernel=start, kernel=kernel, expand=expand,
                  stride=2 if i == 0 else 1)
            for i, (start, kernel, expand) in enumerate(rows)
        )
    )  # fmt: skip


def _v4(made: tuple[Stage, ...], stem: int) -> Spec:
    return Spec(
        stages=made,
        stem_channels=stem,
        head_channels=960,
        head_hidden=1280,
        head_hidden_norm=True,
        drop_path=0.0,
    ).replace(activation="relu", expand_divisor=8)


def _conv_pair(first: int, second: int) -> Stage:
    """A 3x3 convolution that reduces and a 1x1 convolution, neither with a shortcut."""
    return Stage(
        blocks=(
            Block(kind="fused", expand=1, channels=first, stride=2, shortcut=None),
            Block(kind="fused", expand=1, channels=second, kernel=1, shortcut=None),
        )
    )


_FUSED_48 = Stage(blocks=blocks(1, kind="fused", channels=48, stride=2, expand=4))
_V4_SMALL = _v4(
    (
        _conv_pair(32, 32),
        _conv_pair(96, 64),
        _uib(((5, 5, 3), *[(0, 3, 2)] * 4, (3, 0, 4)), 96),
        _uib(((3, 3, 6), (5, 5, 4), (0, 5, 4), (0, 5, 3), *[(0, 3, 4)] * 2), 128),
    ),
    stem=32,
)
_V4_MEDIUM = _v4(
    (
        _FUSED_48,
        _uib(((3, 5, 4), (3, 3, 2)), 80),
        _uib(
            ((3, 5, 6), *[(3, 3, 4)] * 2, (3, 5, 4), (3, 3, 4), (3, 0, 4), (0, 0, 2), (3, 0, 4)),
            160,
        ),
        _uib(
            ((5, 5, 6), (5, 5, 4), *[(3, 5, 4)] * 2, (0, 0, 4), (3, 0, 4), (3, 5, 2), (5, 5, 4),
             *[(0, 0, 4)] * 2, (5, 0, 2)),
            256,
        ),
    ),
    stem=32,
)  # fmt: skip
_V4_LARGE = _v4(
    (
        _FUSED_48,
        _uib(((3, 5, 4), (3, 3, 4)), 96),
        _uib(((3, 5, 4), *[(3, 3, 4)] * 3, (3, 5, 4), *[(5, 3, 4)] * 5, (3, 0, 4)), 192),
        _uib(
            (*[(5, 5, 4)] * 4, (5, 0, 4), (5, 3, 4), *[(5, 0, 4)] * 2, (5, 3, 4), (5, 5, 4),
             *[(5, 0, 4)] * 3),
            512,
        ),
    ),
    stem=24,
)  # fmt: skip

_V2_SOURCE = "MobileNetV2, arXiv 1801.04381, table 2; tensorflow/models slim mobilenet_v2.py"
_A1_SOURCE = "MnasNet, arXiv 1807.11626, figure 7; tensorflow/tpu mnasnet_models.py"
_B1_SOURCE = "MnasNet, arXiv 1807.11626; tensorflow/tpu mnasnet_models.py"
_V3_SOURCE = "MobileNetV3, arXiv 1905.02244, tables 1 and 2; tensorflow/models slim mobilenet_v3.py"
_V4_SOURCE = "MobileNetV4, arXiv 2404.10518, tables 11 to 13"

ROWS = (
    # name, base, width, depth, resolution, dropout, source
    Row("mobilenetv2_035", _V2, 0.35, 1.0, 224, 0.2, _V2_SOURCE),
    Row("mobilenetv2_050", _V2, 0.5, 1.0, 224, 0.2, _V2_SOURCE),
    Row("mobilenetv2_075", _V2, 0.75, 1.0, 224, 0.2, _V2_SOURCE),
    Row("mobilenetv2_100", _V2, 1.0, 1.0, 224, 0.2, _V2_SOURCE),
    Row("mobilenetv2_130", _V2, 1.3, 1.0, 224, 0.2, _V2_SOURCE),
    Row("mobilenetv2_140", _V2, 1.4, 1.0, 224, 0.2, _V2_SOURCE),
    Row("mobilenetv3_large_100", _V3_LARGE, 1.0, 1.0, 224, 0.2, _V3_SOURCE),
    Row("mobilenetv3_large_075", _V3_LARGE, 0.75, 1.0, 224, 0.2, _V3_SOURCE),
    Row("mobilenetv3_large_minimal_100", _V3_LARGE_MINIMAL, 1.0, 1.0, 224, 0.2, _V3_SOURCE),
    Row("mobilenetv3_small_100", _V3_SMALL, 1.0, 1.0, 224, 0.2, _V3_SOURCE),
    Row("mobilenetv3_small_075", _V3_SMALL, 0.75, 1.0, 224, 0.2, _V3_SOURCE),
    Row("mobilenetv3_small_minimal_100", _V3_SMALL_MINIMAL, 1.0, 1.0, 224, 0.2, _V3_SOURCE),
    Row("mnasnet_a1", _A1, 1.0, 1.0, 224, 0.2, _A1_SOURCE),
    Row("mnasnet_a1_035", _A1, 0.35, 1.0, 224, 0.2, _A1_SOURCE),
    Row("mnasnet_a1_050", _A1, 0.5, 1.0, 224, 0.2, _A1_SOURCE),
    Row("mnasnet_a1_075", _A1, 0.75, 1.0, 224, 0.2, _A1_SOURCE),
    Row("mnasnet_a1_140", _A1, 1.4, 1.0, 224, 0.2, _A1_SOURCE),
    Row("mnasnet_b1", _B1, 1.0, 1.0, 224, 0.2, _B1_SOURCE),
    Row("mnasnet_b1_050", _B1, 0.5, 1.0, 224, 0.2, _B1_SOURCE),
    Row("mnasnet_b1_075", _B1, 0.75, 1.0, 224, 0.2, _B1_SOURCE),
    Row("mnasnet_b1_130", _B1, 1.3, 1.0, 224, 0.2, _B1_SOURCE),
    Row("mnasnet_small", _SMALL, 1.0, 1.0, 224, 0.2, _B1_SOURCE),
    Row("mobilenetv4_conv_small", _V4_SMALL, 1.0, 1.0, 224, 0.2, _V4_SOURCE),
    Row("mobilenetv4_conv_medium", _V4_MEDIUM, 1.0, 1.0, 224, 0.2, _V4_SOURCE),
    Row("mobilenetv4_conv_large", _V4_LARGE, 1.0, 1.0, 256, 0.2, _V4_SOURCE),
)  # fmt: skip
