"""timm's MBConv networks (github.com/huggingface/pytorch-image-models) and how it names modules.

A name that starts with `tf_` holds weights that TensorFlow trained: SAME padding and an epsilon of
1e-3. The others have torch's. Both have torch's momentum.
"""

from mbconv.arch.block import Block
from mbconv.arch.spec import Spec
from mbconv.arch.table import TENSORFLOW, TORCH
from mbconv.weights.libraries.network import Library, table

TF = {**TENSORFLOW, "bn_momentum": 0.1}
HALF = (0.5, 0.5)

# Convolution and batch norm of each part, by the shape of the block.
BLOCKS = {
    "mbconv": {
        "expand": ("conv_pw", "bn1"),
        "depthwise": ("conv_dw", "bn2"),
        "project": ("conv_pwl", "bn3"),
    },
    "separable": {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")},
    "fused": {"expand": ("conv_exp", "bn1"), "project": ("conv_pwl", "bn2")},
    "plain": {"expand": ("conv", "bn1")},
    "uib": {
        "start": ("dw_start.conv", "dw_start.bn"),
        "expand": ("pw_exp.conv", "pw_exp.bn"),
        "depthwise": ("dw_mid.conv", "dw_mid.bn"),
        "project": ("pw_proj.conv", "pw_proj.bn"),
    },
}


def layout(spec: Spec) -> dict[str, str]:
    """Our modules -> timm's."""
    names = {"stem.conv": "conv_stem", "stem.norm": "bn1", "head.classifier": "classifier"}
    if spec.head_hidden is None:
        names |= {"head.conv.conv": "conv_head", "head.conv.norm": "bn2"}
    else:  # the convolution before pooling counts as one more stage, the layer after it as the head
        last = f"blocks.{len(spec.stages)}.0"
        names |= {"head.conv.conv": f"{last}.conv", "head.conv.norm": f"{last}.bn1"}
        names |= {"head.hidden.linear": "conv_head", "head.hidden.norm": "norm_head"}
    for s, b, _, block in spec.blocks():
        ours, theirs = f"stages.{s}.{b}", f"blocks.{s}.{b}"
        for part, (conv, norm) in BLOCKS[_shape(block)].items():
            names[f"{ours}.{part}.conv"] = f"{theirs}.{conv}"
            names[f"{ours}.{part}.norm"] = f"{theirs}.{norm}"
        names[f"{ours}.gate.reduce"] = f"{theirs}.se.conv_reduce"
        names[f"{ours}.gate.expand"] = f"{theirs}.se.conv_expand"
    return names


def _shape(block: Block) -> str:
    if not block.unexpanded or block.kind == "uib":
        return block.kind
    return "plain" if block.kind == "fused" else "separable"


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _tf(*names: str) -> dict[str, str]:
    return {f"tf_{name}": name for name in names}


EFFICIENTNET = tuple(f"efficientnet_{size}" for size in (*(f"b{i}" for i in range(9)), "l2"))
LITE = tuple(f"efficientnet_lite{i}" for i in range(5))
EDGE = tuple(f"efficientnet_{size}" for size in ("es", "em", "el"))
V2 = tuple(f"efficientnetv2_{size}" for size in ("s", "m", "l", "xl"))
V2_SMALL = tuple(f"efficientnetv2_b{i}" for i in range(4))
V3 = ("mobilenetv3_large_075", "mobilenetv3_large_100",
      "mobilenetv3_small_075", "mobilenetv3_small_100")  # fmt: skip
V3_MINIMAL = ("mobilenetv3_large_minimal_100", "mobilenetv3_small_minimal_100")
MNASNET = {
    "mnasnet_050": "mnasnet_b1_050",
    "mnasnet_075": "mnasnet_b1_075",
    "mnasnet_100": "mnasnet_b1",
    "semnasnet_050": "mnasnet_a1_050",
    "semnasnet_075": "mnasnet_a1_075",
    "semnasnet_100": "mnasnet_a1",
    "semnasnet_140": "mnasnet_a1_140",
    "mnasnet_small": "mnasnet_small",
}
MOBILENETV2 = tuple(f"mobilenetv2_{width}" for width in ("035", "050", "075", "100", "140"))
MOBILENETV4 = tuple(f"mobilenetv4_conv_{size}" for size in ("small", "medium", "large"))
TINYNET = tuple(f"tinynet_{size}" for size in "abcde")

LIBRARY = Library(
    "timm",
    table(
        _same(*EFFICIENTNET, *LITE, *EDGE, *V2, *V3, *MOBILENETV2, *MOBILENETV4, *TINYNET)
        | MNASNET,
        layout,
        TORCH,
    )
    | table(_tf(*EFFICIENTNET, *V2_SMALL), layout, TF)
    | table(_tf(*LITE, *EDGE, *V2, *V3, *V3_MINIMAL), layout, TF, HALF),
    pointwise=frozenset({"head.hidden.linear"}),
)
