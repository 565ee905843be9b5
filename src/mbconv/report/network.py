"""What `mbconv info` shows: a network's stages and blocks with their cost, and the skip table."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mbconv.arch.block import Block
from mbconv.arch.cost import Cost, Operator, cost
from mbconv.arch.scale import small_map
from mbconv.arch.spec import Spec

if TYPE_CHECKING:  # rich takes half of the time that `mbconv info` may take; --json needs none
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

WIDTH = 100  # columns that the tables need
_MIB = 2**20
_BYTES = (
    "out: outputs of all convolutions; kept: what plain PyTorch keeps for backward.",
    "Both for one picture in fp32. MACs leave out batch norm and biases.",
)
_GATES = {None: "", "se": " SE", "sse": " sSE", "scse": " scSE", "eca": " ECA"}


def info_dict(spec: Spec, resolution: int | None = None) -> dict[str, Any]:
    """Everything `mbconv info --json` prints: sums, operators and the spec itself, as plain data.

    Bytes are those of one picture in fp32, see `mbconv.arch.cost.Cost`. `warning` is a sentence
    where the last map is very small, or None. Raises UserError for a resolution that is no
    positive whole number.
    """
    return {
        "name": spec.name,
        "hash": spec.hash,
        "source": spec.source,
        "blocks": spec.num_blocks,
        "skippable": spec.skippable,
        "warning": small_map(spec, resolution or spec.resolution),
        **cost(spec, resolution).to_dict(),
        "spec": spec.to_dict(),
    }


def network_table(spec: Spec, resolution: int | None = None) -> "Table":
    """Stages and blocks with kernel, stride, channels, output size, params, MACs and memory."""
    from rich.table import Table

    figures = cost(spec, resolution)
    table = plain_table(
        Table(title=_title(spec, figures), caption=_caption(spec, figures), caption_justify="left"),
        ("module", "operator", "skip"),
        ("kernel", "stride", "channels", "output", "params", "MMACs", "out MiB", "kept MiB"),
    )
    operators = {op.name: op for op in figures.operators}
    _add_row(table, "stem", "Conv", [operators["stem"]], operators["stem"])
    table.add_section()
    for s, stage in enumerate(spec.stages):
        inside = [op for op in figures.operators if op.name.startswith(f"stages.{s}.")]
        label = f"{len(stage.blocks)} block{'s' if len(stage.blocks) > 1 else ''}"
        _add_row(table, f"stage{s + 1}", label, inside, style="bold")
        for b, block in enumerate(stage.blocks):
            parts = [op for op in inside if op.name.startswith(f"stages.{s}.{b}.")]
            largest = max(parts, key=lambda op: (op.kernel, op.stride))
            _add_row(table, f"stages.{s}.{b}", _label(block), parts, largest,
                     skip=_skip(block, parts[0].in_channels))  # fmt: skip
        table.add_section()
    head = operators["head.conv"]
    _add_row(table, "head", "Conv", [head], head)
    _add_row(table, "", f"{spec.pooling} pool", [operators["head.pool"]])
    if spec.head_hidden is not None:
        _add_row(table, "", "Linear", [operators["head.hidden"]])
    rest = [operators[name] for name in ("head.dropout", "head.classifier") if name in operators]
    _add_row(table, "", "Linear", rest)
    table.add_section()
    _add_row(table, "total", "", figures.operators, style="bold")
    return table


def zoo_rows(specs: Iterable[Spec]) -> list[dict[str, Any]]:
    """For each network, at its own resolution: what it costs, and where it was published."""
    rows = []
    for spec in specs:
        figures = cost(spec)
        rows.append(
            {
                "name": spec.name,
                "resolution": figures.resolution,
                "params": figures.params,
                "macs": figures.macs,
                "activation_bytes": figures.activation_bytes,
                "saved_bytes": figures.saved_bytes,
                "source": spec.source,
            }
        )
    return rows


def zoo_table(specs: Iterable[Spec]) -> "Table":
    """`zoo_rows` for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = plain_table(
        Table(caption=Text("\n".join(_BYTES)), caption_justify="left"),
        ("network",),
        ("px", "params", "MMACs", "out MiB", "kept MiB"),
    )
    for row in zoo_rows(specs):
        table.add_row(Text(row["name"]), str(row["resolution"]), f"{row['params']:,}",
                      _short(row["macs"] / 1e6, 1), _short(row["activation_bytes"] / _MIB, 1),
                      _short(row["saved_bytes"] / _MIB, 1))  # fmt: skip
    return table


def skip_rows(specs: Iterable[Spec]) -> list[dict[str, Any]]:
    """For each network: how many of its blocks can carry an identity shortcut."""
    return [
        {
            "name": spec.name,
            "blocks": spec.num_blocks,
            "skippable": spec.skippable,
            "without": spec.num_blocks - spec.skippable,
            "ratio": math.floor(spec.skippable / spec.num_blocks * 1e4 + 0.5) / 1e4,
        }
        for spec in specs
    ]


def skip_table(specs: Iterable[Spec]) -> "Table":
    """`skip_rows` for a terminal: the table of the forum thread on EfficientNet, for B0 to B7."""
    from rich.table import Table
    from rich.text import Text

    table = plain_table(
        Table(title="Blocks that can carry an identity shortcut", title_justify="left"),
        ("network",),
        ("blocks", "with skip", "without", "ratio"),
    )
    for row in skip_rows(specs):
        table.add_row(Text(row["name"]), str(row["blocks"]), str(row["skippable"]),
                      str(row["without"]), f"{row['ratio']:.4f}")  # fmt: skip
    return table


def show(*items: "RenderableType") -> None:
    """Print to standard output; a pipe gets `WIDTH` columns, a terminal those that it has."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(WIDTH, console.width))
    console.print(*items)


def plain_table(table: "Table", left: Iterable[str], right: Iterable[str]) -> "Table":
    """`table` in this project's style, with columns aligned to the left, then to the right."""
    from rich import box

    table.box = box.SIMPLE_HEAD
    table.padding = 0
    table.pad_edge = False
    for header in left:
        table.add_column(header)
    for header in right:
        table.add_column(header, justify="right")
    return table


def _title(spec: Spec, figures: Cost) -> "Text":
    from rich.text import Text  # a plain string would be read as markup, and names are anybody's

    return Text(
        f"{spec.name} at {figures.resolution}x{figures.resolution}: {figures.params:,} parameters, "
        f"{figures.macs / 1e6:,.1f} MMACs, {spec.num_blocks} blocks, {spec.skippable} can skip"
    )


def _caption(spec: Spec, figures: Cost) -> "Text":
    from rich.text import Text

    lines = [
        *_BYTES,
        "skip: an identity shortcut, or D for ResNet-D's pooling and 1x1 convolution.",
        f"spec {spec.hash}" + (f", {spec.source}" if spec.source else ""),
    ]
    warning = small_map(spec, figures.resolution)
    if warning is not None:
        lines.append(warning)
    return Text("\n".join(lines))


def _label(block: Block) -> str:
    """The block's name in its paper: MBConv6, Fused-MBConv4, UIB4 with its depthwise kernels."""
    if block.kind == "fused" and block.unexpanded:
        return "Conv" + _GATES[block.gate]
    name = {"mbconv": "MBConv", "fused": "Fused-MBConv", "uib": "UIB"}[block.kind]
    kernels = f" {block.start_kernel}+{block.kernel}" if block.kind == "uib" else ""
    return f"{name}{block.expand:g}{kernels}{_GATES[block.gate]}"


def _skip(block: Block, in_channels: int) -> str:
    if not block.has_skip(in_channels):
        return ""
    return "yes" if block.keeps_shape(in_channels) else "D"


def _add_row(
    table: "Table",
    name: str,
    operator: str,
    parts: Sequence[Operator],
    main: Operator | None = None,
    *,
    skip: str = "",
    style: str = "",
) -> None:
    """One line: the sums of `parts`; kernel and stride are those of `main`."""
    last = parts[-1]
    table.add_row(
        name,
        operator,
        skip,
        f"{main.kernel}x{main.kernel}" if main else "",
        str(main.stride) if main else "",
        f"{parts[0].in_channels}->{last.out_channels}",
        f"{last.height}x{last.width}",
        f"{sum(op.params for op in parts):,}",
        _short(sum(op.macs for op in parts) / 1e6, 1),
        _short(sum(op.activation_bytes for op in parts) / _MIB, 2),
        _short(sum(op.saved_bytes for op in parts) / _MIB, 2),
        style=style,
    )


def _short(value: float, decimals: int) -> str:
    return f"{value:,.{decimals if value < 1000 else 0}f}"
