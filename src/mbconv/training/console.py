"""What a run tells its user: a bar on a terminal or in a notebook, plain lines elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


class Reporter:
    """Prints lines and shows progress; on a log every line stands for itself."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(highlight=False, soft_wrap=True, quiet=quiet)
        self.live = self.console.is_terminal or self.console.is_jupyter

    def say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False)

    def metrics(self, line: dict[str, Any], last: int) -> None:
        """One line on an epoch of `last`, or on the head's fit."""
        if line["phase"] == "head":
            what = f"head on frozen features, {_network(line)}{line['resolution']} px"
        else:
            what = (
                f"epoch {line['epoch']}/{last}, {_network(line)}{line['resolution']} px: loss "
                f"{line['train_loss']:.3f}, waited {100 * line['data_wait']:.0f}% for data"
            )
        self.say(
            f"{line['seconds']:5.0f} s  {what}, {line['img_per_s']:.0f} img/s; validation "
            f"{100 * line['val_ema']:.1f}% (raw weights {100 * line['val_raw']:.1f}%)"
        )

    @contextmanager
    def bar(self, total: int, text: str) -> Iterator["Bar"]:
        """A bar over `total` items; where there is no terminal nothing is drawn."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(
            *columns, console=self.console, transient=True, disable=not self.live
        ) as progress:
            yield Bar(progress, progress.add_task(text, total=total, note=""))


def _network(line: dict[str, Any]) -> str:
    """Which network it was, where that changes."""
    return f"{line['network']}, " if "network" in line else ""


class Bar:
    """One line of progress."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def update(self, done: int, total: int, note: str = "") -> None:
        self._progress.update(self._task, completed=done, total=total, note=note)

    def notify(self, what: str, done: int, total: int) -> None:
        """As `update`, in the order in which sources of data tell it."""
        self.update(done, total, what)
