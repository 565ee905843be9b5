"""The cache: in its place, found again, and never in the way."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import platformdirs
import pytest

from mbconv.data.cache import Store, cache_dir, clear

ROW = (b"key", "text", b"\0\xff")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MBCONV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(version: str, key: bytes) -> tuple[str, bytes | None] | None:
    with closing(Store(version)) as store:
        return store.get(key)


def test_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == folder
    monkeypatch.delenv("MBCONV_CACHE")
    assert cache_dir() == Path(platformdirs.user_cache_dir("mbconv", appauthor=False))


def test_rows_are_found_by_the_next_store() -> None:
    store = Store("1")
    assert store.get(b"key") is None
    store.put([ROW, (b"other", "", None)])
    store.put([ROW])  # again
    store.close()
    assert kept("1", b"key") == ROW[1:]
    assert kept("1", b"other") == ("", None)
    assert kept("2", b"key") is None


def test_clear_removes_nothing_of_the_users(folder: Path) -> None:
    store = Store("1")
    store.put([ROW])
    store.close()
    (folder / "photo.jpg").write_bytes(b"precious")
    assert clear() > 4096
    assert [path.name for path in folder.iterdir()] == ["photo.jpg"]
    assert clear() == 0


def test_clear_without_a_cache() -> None:
    assert clear() == 0


def test_a_damaged_file_is_begun_anew(folder: Path) -> None:
    folder.mkdir()
    for content in (b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000):
        (folder / "audit-1.sqlite").write_bytes(content)
        store = Store("1")
        store.put([ROW])
        assert store.get(b"key") == ROW[1:]
        store.close()


def test_damage_inside_the_file_costs_only_the_cache(folder: Path) -> None:
    store = Store("1")
    store.put([(bytes([i]) * 20, "x" * 200, b"y" * 1000) for i in range(200)])
    store.close()
    path = folder / "audit-1.sqlite"
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    store = Store("1")
    for i in range(200):
        assert store.get(bytes([i]) * 20) is None
    store.put([ROW])
    with closing(Store("1")) as store:  # the damaged file was removed
        store.put([ROW])
        assert store.get(b"key") == ROW[1:]


def test_a_locked_file_is_passed_over(folder: Path) -> None:
    store = Store("1")
    store.put([ROW])
    store.close()
    other = sqlite3.connect(folder / "audit-1.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    store = Store("1")
    store.put([(b"new", "", None)])
    assert store.get(b"key") is None
    other.execute("ROLLBACK")
    other.close()
    assert kept("1", b"key") == ROW[1:]  # the lock's owner kept its file


def test_a_folder_that_cannot_be_made(folder: Path) -> None:
    folder.write_text("a file in its place")
    store = Store("1")
    store.put([ROW])
    assert store.get(b"key") is None
    store.close()


def test_threads_share_a_store() -> None:
    store = Store("1")

    def work(part: int) -> None:
        for i in range(10):
            store.put([(bytes([part, i]), str(i), None)])
            assert store.get(bytes([part, i])) == (str(i), None)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(store.get(bytes([p, i])) == (str(i), None) for p in range(4) for i in range(10))
    store.close()
