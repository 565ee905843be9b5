"""The named networks: table rows with their citation, no logic that hangs on a name."""

import difflib
from functools import cache
from typing import NamedTuple

from mbconv.arch.scale import scale
from mbconv.arch.spec import Activation, Block, Gate, Spec, Stage
from mbconv.errors import UserError


class _Row(NamedTuple):
    """A network as a scaling of a base: the coefficients that its paper's table gives."""

    name: str
    base: Spec
    width: float
    depth: float
    resolution: int
    dropout: float
    source: str


def _stages(
    rows: tuple[tuple[int, int, int, int, int], ...],
    activation: Activation,
    gate: Gate | None,
) -> tuple[Stage, ...]:
    return tuple(
        Stage(
            blocks=tuple(
                Block(
                    channels=channels,
                    kernel=kernel,
                    stride=stride if i == 0 else 1,
                    expand=expand,
                    activation=activation,
                    gate=gate,
                )
                for i in range(blocks)
            )
        )
        for expand, kernel, stride, channels, blocks in rows
    )


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
    stages=_stages(_B0_ROWS, "silu", "se"),
    padding="same",
    bn_eps=1e-3,
    bn_momentum=0.01,
    drop_path=0.2,
)
_LITE0 = Spec(
    stages=_stages(_B0_ROWS, "relu6", None),
    activation="relu6",
    padding="same",
    bn_eps=1e-3,
    bn_momentum=0.01,
    drop_path=0.2,
    scale_ends=False,
)

_V1 = "EfficientNet, arXiv 1905.11946; tensorflow/tpu efficientnet_builder.py"
_B8_SOURCE = "AdvProp, arXiv 1911.09665; tensorflow/tpu efficientnet_builder.py"
_L2_SOURCE = "Noisy Student, arXiv 1911.04252; tensorflow/tpu efficientnet_builder.py"
_LITE = "EfficientNet-Lite; tensorflow/tpu efficientnet/lite/efficientnet_lite_builder.py"

_ROWS = (
    # name, base, width, depth, resolution, dropout, source
    _Row("efficientnet_b0", _B0, 1.0, 1.0, 224, 0.2, _V1),
    _Row("efficientnet_b1", _B0, 1.0, 1.1, 240, 0.2, _V1),
    _Row("efficientnet_b2", _B0, 1.1, 1.2, 260, 0.3, _V1),
    _Row("efficientnet_b3", _B0, 1.2, 1.4, 300, 0.3, _V1),
    _Row("efficientnet_b4", _B0, 1.4, 1.8, 380, 0.4, _V1),
    _Row("efficientnet_b5", _B0, 1.6, 2.2, 456, 0.4, _V1),
    _Row("efficientnet_b6", _B0, 1.8, 2.6, 528, 0.5, _V1),
    _Row("efficientnet_b7", _B0, 2.0, 3.1, 600, 0.5, _V1),
    _Row("efficientnet_b8", _B0, 2.2, 3.6, 672, 0.5, _B8_SOURCE),
    _Row("efficientnet_l2", _B0, 4.3, 5.3, 800, 0.5, _L2_SOURCE),
    _Row("efficientnet_lite0", _LITE0, 1.0, 1.0, 224, 0.2, _LITE),
    _Row("efficientnet_lite1", _LITE0, 1.0, 1.1, 240, 0.2, _LITE),
    _Row("efficientnet_lite2", _LITE0, 1.1, 1.2, 260, 0.3, _LITE),
    _Row("efficientnet_lite3", _LITE0, 1.2, 1.4, 280, 0.3, _LITE),
    _Row("efficientnet_lite4", _LITE0, 1.4, 1.8, 300, 0.3, _LITE),
)  # fmt: skip


def list_specs() -> tuple[str, ...]:
    """Names of all networks that `get_spec` knows, in the order of their tables."""
    return tuple(row.name for row in _ROWS)


@cache
def get_spec(name: str) -> Spec:
    """The network of that name.

    Raises UserError for an unknown name, with the nearest known ones.
    """
    for row in _ROWS:
        if row.name == name:
            spec = scale(row.base, width=row.width, depth=row.depth, resolution=row.resolution)
            return spec.replace(name=name, dropout=row.dropout, source=row.source)
    near = difflib.get_close_matches(name, list_specs(), n=3, cutoff=0.5) or list_specs()
    raise UserError(f"There is no network {name!r}; the nearest names: {', '.join(near)}.")
