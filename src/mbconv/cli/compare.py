"""`mbconv compare`: networks side by side."""

from pathlib import Path
from typing import Any

import click

from mbconv.cli.base import Duration, data_root, find_data, main, offline


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--data", help="Train each of our networks on this DATA.")
@click.option(
    "--budget",
    type=Duration(),
    default="10m",
    show_default=True,
    help="Of each training: 90s, 10m, 1h.",
)
@click.option("--scratch", is_flag=True, help="Train without pretrained weights.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--resolution",
    type=click.IntRange(min=32),
    help="The one at which all are compared. [default: the smallest of their own]",
)
@click.option("--gap", is_flag=True, help="Twelve networks in plain PyTorch and with our kernels.")
@click.option(
    "--from",
    "first",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help="Measure nothing; make the page from this file and all others that follow.",
)
@click.option(
    "--no-memory",
    "memory",
    is_flag=True,
    default=True,
    flag_value=False,
    help="Leave out the peak memory, and whether a batch fits.",
)
@click.option("--threads", type=click.IntRange(min=1), help="On a CPU.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for records, page and runs. [default: comparisons/<date>]",
)
@data_root
@offline
def compare(
    names: tuple[str, ...], gap: bool, first: Path | None, out: Path | None, **wishes: Any
) -> None:
    """Compare what networks cost here and, with --data, what each learns in the same time.

    NAME is any MODEL; timm:NAME and torchvision:NAME are run as their library builds them and not
    trained. Writes every figure as a Record and one offline page.

    \b
    mbconv compare efficientnet_b0 mobilenetv3_large_100 timm:resnet50
    mbconv compare efficientnet_lite0 efficientnet_b0 --data photos --budget 10m
    mbconv compare --from comparisons/2026-01-31/records.jsonl other-machine.jsonl
    """
    _check(names, gap, first, wishes["data"])
    if first is not None:
        _from_files([first, *map(Path, names)], out or first.parent)
    else:
        _measured(names, gap, out, **wishes)


def _check(names: tuple[str, ...], gap: bool, first: Path | None, data: str | None) -> None:
    if gap and (names or data or first):
        raise click.UsageError(
            "--gap chooses its networks itself; give it no NAME, --data, --from."
        )
    if first and data:
        raise click.UsageError("--from measures nothing, so --data has no place beside it.")
    if not (gap or first or names):
        raise click.UsageError("Give NAMEs of networks, --gap, or --from and a file of records.")


def _from_files(paths: list[Path], out: Path) -> None:
    from mbconv.report.contest_lines import contest_lines
    from mbconv.report.costs_page import PAGE, read_files, write_page

    records = read_files(paths)
    page = write_page(records, out / PAGE)
    click.echo("\n".join([*contest_lines(records), f"page: {page}"]))


def _measured(
    names: tuple[str, ...],
    gap: bool,
    out: Path | None,
    *,
    memory: bool,
    threads: int | None,
    device: str,
    resolution: int | None,
    data: str | None,
    data_root: Path | None,
    **lesson: Any,
) -> None:
    import torch

    from mbconv.comparing.learning import Lesson
    from mbconv.comparing.run import Contest, compare, compare_gap, free_folder
    from mbconv.measure.bench import Plan
    from mbconv.measure.task import Way
    from mbconv.report.contest_lines import contest_lines
    from mbconv.report.costs_page import PAGE, RECORDS
    from mbconv.training.machine import find_device

    if threads is not None:
        torch.set_num_threads(threads)
    out, way = out or free_folder(), Way(device=find_device(device))
    if gap:
        records = compare_gap(out, way, resolution)
    else:
        found = find_data(data, data_root) if data else None
        contest = Contest(
            names=names,
            resolution=resolution,
            lesson=Lesson(data=found, device=device, **lesson) if found else None,
            plan=Plan(batches=(16,), ways=(way,), memory=memory),
        )
        records = compare(contest, out)
    click.echo("\n".join([*contest_lines(records), f"records: {out / RECORDS}",
                          f"page: {out / PAGE}"]))  # fmt: skip
