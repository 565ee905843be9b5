"""Writing files so that a reader sees the old content or the new, never half of it."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mbconv.errors import UserError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s name when the block succeeds.

    Raises UserError where the disk is full or the folder cannot be written; the temporary file
    is removed then and an older file of that name stays as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _as_user_error(error, path) from error
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner may read
        temporary.replace(path)
    except OSError as error:
        raise _as_user_error(error, path) from error
    except RuntimeError as error:  # which torch.save raises about the system's
        if isinstance(error.__context__, OSError):
            raise _as_user_error(error.__context__, path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    # In ASCII, so that names of files whose bytes are no UTF-8 survive.
    write_text(path, json.dumps(value, indent=2) + "\n")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits; the file need not fit into memory."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class Busy(UserError):
    """Somebody else holds a lock."""


@contextmanager
def locked(path: Path, busy: str, wait: float = 2.0) -> Iterator[None]:
    """Hold the lock file `path`; the system frees it when the process ends, however it ends.

    Raises Busy with the sentence `busy` where somebody else holds it for more than `wait` seconds
    (below one or two, `is_locked` elsewhere may be in the way), UserError where it cannot be
    written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=wait)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise Busy(busy) from error
    except OSError as error:
        raise _as_user_error(error, path) from error
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file `path`; where that cannot be asked: no."""
    if not path.exists():
        return False
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def check_writable(folder: Path) -> None:
    """UserError unless `folder` can be written to, or be made where it is not there yet."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise _as_user_error(NotADirectoryError(errno.ENOTDIR, f"{there} is a file"), folder)
    if not os.access(there, os.W_OK | os.X_OK):
        raise _as_user_error(PermissionError(errno.EACCES, f"no permission in {there}"), folder)


def _as_user_error(error: OSError, path: Path) -> UserError:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return UserError(f"The disk is full: {path} was not written. Free some space and go on.")
    return UserError(f"Cannot write {path}: {error.strerror or error}. Choose another place.")
