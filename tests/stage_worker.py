"""The mbconv command on one thread, for tests that start or kill it; arguments as for mbconv.

With KILL=growth it is killed behind the growth of its network, before anything is saved; with
KILL=3 while it writes the third state. It says when its imports are done.
"""

import io
import os
import signal
from typing import Any

import torch

from mbconv.cli import main
from mbconv.training import session, setup
from mbconv.training.machine import Machine

KILL = os.environ.get("KILL", "")
ONE_THREAD = Machine(threads=1, workers=0)
_grow, _save = session.grow_if_due, torch.save
saves = 0


def killed_behind(*arguments: Any) -> None:
    before = arguments[1].model
    _grow(*arguments)
    if arguments[1].model is not before:
        os.kill(os.getpid(), signal.SIGKILL)


def cut_off(state: Any, opened: Any) -> None:
    global saves
    saves += 1
    if str(saves) == KILL:
        whole = io.BytesIO()
        _save(state, whole)
        opened.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        opened.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    _save(state, opened)


if __name__ == "__main__":
    setup.choose_machine = lambda *_: ONE_THREAD
    torch.set_num_threads(1)
    torch.save = cut_off
    if KILL == "growth":
        session.grow_if_due = killed_behind
    print("ready", flush=True)
    main()
