"""What a run tells its user: a bar on a terminal or in a notebook, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

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
        self.started = time.perf_counter()

    def say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False)

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


class Bar:
    """One line of progress."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def update(self, done: int, total: int, note: str = "") -> None:
        self._progress.update(self._task, completed=done, total=total, note=note)
