"""Downloads: whole or not at all, gone on with, checked, with one sentence for what went wrong."""

import hashlib
import threading
from pathlib import Path

import fsspec
import pytest

from file_server import served
from mbconv.data import download as download_module
from mbconv.data.download import cached, download
from mbconv.errors import UserError

CONTENT = bytes(range(256)) * 4000  # about a megabyte


@pytest.fixture(autouse=True)
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_whole_and_checked(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    with served({"/a.bin": CONTENT}) as server:
        target = tmp_path / "deep" / "a.bin"
        url = f"{server.url}/a.bin"
        download(url, target, md5=md5(CONTENT), progress=lambda *x: told.append(x), what="a")
        download(url, target)  # it is there
        assert len(server.log) == 1
    assert target.read_bytes() == CONTENT
    assert told[-1] == ("a", len(CONTENT), len(CONTENT))
    assert not list(tmp_path.rglob("*.part*"))


def test_broken_off_and_taken_up(tmp_path: Path) -> None:
    with served({"/a.bin": CONTENT}) as server:
        server.cut = 2
        download(f"{server.url}/a.bin", tmp_path / "a.bin", md5=md5(CONTENT))
        half = len(CONTENT) // 2
        assert server.log == [
            "/a.bin", f"/a.bin bytes={half}-", f"/a.bin bytes={half + half // 2}-"
        ]  # fmt: skip
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_later_command_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with served({"/a.bin": CONTENT}) as server:
        server.cut = 3
        with pytest.raises(UserError, match=r"broke off 3 times.*again to go on"):
            download(f"{server.url}/a.bin", target)
        assert not target.exists()
        have = (tmp_path / "a.bin.part").stat().st_size
        assert have > len(CONTENT) // 2
        download(f"{server.url}/a.bin", target, md5=md5(CONTENT))
        assert server.log[-1] == f"/a.bin bytes={have}-"


def test_other_content_or_no_ranges_begin_anew(tmp_path: Path) -> None:
    for ranges in (True, False):
        target = tmp_path / f"{ranges}.bin"
        with served({"/a.bin": CONTENT}) as server:
            server.cut = 3
            with pytest.raises(UserError, match="broke off"):
                download(f"{server.url}/a.bin", target)
            server.ranges = ranges
            if ranges:
                server.files["/a.bin"] = CONTENT[::-1]
            download(f"{server.url}/a.bin", target)
            assert target.read_bytes() == server.files["/a.bin"]


def test_a_part_longer_than_the_file_begins_anew(tmp_path: Path) -> None:
    with served({"/a.bin": CONTENT}) as server:
        server.cut = 3
        with pytest.raises(UserError, match="broke off"):
            download(f"{server.url}/a.bin", tmp_path / "a.bin")
        (tmp_path / "a.bin.part").write_bytes(CONTENT * 2)
        download(f"{server.url}/a.bin", tmp_path / "a.bin", md5=md5(CONTENT))


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path) -> None:
    words = f"its MD5 is {md5(CONTENT)}, not {'0' * 32}"
    with served({"/a.bin": CONTENT}) as server, pytest.raises(UserError, match=words):
        download(f"{server.url}/a.bin", tmp_path / "a.bin", md5="0" * 32)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("a.bin.part")]
    assert not (tmp_path / "a.bin").exists()


def test_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.bin"
    with served({}) as server, pytest.raises(UserError, match="the server answered 404"):
        download(f"{server.url}/a.bin", target)
    with pytest.raises(UserError, match=r"could not be downloaded \(.*refused"):
        download(f"{server.url}/a.bin", target)  # it has gone
    with pytest.raises(UserError, match="could not be downloaded"):
        download("nonsense://host/a.bin", target)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="--offline"):
        download(f"{server.url}/a.bin", target)


def test_other_schemes_go_through_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fsspec.open("memory://bucket/a.bin", "wb") as file:
        file.write(CONTENT)
    target = tmp_path / "a.bin"
    download("memory://bucket/a.bin", target)
    assert target.read_bytes() == CONTENT
    target.unlink()

    def broken(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download_module, "_CHUNK", 1000)
    with pytest.raises(KeyboardInterrupt):
        download("memory://bucket/a.bin", target, progress=broken)
    told: list[int] = []
    download("memory://bucket/a.bin", target, progress=lambda _, done, __: told.append(done))
    assert told[0] == 2000  # the first thousand was there
    assert target.read_bytes() == CONTENT
    with pytest.raises(UserError, match="could not be downloaded"):
        download("memory://bucket/none.bin", tmp_path / "none.bin")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(UserError, match=r"mbconv\[remote\]"):
        download("s3://bucket/a.bin", tmp_path / "a.bin")


def test_several_at_once_download_once(tmp_path: Path) -> None:
    with served({"/x/a.bin": CONTENT}) as server:
        paths: list[Path] = []

        def fetch() -> None:
            paths.append(cached(f"{server.url}/x/a.bin"))

        threads = [threading.Thread(target=fetch) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.log) == 1
    assert len(set(paths)) == 1
    assert paths[0].name == "a.bin"
    assert paths[0].read_bytes() == CONTENT
