"""`mbconv recipe`, `lr-find`, `fit-batch` and `replay`: how networks learn."""

import inspect
import json
from pathlib import Path
from typing import Any

import click

from mbconv.cli.base import main, offline

_MODEL = click.option("--model", default="efficientnet_lite0", show_default=True, metavar="MODEL")
_RESOLUTION = click.option(
    "--resolution", type=click.IntRange(min=32), help="Side of the picture, in pixels."
)
_RECIPE = click.option("--recipe", metavar="NAME", help="How to train; recipe list shows them.")
_SET = click.option(
    "--set", "changes", multiple=True, metavar="PATH=VALUE",
    help="Change a field of the recipe, as in optimizer.clip=1; repeatable.",
)  # fmt: skip
_JSON = click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")


@main.group()
def recipe() -> None:
    """The named ways to train."""


@recipe.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Names and descriptions as JSON.")
def list_recipes(as_json: bool) -> None:
    """Name each recipe and say what it is for."""
    from mbconv.report.recipes import recipe_list_lines
    from mbconv.training.recipes import RECIPES

    texts = {name: inspect.getdoc(make) or "" for name, make in RECIPES.items()}
    click.echo(json.dumps(texts, indent=2) if as_json else "\n".join(recipe_list_lines(texts)))


@recipe.command()
@click.argument("name")
@click.option("--pictures", type=click.IntRange(min=1), default=10_000, show_default=True,
              help="Number of training pictures.")  # fmt: skip
@click.option("--resolution", type=click.IntRange(min=32), default=224, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), help="Default: the recipe's own.")
@_SET
@_JSON
def show(
    name: str,
    pictures: int,
    resolution: int,
    epochs: int | None,
    changes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show a recipe with all its fields, under the paths that --set takes."""
    from mbconv.report.recipes import recipe_lines
    from mbconv.training.override import changed
    from mbconv.training.recipes import find_recipe

    make = find_recipe(name)
    data = changed(make(pictures, resolution, epochs=epochs), changes).to_dict()
    text = inspect.getdoc(make) or ""
    click.echo(json.dumps(data, indent=2) if as_json else "\n".join(recipe_lines(data, text)))


@main.command(name="lr-find")
@click.argument("data", type=click.Path(path_type=Path))
@_MODEL
@_RESOLUTION
@_RECIPE
@_SET
@click.option("--low", type=click.FloatRange(min=0, min_open=True), default=1e-6, show_default=True)
@click.option("--high", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--steps", type=click.IntRange(min=2), default=100, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--plot", type=click.Path(path_type=Path), default=Path("lr-find.html"),
              show_default=True, help="Write the curve there, as one HTML page.")  # fmt: skip
@offline
def lr_find(
    data: Path, model: str, low: float, high: float, steps: int, plot: Path, **wishes: Any
) -> None:
    """Find a learning rate for DATA: steps at ever higher rates, until the loss blows up."""
    if low >= high:
        raise click.UsageError(f"--low {low:g} is not below --high {high:g}.")
    from mbconv.report.range_test import range_test_lines, write_range_test
    from mbconv.training.console import Reporter
    from mbconv.training.range_test import range_test
    from mbconv.training.setup import Settings

    found = range_test(
        model, data, Settings(**wishes), low=low, high=high, number=steps, reporter=Reporter()
    ).to_dict()
    write_range_test(found, plot)
    click.echo("\n".join([*range_test_lines(found), f"plot: {plot}"]))


@main.command(name="fit-batch")
@click.argument("model")
@_RESOLUTION
@_RECIPE
@_SET
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32",
              show_default=True, help="What the network computes in.")  # fmt: skip
@_JSON
@offline
def fit_batch(model: str, as_json: bool, **wishes: Any) -> None:
    """Work out the largest batch that training MODEL has memory for on this machine's CPU."""
    from mbconv.report.fit_batch import fit_batch_lines
    from mbconv.training.fit_batch import fit_batch

    fit = fit_batch(model, **wishes).to_dict()
    click.echo(json.dumps(fit, indent=2) if as_json else "\n".join(fit_batch_lines(fit)))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
def replay(run: Path) -> None:
    """Compute the step at which RUN stopped being finite once more, layer by layer."""
    from mbconv.report.replay import replay_lines
    from mbconv.training.replay import replay

    step, found = replay(run)
    lines = replay_lines(step, found.loss, found.outputs, found.gradients)
    click.echo("\n".join([*lines, found.culprit()]))
