"""`mbconv study`: grids of networks and recipes over seeds."""

from pathlib import Path
from typing import Any

import click

from mbconv.cli.base import Duration, data_root, find_data, main, offline


@main.command()
@click.argument("name", required=False)
@click.option("--data", metavar="DATA", help="The pictures that every run learns from.")
@click.option("--budget", type=Duration(), help="For all runs together: 30m, 2h.")
@click.option("--out", type=click.Path(path_type=Path),
              help="Study folder. [default: studies/<NAME>]")  # fmt: skip
@click.option("--model", metavar="MODEL",
              help="The base network, from fresh weights. [default: efficientnet_b0]")  # fmt: skip
@click.option("--resolution", type=click.IntRange(min=32), help="Side of the picture, in pixels.")
@click.option("--seeds", type=click.IntRange(min=1), help="Default: the study's, mostly 3.")
@click.option("--epochs", type=click.IntRange(min=1), help="Default: what the budget allows.")
@click.option("--recipe", metavar="NAME", help="Of arms that name none.")
@click.option("--set", "changes", multiple=True, metavar="PATH=VALUE",
              help="Change a field of every arm's recipe; repeatable.")  # fmt: skip
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="PATH=A,B",
    help="Every arm at each of these: epochs=5,20 or a recipe's field; repeatable.",
)
@click.option(
    "--arms", multiple=True, metavar="PATTERN",
    help="Only arms of such names, and what they are compared with; repeatable.",
)  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what would run, and how long.")
@click.option("--list", "only_list", is_flag=True, help="Name the ready-made studies.")
@data_root
@offline
def study(
    name: str | None,
    data: str | None,
    out: Path | None,
    only_plan: bool,
    only_list: bool,
    budget: float | None,
    data_root: Path | None,
    **options: Any,
) -> None:
    """Compare networks or recipes over seeds: a table with intervals and verdicts.

    NAME is a ready-made study (--list) or path/to/file.py:function. The same command goes on with
    a study that was stopped, and several of them may share one folder.
    """
    if only_list:
        click.echo("\n".join(_listed()))
        return
    if name is None or data is None:
        raise click.UsageError("Give a NAME (--list shows them) and --data, the pictures.")
    from mbconv.study.run import plan_study, run_study

    data = find_data(data, data_root)
    if only_plan:
        plan_study(name, data, budget=budget, **options)
        return
    run_study(name, data, out or Path("studies") / _folder(name), budget=budget, **options)


def _listed() -> list[str]:
    from mbconv.study.ready import STUDIES, question

    width = max(map(len, STUDIES))
    return [f"{name:{width}}  {question(study)}" for name, study in STUDIES.items()]


def _folder(name: str) -> str:
    """The function's name of file.py:function."""
    return name.rpartition(":")[2]
