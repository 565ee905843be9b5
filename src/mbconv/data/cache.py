"""What was learned about pictures, kept by content in the platform's cache folder.

Never beside the user's photographs. A cache that is broken, locked or cannot be written costs
time and nothing else.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path

import platformdirs

# The only names that `clear` touches: audits, indexes of shards, decoded pictures, downloads,
# marks of programs, how near threads were.
_OURS = (
    "audit-*.sqlite*", "shard-*.json", "pictures-*", "downloads/*/*", "sets/**/*", "exported/*",
    "threads-*.json",
)  # fmt: skip


def cache_dir() -> Path:
    """The folder for derived data; the environment variable MBCONV_CACHE names another."""
    override = os.environ.get("MBCONV_CACHE")
    return Path(override or platformdirs.user_cache_dir("mbconv", appauthor=False)).expanduser()


def clear() -> int:
    """Remove the files that mbconv keeps in the cache folder; return the bytes freed."""
    freed = 0
    found = [path for pattern in _OURS for path in cache_dir().glob(pattern)]
    for path in sorted(found, reverse=True):  # what a folder holds before the folder
        try:
            if path.is_dir():
                path.rmdir()
                continue
            size = path.stat().st_size
            path.unlink()
        except OSError:
            continue  # another process has it open, or removed it
        freed += size
    return freed


class Store:
    """Content hash -> text and bytes, in SQLite. Any error turns it off for this process.

    `version` is part of the file's name: what another version wrote is not read. Safe in threads.
    """

    def __init__(self, version: str) -> None:
        self._lock = threading.Lock()
        self._path = cache_dir() / f"audit-{version}.sqlite"
        self._db: sqlite3.Connection | None = None
        # Errors that are let pass: a locked file, a folder that cannot be written.
        with contextlib.suppress(sqlite3.OperationalError, OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._db = self._open()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:  # no database, or a damaged one: begin a new one
                self._path.unlink()
                self._db = self._open()

    def get(self, key: bytes) -> tuple[str, bytes | None] | None:
        """The row of a key, or None."""
        with self._lock:
            if self._db is None:
                return None
            try:
                found = self._db.execute("SELECT text, data FROM entry WHERE key = ?", (key,))
                row: tuple[str, bytes | None] | None = found.fetchone()
                return row
            except sqlite3.Error as error:
                self._fail(error)
                return None

    def put(self, rows: Iterable[tuple[bytes, str, bytes | None]]) -> None:
        """Keep rows of (key, text, bytes)."""
        with self._lock:
            if self._db is None:
                return
            try:
                with self._db:
                    self._db.executemany("INSERT OR REPLACE INTO entry VALUES (?, ?, ?)", rows)
            except sqlite3.Error as error:
                self._fail(error)

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=1.0, check_same_thread=False)
        try:
            with db:
                db.execute(
                    "CREATE TABLE IF NOT EXISTS entry "
                    "(key BLOB PRIMARY KEY, text TEXT NOT NULL, data BLOB) WITHOUT ROWID"
                )
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _fail(self, error: sqlite3.Error) -> None:
        self._stop()
        if not isinstance(error, sqlite3.OperationalError):  # damaged: the next run begins anew
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _stop(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None
