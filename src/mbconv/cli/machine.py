"""`mbconv doctor`, `data check` and `cache clear`: the machine, and folders of pictures."""

import json
from pathlib import Path

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
def data() -> None:
    """Look after folders of pictures."""


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--full", is_flag=True, help="Check all files, however many.")
@click.option("--json", "as_json", is_flag=True, help="The audit as JSON.")
def check(folder: Path, full: bool, as_json: bool) -> None:
    """Audit a folder: unreadable files, duplicates, label conflicts, sizes, imbalance."""
    from mbconv.data.audit import audit
    from mbconv.data.source import scan
    from mbconv.report.audit import print_audit

    found = audit(scan(folder, training=False), full=full).to_dict()
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_audit(found)


@main.group()
def cache() -> None:
    """The audit's memory of pictures it has seen."""


@cache.command()
def clear() -> None:
    """Delete it."""
    from mbconv.data.cache import cache_dir, clear

    click.echo(f"freed {clear() / 1e6:.1f} MB in {cache_dir()}")
