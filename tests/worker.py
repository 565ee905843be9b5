"""One process of a run; started by torchrun with the folder of model and data, the run, a failure.

In the middle of the second epoch the second process fails once: not at all, by `kill`, or with
a `sentence`. Then a file tells that it has.
"""

import os
import signal
import sys
from pathlib import Path

from mbconv.cli import main
from mbconv.data.loader import Batch
from mbconv.errors import UserError
from mbconv.training import setup
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine

EPOCHS = 4
OPTIONS = [
    "--epochs", str(EPOCHS), "--resolution", "32", "--set", "batch_size=7", "--set",
    "regularization.dropout=0", "--set", "transfer.frozen_stages=1",
]  # fmt: skip
ONE_THREAD = Machine(threads=1, workers=0)

_step = Trainer.step


def fail_once(self: Trainer, batch: Batch, index: int, seed: int) -> float:
    told = Path(sys.argv[2] + ".failed")
    if sys.argv[3] != "none" and index == 9 and self.world.rank == 1 and not told.exists():
        told.touch()
        if sys.argv[3] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("the cellar is flooded.")
    return _step(self, batch, index, seed)


if __name__ == "__main__":
    setup.choose_machine = lambda *_: ONE_THREAD
    Trainer.step = fail_once  # type: ignore[method-assign]
    folder, out = Path(sys.argv[1]), sys.argv[2]
    model, data = (str(folder / name) for name in ("small.safetensors", "data"))
    main(["train", data, "--model", model, "--out", out, *OPTIONS])
