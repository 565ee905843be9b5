"""`mbconv data check` and `data pack`: pictures before anything is trained on them."""

import json
from pathlib import Path

import click

from mbconv.cli.base import Size, data_root, main, offline, open_dataset


@main.group()
def data() -> None:
    """Look after pictures."""


@data.command()
@click.argument("folder", metavar="DATA")
@click.option("--full", is_flag=True, help="Check all files, however many.")
@click.option("--json", "as_json", is_flag=True, help="The audit as JSON.")
@data_root
@offline
def check(folder: str, full: bool, as_json: bool, data_root: Path | None) -> None:
    """Audit DATA: unreadable files, duplicates, label conflicts, sizes, imbalance."""
    from mbconv.data.audit import audit
    from mbconv.report.audit import print_audit

    found = audit(open_dataset(folder, data_root), full=full).to_dict()
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_audit(found)


@data.command()
@click.argument("source", metavar="DATA")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--shard-size", type=Size(), default="256MB", show_default=True)
@data_root
@offline
def pack(source: str, out: Path, shard_size: int, data_root: Path | None) -> None:
    """Write DATA as tar shards into OUT, a new folder: few large files instead of many small.

    The pictures' own bytes in webdataset's layout. OUT is DATA for every other command.
    """
    from mbconv.data.pack import pack
    from mbconv.training.console import Reporter

    dataset = open_dataset(source, data_root)
    with Reporter().bar(len(dataset), "pack") as bar:
        shards = pack(dataset, out, shard_size=shard_size, progress=bar.notify)
    size = sum(shard.stat().st_size for shard in shards)
    click.echo(f"{out}: {len(dataset):,} pictures in {len(shards)} shards, {size / 1e6:,.1f} MB")
