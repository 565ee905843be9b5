"""A Hugging Face hub on loopback: the routes that the real client uses to read and write models.

Written from what the client sends and the public description of git LFS. It serves from memory,
keeps what is uploaded, and can be told to misbehave.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_SUFFIX = ".safetensors"


@dataclass
class Repository:
    files: dict[str, bytes]
    gated: bool = False
    private: bool = False

    @property
    def commit(self) -> str:
        content = repr(sorted(self.files.items())).encode()
        return hashlib.sha1(content).hexdigest()


@dataclass
class Hub:
    """The server's state. `cut` breaks the next download of weights off after so many bytes;
    `damage` flips a byte in what is served; `token` is the only one that may write."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    cut: int | None = None
    damage: bool = False
    token: str = "secret"
    stored: dict[str, bytes] = field(default_factory=dict)  # LFS objects by SHA-256
    log: list[str] = field(default_factory=list)  # "GET /path range"
    url: str = ""

    def __enter__(self) -> "Hub":
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    # -- reading -------------------------------------------------------------------------------

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._begin()
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            if repository := self._find(match[1], match[2]):
                siblings = [{"rfilename": name} for name in repository.files]
                about = {"id": match[1], "sha": repository.commit, "siblings": siblings}
                self._json(about | {"private": repository.private, "tags": [], "downloads": 0})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            if repository := self._find(match[1], match[2]):
                self._json([self._entry(n, c) for n, c in repository.files.items()])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if repository := self._find(match[1], match[2]):
                self._file(repository, match[3])
        else:
            self._error(404, "EntryNotFound")

    def _find(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._error(401, "RepoNotFound")
        elif repository.gated:
            self._error(401 if "Authorization" not in self.headers else 403, "GatedRepo")
        elif unquote(revision) not in ("main", repository.commit):
            self._error(404, "RevisionNotFound")
        else:
            return repository
        return None

    @staticmethod
    def _entry(name: str, content: bytes) -> dict[str, Any]:
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry = {"type": "file", "path": name, "size": len(content), "oid": git}
        if name.endswith(LFS_SUFFIX):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        return entry

    def _file(self, repository: Repository, name: str) -> None:
        if name not in repository.files:
            self._error(404, "EntryNotFound")
            return
        content = repository.files[name]
        entry = self._entry(name, content)
        etag = entry.get("lfs", entry)["oid"]
        if self.hub.damage and name.endswith(LFS_SUFFIX):
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = 0
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, content = int(wanted[1]), content[: int(wanted[2] or len(content)) + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Length", str(len(content) - start))
        if wanted:
            size = len(repository.files[name])
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut is not None and name.endswith(LFS_SUFFIX):
            self.wfile.write(content[start : start + self.hub.cut])
            self.hub.cut = None
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(content[start:])

    # -- writing -------------------------------------------------------------------------------

    def do_POST(self) -> None:
        path = self._begin()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._error(401, "")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", path):
            files = [
                {"path": f["path"], "shouldIgnore": False, "oid": None,
                 "uploadMode": "lfs" if f["path"].endswith(LFS_SUFFIX) else "regular"}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            self._json({"files": files})
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = json.loads(body)["objects"]
            for each in objects:
                href = f"{self.hub.url}/lfs/{each['oid']}"
                each["actions"] = {"upload": {"href": href, "header": {}}}
            self._json({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._error(404, "EntryNotFound")

    def do_PUT(self) -> None:
        path = self._begin()
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.stored[path.removeprefix("/lfs/")] = content
        self._json({})

    def _create(self, about: dict[str, Any]) -> None:
        name = f"{about['organization']}/{about['name']}" if about.get("organization") else ""
        name = name or f"me/{about['name']}"
        if name in self.hub.repositories:
            self._json({"url": f"{self.hub.url}/{name}", "error": "exists"}, status=409)
            return
        private = bool(about.get("private")) or about.get("visibility") == "private"
        self.hub.repositories[name] = Repository({}, private=private)
        self._json({"url": f"{self.hub.url}/{name}"})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = self.hub.repositories[name].files
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.hub.stored[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
        commit = self.hub.repositories[name].commit
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self._json({"success": True, "commitUrl": url, "commitOid": commit})

    # -- both ----------------------------------------------------------------------------------

    def _begin(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        return path

    def _json(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
