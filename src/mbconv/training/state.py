"""What a run needs to go on where it stopped: one file, replaced as a whole, and the one before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mbconv.errors import UserError
from mbconv.files import atomic_path
from mbconv.training.loop import Trainer

NEWEST, BEFORE = "state.pt", "before.pt"  # in the run's folder `last`


def save_state(run: Path, trainer: Trainer, *, step: int, best: float, seconds: float) -> None:
    """Write `last/state.pt`: weights, moving average, optimizer and how far the run is.

    `step` is the next step's number, `best` the best validation accuracy so far, `seconds` the
    time spent. The weights are before the next step; no random state is needed, since each
    step seeds itself.
    """
    state = {
        "spec": trainer.model.spec.to_dict(),  # which the network may outgrow
        "model": trainer.model.state_dict(),
        "averaged": trainer.averaged.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "step": step,
        "best": best,
        "seconds": seconds,
    }
    folder = run / "last"
    newest = folder / NEWEST
    for left in folder.glob(f".{NEWEST}.*"):  # by a process that was killed while it wrote
        left.unlink(missing_ok=True)
    with atomic_path(newest) as path:
        with path.open("wb") as opened:  # given a path, torch would hide the system's error
            torch.save(state, opened)
        if newest.exists():
            newest.replace(folder / BEFORE)


def load_state(
    run: Path, device: str, make: Callable[[dict[str, Any] | None], Trainer]
) -> tuple[dict[str, Any], bool]:
    """Restore what `save_state` wrote; returns step, best and seconds.

    `make(spec)` gives the trainer to restore it into, for the network that was saved (None in
    states of old). Also returns whether the newest state was damaged and the one before it was
    taken. Both lead to the same end. Raises UserError where there is none that can be read.
    """
    folder, error = run / "last", None
    there = [folder / name for name in (NEWEST, BEFORE) if (folder / name).is_file()]
    if not there:
        raise UserError(
            f"{run} has nothing to resume: {folder / NEWEST} is missing. Start it anew."
        )
    for path in there:
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
            trainer = make(state.pop("spec", None))
            _restore(state, trainer)
        except UserError:
            raise
        except Exception as found:  # torch raises many kinds for a broken or foreign file
            error = error or found
            continue
        return state, path.name == BEFORE
    raise UserError(
        f"{there[0]} is broken or belongs to another network; start the run anew."
    ) from error


def _restore(state: dict[str, Any], trainer: Trainer) -> None:
    trainer.model.load_state_dict(state.pop("model"))
    trainer.averaged.load_state_dict(state.pop("averaged"))
    trainer.optimizer.load_state_dict(state.pop("optimizer"))
