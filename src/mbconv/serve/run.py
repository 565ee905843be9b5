"""The public door: open the network, take the port, serve until told to stop."""

import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mbconv.errors import UserError
from mbconv.measure.memory import keep_freed_memory
from mbconv.report.words import count
from mbconv.runtime.backend import installed
from mbconv.runtime.predictor import Predictor
from mbconv.serve.limits import Limits

_NEEDS = ("fastapi", "httptools", "prometheus_client", "python_multipart", "uvicorn")
_CONNECTIONS = 512  # beside those that wait for an answer
_LOCAL = ("127.0.0.1", "::1", "localhost")


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    allow_urls: bool = False,
    trust: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve `model`, whatever Predictor takes, until SIGTERM or Ctrl-C; then finish what is there.

    `port` 0 takes a free one. Raises UserError where the extra is not installed, the address
    cannot be taken, or the model not be opened.
    """
    for module in _NEEDS:
        installed(module, "serve", "mbconv serve")
    import uvicorn

    from mbconv.serve.app import create_app
    from mbconv.serve.pages import model_name, runtime_name
    from mbconv.serve.protocol import impatient

    limits = limits or Limits()
    with _taken(host, port) as listener:
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # warns of broken forms
        keep_freed_memory(in_threads=True)
        with ThreadPoolExecutor(1) as opening:  # its OpenMP helpers end with it
            predictor = opening.submit(Predictor, model, trust=trust).result()
        config = uvicorn.Config(
            create_app(predictor, limits=limits, allow_urls=allow_urls),
            http=impatient(limits.seconds), ws="none", lifespan="on",
            log_config=None, log_level="error", access_log=False, server_header=False,
            limit_concurrency=limits.queue + _CONNECTIONS,
            timeout_graceful_shutdown=int(2 * limits.seconds),
        )  # fmt: skip
        listener.listen(config.backlog)
        address = _url(host, listener.getsockname()[1])
        classes = count(len(predictor.labels), "class", "classes")
        say(f"{model_name(predictor)}, {classes}, {runtime_name(predictor)}: {address}")
        say(f"API: {address}docs; Ctrl-C stops")
        if host not in _LOCAL:
            say("warning: whoever reaches this address can use it; it asks for no password.")
        with _quiet_signals():
            uvicorn.Server(config).run([listener])
        say("stopped; what was in flight was answered")


@contextmanager
def _taken(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that has the address, before the network is loaded in vain."""
    where = f"port {port} of {host}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host} is no address ({error.strerror}).") from error
    with listener:
        try:
            if sys.platform != "win32":  # there it would allow to take a port that is in use
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            raise UserError(_why_not(error, where)) from error
        yield listener


def _why_not(error: OSError, where: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Another program has {where}; choose another --port, or --port 0 for a free one."
    if error.errno == errno.EACCES:
        return f"The system does not give {where} to this user; choose a --port above 1023."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where.capitalize()} is not to be had: --host is no address of this machine."
    return f"{where.capitalize()} is not to be had: {error.strerror}."


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """uvicorn stops at these and then raises them once more; to have stopped is no failure."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
