"""`mbconv grow`: a larger network that computes what a smaller one does."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mbconv.cli.base import main, offline

if TYPE_CHECKING:
    from mbconv.growing.plan import Mode

_MODES = ("exact", "nearest", "transplant", "convolutions")


@main.command()
@click.argument("model")
@click.option("--to", "target", required=True, metavar="MODEL", help="Name, spec or model whose "
              "shape it is to get.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write the model file there.")
@click.option("--mode", type=click.Choice(_MODES), default="exact", show_default=True,
              help="exact keeps all answers; nearest too, towards the nearest network that allows "
              "it; transplant moves the tensors that fit, convolutions those without batch "
              "norm.")  # fmt: skip
@click.option("--resolution", type=click.IntRange(min=1),
              help="Show it pictures of this side, in pixels. [default: as MODEL]")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--plan", "plan_only", is_flag=True, help="Show which tensor starts from which.")
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON.")
@offline
def grow(
    model: str,
    target: str,
    out: Path | None,
    mode: "Mode",
    resolution: int | None,
    seed: int,
    plan_only: bool,
    as_json: bool,
) -> None:
    """Grow MODEL into a wider or deeper network that gives the same answers, to train it further.

    \b
    mbconv grow efficientnet_b0 --to efficientnet_b1 --plan
    mbconv grow runs/pets --to efficientnet_lite1 --out lite1.safetensors
    """
    plan_only = plan_only or as_json
    if (out is None) != plan_only:
        raise click.UsageError("Give --out FILE to grow MODEL, or --plan to see what would happen.")
    from mbconv.growing.plan import plan
    from mbconv.growing.target import target_spec
    from mbconv.report.growing import outcome, plan_table
    from mbconv.report.network import show
    from mbconv.weights.spec import find_spec

    if plan_only:
        source = find_spec(model)
        made = plan(source, target_spec(target, source), mode).to_dict()
        if as_json:
            click.echo(json.dumps(made, indent=1))
        else:
            show(plan_table(made))
        return
    from mbconv.growing.transfer import difference, grow
    from mbconv.weights.file import save
    from mbconv.weights.model import load

    assert out is not None
    network = load(model)
    grown = grow(network, target, mode=mode, resolution=resolution, seed=seed)
    made = plan(network.spec, grown.spec, mode).to_dict()
    apart = difference(network, grown) if made["exact"] else None
    save(grown, out)
    click.echo(f"{out}: {outcome(made, apart)}")
    side, native = grown.preprocessing.resolution, grown.spec.resolution
    if side != native:
        click.echo(f"It sees pictures at {side} px as before; it is made for {native} px, which "
                   "--resolution sets here, or in training.")  # fmt: skip
