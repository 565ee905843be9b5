"""What keeps a network from growing into another without changing its answers: pure data.

Each obstacle is a clause that names the place, what the source has and what the target has.
"""

from collections.abc import Iterator

from mbconv.arch.block import Activation, Block, Conv, Gating
from mbconv.arch.spec import Spec
from mbconv.growing.layout import Place, block_at

# An activation whose output passes through a second one unchanged: act(before(x)) = before(x).
_PASSES = {("relu", "relu"), ("relu6", "relu6"), ("relu6", "relu")}
_NEEDS_PROJECT = ("se", "sse", "eca")  # new ones start at one half, which the projection makes good


def obstacles(source: Spec, target: Spec) -> list[str]:
    """Why `source` cannot become `target` with the same logits; empty where it can."""
    return list(_network(source, target))


def template(source: Spec, target: Spec, stage: int, number: int) -> Place | None:
    """Which of the source's blocks the target's block `number` of `stage` starts from, or None.

    A block that the source lacks starts from a copy of the stage's last one, where that has a
    shortcut and fits.
    """
    last = len(source.stages[stage].blocks) - 1
    if number <= last:
        return stage, number
    x, block = old = block_at(source, (stage, last))
    fits = block.has_skip(x) and block.keeps_shape(x)
    clauses = _blocks("", old, block_at(target, (stage, number)))
    return (stage, last) if fits and not any(clauses) else None


def _network(source: Spec, target: Spec) -> Iterator[str]:
    yield from _equal("", source, target, "in_channels", "padding")
    yield from _convs("stem", source.stem, target.stem, source.padding)
    if len(source.stages) != len(target.stages):
        yield f"the number of stages is {len(source.stages)} in the source, {len(target.stages)} " \
              "in the target"  # fmt: skip
    else:
        yield from _all_blocks(source, target)
    yield from _convs("head.conv", source.head_conv, target.head_conv, source.padding)
    yield from _head(source, target)


def _head(source: Spec, target: Spec) -> Iterator[str]:
    if source.pooling != target.pooling and target.pooling != "concat":
        yield from _equal("head", source, target, "pooling")
    if source.head_hidden is None or target.head_hidden is None:
        yield from _equal("head", source, target, "head_hidden")
    else:
        yield from _at_least("head", source, target, "head_hidden")
        yield from _equal("head", source, target, "head_hidden_norm")
    yield from _at_least("head.classifier", source, target, "num_classes")


def _all_blocks(source: Spec, target: Spec) -> Iterator[str]:
    old = {(s, b): (x, block) for s, b, x, block in source.blocks()}
    before: Activation | None = source.activation  # of what enters the block
    for s, b, x, block in target.blocks():
        where = f"stages.{s}.{b}"
        if (s, b) in old:
            yield from _blocks(where, old[s, b], (x, block), source.padding, before)
            before = _last_activation(*old[s, b])
        else:
            yield from _new_block(where, x, block)
    for s, stage in enumerate(source.stages):
        lacks = len(stage.blocks) - len(target.stages[s].blocks)
        if lacks > 0:
            yield (
                f"stages.{s} has {len(stage.blocks)} blocks in the source, "
                f"{len(target.stages[s].blocks)} in the target"
            )


def _new_block(where: str, x: int, block: Block) -> Iterator[str]:
    """A block that the source lacks has to start as the identity, and to learn from there."""
    if not (block.has_skip(x) and block.keeps_shape(x)):
        yield f"{where} is new and has no identity shortcut to start as"
    last = block.parts(x)[-1]
    if isinstance(last, Gating) or last.activation in ("relu", "relu6"):
        yield f"{where} is new and ends in ReLU or a gate, behind which zeros would learn nothing"


def _last_activation(x: int, block: Block) -> Activation | None:
    """The activation that a block's output has just passed; None where a sum or gate follows."""
    last = block.parts(x)[-1]
    return last.activation if isinstance(last, Conv) and not block.has_skip(x) else None


def _blocks(
    where: str,
    old: tuple[int, Block],
    new: tuple[int, Block],
    padding: str = "symmetric",
    passes: Activation | None = None,
) -> Iterator[str]:
    """Of one block against its counterpart; `passes` is the activation that its input passed."""
    before = {part.name: part for part in old[1].parts(old[0])}
    after = {part.name: part for part in new[1].parts(new[0])}
    if list(before)[-1] != list(after)[-1]:  # else the last convolution's widths are compared
        yield from _at_least(where, old[1], new[1], "channels")
    for name in before:
        if name not in after:
            yield f"{where}.{name} is missing in the target"
    for name, part in after.items():
        place, past = f"{where}.{name}", before.get(name)
        if isinstance(part, Gating):
            assert past is None or isinstance(past, Gating)
            yield from _gates(place, past, part, projected="project" in after)
        elif past is None:
            yield from _added(place, part, passes)
        else:
            assert isinstance(past, Conv)
            yield from _convs(place, past, part, padding)
        if isinstance(part, Conv):
            passes = part.activation
    yield from _shortcuts(where, old, new)


def _convs(where: str, old: Conv, new: Conv, padding: str) -> Iterator[str]:
    yield from _at_least(where, old, new, "in_channels", "out_channels", "kernel")
    yield from _equal(where, old, new, "stride", "activation")
    if old.kernel > 1:
        yield from _equal(where, old, new, "dilation")
    elif new.kernel > 1 and new.stride > 1 and padding == "same":
        # A larger kernel would look at the pixel behind at even sizes, and at the same at odd ones.
        yield f"{where} has kernel 1 and a stride in the source, kernel {new.kernel} in the target"


def _added(where: str, conv: Conv, passes: Activation | None) -> Iterator[str]:
    """A convolution that the source lacks has to hand on what it gets."""
    if conv.stride != 1:
        yield f"{where} is new and reduces, so it cannot hand its input on"
    if conv.activation is not None and (passes, conv.activation) not in _PASSES:
        yield f"{where} is new, and its {conv.activation} would change what it is given"


def _gates(where: str, old: Gating | None, new: Gating, projected: bool) -> Iterator[str]:
    if old is None:
        if new.kind in _NEEDS_PROJECT and not projected:
            yield f"{where} is new, and no projection behind it makes its one half good"
        return
    yield from _equal(where, old, new, "kind", "sigmoid")
    if old.kind in ("se", "scse"):
        yield from _equal(where, old, new, "activation")
        yield from _at_least(where, old, new, "squeezed")
    if old.kind == "eca":  # its neighbours would be others
        yield from _equal(where, old, new, "channels")


def _shortcuts(where: str, old: tuple[int, Block], new: tuple[int, Block]) -> Iterator[str]:
    past, now = _shortcut(*old), _shortcut(*new)
    if past != now and (past, now) not in (("none", "resnet_d"), ("identity", "resnet_d")):
        yield f"{where} has the shortcut {past} in the source, {now} in the target"


def _shortcut(x: int, block: Block) -> str:
    if not block.has_skip(x):
        return "none"
    return "identity" if block.keeps_shape(x) else "resnet_d"


def _equal(where: str, old: object, new: object, *names: str) -> Iterator[str]:
    yield from _compared(where, old, new, names, smaller=False)


def _at_least(where: str, old: object, new: object, *names: str) -> Iterator[str]:
    yield from _compared(where, old, new, names, smaller=True)


def _compared(
    where: str, old: object, new: object, names: tuple[str, ...], smaller: bool
) -> Iterator[str]:
    for name in names:
        past, now = getattr(old, name), getattr(new, name)
        if now < past if smaller else now != past:
            yield f"{where} {name} is {past} in the source, {now} in the target".strip()
