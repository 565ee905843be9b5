"""Files behind a URL, whole on this machine: resumed where they broke off, checked, then renamed.

http and https need nothing but Python; other schemes (s3, gs, az) go through fsspec and the
package that it needs for each, with the extra `remote` for s3.
"""

import errno
import hashlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple, cast
from urllib.parse import urlsplit

from mbconv.data.cache import cache_dir
from mbconv.data.source import Notify
from mbconv.errors import UserError
from mbconv.files import write_text

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without an answer
_TRIES = 3  # each goes on where the one before it broke off


class _Body(NamedTuple):
    """What is being received: from byte `start` on of `total`; `version` names the content."""

    stream: IO[bytes]
    start: int
    total: int | None
    version: str | None


def cached(url: str, progress: Notify | None = None, what: str = "download") -> Path:
    """The file behind `url` in the cache folder, downloaded if it is not there yet.

    Once there it is used without asking the server again; `mbconv cache clear` removes it.
    """
    parent, _, name = url.rpartition("/")
    place = hashlib.sha256(parent.encode()).hexdigest()[:16]
    target = cache_dir() / "downloads" / place / name
    if not target.exists():
        download(url, target, progress=progress, what=what)
    return target


def download(
    url: str,
    target: Path,
    *,
    md5: str | None = None,
    progress: Notify | None = None,
    what: str = "download",
) -> None:
    """Write what is behind `url` to `target`, whole or not at all.

    What an earlier try received stays in `target.part` and is gone on with, if the server can and
    still has the same content. `progress` hears of `what` in bytes. One process downloads, others
    wait for it. Raises UserError where the URL cannot be reached or read, the content's MD5 is
    not `md5`, the disk is full or downloads are forbidden.
    """
    from filelock import FileLock

    from mbconv.weights.hub import is_offline  # brings torch, beside a download no matter

    if is_offline():
        raise UserError(
            f"{url} is not on this machine, and --offline (or HF_HUB_OFFLINE) forbids downloading."
        )
    part = target.with_name(target.name + ".part")
    with _explained(url, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if target.exists():
                return
            _receive(url, part, progress, what)
            _verify(url, part, md5)
            part.replace(target)
            _version_file(part).unlink(missing_ok=True)


def _receive(url: str, part: Path, progress: Notify | None, what: str) -> None:
    """Fill `part`; a connection that breaks off is taken up again."""
    for attempt in range(1, _TRIES + 1):
        try:
            if _receive_once(url, part, progress, what):
                return
        except (http.client.HTTPException, ConnectionError, TimeoutError):
            if attempt == _TRIES:
                raise
    raise UserError(
        f"{url} broke off {_TRIES} times, {part.stat().st_size:,} bytes having come. Run the "
        "command again to go on from there."
    )


def _receive_once(url: str, part: Path, progress: Notify | None, what: str) -> bool:
    """Whether all of it has come now."""
    have = part.stat().st_size if part.exists() else 0
    version = None
    with suppress(OSError, ValueError):
        version = json.loads(_version_file(part).read_text(encoding="utf-8"))
    with _opened(url, have if version else 0, version) as body:
        write_text(_version_file(part), json.dumps(body.version))
        with part.open("r+b" if body.start else "wb") as file:
            file.seek(body.start)
            file.truncate()
            done = body.start
            while block := body.stream.read(_CHUNK):
                file.write(block)
                done += len(block)
                if progress is not None:
                    progress(what, done, body.total or done)
    return body.total is None or done == body.total


@contextmanager
def _opened(url: str, start: int, version: str | None) -> Iterator[_Body]:
    """The content from `start` on, or from its beginning if it is no longer `version`."""
    if urlsplit(url).scheme in ("http", "https"):
        headers = {"Range": f"bytes={start}-", "If-Range": str(version)} if start else {}
        with _http(urllib.request.Request(url, headers=headers)) as answer:
            length = answer.headers.get("Content-Length")
            begun = start if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0
            total = begun + int(length) if length else None
            tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            weak = tag is not None and tag.startswith("W/")  # a server resumes from no such tag
            yield _Body(cast(IO[bytes], answer), begun, total, None if weak else tag)
    else:
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
        info = system.info(path)
        now = str([info.get(key) for key in ("size", "ETag", "mtime", "LastModified", "created")])
        begun = start if version == now else 0
        with system.open(path, "rb") as stream:
            stream.seek(begun)
            yield _Body(stream, begun, info.get("size"), now)


@contextmanager
def _http(request: urllib.request.Request) -> Iterator[http.client.HTTPResponse]:
    """Answer to a request; a range that lies behind the end is asked for from the beginning."""
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        answer = urllib.request.urlopen(request.full_url, timeout=_TIMEOUT)
    with answer:
        yield answer


def _verify(url: str, part: Path, md5: str | None) -> None:
    if md5 is None:
        return
    with part.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
    if digest.hexdigest() != md5:
        part.unlink()
        _version_file(part).unlink(missing_ok=True)
        raise UserError(
            f"{url} is not what its publisher describes: its MD5 is {digest.hexdigest()}, not "
            f"{md5}. The download was removed; try again, or ask whoever runs the server."
        )


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


@contextmanager
def _explained(url: str, target: Path) -> Iterator[None]:
    """Turns what networks and disks raise into sentences."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{url} needs a package that is not installed ({error.name or error}): pip install "
            f'"mbconv[remote]" for s3; fsspec names the one for {urlsplit(url).scheme}.'
        ) from error
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(
            f"{url} was refused: the server answered {error.code}. Check the URL."
        ) from error
    except Exception as error:  # the packages behind the schemes have kinds of their own
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(f"The disk is full: {target} was not written. Free some.") from error
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url} could not be downloaded ({reason}). Check the URL, the network and the proxy."
        ) from error
