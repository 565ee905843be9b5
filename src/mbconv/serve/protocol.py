"""uvicorn's HTTP, which waits for a request's head no longer than the limit says."""

from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def impatient(seconds: float) -> type[HttpToolsProtocol]:
    """The protocol class: a connection whose head takes longer than `seconds` is closed.

    uvicorn itself limits only the time between requests.
    """

    class Impatient(HttpToolsProtocol):
        _timer: TimerHandle | None = None

        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            self._stop_timer()
            self._start_timer()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._stop_timer()
            super().on_headers_complete()

        def _start_timer(self) -> None:
            self._timer = self.loop.call_later(seconds, self.transport.close)

        def _stop_timer(self) -> Any:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Impatient
