"""The smallest network that holds two: what the first can grow into exactly."""

from dataclasses import replace

from mbconv.arch.block import Block
from mbconv.arch.spec import Spec, Stage
from mbconv.growing.obstacles import obstacles

_GATE = ("gate", "gate_ratio", "gate_base", "gate_divisor", "gate_activation", "gate_sigmoid")
_NUMERICS = ("in_channels", "padding", "activation", "stem_stride", "head_hidden_norm")


def nearest(source: Spec, target: Spec) -> Spec:
    """The spec nearest to `target` that `source` can grow into without changing its answers.

    The elementwise maximum of both: widths, kernels, numbers of blocks and classes. What cannot
    change (strides, dilation, activations, kinds of gates and shortcuts, padding) is the source's.
    Where the maximum of widths would add or take away a shortcut, widths stay the source's.
    """
    for wider in (True, False):
        made = _maximum(source, target, wider)
        if not obstacles(source, made):
            return made
    return replace(source, resolution=target.resolution)


def _maximum(source: Spec, target: Spec, wider: bool) -> Spec:
    other = target if wider else source
    pooling = "concat" if target.pooling == "concat" else source.pooling
    hidden = source.head_hidden and max(source.head_hidden, other.head_hidden or 0)
    kept = {name: getattr(source, name) for name in _NUMERICS}
    stem, stages = _stages(source, target, other)
    return replace(
        target,
        name=f"{source.name}_{target.name}",
        source=f"nearest to {target.name} that {source.name} grows into",
        stages=stages,
        num_classes=max(source.num_classes, target.num_classes),
        stem_channels=stem,
        stem_kernel=max(source.stem_kernel, target.stem_kernel),
        head_channels=max(source.head_channels, other.head_channels),
        head_hidden=hidden,
        pooling=pooling,
        **kept,
    )


def _stages(source: Spec, target: Spec, other: Spec) -> tuple[int, tuple[Stage, ...]]:
    """The stem's width and the stages; widths that a shortcut adds up are raised together."""
    widths = [max(source.stem_channels, other.stem_channels)]
    first = 0  # of the widths that are one stream
    stages, made = [], []
    for s, b, x, old in source.blocks():
        wanted = _counterpart(other, s, b) or old
        widths.append(max(old.channels, wanted.channels))
        if old.has_skip(x) and old.keeps_shape(x):
            widths[first:] = [max(widths[first:])] * (len(widths) - first)
        else:
            first = len(widths) - 1
        made.append((s, b, x, old))
    blocks: list[list[Block]] = [[] for _ in source.stages]
    for (s, b, x, old), width, out in zip(made, widths[:-1], widths[1:], strict=True):
        blocks[s].append(_block((x, old), target, other, (s, b), (width, out)))
    for s, group in enumerate(blocks):
        number = len(target.stages[s].blocks) if s < len(target.stages) else 0
        group += [_repeated(group[-1])] * (number - len(group))
        stages.append(Stage(blocks=tuple(group)))
    return widths[0], tuple(stages)


def _counterpart(spec: Spec, stage: int, number: int) -> Block | None:
    """The block at that place, or the stage's last; None where there is no such stage."""
    if stage >= len(spec.stages):
        return None
    blocks = spec.stages[stage].blocks
    return blocks[min(number, len(blocks) - 1)]


def _repeated(block: Block) -> Block:
    """A block to follow this one, with an identity shortcut."""
    return replace(block, stride=1, shortcut="identity", expand_from=None, expand_divisor=1)


def _block(
    old: tuple[int, Block], target: Spec, other: Spec, place: tuple[int, int],
    widths: tuple[int, int],
) -> Block:  # fmt: skip
    """The source's block as wide and as large as both; `widths` are its input's and output's."""
    x, block = old
    width, out = widths
    shaped, wanted = (_counterpart(spec, *place) or block for spec in (target, other))
    kernel = max(block.kernel, shaped.kernel) if shaped.kind == block.kind else block.kernel
    kept = block.shortcut
    if not block.has_skip(x):
        reshapes = block.stride > 1 or width != out
        kept = shaped.shortcut if reshapes else None  # which does nothing, or is ResNet-D's
    made = replace(
        block,
        channels=out,
        kernel=kernel if block.kernel > 1 else block.kernel,
        start_kernel=max(block.start_kernel, shaped.start_kernel) if block.start_kernel else 0,
        shortcut=kept,
    )
    if block.gate is None and not (block.kind == "fused" and block.unexpanded):
        made = replace(made, **{name: getattr(shaped, name) for name in _GATE})
    if block.unexpanded:
        return made
    expanded = max(block.expanded(x), wanted.expanded(width))
    if made.expanded(width) != expanded:
        ratio = min(32.0, max(1.0, expanded / width))
        made = replace(made, expand=ratio, expand_from=None, expand_divisor=1)
    squeezed = max(block.squeezed(x), wanted.squeezed(width) if wanted.gate == block.gate else 0)
    if block.gate in ("se", "scse") and made.squeezed(width) != squeezed:
        share = min(1.0, (squeezed + 0.5) / made.expanded(width))
        made = replace(made, gate_base="expanded", gate_ratio=share, gate_divisor=1)
    return made
