"""What can be removed from a network, and the spec without it: pure data, no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from mbconv.arch.block import Block, Conv
from mbconv.arch.spec import Spec, Stage

Kind = Literal["block", "channels", "kernel"]
HEAD = "head"

_KEPT = (7 / 8, 3 / 4, 1 / 2)  # shares of an expansion's channels that are tried
_LEAST_KERNEL = 3


@dataclass(frozen=True, kw_only=True)
class Change:
    """One removal: a block (after: 0), channels of its expansion or of the head, a kernel's rim.

    `module` is `stages.<s>.<b>` or `head`, as the network that it is removed from names it.
    """

    module: str
    kind: Kind
    before: int
    after: int


def changes(spec: Spec, multiple: int = 16) -> Iterator[Change]:
    """All that can be tried on a network; channels are left in multiples of `multiple`.

    Whole blocks go where their shortcut is the identity and the stage keeps another one. Channels
    go from expansions, unless ECA mixes them by their order, and from the head's convolution.
    Depthwise kernels go down by two.
    """
    for s, b, x, block in spec.blocks():
        module = f"stages.{s}.{b}"
        if block.has_skip(x) and block.keeps_shape(x) and len(spec.stages[s].blocks) > 1:
            yield Change(module=module, kind="block", before=1, after=0)
        if not block.unexpanded and block.gate != "eca":
            width = block.expanded(x)
            least = block.squeezed(x) if block.gate in ("se", "scse") else 1
            for after in _levels(width, max(least, multiple), multiple):
                yield Change(module=module, kind="channels", before=width, after=after)
        depthwise = any(part.name == "depthwise" for part in block.parts(x))
        if depthwise and block.kernel > _LEAST_KERNEL:
            before = block.kernel
            yield Change(module=module, kind="kernel", before=before, after=before - 2)
    if spec.pooling != "concat":
        width = spec.head_channels
        for after in _levels(width, multiple, multiple):
            yield Change(module=HEAD, kind="channels", before=width, after=after)


def smaller(spec: Spec, change: Change) -> Spec:
    """The spec after one removal."""
    if change.module == HEAD:
        return replace(spec, head_channels=change.after)
    s, b = place(change.module)
    blocks = list(spec.stages[s].blocks)
    if change.kind == "block":
        del blocks[b]
    elif change.kind == "kernel":
        blocks[b] = replace(blocks[b], kernel=change.after)
    else:
        x = next(x for stage, number, x, _ in spec.blocks() if (stage, number) == (s, b))
        blocks[b] = narrower(blocks[b], x, change.after)
    stages = list(spec.stages)
    stages[s] = Stage(blocks=tuple(blocks))
    return replace(spec, stages=tuple(stages))


def narrower(block: Block, in_channels: int, width: int) -> Block:
    """The block with an expanded map of `width` channels; what its gate squeezes to stays."""
    ratio = width / in_channels
    plain = 1 < ratio <= 32 and round(in_channels * ratio) == width
    made = replace(
        block,
        expand=ratio if plain else 1.0,
        expand_from=None if plain else width,
        expand_divisor=1,
    )
    squeezed = block.squeezed(in_channels)
    if block.gate in ("se", "scse") and made.squeezed(in_channels) != squeezed:
        share = min(1.0, (squeezed + 0.5) / width)
        made = replace(made, gate_base="expanded", gate_ratio=share, gate_divisor=1)
    return made


def place(module: str) -> tuple[int, int]:
    """stages.1.2 -> (1, 2)."""
    _, stage, number = module.split(".")
    return int(stage), int(number)


def module_after(module: str, removed: Change) -> str:
    """What a module is called once the change was made; blocks behind a removed one move up."""
    if removed.kind != "block" or module == HEAD:
        return module
    (s, b), (stage, number) = place(module), place(removed.module)
    return f"stages.{s}.{b - 1}" if s == stage and b > number else module


def parts_of(spec: Spec, module: str) -> dict[str, Conv]:
    """The convolutions of a block, by name."""
    s, b = place(module)
    x, block = next((x, block) for i, j, x, block in spec.blocks() if (i, j) == (s, b))
    return {part.name: part for part in block.parts(x) if isinstance(part, Conv)}


def _levels(width: int, least: int, multiple: int) -> list[int]:
    found = {round(width * share / multiple) * multiple for share in _KEPT}
    return sorted((w for w in found if least <= w < width), reverse=True)
