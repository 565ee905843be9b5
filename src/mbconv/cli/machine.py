"""`mbconv doctor` and `cache clear`: the machine, and what is kept on it."""

import json

import click

from mbconv.cli.base import main


@main.command()
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def doctor(model: str | None, as_json: bool) -> None:
    """Show what this machine computes with, why, and what is missing.

    With MODEL also which of its blocks the fused kernels compute in training.
    """
    from mbconv import kernels
    from mbconv.record import environment
    from mbconv.report.doctor import doctor_lines

    found = {"environment": environment(), "kernels": kernels.status()}
    if model is not None:
        from mbconv.nn.fusable import obstacles
        from mbconv.weights.model import create_model

        found["blocks"] = obstacles(create_model(model))
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
