"""`mbconv bench`: what networks cost here."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mbconv.cli.base import main, offline

if TYPE_CHECKING:
    from mbconv.measure.bench import Plan
    from mbconv.measure.task import Mode
    from mbconv.record import Record

_DTYPES = ("float32", "bfloat16", "float16")


class Batches(click.ParamType[tuple[int, ...] | None]):
    """`1,16,64`; `max` (None) doubles until memory is full; `none` is empty."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | None:
        if value is None or isinstance(value, tuple):
            return value
        if value == "max":
            return None
        words = [] if value == "none" else str(value).split(",")
        if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
            self.fail(f"{value!r} is no list of batch sizes; write 1,16, max or none.", param, ctx)
        return tuple(sorted({int(word) for word in words}))


def _measuring(command: Any) -> Any:
    """The options that say how networks are run."""
    options = (
        click.option("--resolution", type=click.IntRange(min=1),
                     help="Side of the picture, in pixels. [default: each network's own]"),
        click.option("--batch", "batches", type=Batches(), default="4,16", show_default=True,
                     help="Sizes for inference; max: as many as fit; none."),
        click.option("--train-batch", "train_batches", type=Batches(), default="8",
                     show_default=True, help="Sizes for training."),
        click.option("--dtype", "dtypes", type=click.Choice(_DTYPES), multiple=True,
                     default=("float32",), show_default=True, help="Repeat to compare several."),
        click.option("--layout", "layouts", type=click.Choice(["channels_last", "contiguous"]),
                     multiple=True, default=("channels_last",), show_default=True),
        click.option("--compile", "compiled", is_flag=True, help="torch.compile as well."),
        click.option("--threads", type=click.IntRange(min=1), help="On a CPU."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps."),
        click.option("--no-memory", "memory", is_flag=True, default=True, flag_value=False,
                     help="Leave out the peak memory, and whether a batch fits."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_measuring
@click.option("--ops", is_flag=True, help="Where the time of a pass goes instead.")
@click.option("--ops-training", is_flag=True, help="Where that of a training step goes.")
@click.option("--json", "as_json", is_flag=True, help="The records as JSON.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.jsonl",
              help="Write the records there.")  # fmt: skip
@offline
def bench(
    names: tuple[str, ...],
    ops: bool,
    ops_training: bool,
    as_json: bool,
    out: Path | None,
    **wishes: Any,
) -> None:
    """Measure what networks cost on this machine: time, memory, multiply-adds.

    NAME is any MODEL; timm:NAME and torchvision:NAME are run as their library builds them.

    \b
    mbconv bench efficientnet_b0 timm:resnet50
    mbconv bench runs/hats --dtype float32 --dtype bfloat16 --compile --out hats.jsonl
    """
    from mbconv.measure.bench import Bench
    from mbconv.report.bench import bench_lines
    from mbconv.training.console import Reporter

    plan = _plan(**wishes)
    if ops or ops_training:
        _operators(names, plan, "training" if ops_training else "inference", as_json, out)
        return
    with Reporter().bar(1, "starting") as bar:
        records = list(Bench(plan, bar.notify).records(names))
    _show(records, bench_lines, as_json, out)


def _operators(
    names: tuple[str, ...], plan: "Plan", mode: "Mode", as_json: bool, out: Path | None
) -> None:
    from mbconv.measure.operators import operator_records
    from mbconv.report.operators import operator_lines

    if len(names) > 1:
        raise click.UsageError("--ops takes one network apart at a time.")
    records = list(operator_records(names[0], plan, mode))
    _show(records, operator_lines, as_json, out)


def _plan(
    *,
    dtypes: tuple[str, ...],
    layouts: tuple[str, ...],
    compiled: bool,
    threads: int | None,
    device: str,
    **wishes: Any,
) -> "Plan":
    import torch

    from mbconv.measure.bench import Plan
    from mbconv.measure.task import Way
    from mbconv.training.machine import find_device

    if threads is not None:
        torch.set_num_threads(threads)
    found = find_device(device)
    ways = tuple(
        Way(dtype=dtype, channels_last=layout == "channels_last", compiled=c, device=found)
        for dtype in dtypes
        for layout in layouts
        for c in ((False, True) if compiled else (False,))
    )
    return Plan(ways=ways, **wishes)


def _show(
    records: "list[Record]",
    lines: "Callable[[Sequence[Record]], list[str]]",
    as_json: bool,
    out: Path | None,
) -> None:
    """Write the records where they are wanted, and print them as they are or as `lines`."""
    from mbconv.record import write_records

    if out is not None:
        write_records(out, records)
        click.echo(f"wrote {out}", err=True)
    if as_json:
        click.echo(json.dumps([r.to_dict() for r in records], indent=2))
    else:
        click.echo("\n".join(lines(records)))
