"""Where a run can be watched beside its own metrics.jsonl: TensorBoard, Weights & Biases.

A tracker never stops a run: one that fails is named once and left out from then on. A resumed run
tells no step twice.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from mbconv.errors import UserError

Figures = dict[str, float]
NAMES = ("tensorboard", "wandb", "none")
EVENTS = "tensorboard"  # folder in the run's


class Tracker(Protocol):
    """What hears of a run. `step` counts the steps that are done, 0 before the first."""

    def log(self, step: int, figures: Figures) -> None:
        """Figures by name, as in `train/loss`."""

    def saved(self) -> None:
        """A state to resume from, with all that was logged so far, is on the disk."""

    def close(self) -> None: ...


class Trackers:
    """All trackers of a run. `say` tells the user of one that failed."""

    def __init__(self, trackers: Sequence[Tracker], say: Callable[..., None]) -> None:
        self._trackers = list(trackers)
        self._say = say
        self._before = (0, 0.0)  # pictures and seconds of the epoch at the step before

    def step(self, step: int, figures: Figures, pictures: int, seconds: float) -> None:
        """After a step: its figures; pictures and seconds since its epoch began."""
        if not self._trackers:
            return
        past = self._before if pictures > self._before[0] else (0, 0.0)
        self._before = (pictures, seconds)
        rate = (pictures - past[0]) / max(1e-9, seconds - past[1])
        self.log(step, {f"train/{name}": value for name, value in figures.items()}
                 | {"train/img_per_s": rate})  # fmt: skip

    def epoch(self, step: int, line: dict[str, Any]) -> None:
        """After an epoch: its line of metrics."""
        named = {"val_ema": "val/top1", "val_raw": "val/top1_raw_weights",
                 "train_loss": "epoch/train_loss", "img_per_s": "epoch/img_per_s",
                 "data_wait": "epoch/data_wait", "resolution": "epoch/resolution",
                 "params": "epoch/parameters"}  # fmt: skip
        self.log(step, {name: float(line[key]) for key, name in named.items() if key in line}
                 | {"epoch/number": float(line["epoch"])})  # fmt: skip

    def log(self, step: int, figures: Figures) -> None:
        self._each(lambda tracker: tracker.log(step, figures))

    def saved(self) -> None:
        self._each(lambda tracker: tracker.saved())

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())
        self._trackers = []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:  # whatever a foreign library raises
                self._trackers.remove(tracker)
                name = type(tracker).__name__
                self._say(f"  {name} stopped ({error}); metrics.jsonl goes on", style="yellow")


def open_trackers(
    run: Path, config: dict[str, Any], step: int, say: Callable[..., None]
) -> Trackers:
    """The trackers that the config names, for a run of which `step` steps are done.

    Named are none: TensorBoard, where it is installed. Raises UserError where one that is named is
    not installed, or nobody is logged in.
    """
    names = list(config.get("trackers") or ())
    for name in names:
        require(name)
    if not names and importlib.util.find_spec("tensorboard"):
        names = ["tensorboard"]
    made: dict[str, Callable[..., Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
    }
    return Trackers([made[name](run, config, step) for name in names if name != "none"], say)


class TensorBoard:
    """Events in the run's folder `tensorboard`, for `tensorboard --logdir runs`."""

    def __init__(self, run: Path, config: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What a killed process wrote beyond the state that is gone on from is to be passed over.
        purge = step + 1 if step else None
        self._writer = SummaryWriter(str(run / EVENTS), purge_step=purge, flush_secs=30)
        if not step:
            text = json.dumps(config, indent=2)
            self._writer.add_text("config", f"```json\n{text}\n```", 0)

    def log(self, step: int, figures: Figures) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def saved(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run on wandb.ai or a server of one's own; WANDB_PROJECT and WANDB_MODE have their meaning.

    What was sent cannot be taken back, so steps are sent once they are saved.
    """

    def __init__(self, run: Path, config: dict[str, Any], step: int) -> None:
        import wandb

        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "mbconv"),
                name=run.resolve().name,
                id=config["id"],
                resume="allow",
                dir=str(run),
                config=config,
                mode="offline" if offline else None,
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"wandb cannot start ({' '.join(str(error).split())}). Log in (wandb login), or "
                "keep the figures here with WANDB_MODE=offline."
            ) from error
        self._waiting: list[tuple[int, Figures]] = []

    def log(self, step: int, figures: Figures) -> None:
        self._waiting.append((step, figures))

    def saved(self) -> None:
        for step, figures in self._waiting:
            self._run.log(figures, step=step)
        self._waiting = []

    def close(self) -> None:
        with suppress(Exception):
            self._run.finish()


def require(name: str) -> None:
    """UserError where a tracker's package is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"The tracker {name} is not installed: pip install 'mbconv[{name}]'")
