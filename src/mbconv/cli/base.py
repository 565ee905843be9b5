"""The group that all commands belong to, and what several of them share."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mbconv.errors import UserError

if TYPE_CHECKING:
    from mbconv.data.source import Dataset


class Commands(click.Group):
    """Turns a user's mistake into one sentence and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            ctx.exit(130)


class Duration(click.ParamType[float]):
    """`90`, `90s`, `5m`, `1.5h`: seconds as a float."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value).strip())
        if not match or float(match[1]) == 0:
            self.fail(f"{value!r} is no time; write 90s, 5m or 1.5h.", param, ctx)
        return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


class Size(click.ParamType[int]):
    """`256MB`, `1.5GB`, `64MiB`: bytes as an int."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(?i)(\d+(?:\.\d+)?) *([KMGT]?)(i?)B?", str(value).strip())
        if not match or float(match[1]) == 0:
            self.fail(f"{value!r} is no size; write 256MB, 1GB or 64MiB.", param, ctx)
        power = " KMGT".index(match[2].upper() or " ")
        return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mbconv")
def main() -> None:
    """MBConv networks that are efficient in milliseconds and megabytes.

    MODEL is a network's name (mbconv info lists them), timm:NAME, torchvision:NAME or
    hf-hub:OWNER/NAME, a spec.json, a model file (ours or Keras's), a run folder or a repository.

    DATA is a folder of class folders or of splits, a list (.csv, .parquet), tar shards (one, a
    folder, a pattern train-{000..009}.tar, also behind a URL), hf:NAME, or imagenette, imagewoof,
    cifar10, flowers102, pets, cars.
    """


def _go_offline(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        os.environ["HF_HUB_OFFLINE"] = "1"


offline = click.option(
    "--offline", is_flag=True, expose_value=False, callback=_go_offline,
    help="Download nothing; also HF_HUB_OFFLINE=1.",
)  # fmt: skip

trust = click.option(
    "--trust", is_flag=True, help="Load a .pt2 from elsewhere, although it can run code."
)

data_root = click.option(
    "--data-root", type=click.Path(path_type=Path), metavar="DIR",
    help="Where sets that DATA names lie, or go. [default: the cache folder]",
)  # fmt: skip


def find_data(data: str, data_root: Path | None, quiet: bool = False) -> str:
    """DATA, or the folder of the set that it names, downloaded if need be."""
    from mbconv.data import named
    from mbconv.training.console import Reporter

    if data not in named.SETS or Path(data).exists():
        return data
    with Reporter(quiet).bar(1, data) as bar:
        return str(named.find(data, data_root, progress=bar.notify))


def open_dataset(data: str, data_root: Path | None) -> "Dataset":
    """The dataset of DATA, whether or not it is fit to train on."""
    from mbconv.data.source import scan
    from mbconv.training.console import Reporter

    data = find_data(data, data_root)
    with Reporter().bar(1, "data") as bar:
        return scan(data, training=False, progress=bar.notify)
