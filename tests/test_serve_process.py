"""The command: what it prints, how it ends, and clients that behave badly on the wire."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mbconv.errors import UserError
from mbconv.serve.run import serve
from server import Server, answer, form, png, seconds_until_closed, serving

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals end the server")

PICTURE = png(1)


@pytest.fixture(scope="module")
def server(small_model: Path) -> Iterator[Server]:
    with serving(small_model, "--timeout", "2s", "--max-upload", "1MB") as server:
        yield server


def ask(server: Server, request: bytes) -> tuple[int, str]:
    with server.connect() as client:
        client.sendall(request)
        return answer(client)


def test_hostile_clients_leave_it_unharmed(server: Server) -> None:
    good = form(PICTURE)
    with server.connect() as silent, server.connect() as head, server.connect() as body:
        head.sendall(b"POST /predict HTTP/1.1\r\nHo")
        body.sendall(good[:-100])
        for _ in range(3):
            with server.connect() as gone:
                gone.sendall(good[:-100])
        assert ask(server, b"\x16\x03\x01\x02garbage\r\n\r\n")[0] == 400
        status, text = ask(server, form(bytes(3_000_000)))
        assert (status, "larger than 1.0 MB" in text) == (413, True)
        status, text = ask(server, good)
        assert (status, json.loads(text)["results"][0]["error"]) == (200, None)
        status, text = answer(body)
        assert (status, "did not arrive within 2 seconds" in text) == (408, True)
        assert seconds_until_closed(head) < 10
        assert seconds_until_closed(silent) < 10
    assert ask(server, good)[0] == 200


def test_an_upload_that_never_ends_is_cut_off(server: Server) -> None:
    with server.connect() as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        piece = b"%x\r\n%s\r\n" % (1 << 20, bytes(1 << 20))
        started = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - started < 20:
                client.sendall(piece)
        assert time.monotonic() - started < 20
    assert ask(server, form(PICTURE))[0] == 200


@pytest.mark.parametrize(
    "how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_what_is_in_flight_is_answered_before_the_end(
    small_model: Path, how: signal.Signals
) -> None:
    request = form(PICTURE)
    with serving(small_model) as server, server.connect() as client, server.connect() as idle:
        assert ask(server, request)[0] == 200
        client.sendall(request[:-100])
        time.sleep(0.3)
        server.process.send_signal(how)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                server.connect().close()
            except ConnectionError:  # refused, or reset while the port closes
                break
        client.sendall(request[-100:])
        status, text = answer(client)
        assert (status, json.loads(text)["results"][0]["error"]) == (200, None)
        printed, _ = server.process.communicate(timeout=20)
        assert seconds_until_closed(idle) < 1
    assert server.process.returncode == 0
    assert printed.splitlines()[-1] == "stopped; what was in flight was answered"
    assert "Traceback" not in printed


def test_mistakes_get_a_sentence(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code = "from mbconv.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, "serve", str(small_model), "--port", str(port)],
            capture_output=True, text=True,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: Another program has port {port} of 127.0.0.1; choose another --port, or "
        "--port 0 for a free one.\n"
    )
    with pytest.raises(UserError, match="--host is no address of this machine"):
        serve(small_model, host="192.0.2.1", port=0)
    with pytest.raises(UserError, match="--host x y is no address"):
        serve(small_model, host="x y", port=0)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r'needs uvicorn.*: pip install "mbconv\[serve\]"'):
        serve(small_model)
