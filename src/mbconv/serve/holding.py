"""The memory that uploads hold, and the answer to who comes when there is no room."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException

from mbconv.report.words import size
from mbconv.serve.limits import Limits

RETRY_AFTER = 1  # seconds; a full queue of small pictures is empty again by then


def busy() -> HTTPException:
    """503, to be raised: the client may come again."""
    sentence = f"The server has no room for more pictures; try again in {RETRY_AFTER} second."
    return HTTPException(503, sentence, {"Retry-After": str(RETRY_AFTER)})


class Holding:
    """Counts the bytes of uploads that are in memory. Used by the event loop's thread alone."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = 0

    @contextmanager
    def request(self) -> Iterator["Held"]:
        """One request's share, given back at the end of the block."""
        held = Held(self)
        try:
            yield held
        finally:
            held.clear()


class Held:
    """One request's share of what is held."""

    def __init__(self, holding: Holding) -> None:
        self._holding = holding
        self._bytes = 0

    def add(self, number: int) -> None:
        """Raises HTTPException: 413 for a request that is too large, 503 where all are."""
        limits = self._holding.limits
        if self._bytes + number > limits.request:
            sentence = f"The request is larger than {size(limits.request)}; send fewer pictures."
            raise HTTPException(413, sentence)
        if self._holding.bytes + number > limits.held:
            raise busy()
        self._bytes += number
        self._holding.bytes += number

    def clear(self) -> None:
        self._holding.bytes -= self._bytes
        self._bytes = 0
