"""A server in a process of its own, and requests as they go over the wire."""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from images import encoded, photo

BOUNDARY = b"----mbconv"
Files = list[tuple[str, tuple[str, bytes, str]]]


def png(seed: int) -> bytes:
    return encoded(photo(seed), "PNG")


def files(*contents: bytes) -> Files:
    """A form for the test client: 0.png, 1.png and so on."""
    return [("files", (f"{n}.png", c, "image/png")) for n, c in enumerate(contents)]


@dataclass
class Server:
    """A running server; `stop` sends a signal and returns (exit code, what it printed)."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def stop(self, signal: int) -> tuple[int, str]:
        self.process.send_signal(signal)
        printed, _ = self.process.communicate(timeout=30)
        return self.process.returncode, printed


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Server]:
    """`mbconv serve MODEL OPTIONS` on a free port; ended by force if a test has not done it."""
    code = "from mbconv.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(model), "--port", "0", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
            assert found, line + process.stdout.read()
            yield Server(process, int(found[1]))
        finally:
            if process.poll() is None:
                process.kill()


def form(content: bytes, name: str = "a.png") -> bytes:
    """A request that uploads one file."""
    head = f'Content-Disposition: form-data; name="files"; filename="{name}"'.encode()
    body = b"--%s\r\n%s\r\n\r\n%s\r\n--%s--\r\n" % (BOUNDARY, head, content, BOUNDARY)
    return (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=%s\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (BOUNDARY, len(body), body)
    )


def answer(client: socket.socket) -> tuple[int, str]:
    """Status and body of what comes back; (0, "") where the connection is closed without."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = client.recv(1 << 16)
        if not chunk:
            return 0, ""
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
    while len(body) < length:
        body += client.recv(1 << 16)
    return int(head.split()[1]), body.decode()


def seconds_until_closed(client: socket.socket) -> float:
    started = time.monotonic()
    assert client.recv(1) == b""
    return time.monotonic() - started
