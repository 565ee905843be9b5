"""`mbconv info`: networks as data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mbconv.cli.base import main, offline

if TYPE_CHECKING:
    from mbconv.arch.spec import Spec


@main.command()
@click.argument("model", required=False)
@click.option("--resolution", type=click.IntRange(min=1), help="Side of the picture, in pixels.")
@click.option("--phi", type=float, help="Scale up, or down where it is negative.")
@click.option(
    "--mode",
    type=click.Choice(["formula", "table"]),
    default="formula",
    show_default=True,
    help="What phi means: the paper's formula, or B0 to B8.",
)
@click.option("--width", type=float, help="Multiply the channels.")
@click.option("--depth", type=float, help="Multiply the blocks of each stage.")
@click.option("--divisor", type=click.IntRange(min=1), help="Round channels to multiples of it.")
@click.option("--output-stride", type=int, help="Dilate instead of reducing further: 8 or 16.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field of the spec or of all blocks; repeatable.",
)
@click.option("--save", type=click.Path(path_type=Path), help="Write the spec, a MODEL, there.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
@click.option("--skips", is_flag=True, help="Which share of the blocks can skip, B0 to B7.")
@offline
def info(
    model: str | None,
    resolution: int | None,
    as_json: bool,
    skips: bool,
    save: Path | None,
    **shape: Any,
) -> None:
    """Show a network: its blocks and what each costs. Without MODEL: all networks.

    \b
    mbconv info efficientnet_b0 --phi -1.5
    mbconv info efficientnet_b0 --set gate=null --set activation=relu6 --save my.json
    """
    from mbconv.arch.zoo import get_spec, list_specs
    from mbconv.files import write_text
    from mbconv.report import network
    from mbconv.weights.spec import find_spec

    if skips:
        specs = [get_spec(f"efficientnet_b{i}") for i in range(8)]
        if as_json:
            click.echo(json.dumps(network.skip_rows(specs), indent=2))
        else:
            network.show(network.skip_table(specs))
    elif model is None:
        specs = [get_spec(name) for name in list_specs()]
        if as_json:
            click.echo(json.dumps(network.zoo_rows(specs), indent=2))
        else:
            network.show(network.zoo_table(specs))
    else:
        spec = _shaped(find_spec(model), **shape)
        if save is not None:
            named = spec.replace(
                name=save.stem,
                source=f"made from {find_spec(model).name}",
                resolution=resolution or spec.resolution,
            )
            write_text(save, named.to_json() + "\n")
            click.echo(f"wrote {save}; train it: mbconv train DIR --model {save}", err=True)
        if as_json:
            click.echo(json.dumps(network.info_dict(spec, resolution), indent=2))
        else:
            network.show(network.network_table(spec, resolution))


def _shaped(
    spec: "Spec", changes: tuple[str, ...], output_stride: int | None, **scaling: Any
) -> "Spec":
    """`spec` scaled, then with its fields changed, then with an output stride."""
    from mbconv.arch.scale import scale, with_output_stride

    spec = scale(spec, **scaling)
    for change in changes:
        field, given, value = change.partition("=")
        if not given:
            raise click.UsageError(f"--set {change}: write FIELD=VALUE, as in activation=relu6.")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value  # a word
        spec = spec.replace(**{field.strip(): parsed})
    return with_output_stride(spec, output_stride) if output_stride is not None else spec
