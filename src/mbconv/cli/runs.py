"""`mbconv runs` and `report`: what was trained, and how runs compare. Imports no torch."""

import json
from pathlib import Path

import click

from mbconv.cli.base import main

SORTS = ("date", "name", "network", "data", "score", "time", "state")


@main.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="[DIR]...")
@click.option("--sort", type=click.Choice(SORTS), default="date", show_default=True,
              help="Newest, best or longest first; names by the alphabet.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def runs(folders: tuple[Path, ...], sort: str, as_json: bool) -> None:
    """List the runs in folders (default: runs/): what, how well, how far, and what became of them.

    A score is that of the test split once a run is finished, and of the validation split before.
    """
    from mbconv.report.runs import list_runs, show_runs

    rows = list_runs(folders or (Path("runs"),), sort)
    if as_json:
        click.echo(json.dumps([row.to_dict() for row in rows], indent=2))
    elif rows:
        show_runs(rows)
    else:
        click.echo(f"no runs below {', '.join(map(str, folders)) or 'runs'}")


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="Of a comparison. [default: comparison.html]")  # fmt: skip
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write the report of one RUN again, or one page that compares several."""
    from mbconv.report.comparison import write_comparison
    from mbconv.report.run import write_report

    if len(runs) > 1:
        click.echo(f"comparison: {write_comparison(runs, out or Path('comparison.html'))}")
    elif out is not None:
        raise click.UsageError(
            "--out goes with several runs; the report of one lies in its folder."
        )
    else:
        click.echo(f"report: {write_report(runs[0])}")
