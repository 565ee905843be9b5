"""Ctrl-C and SIGTERM, by which schedulers end jobs, wait for the end of a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from mbconv.training.distributed import World


class Stepping(Protocol):
    """What steps: whether it is in the middle of one; its world hears that it is to stop."""

    stepping: bool
    world: World


@contextmanager
def interrupts_held(session: Stepping) -> Iterator[None]:
    """While the session steps, Ctrl-C waits for the step's end, so that no step is half done.

    So does SIGTERM. A second one does not wait. Only a program's main thread can ask for this;
    elsewhere nothing changes.
    """

    def handle(number: int, frame: object) -> None:
        if not session.stepping or session.world.asked:
            raise KeyboardInterrupt
        session.world.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
