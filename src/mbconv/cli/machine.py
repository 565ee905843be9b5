"""`mbconv doctor` and `cache clear`: the machine, and what is kept on it."""

import json

import click

from mbconv.cli.base import main


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def doctor(as_json: bool) -> None:
    """Show what this machine computes with, why, and what is missing."""
    from mbconv import kernels
    from mbconv.record import environment
    from mbconv.report.doctor import doctor_lines

    found = {"environment": environment(), "kernels": kernels.status()}
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n".join(doctor_lines(**found)))


@main.group()
def cache() -> None:
    """What saves work: audits of pictures, indexes of shards, shards and sets downloaded."""


@cache.command()
def clear() -> None:
    """Delete it."""
    from mbconv.data.cache import cache_dir, clear

    click.echo(f"freed {clear() / 1e6:.1f} MB in {cache_dir()}")
