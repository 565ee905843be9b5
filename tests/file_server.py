"""Files over HTTP on loopback, with ranges and validators, that can be told to break off."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Files:
    """What is served, by path. `cut` breaks that many answers off in their middle; `ranges` says
    whether parts can be asked for; `log` has "/path range" for each request."""

    files: dict[str, bytes]
    cut: int = 0
    ranges: bool = True
    url: str = ""
    log: list[str] = field(default_factory=list)


@contextmanager
def served(files: dict[str, bytes]) -> Iterator[Files]:
    state = Files(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            state.log.append(f"{self.path} {asked}".strip())
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            tag = f'"{hashlib.sha256(content).hexdigest()[:12]}"'
            start = 0
            if state.ranges and asked and self.headers.get("If-Range") == tag:
                match = re.fullmatch(r"bytes=(\d+)-", asked)
                assert match, asked
                start = int(match[1])
                if start >= len(content):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest = content[start:]
            if state.cut:
                state.cut -= 1
                rest = rest[: len(rest) // 2]
            self.wfile.write(rest)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
