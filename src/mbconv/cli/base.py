"""The group that all commands belong to, and what several of them share."""

import os
import re
from typing import Any

import click

from mbconv.errors import UserError


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


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mbconv")
def main() -> None:
    """MBConv networks that are efficient in milliseconds and megabytes.

    MODEL is a network's name (mbconv info lists them), timm:NAME, torchvision:NAME or
    hf-hub:OWNER/NAME, a spec.json, a model file (ours or Keras's), a run folder or a repository.
    """


def _go_offline(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        os.environ["HF_HUB_OFFLINE"] = "1"


offline = click.option(
    "--offline", is_flag=True, expose_value=False, callback=_go_offline,
    help="Download nothing; also HF_HUB_OFFLINE=1.",
)  # fmt: skip
