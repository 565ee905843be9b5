"""Ctrl-C and SIGTERM, by which schedulers end jobs, wait for the end of a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Stepping(Protocol):
    """What steps: whether it is in the middle of one, and whether it is to stop behind it."""

    stepping: bool
    stop_asked: bool


@contextmanager
def interrupts_held(session: Stepping) -> Iterator[None]:
    """While the session steps, Ctrl-C waits for the step's end, so that no step is half done.

    So does SIGTERM. A second one does not wait. Only a program's main thread can ask for this;
    elsewhere nothing changes.
    """

    def handle(number: int, frame: object) -> None:
        if not session.stepping or session.stop_asked:
            raise KeyboardInterrupt
        session.stop_asked = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
