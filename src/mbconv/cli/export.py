"""`mbconv export`: a network for other runtimes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mbconv.cli.base import data_root, find_data, main, offline

if TYPE_CHECKING:
    from mbconv.export.fastest import Goal
    from mbconv.export.run import Exported
    from mbconv.runtime.artifact import Precision, Runtime


class Batch(click.ParamType[int]):
    """A number of pictures, or `dynamic` (0)."""

    name = "batch"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if value in ("dynamic", 0):
            return 0
        if not str(value).isdecimal() or int(str(value)) == 0:
            self.fail(f"{value!r} is no batch; write a number, or dynamic.", param, ctx)
        return int(str(value))


@main.command()
@click.argument("model")
@click.option("--format", "runtime",
              type=click.Choice(["torch", "onnx", "openvino", "executorch", "all"]),
              help="all: each that is installed. [default: onnx]")  # fmt: skip
@click.option("--fastest", is_flag=True, help="Build and time all formats; keep the fastest.")
@click.option("--for", "goal", type=click.Choice(["latency", "throughput"]),
              help="What --fastest means: one picture soonest, or most a second. "
              "[default: latency]")  # fmt: skip
@click.option("--int8", is_flag=True, help="Quantise; calibrated on DATA's train split.")
@click.option("--bf16", is_flag=True, help="Compute in bfloat16; torch and openvino.")
@click.option("--data", metavar="DATA", help="Measure the artifact on these pictures.")
@click.option("--max-drop", type=click.FloatRange(min=0), default=0.5, show_default=True,
              help="Refuse an artifact that loses more, in points of accuracy.")  # fmt: skip
@click.option("--resolution", type=click.IntRange(min=32), help="Side of the picture, in pixels.")
@click.option("--batch", type=Batch(), default=0, metavar="B|dynamic", help="Pictures a call.")
@click.option("--embed-preprocessing/--no-embed-preprocessing", "pictures", default=None,
              help="Also write one that takes pictures. [default: onnx, openvino]")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="[default: beside MODEL]")
@data_root
@offline
def export(
    model: str,
    runtime: "Runtime | Literal['all'] | None",
    fastest: bool,
    goal: "Goal | None",
    int8: bool,
    bf16: bool,
    data: str | None,
    max_drop: float,
    resolution: int | None,
    batch: int,
    pictures: bool | None,
    out: Path | None,
    data_root: Path | None,
) -> None:
    """Write MODEL for torch, ONNX Runtime, OpenVINO or ExecuTorch, with labels and preprocessing.

    mbconv predict and mbconv eval take the result wherever they take a MODEL.
    """
    if int8 and bf16:
        raise click.UsageError("Give --int8 or --bf16, not both.")
    if goal and not fastest:
        raise click.UsageError("--for belongs to --fastest.")
    if fastest and (runtime or int8 or bf16 or batch):
        raise click.UsageError("--fastest chooses --format, --int8, --bf16 and --batch itself.")
    if fastest and data is None:
        raise click.UsageError("--fastest needs --data: pictures to hold accuracy against.")
    from mbconv.export.run import export_model
    from mbconv.runtime.artifact import Form

    shared: dict[str, Any] = {
        "data": None if data is None else find_data(data, data_root),
        "max_drop": max_drop,
        "resolution": resolution,
        "pictures": pictures,
    }
    precision: Precision = "int8" if int8 else "bfloat16" if bf16 else "float32"
    if fastest:
        done = _fastest(model, out, goal or "latency", shared)
    elif runtime == "all":
        _each(model, out, precision, batch or None, shared)
        return
    else:
        form = Form(runtime=runtime or "onnx", precision=precision, batch=batch or None)
        done = export_model(model, out, form=form, **shared)
    _show(done)


def _show(done: "Exported") -> None:
    from mbconv.report.export import export_lines

    click.echo("\n".join(export_lines(done.paths, done.comparisons, done.in_float, done.distilled)))
    for text in done.warnings:
        click.echo(f"warning: {text}", err=True)


def _each(
    model: str, out: Path | None, precision: "Precision", batch: int | None, shared: dict[str, Any]
) -> None:
    """Export for every runtime; what one of them refuses is said, and the others are written."""
    from mbconv.errors import UserError
    from mbconv.export.run import export_model
    from mbconv.runtime.artifact import SUFFIXES, Form

    refused: list[UserError] = []
    for runtime in SUFFIXES.values():
        form = Form(runtime=runtime, precision=precision, batch=batch)
        try:
            _show(export_model(model, out, form=form, **shared))
        except UserError as error:
            refused.append(error)
            click.echo(f"no {runtime}: {error}", err=True)
    if len(refused) == len(SUFFIXES):
        raise refused[0]


def _fastest(model: str, out: Path | None, goal: "Goal", shared: dict[str, Any]) -> "Exported":
    """Export the fastest build and print the table of all."""
    from mbconv.export.fastest import export_fastest
    from mbconv.report.export import fastest_lines
    from mbconv.training.console import Reporter

    with Reporter().bar(1, "fastest") as bar:
        best = export_fastest(model, out, goal=goal, tell=bar.notify, **shared)
    click.echo("\n".join(fastest_lines(best.records)))
    return best.exported
