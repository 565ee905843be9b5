"""`mbconv shrink`: a smaller network that loses as little as possible."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mbconv.cli.base import Duration, data_root, find_data, main, offline

if TYPE_CHECKING:
    from mbconv.shrinking.plan import Measure


@main.command()
@click.argument("model")
@click.option("--to", required=True, metavar="SHARE|MODEL", help="The share to keep, as 0.6; or "
              "the network that MODEL was grown from.")  # fmt: skip
@click.option("--by", type=click.Choice(["ms", "macs", "params"]), default="ms", show_default=True,
              help="Of what: milliseconds here, multiply-adds, parameters.")  # fmt: skip
@click.option("--data", metavar="DATA", help="Measure on these. [default: a run folder's own]")
@click.option("--out", type=click.Path(path_type=Path),
              help="Write the model file there; with --finetune a run folder.")  # fmt: skip
@click.option("--finetune", is_flag=True, help="Train further, taught by MODEL.")
@click.option("--epochs", type=click.IntRange(min=1), help="Of --finetune.")
@click.option("--budget", type=Duration(), help="Of --finetune: 90s, 5m, 1.5h.")
@click.option("--pictures", type=click.IntRange(min=1), default=256, show_default=True,
              help="How many held-out ones to measure on.")  # fmt: skip
@click.option("--multiple", type=click.IntRange(min=1), default=16, show_default=True,
              help="Leave channels in multiples of it.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--plan", "plan_only", is_flag=True, help="Show what would go; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON.")
@data_root
@offline
def shrink(
    model: str,
    to: str,
    by: "Measure",
    data: str | None,
    out: Path | None,
    finetune: bool,
    epochs: int | None,
    budget: float | None,
    pictures: int,
    multiple: int,
    seed: int,
    plan_only: bool,
    as_json: bool,
    data_root: Path | None,
) -> None:
    """Remove from MODEL what its answers miss least: blocks, channels, kernels' rims.

    \b
    mbconv shrink runs/pets --to 0.6 --plan
    mbconv shrink runs/pets --to 0.6 --finetune --out runs/pets-lean
    mbconv shrink big.safetensors --to small.safetensors --out back.safetensors
    """
    plan_only = plan_only or as_json
    if (out is None) != plan_only:
        raise click.UsageError("Give --out to shrink MODEL, or --plan to see what would go.")
    if not finetune and (epochs or budget):
        raise click.UsageError("--epochs and --budget say how long to --finetune; give that too.")
    from mbconv.files import check_writable
    from mbconv.report.network import show
    from mbconv.report.shrinking import compared, outcome, plan_table
    from mbconv.shrinking.run import finetune as train_further
    from mbconv.shrinking.run import shrink
    from mbconv.training.console import Reporter
    from mbconv.weights.file import save

    if out is not None:
        check_writable(out if finetune else out.parent)
        if finetune and (out / "config.json").exists():  # better now than after the measuring
            raise click.UsageError(f"{out} already holds a run; give another --out.")
    data = None if data is None else find_data(data, data_root)
    with Reporter().bar(1, "shrinking") as bar:
        done = shrink(
            model, data, to=to, by=by, pictures=pictures, multiple=multiple, seed=seed,
            tell=bar.notify,
        )  # fmt: skip
    plan = None if done.plan is None else done.plan.to_dict()
    if as_json:
        click.echo(json.dumps({**(plan or {}), "target": done.model.spec.to_dict()}, indent=1))
        return
    if plan is not None:
        show(plan_table(plan))
    params = sum(p.numel() for p in done.model.parameters())
    lines = outcome(plan, done.comparison, params)
    if out is not None and not finetune:
        save(done.model, out)
        click.echo(f"{out}: {done.model.spec.name}")
    click.echo("\n".join(lines))
    if finetune and out is not None:
        run, comparison = train_further(
            model, done, data, out, epochs=epochs, budget=budget, seed=seed
        )
        click.echo(f"{run.path}: {compared(comparison)}")
