"""EfficientNet-PyTorch (github.com/lukemelas), on PyPI `efficientnet-pytorch`.

Blocks are numbered through the whole network. Where a block has no expansion, its first norm is
missing too, so that the depthwise convolution's is `_bn1` in every block.
"""

from mbconv.arch.spec import Spec
from mbconv.arch.table import TENSORFLOW
from mbconv.weights.libraries.network import Library, table
from mbconv.weights.libraries.timm import EFFICIENTNET

ENDS = {
    "stem.conv": "_conv_stem",
    "stem.norm": "_bn0",
    "head.conv.conv": "_conv_head",
    "head.conv.norm": "_bn1",
    "head.classifier": "_fc",
}
BLOCK = {
    "expand.conv": "_expand_conv",
    "expand.norm": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1",
    "gate.reduce": "_se_reduce",
    "gate.expand": "_se_expand",
    "project.conv": "_project_conv",
    "project.norm": "_bn2",
}


def layout(spec: Spec) -> dict[str, str]:
    """Our modules -> theirs."""
    return ENDS | {
        f"stages.{s}.{b}.{ours}": f"_blocks.{number}.{theirs}"
        for number, (s, b, _, _) in enumerate(spec.blocks())
        for ours, theirs in BLOCK.items()
    }


LIBRARY = Library("lukemelas", table({name: name for name in EFFICIENTNET}, layout, TENSORFLOW))
