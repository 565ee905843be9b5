"""Key map: checkpoints of the package `efficientnet-lite-pytorch` (and lukemelas' EfficientNet).

There, blocks are numbered through the whole network; here by stage and place in the stage. The
first norm of a block is the expansion's, and blocks without an expansion start with `_bn1`.
"""

from mbconv.arch.spec import Spec

ENDS = (
    (r"_conv_stem\.weight", r"stem.conv.weight"),
    (r"_bn0\.(\w+)", r"stem.norm.\1"),
    (r"_conv_head\.weight", r"head.conv.conv.weight"),
    (r"_bn1\.(\w+)", r"head.conv.norm.\1"),
    (r"_fc\.(weight|bias)", r"head.classifier.\1"),
)
IN_BLOCK = (
    (r"_expand_conv\.weight", r"expand.conv.weight"),
    (r"_bn0\.(\w+)", r"expand.norm.\1"),
    (r"_depthwise_conv\.weight", r"depthwise.conv.weight"),
    (r"_bn1\.(\w+)", r"depthwise.norm.\1"),
    (r"_project_conv\.weight", r"project.conv.weight"),
    (r"_bn2\.(\w+)", r"project.norm.\1"),
)


def rules(spec: Spec) -> tuple[tuple[str, str], ...]:
    """(pattern, template) pairs for a network of `spec`, which has no gates."""
    blocks = (
        (rf"_blocks\.{number}\.{pattern}", f"stages.{s}.{b}.{template}")
        for number, (s, b, _, _) in enumerate(spec.blocks())
        for pattern, template in IN_BLOCK
    )
    return (*ENDS, *blocks)
