"""What a run needs to go on where it stopped: one file, replaced as a whole."""

from pathlib import Path
from typing import Any

import torch

from mbconv.errors import UserError
from mbconv.files import atomic_path
from mbconv.training.loop import Trainer


def save_state(run: Path, trainer: Trainer, *, step: int, best: float, seconds: float) -> None:
    """Write `last/state.pt`: weights, moving average, optimizer and how far the run is.

    `step` is the next step's number, `best` the best validation accuracy so far, `seconds` the
    time spent. The weights are before the next step; no random state is needed, since each
    step seeds itself.
    """
    state = {
        "model": trainer.model.state_dict(),
        "averaged": trainer.averaged.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "step": step,
        "best": best,
        "seconds": seconds,
    }
    with atomic_path(run / "last" / "state.pt") as path:
        try:
            torch.save(state, path)
        except RuntimeError as error:  # torch hides the system's error
            raise UserError(
                f"{run / 'last' / 'state.pt'} could not be written ({error}); the state before "
                "is still there. Is the disk full?"
            ) from error


def load_state(run: Path, trainer: Trainer) -> dict[str, Any]:
    """Restore what `save_state` wrote into `trainer`; returns step, best and seconds."""
    path = run / "last" / "state.pt"
    if not path.is_file():
        raise UserError(f"{run} has nothing to resume: {path} is missing. Start it anew.")
    try:
        state = torch.load(path, map_location=trainer.machine.device, weights_only=True)
        trainer.model.load_state_dict(state.pop("model"))
        trainer.averaged.load_state_dict(state.pop("averaged"))
        trainer.optimizer.load_state_dict(state.pop("optimizer"))
    except Exception as error:  # torch raises many kinds for a broken or foreign file
        raise UserError(
            f"{path} is broken or belongs to another network; start the run anew."
        ) from error
    rest: dict[str, Any] = state
    return rest
